"""`python -m tests.nasty`: every file of the nasty archive, accounted for; docs/nasty.md is written anew."""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.nasty import table
from tests.nasty.cases import all_cases, unpack
from tests.nasty.run import outcomes

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "nasty.md"


def main():
    """Judge all files and write the page; the exit status says whether there are faults."""
    options = arguments()
    data = Path(os.environ.get("WIDEFIELD_DATA", ROOT / "../shared/data")).resolve() / "nasty"
    if not data.is_dir():
        sys.exit(f"the nasty archive is not at {data}: set WIDEFIELD_DATA")
    cases = [case for case in all_cases(data) if not options.files or case.path in options.files]
    with tempfile.TemporaryDirectory() as folder:
        files, found = unpack(data, Path(folder) / "files", options.files), []
        for outcome in outcomes(cases, files, Path(folder) / "work", engine=options.engine, trust=options.trust):
            found.append(outcome)
            say(json.dumps(asdict(outcome)) if options.json else str(outcome))
    if not options.files and options.trust == "named":
        PAGE.write_text(table.page(cases, found), encoding="utf-8")
    return any(outcome.status == "fault" for outcome in found)


def say(line):
    """At once: whoever waits wants to see how far it is."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def arguments():
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.nasty")
    parser.add_argument("--engine", default="null", choices=["null", "torch"])
    parser.add_argument("--trust", default="named", choices=["named", "untrusted"])
    parser.add_argument("--json", action="store_true", help="one line of JSON for each file")
    parser.add_argument("files", nargs="*", help="as named in expected.csv; all if none is named")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
