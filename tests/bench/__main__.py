"""`python -m tests.bench [NAME]`: Markdown on stdout, figures with their machine in runs/bench.json."""

import sys

from tests.bench import against, archive, cog, disk, engine, halo, memory, outside

BENCHES = {
    "monai": against.run,
    "engine": engine.run,
    "outside": outside.run,
    "cog": cog.run,
    "disk": disk.run,
    "archive": archive.run,
    "memory": memory.run,
    "halo": halo.run,
}


def main():
    """Run one benchmark, or all."""
    wanted, *arguments = sys.argv[1:] or ["all"]
    if wanted not in {*BENCHES, "all"}:
        sys.exit(f"there is no benchmark '{wanted}': {', '.join(BENCHES)} or all")
    for name in BENCHES if wanted == "all" else [wanted]:
        sys.stdout.write(f"\n## {name}\n\n{BENCHES[name](*arguments)}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
