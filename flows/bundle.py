"""`widefield bundle`: making a bundle of somebody else's network, and what a bundle holds."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.options import bundle_folder, existing
from flows.show import err, out, plain, rows, say
from pipeline.errors import OutputError, UsageError

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.spec import ModelSpec

OneJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]

bundle = typer.Typer(
    no_args_is_help=True,
    help="Make a bundle of another network, or see what one holds.",
    epilog="Examples: `widefield bundle import --onnx model.onnx --spec spec.yaml --out roofs --probes scene.tif` · "
    "`widefield bundle show roofs`",
)


@bundle.command(
    "import",
    epilog="Example: `widefield bundle import --onnx model.onnx --spec spec.yaml --out roofs --probes scene.tif`",
)
def import_(
    *,
    spec: Annotated[Path, typer.Option(help="What you know of it, YAML: name, licence, bands, classes, activation.")],
    folder: Annotated[Path, typer.Option("--out", help="New folder for the bundle.")],
    onnx: Annotated[Path | None, typer.Option(help="The network, as ONNX.")] = None,
    program: Annotated[Path | None, typer.Option(help="The network, as torch.export.save wrote it.")] = None,
    probes: Annotated[
        list[str] | None,
        typer.Option(help="A scene that it is for (may be repeated): the halo is measured on it, crops are kept."),
    ] = None,
    within: Annotated[
        float, typer.Option(min=0, max=1, help="Share of pixels near borders whose label a measured halo may change.")
    ] = 1e-4,
    memory: Annotated[float | None, typer.Option(help="GB that measuring the halo may take; what is free.")] = None,
    as_json: OneJson = False,
) -> None:
    """Make a bundle of a segmentation network that was trained elsewhere, with everything that the pipeline asks for.

    The network is tried: its axes, its stride, whether what it answers fits the classes. Its halo is measured on the
    scenes of --probes, unless the spec says one; a network that looks at the whole image at once is refused. Nothing
    that comes with the file is executed.
    """
    from models.importing import read_said
    from pipeline.importing import import_network
    from pipeline.scene import SceneAddress

    if (onnx is None) == (program is None):
        raise UsageError("name the network, as --onnx FILE or as --program FILE")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists already, and bundles never change: give a new folder")
    made = import_network(
        existing(onnx or program or Path(), "--onnx" if onnx else "--program"),
        read_said(existing(spec, "--spec")),
        folder,
        form="onnx" if onnx else "program",
        scenes=[SceneAddress(scene) for scene in probes or ()],
        within=within,
        memory=None if memory is None else int(memory * 1e9),
        tell=lambda line: err.print(plain(line), markup=False, highlight=False),
    )
    if as_json:
        print(json.dumps(_told(made)))
    else:
        say(f"bundle {made.digest[:12]} in {made.path}, halo {made.spec.halo}, tiles {_list(made.spec.tiles)}")


@bundle.command(epilog="Example: `widefield bundle show examples/bundles/buildings`")
def show(
    place: Annotated[
        Path, typer.Argument(metavar="BUNDLE", parser=bundle_folder, help="Folder of a bundle, or a registry.")
    ],
    *,
    as_json: OneJson = False,
) -> None:
    """Show what BUNDLE takes, what it gives, and where it comes from; every byte of it is verified."""
    from models.bundle import open_bundle

    opened = open_bundle(place)
    if as_json:
        print(json.dumps(_told(opened)))
        return
    spec = opened.spec
    facts = [("bundle", opened.digest), ("name", spec.name), ("network", _network(spec))]
    facts += [("bands", _list(f"{band.name} ({band.unit}, {band.low:g} to {band.high:g})" for band in spec.bands))]
    facts += [("pixels", _list(spec.dtypes)), ("classes", _list(f"{each.id} {each.name}" for each in spec.classes))]
    facts += [("planes", _list(spec.planes)), ("threshold", "-" if spec.threshold is None else f"{spec.threshold:g}")]
    facts += [("tiles", _list(spec.tiles)), ("halo", f"{spec.halo}"), ("stride", f"{spec.stride}")]
    facts += [("size", f"{opened.network.stat().st_size / 1e6:.1f} MB"), ("licence", spec.licence)]
    out.print(rows([*facts, ("from", spec.derived_from or "-")]))


def _told(opened: "Bundle") -> dict[str, Any]:
    return {"bundle": opened.digest, "path": str(opened.path), "spec": opened.spec.model_dump(mode="json")}


def _network(spec: "ModelSpec") -> str:
    plan = spec.imported
    if plan is None:
        kind = {"unet": "U-Net", "fpn": "FPN", None: "classifier"}[spec.trained.decoder]
        return f"{spec.trained.encoder}, width {spec.trained.width:g}, {kind}"
    fixed = [f"{plan.batch} images alone"] if plan.batch else []
    fixed += [f"{plan.edge} px alone"] if plan.edge else []
    answers = f"{plan.channels} channels of {plan.activation}, one in {plan.output_stride} px"
    return ", ".join(["imported ONNX graph", answers, *fixed])


def _list(values: Any) -> str:
    return ", ".join(map(str, values))
