"""Whether a scene is what a bundle was made for: its bands, type, radiometry and resolution."""

from dataclasses import replace

from models.spec import ModelSpec
from pipeline.errors import PlanError
from pipeline.georef import Georef
from pipeline.scene import Radiometry, Scene, SceneAddress

_COLOURS = ("red", "green", "blue")


def choose_bands(scene: Scene, spec: ModelSpec) -> SceneAddress:
    """The scene's address with the bands that the bundle needs, in the bundle's order.

    Bands are matched by name where the scene names all that the bundle wants, else taken in order if their number fits.
    A colour table is expanded where the bundle wants red, green and blue of it.

    Raises:
        PlanError: neither is the case, and the user did not choose.
    """
    wanted = [band.name.lower() for band in spec.bands]
    names = [name.lower() for name in scene.bands]
    if scene.address.bands is None and all(names.count(name) == 1 for name in wanted):
        return replace(scene.address, bands=tuple(scene.indexes[names.index(name)] for name in wanted))
    if len(names) == len(wanted):
        return scene.address
    if scene.colours and scene.address.bands is None and set(wanted) <= set(_COLOURS):
        return replace(scene.address, palette=True, bands=tuple(_COLOURS.index(name) + 1 for name in wanted))
    has = "has" if scene.address.bands is None else "was asked for"
    raise PlanError(
        f"{scene.address.path} {has} {len(names)} bands ({', '.join(scene.bands)}), bundle '{spec.name}' needs "
        f"{len(wanted)} ({', '.join(band.name for band in spec.bands)}): name them in that order, as in --bands 1,2,3"
    )


def check_fit(scene: Scene, spec: ModelSpec, *, any_resolution: bool) -> list[str]:
    """Whether a scene's pixels are what the bundle was made for; the notes say what could not be checked.

    Raises:
        PlanError: pixel type, radiometry or resolution do not fit.
    """
    notes: list[str] = []
    if scene.dtype not in spec.dtypes:
        raise PlanError(
            f"{scene.address.path} holds {scene.dtype}, bundle '{spec.name}' takes {', '.join(spec.dtypes)}: "
            "use a bundle that was trained on this type"
        )
    units = {band.unit for band in spec.bands} - {"DN"}
    if units and scene.dtype != "float32" and scene.radiometry == Radiometry.identity(len(scene.bands)):
        raise PlanError(
            f"{scene.address.path} does not say how its {scene.dtype} numbers become {', '.join(sorted(units))}: "
            "write scale and offset into the file (gdal_edit -scale -offset)"
        )
    if spec.resolution is None:
        return notes
    resolution = scene.georef.resolution(scene.height, scene.width)
    low, high = spec.resolution
    meant = lengths(low, high)
    if resolution is None:
        why = "nothing ties it to the ground" if scene.georef.placed else "the scene is not georeferenced"
        notes.append(f"resolution unknown: {why}; bundle '{spec.name}' is for {meant}")
    elif not low <= resolution <= high:
        if not any_resolution:
            raise PlanError(
                f"{scene.address.path} has pixels of {lengths(resolution)}, bundle '{spec.name}' is for {meant}: "
                "resample the scene, or insist with --any-resolution"
            )
        notes.append(f"pixels of {lengths(resolution)} lie outside the bundle's range {meant}")
    return notes


def lengths(*metres: float) -> str:
    """One length, or a range of them: `0.5 m`, `5-20 m`, on a slide `0.25-1 um`."""
    scale, unit = (1e6, "um") if max(metres) < 1e-3 else (1, "m")
    return "-".join(f"{value * scale:.3g}" for value in metres) + f" {unit}"


def place_notes(georef: Georef) -> list[str]:
    """What a user should know about where a scene lies, and what its areas rest on."""
    if georef.pixel_size is not None:
        rows, cols = (f"{size * 1e6:.4g}" for size in georef.pixel_size)
        return [f"the scene is not georeferenced: areas follow from its pixels of {rows} x {cols} um"]
    if not georef.placed:
        return ["the scene is not georeferenced: areas are given in pixels only"]
    if georef.resolution(1, 1) is None:
        return ["the CRS or the control points of the scene tie it to no ground: areas are given in pixels only"]
    if georef.transform is not None:
        return []
    by = f"a polynomial through its {len(georef.gcps)} control points" if georef.gcps else "its RPCs, at their height"
    return [f"the scene has no affine georeference: areas are by {by}"]


def cell_notes(spec: ModelSpec) -> list[str]:
    """What a user should know about counts where one pixel of the mask stands for many of the scene's."""
    if spec.cell == 1:
        return []
    return ["pixels, shares and areas of classes count the scene's valid pixels, not the squares of the mask"]


def radiometry_for(scene: Scene, spec: ModelSpec) -> Radiometry:
    """Scale and offset that turn stored numbers into the bundle's unit: the scene's, or none where that is `DN`."""
    identity = Radiometry.identity(len(spec.bands))
    used = scene.radiometry
    pairs = [(1.0, 0.0) if band.unit == "DN" else (used.scale[i], used.offset[i]) for i, band in enumerate(spec.bands)]
    return Radiometry(*map(tuple, zip(*pairs, strict=True))) if pairs else identity
