"""Class labels of a scene, found by its name and read by window like its pixels, whatever form they have.

<scene>-labels.geojson | .gpkg | .json | .fgb | .shp | .parquet    polygons of any CRS, each an object
<scene>-labels.tif | .png                                          a class raster
<scene>-objects/*.png, or <scene>/masks/*.png                      a mask an object
<scene>-aoi.geojson | ..., or a layer `aoi` of the GeoPackage      where labels hold: outside nobody has looked
origins.csv                                                        who made them
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import LabelError, SceneError
from pipeline.labelforms.base import IGNORE, PICTURES, RASTERS, TIFF, VECTORS, Labels, Labels8, Objects
from pipeline.labelforms.objects import PartedLabels, open_masks
from pipeline.labelforms.origin import TABLE, raster_origin, read_origins, worst
from pipeline.labelforms.polygons import WithinArea, open_polygons
from pipeline.labelforms.rasters import open_raster
from pipeline.labelforms.vectors import AREA_LAYER, layers, read_vectors
from pipeline.scene import Scene

__all__ = ["IGNORE", "Labels", "Labels8", "Objects"]

_LABELS, _OBJECTS, _MASKS, _AREA = "-labels", "-objects", "masks", "-aoi"
_COMPANIONS = (".shx", ".dbf", ".prj", ".cpg", ".tfw", ".tifw", ".pgw", ".wld", ".gpkg-wal")
"""Endings of files that belong to the one of the same stem."""


@dataclass(frozen=True, order=True)
class Labelled:
    """An image and its labels."""

    name: str
    """What the scene is called everywhere: the stem of its file."""
    image: Path
    labels: Path
    """A file, or a folder of one mask an object."""


def list_images(path: Path) -> list[Path]:
    """The images of a folder that are not labels, by name; or the one file that is given.

    Pictures are images only where there is no TIFF: beside one they are its quicklooks. Where the folder itself has
    neither, those in `<name>/images/` count, as in the archive of the 2018 Data Science Bowl.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file())
    for found in (files, sorted(path.glob("*/images/*"))):
        for kinds in (TIFF, PICTURES):
            images = [file for file in found if file.suffix.lower() in kinds and not file.stem.endswith(_LABELS)]
            if images:
                return images
    raise SceneError(f"{path} holds no image: looked for {', '.join((*TIFF, *PICTURES))}")


def find_labels(image: Path, labels: Path) -> Path:
    """The labels of an image: `labels` itself if it is a file, else what that folder has of the image's name."""
    if labels.is_file():
        return labels
    if not labels.is_dir():
        raise LabelError(f"{labels}: no such file or folder of labels")
    if labels.name == f"{image.stem}{_OBJECTS}":
        return labels
    folders = (labels / f"{image.stem}{_OBJECTS}", labels / image.stem / _MASKS)
    names = [f"{image.stem}{_LABELS}{suffix}" for suffix in (*VECTORS, *RASTERS)]
    names += [f"{image.stem}{suffix}" for suffix in (*VECTORS, *TIFF)]
    found = [folder for folder in folders if folder.is_dir()]
    found += [labels / name for name in names if _other(labels / name, image)]
    if not found:
        raise LabelError(f"{labels} holds no labels of {image.name}: name them {names[0]} or {image.stem}-labels.tif")
    return found[0]


def _other(file: Path, image: Path) -> bool:
    """Whether there is such a file, which is not the image."""
    return file.is_file() and not (image.exists() and file.samefile(image))


def labelled(images: Path, labels: Path) -> tuple[list[Labelled], list[Path]]:
    """The images that have labels, with them, and the images that have none; both by name.

    Raises:
        LabelError, SceneError: a folder is missing or holds no image.
    """
    if not labels.exists():
        raise LabelError(f"{labels}: no such file or folder of labels")
    pairs, bare = [], []
    for image in list_images(images):
        try:
            pairs.append(Labelled(image.stem, image, find_labels(image, labels)))
        except LabelError:
            bare.append(image)
    return sorted(pairs), sorted(bare)


def open_labels(
    path: Path,
    scene: Scene,
    classes: Sequence[str],
    attribute: str | None = None,
    *,
    boundary: int | None = None,
    objects: Sequence[int] = (),
) -> Labels:
    """Labels of `scene` from a class raster, from polygons, or from a folder of one mask an object.

    `classes` are names in the order of their ids. `attribute` names the polygons' field that holds a class name or
    id, `class` if there is one; without it every polygon is of the one class beside 0 and `boundary`. In any case
    class 0 is where no polygon is. `boundary` is the id of the class for those pixels of objects that are near another
    one; `objects` are the ids of the classes whose things are objects, if it is not all but 0 and `boundary`.

    Raises:
        LabelError: labels of another place, an unknown class, or a file that cannot be read.
    """
    labels = _open(path, scene, classes, attribute, boundary)
    if boundary is not None:
        kinds = tuple(objects) or tuple(index for index in range(1, len(classes)) if index != boundary)
        labels = PartedLabels(labels, boundary, kinds, (scene.height, scene.width))
    area = find_area(path, scene_name(scene))
    if area is None:
        return labels
    return WithinArea(labels, open_polygons(read_vectors(area[0], layer=area[1]), scene, None))


def _open(path: Path, scene: Scene, classes: Sequence[str], attribute: str | None, boundary: int | None) -> Labels:
    if path.is_dir():
        return open_masks(path, scene)
    if not path.is_file():
        raise LabelError(f"{path}: no such labels")
    if path.suffix.lower() in RASTERS:
        return open_raster(path, scene, len(classes))
    return open_polygons(read_vectors(path, attribute), scene, classes, boundary)


def scene_name(scene: Scene) -> str:
    """What chips and reports call a scene: the stem of its file."""
    return Path(scene.address.path).stem


def has_objects(path: Path) -> bool:
    """Whether labels come as objects."""
    return path.is_dir() or path.suffix.lower() in VECTORS


def find_area(path: Path, name: str | None = None) -> tuple[Path, str | None] | None:
    """The file, and its layer, with the area in which the labels of the scene `name` hold; None: they hold everywhere.

    Without a `name`, that which the labels' own name says.
    """
    for suffix in VECTORS:
        file = _place(path) / f"{name or subject_of(path)}{_AREA}{suffix}"
        if file.is_file():
            return file, None
    return (path, AREA_LAYER) if path.is_file() and AREA_LAYER in layers(path) else None


def origin_of(path: Path, name: str | None = None, attribute: str | None = None) -> str:
    """Who made the labels of the scene `name`: `drawn`, `corrected` or `model`.

    `origins.csv` beside the labels decides; else the worst of the polygons' field `origin`, the raster's tag of that
    name, or whether this project published the raster; else they are drawn.

    Raises:
        LabelError: an origin is none of these words, or the file cannot be read.
    """
    table = _place(path) / TABLE
    if table.is_file() and (said := read_origins(table).get(name or subject_of(path))):
        return said
    if path.is_dir():
        return worst((), path)
    if path.suffix.lower() in RASTERS:
        return raster_origin(path)
    return worst(read_vectors(path, attribute).origins, path)


def label_files(path: Path, name: str | None = None) -> list[Path]:
    """All files that make up the labels of the scene `name`: with companions, masks of objects, the area."""
    files = list(_own_files(path))
    area = find_area(path, name)
    if area is not None and area[0] != path:
        files += _own_files(area[0])
    return files


def label_fingerprint(path: Path, name: str | None = None) -> str:
    """SHA-256 over the content of `label_files` and their endings.

    Raises:
        LabelError: a file went away, or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for file in label_files(path, name):
            facts = file.stat()
            content = _content(file, (facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size))
            digest.update(f"{file.suffix}\0".encode() + content)
    except OSError as error:
        raise LabelError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


@functools.lru_cache(maxsize=2**17)
def _content(file: Path, _: tuple[int, ...]) -> bytes:
    """SHA-256 of a file, read once while it is the same: one may be that of many scenes, and somebody may look again
    and again.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _own_files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.iterdir() if file.suffix.lower() == ".png")
        return
    yield path
    beside = [path.with_suffix(suffix) for suffix in _COMPANIONS]
    beside += [path.with_name(f"{path.name}{suffix}") for suffix in (".aux.xml", ".msk")]
    yield from (file for file in beside if file.is_file())


def _place(path: Path) -> Path:
    """The folder in which labels lie."""
    return path.parent.parent if path.is_dir() and path.name == _MASKS else path.parent


def subject_of(path: Path) -> str:
    """The scene that labels are named after."""
    if path.is_dir() and path.name == _MASKS:
        return path.parent.name
    stem = path.name if path.is_dir() else path.stem
    return stem.removesuffix(_LABELS).removesuffix(_OBJECTS)
