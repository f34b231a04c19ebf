"""`python -m tests.bench [memory|speed|halo|all]`: Markdown on stdout, figures in runs/bench.json."""

import sys

from tests.bench import halo, memory, speed

BENCHES = {"memory": memory.run, "speed": speed.run, "halo": halo.run}


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
