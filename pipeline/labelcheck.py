"""What labels hold, and what is suspicious about them, before anything is trained on them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.chipsources import unlike
from pipeline.errors import LabelError, SceneError
from pipeline.grid import Window
from pipeline.labelforms.base import IGNORE, RASTERS, VECTORS, Labels
from pipeline.labelforms.objects import PartedLabels
from pipeline.labelforms.polygons import WithinArea
from pipeline.labelforms.rasters import WarpedLabels, misalignment
from pipeline.labelreport import EVERYWHERE, ClassTotal, LabelReport, Problem, SceneLabels
from pipeline.labels import find_labels, list_images, open_labels, origin_of, subject_of
from pipeline.legend import check_classes, object_ids
from pipeline.polygoncheck import PolygonChecks
from pipeline.scene import Scene, SceneAddress, open_scene
from pipeline.statistics import class_sums

_WINDOW = 2048
"""Edge of the squares in which labels are read, in pixels."""


@dataclass
class _Sums:
    """What one scene adds up to."""

    pixels: Counter[int] = field(default_factory=Counter)
    areas: dict[int, float] = field(default_factory=dict)
    objects: dict[int, set[int]] | None = None
    """Numbers of the objects of each class."""


@dataclass(frozen=True)
class _Facts:
    image: Path
    bands: tuple[str, ...]
    dtype: str


@dataclass(frozen=True)
class _Checker:
    classes: tuple[str, ...]
    attribute: str | None
    bands: tuple[int, ...] | None
    boundary: int | None
    objects: tuple[int, ...]
    polygons: PolygonChecks
    facts: list[_Facts] = field(default_factory=list)
    sums: dict[str, _Sums] = field(default_factory=dict)
    scenes: list[SceneLabels] = field(default_factory=list)

    def scene(self, image: Path, labels: Path) -> Iterator[Problem]:
        """Looks at one scene; whatever is wrong with it, others go on."""
        name = image.stem
        try:
            with open_scene(SceneAddress(str(image), bands=self.bands)) as scene:
                self.facts.append(_Facts(image, scene.bands, scene.dtype))
                found = find_labels(image, labels)
                problems = list(self.polygons.look(found, scene, name))
                yield from problems
                if not any(problem.level == "error" for problem in problems):
                    yield from self._content(found, scene)
        except (LabelError, SceneError) as error:
            yield Problem("error", name, str(error))

    def _content(self, path: Path, scene: Scene) -> Iterator[Problem]:
        labels = open_labels(path, scene, self.classes, self.attribute, boundary=self.boundary, objects=self.objects)
        name = Path(scene.address.path).stem
        inner = _unwrapped(labels)
        if isinstance(inner, WarpedLabels):
            off = "has another CRS than" if inner.to_raster else f"lies {misalignment(inner, scene):.2g} pixels off"
            yield Problem("warning", name, f"{path} {off} the grid of the scene: its pixels are warped to the nearest")
        sums = _add_up(labels, _unparted(labels), scene)
        origin = origin_of(path, name, self.attribute)
        self.sums[name] = sums
        occurring = {self.classes[index]: count for index, count in sorted(sums.pixels.items())}
        self.scenes.append(SceneLabels(name, str(path), origin, occurring))
        if path.is_dir() and not any(path.glob("*.png")):
            yield Problem("warning", name, f"{path} is empty: it has no mask of an object")
        if not occurring:
            yield Problem("warning", name, f"{path} labels no pixel of the scene")
        elif len(occurring) == 1 and len(self.classes) > 1:
            yield Problem("warning", name, f"{path} is all of one class: {next(iter(occurring))}")

    def totals(self) -> Iterator[ClassTotal]:
        for index, name in enumerate(self.classes):
            own = {scene: sums for scene, sums in self.sums.items() if sums.pixels[index]}
            placed = [sums.areas for sums in self.sums.values() if sums.areas]
            counted = [sums.objects for sums in self.sums.values() if sums.objects is not None]
            yield ClassTotal(
                index,
                name,
                sum(sums.pixels[index] for sums in own.values()),
                sum(areas.get(index, 0.0) for areas in placed) if placed else None,
                sum(len(found.get(index, ())) for found in counted) if counted and index else None,
                tuple(sorted(own)),
            )


def check_labels(
    images: Path,
    labels: Path,
    *,
    classes: Sequence[str],
    attribute: str | None = None,
    bands: Sequence[int] | None = None,
    boundary: str | None = None,
    objects: Sequence[str] | None = None,
    unlabelled: bool = False,
) -> LabelReport:
    """Looks at all labels as training would; one bad file does not stop it.

    With `unlabelled`, scenes without labels are no error but left out.

    Raises:
        LabelError, SceneError: there are no labels or no images at all, or the names of the classes, of `boundary` and
            of `objects` are not as `write_chips` wants them.
    """
    if not labels.exists():
        raise LabelError(f"{labels}: no such file or folder of labels")
    check_classes(classes)
    parts, kinds = object_ids(classes, boundary, objects)
    polygons = PolygonChecks(tuple(classes), attribute, parts)
    checker = _Checker(tuple(classes), attribute, tuple(bands) if bands else None, parts, kinds or (), polygons)
    found = list_images(images)
    problems = [*_twice(found), *_orphans(found, labels)]
    for image in found:
        if not (unlabelled and _bare(image, labels)):
            problems += checker.scene(image, labels)
    problems += polygons.of_files()
    problems += [
        Problem("error", facts.image.stem, what)
        for facts in checker.facts[1:]
        if (what := unlike(checker.facts[0], facts))
    ]
    totals = tuple(checker.totals())
    if not any(problem.level == "error" for problem in problems):
        problems += _of_all(totals)
    return LabelReport(totals, tuple(checker.scenes), tuple(problems))


def _of_all(totals: Sequence[ClassTotal]) -> list[Problem]:
    missing = [total.name for total in totals if not total.pixels]
    if len(missing) == len(totals):
        return [Problem("error", EVERYWHERE, "no scene has a labelled pixel")]
    return [Problem("warning", EVERYWHERE, f"the class {name} never occurs") for name in missing]


def _bare(image: Path, labels: Path) -> bool:
    try:
        find_labels(image, labels)
    except LabelError:
        return True
    return False


def _twice(images: Sequence[Path]) -> Iterator[Problem]:
    counts = Counter(image.stem for image in images)
    for name in sorted(name for name, count in counts.items() if count > 1):
        yield Problem("error", name, f"two images have one name, {name}: chips tell scenes by name")


def _orphans(images: Iterable[Path], labels: Path) -> Iterator[Problem]:
    """Labels that are named after no image."""
    names = {image.stem for image in images}
    for path in sorted(labels.iterdir()) if labels.is_dir() else ():
        named = path.stem.endswith("-labels") and path.suffix.lower() in (*VECTORS, *RASTERS)
        if (named or (path.is_dir() and path.name.endswith("-objects"))) and subject_of(path) not in names:
            yield Problem("warning", subject_of(path), f"{path} has no image of that name")


def _unwrapped(labels: Labels) -> Labels:
    """The labels as they were read from their file."""
    while isinstance(labels, PartedLabels | WithinArea):
        labels = labels.labels
    return labels


def _unparted(labels: Labels) -> Labels:
    """The same without a class that parts objects."""
    if isinstance(labels, WithinArea):
        return WithinArea(_unparted(labels.labels), labels.area)
    return labels.labels if isinstance(labels, PartedLabels) else labels


def _add_up(labels: Labels, whole: Labels, scene: Scene) -> _Sums:
    """Pixels and areas of `labels`, and the objects of the classes of `whole`, in which none is parted."""
    sums, areas = _Sums(), Counter[int]()
    for row in range(0, scene.height, _WINDOW):
        for col in range(0, scene.width, _WINDOW):
            window = Window(row, col, min(_WINDOW, scene.height - row), min(_WINDOW, scene.width - col))
            pixels, square_metres = class_sums(labels.read(window), window, scene.georef)
            sums.pixels.update(pixels)
            areas.update(square_metres)
            _count_objects(sums, whole, window)
    sums.areas = dict(areas)
    return sums


def _count_objects(sums: _Sums, labels: Labels, window: Window) -> None:
    objects = labels.objects(window)
    if objects is None:
        return
    sums.objects = sums.objects or {}
    inside = objects > 0
    for number in np.unique(objects[inside].astype(np.int64) * (IGNORE + 1) + labels.read(window)[inside]):
        sums.objects.setdefault(int(number) % (IGNORE + 1), set()).add(int(number) // (IGNORE + 1))
