"""`widefield registry`: which models there are, who is champion and since when, and changing it."""

import getpass
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from flows.show import out, plain, rows, say

if TYPE_CHECKING:
    from models.champions import Champion
    from models.registry import Entry, Registry

SHORT = 12
"""Digits of a digest that people are shown."""

Place = Annotated[
    str, typer.Argument(metavar="REGISTRY", help="Folder of the registry, or its address, as in s3://bucket/models.")
]
Digest = Annotated[str, typer.Argument(metavar="BUNDLE", help="Digest of a bundle, or its first digits.")]
AnyDigest = Annotated[
    str | None, typer.Argument(metavar="[BUNDLE]", help="The same; the champion and its history if not given.")
]
By = Annotated[str | None, typer.Option(help="Who decides; the name of this user if not given.")]
Why = Annotated[str, typer.Option(help="The reason, which stays in the history.")]
OneJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]

registry = typer.Typer(
    no_args_is_help=True,
    help="Which models there are, who is champion, and changing it.",
    epilog="Examples: `widefield registry list models` · `widefield registry rollback models --why clouds`",
)


@registry.command("list", epilog="Example: `widefield registry list models`")
def listing(place: Place, *, as_json: OneJson = False) -> None:
    """List the bundles of REGISTRY, oldest first: what the gate said, who is champion, who waits for approval."""
    book = _open(place)
    entries, waiting = book.bundles(), {each.bundle for each in book.waiting()}
    if as_json:
        for entry in entries:
            print(json.dumps(asdict(entry) | {"waiting": entry.digest in waiting}))
        return
    table = Table("bundle", "name", "made", "from", "gate", "")
    for entry in entries:
        state = "champion" if entry.champion else "waits for approval" if entry.digest in waiting else ""
        made = (entry.created or "-").partition(".")[0]
        cells = (entry.digest[:SHORT], entry.name, made, _short(entry.derived_from), _verdict(entry), state)
        table.add_row(*(Text(plain(cell)) for cell in cells))
    out.print(table)


@registry.command(epilog="Examples: `widefield registry show models` · `widefield registry show models 3f2a`")
def show(
    place: Place,
    bundle: Annotated[
        str | None, typer.Argument(metavar="[BUNDLE]", help="Digest of a bundle, or its first digits.")
    ] = None,
    *,
    as_json: OneJson = False,
) -> None:
    """Show the champion of REGISTRY, all who were it before, and what became of labels; or a BUNDLE and its gate."""
    book = _open(place)
    if bundle is None:
        _show_champion(book, as_json=as_json)
    else:
        _show_bundle(book, bundle, as_json=as_json)


@registry.command(epilog="Example: `widefield registry add models examples/bundles/buildings`")
def add(
    place: Place,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a trained model.")],
    *,
    as_json: OneJson = False,
) -> None:
    """Copy a BUNDLE into REGISTRY, which is made if it is not there. Nobody becomes champion by that."""
    from models.bundle import open_bundle
    from models.mlm import item
    from models.registry import open_registry

    opened = open_bundle(bundle)
    book = open_registry(place, create=True)
    book.add(opened, item=book.told(opened.digest, "item.json") or item(opened))
    if as_json:
        print(json.dumps({"bundle": opened.digest}))
    else:
        say(f"{opened.digest[:SHORT]} is in {book.place}")


@registry.command(epilog="Example: `widefield registry promote models 3f2a --why 'checked by hand'`")
def promote(place: Place, bundle: Digest, *, why: Why = "by hand", by: By = None, as_json: OneJson = False) -> None:
    """Make BUNDLE champion, whatever the gate said. The gate's own winners that wait want `approve`."""
    book = _open(place)
    champion = book.champion()
    seen = champion.digest if champion else None
    _tell(book.promote(book.find(bundle), by=_who(by), why=why, expected=seen), as_json=as_json)


@registry.command(epilog="Example: `widefield registry rollback models --why 'worse on clouds'`")
def rollback(place: Place, *, why: Why = "by hand", by: By = None, as_json: OneJson = False) -> None:
    """Undo the last promotion: the champion before takes over again. Once more undoes the one before that."""
    _tell(_open(place).rollback(by=_who(by), why=why), as_json=as_json)


@registry.command(epilog="Example: `widefield registry approve models 3f2a`")
def approve(place: Place, bundle: Digest, *, why: Why = "", by: By = None, as_json: OneJson = False) -> None:
    """Promote a BUNDLE that has won and waits for approval, unless the champion is another one since."""
    _tell(_open(place).approve(bundle, by=_who(by), why=why), as_json=as_json)


@registry.command(epilog="Example: `widefield registry decline models 3f2a --why 'labels were a mistake'`")
def decline(place: Place, bundle: Digest, *, why: Why, by: By = None, as_json: OneJson = False) -> None:
    """Refuse a BUNDLE that waits for approval; its labels count as answered."""
    book = _open(place)
    digest = book.find(bundle)
    book.decline(digest, by=_who(by), why=why)
    if as_json:
        print(json.dumps({"declined": digest}))
    else:
        say(f"{digest[:SHORT]} is declined")


@registry.command(epilog="Example: `widefield registry retry models 9c41 --why 'the disk was full'`")
def retry(
    place: Place,
    labels: Annotated[
        str, typer.Argument(metavar="LABELS", help="Fingerprint of labels as `show` lists it, or its first digits.")
    ],
    *,
    why: Why = "",
    by: By = None,
    as_json: OneJson = False,
) -> None:
    """Learn from LABELS again at the next look, although they were answered or training failed three times.

    Earlier failures count no more, and a challenger of theirs waits no longer. A training that was cancelled needs
    none of this: the next look tries it again. To have no more of it, take the labels away or pause the deployment.
    """
    outcome = _open(place).retry(labels, by=_who(by), why=why)
    if as_json:
        print(json.dumps({"labels": outcome.fingerprint}))
    else:
        say(f"labels {outcome.fingerprint[:SHORT]} are learnt from again at the next look")


def _open(place: str) -> "Registry":
    from models.registry import open_registry

    return open_registry(place)


def _who(by: str | None) -> str:
    if by:
        return by
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        return "unknown"


def _tell(champion: "Champion", *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(champion)))
    else:
        before = f", in the place of {_short(champion.replaced)}" if champion.replaced else ""
        say(f"{champion.digest[:SHORT]} is champion{before}")


def _show_champion(book: "Registry", *, as_json: bool) -> None:
    history, waiting, outcomes = book.history(), book.waiting(), book.outcomes()
    if as_json:
        told: dict[str, Any] = {"champion": asdict(history[-1]) if history else None}
        told |= {"history": [asdict(reign) for reign in history], "waiting": [asdict(each) for each in waiting]}
        told["outcomes"] = [
            asdict(each) | {"state": each.state, "settled": book.settled(each.fingerprint)} for each in outcomes
        ]
        print(json.dumps(told))
        return
    say(f"champion {history[-1].digest[:SHORT]}" if history else "there is no champion yet")
    if history:
        table = Table("since", "champion", "replaced", "by", "why")
        for reign in history:
            why = ("rolled back: " if reign.kind == "rollback" else "") + reign.why
            cells = (reign.since.partition(".")[0], reign.digest[:SHORT], _short(reign.replaced), reign.by, why)
            table.add_row(*(Text(plain(cell)) for cell in cells))
        out.print(table)
    if outcomes:
        table = Table("labels", "since", "state", "next look", "why")
        for outcome in outcomes:
            last, settled = outcome.attempts[-1], book.settled(outcome.fingerprint)
            again = "nothing" if settled else "learns"
            cells = (outcome.fingerprint[:SHORT], last.at.partition(".")[0], last.state, again, last.reason)
            table.add_row(*(Text(plain(cell)) for cell in cells))
        out.print(table)
    for each in waiting:
        say(f"{each.bundle[:SHORT]} waits for approval: {each.attempt.reason}")


def _show_bundle(book: "Registry", prefix: str, *, as_json: bool) -> None:
    digest = book.find(prefix)
    (entry,) = (entry for entry in book.bundles() if entry.digest == digest)
    gate, item = (book.told(digest, name) for name in ("gate.json", "item.json"))
    if as_json:
        print(json.dumps(asdict(entry) | {"gate": gate, "item": item}))
        return
    facts = [("bundle", digest), ("name", entry.name), ("made", entry.created or "-")]
    facts += [("from", entry.derived_from or "-"), ("champion", "yes" if entry.champion else "no")]
    out.print(rows([*facts, ("gate", _verdict(entry))]))
    for reason in (gate or {}).get("reasons", ()):
        say(f"  {reason}")


def _verdict(entry: "Entry") -> str:
    return {True: "accepted", False: "refused", None: "-"}[entry.accepted]


def _short(digest: str | None) -> str:
    return digest[:SHORT] if digest else "-"
