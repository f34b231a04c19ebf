"""`widefield labels`: what labels hold, and what is suspicious about them, before a training."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from flows.options import Attribute, existing, numbers
from flows.show import area, err, out, plain, say

if TYPE_CHECKING:
    from pipeline.labelreport import LabelReport

Boundary = Annotated[
    str | None,
    typer.Option(help="Class for the pixels of objects that lie near another object, to keep them apart."),
]

ObjectClasses = Annotated[
    list[str],
    typer.Option(
        "--object",
        help="Class whose connected things are objects, once for each; else all but class 0 and --boundary, if "
        "labels come as objects. With --boundary it is one class.",
    ),
]

labels = typer.Typer(
    no_args_is_help=True,
    help="Look at labels.",
    epilog="Example: `widefield labels check --images scenes --labels labels --class background --class building`",
)


@labels.callback()
def _group() -> None:
    """Look at labels before a training does."""


@labels.command(
    epilog="Examples: `widefield labels check --images scenes --labels scenes --class background --class building` · "
    "`widefield labels check --images nuclei --labels nuclei --class background --class nucleus --class rim "
    "--boundary rim --json`"
)
def check(
    *,
    images: Annotated[Path, typer.Option("--images", help="Folder of scenes, or one scene.")],
    place: Annotated[
        Path, typer.Option("--labels", help="Vector file, class raster, or a folder of them named after the scenes.")
    ],
    classes: Annotated[list[str], typer.Option("--class", help="Name of a class, once for each, 0 first.")],
    attribute: Attribute = None,
    boundary: Boundary = None,
    objects: ObjectClasses = [],  # noqa: B006 - typer copies it
    bands: Annotated[str | None, typer.Option(help="Bands of the files to train on, counted from 1.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Tell the area, objects and scenes of each class, and what is wrong or suspicious; exit 1 if training refuses."""
    from pipeline.labelcheck import check_labels

    report = check_labels(
        existing(images, "--images"),
        existing(place, "--labels"),
        classes=[text.partition("=")[0] for text in classes],
        attribute=attribute,
        bands=numbers(bands, "--bands", least=1),
        boundary=boundary,
        objects=objects or None,
    )
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        out.print(class_table(report))
        for line in report.lines():
            say(line)
    if report.errors:
        raise typer.Exit(1)


def class_table(report: "LabelReport") -> Table:
    """What there is of each class."""
    labelled = sum(total.pixels for total in report.classes)
    origins = sorted({scene.origin for scene in report.scenes})
    scenes = "1 scene" if len(report.scenes) == 1 else f"{len(report.scenes)} scenes"
    title = f"{scenes}, {labelled:,} labelled pixels, {' and '.join(origins) or 'nothing read'}"
    table = Table("class", "pixels", "share", "area", "objects", "scenes", title=title, title_justify="left")
    for total in report.classes:
        table.add_row(
            Text(plain(f"{total.id} {total.name}")),
            f"{total.pixels:,}",
            f"{total.pixels / labelled:.2%}" if labelled else "-",
            area(total.area_m2) or "-",
            "-" if total.objects is None else f"{total.objects:,}",
            str(len(total.scenes)),
        )
    return table


def caution(line: str) -> None:
    """One line on standard error."""
    err.print(f"widefield: {plain(line)}", style="yellow", markup=False, highlight=False, soft_wrap=True)
