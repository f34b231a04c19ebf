"""`widefield weights`: which public weights are known, and fetching them. Nothing else downloads any."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows.show import out, say, weights_table

OneJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts, one line a file.")]

weights = typer.Typer(
    epilog="Examples: `widefield weights --list` · `widefield weights get inception_v3.tv_in1k --out weights`",
)


@weights.callback(invoke_without_command=True)
def listing(
    context: typer.Context,
    *,
    everything: Annotated[bool, typer.Option("--list", help="List the files that are known.")] = False,
    as_json: OneJson = False,
) -> None:
    """List public weights of the Inception networks, or fetch one file of them (`get`).

    Only `weights get` downloads; where no checksum is known, it wants `--unverified`.
    """
    from models.published import PUBLISHED

    if context.invoked_subcommand:
        return
    if not everything:
        say(context.get_help())
    elif as_json:
        for entry in PUBLISHED.values():
            print(json.dumps(asdict(entry)))
    else:
        out.print(weights_table(list(PUBLISHED.values())))


@weights.command(
    epilog="Examples: `widefield weights get inception_v3.tv_in1k` · "
    "`widefield weights get inception_v4.tf_in1k --out weights --unverified`"
)
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of `widefield weights --list`.")],
    *,
    folder: Annotated[Path, typer.Option("--out", help="Folder for the file; made if missing.")] = Path("weights"),
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Take a file for which no checksum is known.")
    ] = False,
    as_json: OneJson = False,
) -> None:
    """Download the weights called NAME into OUT, unless they are there; nothing keeps the name if it is damaged."""
    from models.published import find
    from pipeline.download import fetch

    entry = find(name)
    fetched = fetch(entry, folder, unverified=unverified)
    if as_json:
        print(json.dumps(asdict(entry) | asdict(fetched) | {"path": str(fetched.path)}))
        return
    checked = f"as published ({entry.sha256}...)" if fetched.verified else "which nothing published confirms"
    say(f"{fetched.path}" + ("" if fetched.downloaded else " (was there)"))
    say(f"  sha256 {fetched.sha256}, {checked}; licence: {entry.licence}")
