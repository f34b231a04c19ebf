"""`make demo`: the main job on a real scene with the shipped bundle, as a flow under a Prefect server of its own."""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from flows.server import HOST, free_port, local_server
from flows.show import complain, out, say, summary
from pipeline.errors import UsageError, WidefieldError

ROOT = Path(__file__).resolve().parent.parent
SCENE = ROOT / "examples" / "scenes" / "catanduanes-val.tif"
BUNDLE = ROOT / "examples" / "bundles" / "buildings"
INTERRUPTED, TERMINATED = 130, 143
"""Exit statuses after Ctrl-C and SIGTERM, as shells expect them."""


def main() -> int:
    """Start the server, run the flow, show what came out, stop the server (or keep it, with --keep)."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that the server ends with us
    try:
        _demo(_arguments())
    except WidefieldError as error:
        complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows.demo", description=__doc__)
    parser.add_argument("--scene", type=Path, default=SCENE, help="GeoTIFF to segment")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="trained model to do it with")
    parser.add_argument("--out", type=Path, default=ROOT / "demo", help="folder for results and the server's data")
    parser.add_argument("--port", type=int, default=0, help="port of the server's page; 0 takes a free one")
    parser.add_argument("--keep", action="store_true", help="keep the server until Ctrl-C, to look at its page")
    return parser.parse_args()


def _demo(arguments: argparse.Namespace) -> None:
    for path in (arguments.scene, arguments.bundle):
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
    port = arguments.port or free_port()
    say(f"starting a Prefect server on http://{HOST}:{port} ...")
    with local_server(arguments.out / "prefect", port) as environment:
        say("running the flow segment-scene; the first time, the engine is compiled and compared with PyTorch ...")
        facts = _run_flow(arguments, environment)
        _show(facts, arguments.out / "masks" / arguments.scene.stem)
        if arguments.keep:
            say(f"the flow run and its page: http://{HOST}:{port}/runs (Ctrl-C stops the server)")
            while True:
                time.sleep(1)
    say("the server is stopped. To keep it and open its page: .venv/bin/python -m flows.demo --keep")


def _run_flow(arguments: argparse.Namespace, environment: dict[str, str]) -> dict[str, object]:
    """The facts that the flow returned.

    Raises:
        WidefieldError: it failed; its log has been shown.
    """
    parameters = {
        "scene": str(arguments.scene),
        "bundle": str(arguments.bundle),
        "out": str(arguments.out / "masks"),
        "options": {"stage": "always"},
    }
    done = subprocess.run(
        [sys.executable, "-m", "flows.segment"],
        input=json.dumps(parameters),
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )
    if done.returncode:
        raise WidefieldError("the flow failed: its log is above")
    facts: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return facts


def _show(facts: dict[str, object], folder: Path) -> None:
    out.print(summary(facts, folder))
    for path in sorted(folder.iterdir()):
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        say(f"  {shown}{'/' * path.is_dir()}")


if __name__ == "__main__":
    sys.exit(main())
