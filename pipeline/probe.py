"""Halo and tile by measurement: tiles against the whole image, and the speed of the engine over tiles and batches.

    crop of a scene ──► whole at once ─────────────────────┐
                   └──► tile by tile, for each halo ──► labels that differ near borders ──► the halo
    tiles x batches ──► seconds and memory of the real engine ──► the cheapest pixel that fits ──► the tile

What counts is the share of pixels near borders between cores, where a halo that is too small shows: the same pixels and
the same share as `pipeline.seams` asks of a result. In a mean over all pixels, larger tiles would hide it.

Both are properties of a model, so the choice goes into a new bundle of the same weights.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import psutil
from numpy.typing import NDArray

from models.bundle import Bundle, derived
from models.engines.base import Batch, EngineRequest, Planes
from models.engines.cache import Cache
from models.engines.prepare import prepare
from models.engines.speed import measure
from models.errors import EngineError
from models.spec import ModelSpec
from pipeline import resources
from pipeline.errors import PlanError, ProbeError
from pipeline.fit import check_fit, choose_bands, radiometry_for
from pipeline.grid import TileGrid, Window, near_borders, round_up
from pipeline.scene import Scene, SceneAddress, open_scene
from pipeline.seams import PROMISE, REACH, Counted

WITHIN = PROMISE
"""Share of pixels near borders whose label a halo may change."""
SEEN = 10
"""Labels that would have to differ before a halo is found wanting: a share of too few pixels says nothing."""
STEPS = (0, 1, 2, 3, 4, 6, 8, 12, 16)
"""Halos that are tried, in strides."""
FAR = 4
"""A tile and so many halos must fit into a crop: at its middle, nothing of its edges is felt."""
OFF, CERTAIN = 0.05, 254
"""Change of a confidence that is counted, and the stored value of certainty."""
HUSH = 1e-5
"""What a far pixel may change a logit by, in standard deviations of the logits: rounding alone makes 2e-6 of it."""
SPARE = 0.6
"""Share of the budget that the prediction of a crop may take, by what a small one took."""
LARGEST = 4096
"""Edge of the largest crop, in pixels: a larger one takes more time than it tells."""
SURVEYED = 1024
"""Edge of the part of it in which a far pixel is changed, in pixels: in a mean over more, it would hardly count."""
WIDE, STEADY = 768, 1.5
"""Edge of an image, in pixels, across which no network that can be tiled feels anything; in a smaller one it may, but
less from further away: by more than this from half of the image to three quarters of it."""
SAMPLE = 512
"""Edge of the image whose prediction tells how much memory larger ones take, in pixels."""
ENOUGH = 4
"""Halos that a tile must leave room for."""

Tell = Callable[[str], None]


class Whole(Protocol):
    """A network over images of any size (`models.engines.whole.Predictor`)."""

    def __call__(self, batch: Batch) -> Planes:
        """Planes (N, P, H, W)."""

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """(N, K, H, W)."""


@dataclass(frozen=True, eq=False)
class Crop:
    """A part of a scene in memory, taken for a scene of its own: its sides are multiples of the network's stride."""

    name: str
    pixels: NDArray[np.generic]
    """(C, H, W), in the scene's own type."""
    valid: NDArray[np.bool_]
    """(H, W)."""
    scale: NDArray[np.float32]
    offset: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.valid.shape[0], self.valid.shape[1]

    @property
    def window(self) -> Window:
        """All of it."""
        return Window(0, 0, *self.shape)

    def batch(self, window: Window) -> Batch:
        """A part of it, as one image."""
        pixels, valid = self.pixels[:, *window.slices], self.valid[window.slices]
        return Batch(np.ascontiguousarray(pixels)[None], np.ascontiguousarray(valid)[None], self.scale, self.offset)


@dataclass(frozen=True)
class HaloRow:
    """What one halo costs and gives."""

    tile: int
    halo: int
    near: Counted
    """Valid pixels at most `REACH` px from a border between cores; those whose label is not that of the whole image."""
    everywhere: Counted
    """The same of all valid pixels."""
    confidence: int
    """Of these, those whose confidence differs by more than `OFF`."""

    @property
    def share(self) -> float:
        """Of the pixels near borders, those whose label differs."""
        return self.near.share

    def keeps(self, within: float) -> bool:
        """Whether no more than this share differs, of enough pixels to tell."""
        return self.share <= within and self.near.pixels >= needed_for(within)

    @property
    def overhead(self) -> float:
        """Network pixels a scene pixel, far from a scene's rim."""
        return (self.tile / (self.tile - 2 * self.halo)) ** 2

    @property
    def cells(self) -> tuple[str, ...]:
        """For a table: tile, halo, shares of labels near borders, of all labels, of confidences, overhead."""
        off = self.confidence / max(self.everywhere.pixels, 1)
        shares = (percent(share) for share in (self.share, self.everywhere.share, off))
        return (str(self.tile), str(self.halo), *shares, f"{self.overhead:.2f}")

    def __add__(self, other: "HaloRow") -> "HaloRow":
        """Both together, of one tile and halo."""
        near, everywhere = self.near + other.near, self.everywhere + other.everywhere
        return HaloRow(self.tile, self.halo, near, everywhere, self.confidence + other.confidence)

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {**asdict(self), "share": self.share, "overhead": self.overhead}


@dataclass(frozen=True)
class Felt:
    """What one pixel of the deepest features, in the corner of an image, changes a logit by at most, in standard
    deviations of the logits.
    """

    half: float
    """In the quarter opposite of it."""
    far: float
    """In the sixteenth opposite of it."""
    edge: int
    """Longer side of the image, in pixels."""

    @property
    def verdict(self) -> Literal["local", "whole", "unknown"]:
        """Whether the network is local, or looks at the whole image; a small image may not tell."""
        if self.far <= HUSH:
            return "local"
        return "whole" if self.edge >= WIDE or self.half <= STEADY * self.far else "unknown"

    @property
    def problem(self) -> str | None:
        """Why this speaks against tiles, in one line; None if it does not."""
        change = f"a pixel changes logits {3 * self.edge // 4} px away by {self.far:.1e} of their spread"
        if self.verdict == "whole":
            return (
                f"{change}: the network looks at the whole image (pooling, normalisation or attention over it), and "
                "such a network cannot be tiled"
            )
        if self.verdict == "unknown":
            return (
                f"{change}: it may look at the whole image, or just see far, which {self.edge} px do not tell: give a "
                f"larger scene, of {WIDE} px at least"
            )
        return None


@dataclass(frozen=True)
class Halos:
    """What was found on all crops together."""

    rows: tuple[HaloRow, ...]
    """Ascending in halo; none if the network is not known to be local."""
    within: float
    felt: Felt

    @property
    def halo(self) -> int | None:
        """The smallest halo that keeps within the share near borders, as all larger ones do; None if not even the
        largest does.
        """
        found = None
        for row in reversed(self.rows):
            if not row.keeps(self.within):
                break
            found = row.halo
        return found

    @property
    def problem(self) -> str | None:
        """Why the network cannot be tiled, in one line; None if it can."""
        if self.felt.problem is not None:
            return self.felt.problem
        if self.halo is None:
            last, needed = self.rows[-1], needed_for(self.within)
            if last.near.pixels < needed:
                return (
                    f"{last.near.pixels:,} valid pixels lie within {REACH} px of borders between cores, a share of "
                    f"{percent(self.within)} shows on {needed:,} at least: give larger or more scenes, or allow more "
                    "with --within"
                )
            return (
                f"the halo does not converge: with {last.halo} px, {percent(last.share)} of labels within "
                f"{REACH} px of borders between cores still differ from those of the whole image, "
                f"{percent(self.within)} are allowed: probe on larger scenes, which leave room for larger halos, or "
                "allow more with --within"
            )
        return None

    def chosen(self) -> int:
        """The halo.

        Raises:
            ProbeError: the network cannot be tiled.
        """
        if self.problem is not None or self.halo is None:
            raise ProbeError(str(self.problem))
        return self.halo


def needed_for(within: float) -> int:
    """Pixels near borders that must be compared for a share; where none may differ, as many as by default."""
    return ceil(SEEN / (within or WITHIN))


@dataclass(frozen=True)
class SpeedRow:
    """What one tile and batch cost."""

    tile: int
    batch: int
    seconds: float
    """Of one tile, in a steady stream."""
    peak_bytes: int
    """Of a process that runs it."""

    def scene_seconds(self, halo: int) -> float:
        """Engine seconds of a million scene pixels, far from a scene's rim."""
        return self.seconds / (self.tile - 2 * halo) ** 2 * 1e6

    def cells(self, halo: int) -> tuple[str, ...]:
        """For a table: tile, batch, seconds, memory, seconds a megapixel."""
        figures = (f"{self.seconds:.3f}", f"{self.peak_bytes / 1e9:.2f} GB", f"{self.scene_seconds(halo):.3f}")
        return (str(self.tile), str(self.batch), *figures)

    def to_json(self, halo: int) -> dict[str, Any]:
        """For scripts."""
        return {**asdict(self), "seconds_per_megapixel": self.scene_seconds(halo)}


@dataclass(frozen=True)
class Probed:
    """All that was measured of a bundle, and what follows from it."""

    halos: Halos
    speeds: tuple[SpeedRow, ...]
    memory: int
    """Bytes that one worker's engine may take."""
    engine: str
    """What was timed."""

    @property
    def best(self) -> SpeedRow:
        """The cheapest scene pixel that fits.

        Raises:
            ProbeError: nothing fits.
        """
        halo = self.halos.chosen()
        fitting = [row for row in self.speeds if row.peak_bytes <= self.memory and row.tile > 2 * halo]
        if not fitting:
            raise ProbeError(
                f"no tile fits: with halo {halo}, tiles of {', '.join(str(row.tile) for row in self.speeds)} px take "
                f"{', '.join(f'{row.peak_bytes / 1e9:.1f} GB' for row in self.speeds)}, {self.memory / 1e9:.1f} GB are "
                "allowed: raise --memory"
            )
        return min(fitting, key=lambda row: row.scene_seconds(halo))

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        halos, best = self.halos, self.best
        return {
            "halos": [row.to_json() for row in halos.rows],
            "within": halos.within,
            "felt": asdict(halos.felt),
            "halo": halos.halo,
            "engine": self.engine,
            "memory": self.memory,
            "speeds": [row.to_json(halos.chosen()) for row in self.speeds],
            "tile": best.tile,
            "batch": best.batch,
        }

    def write(self, bundle: Bundle, folder: Path) -> Bundle:
        """A bundle of the same weights with the halo, and the tiles up to the best one.

        Raises:
            BundleError: the folder cannot be written.
        """
        halo, best = self.halos.chosen(), self.best
        tiles = [tile for tile in bundle.spec.tiles if 2 * halo < tile < best.tile]
        return derived(bundle, folder, halo=halo, tiles=(*tiles, best.tile), tile=best.tile)


def probe(
    bundle: Bundle,
    scenes: Sequence[SceneAddress],
    *,
    request: EngineRequest,
    within: float = WITHIN,
    memory: int | None = None,
    batches: Sequence[int] = (1,),
    tell: Tell = lambda _: None,
) -> Probed:
    """Measure halos on `scenes`, and the engine of `request` over the bundle's tiles and `batches`.

    Of `request`, the tile, the batch and the type are replaced. `memory` in bytes limits both a crop's prediction and
    the engine; what is free now, if not given. `tell` hears what is being done.

    Raises:
        ProbeError: the network cannot be tiled, or no tile fits.
        SceneError: a scene cannot be read, or does not fit the bundle, or all are too small.
        EngineError: no engine passes here.
    """
    budget = memory or resources.available_memory()
    halos = find_halo(bundle, scenes, within=within, memory=budget, threads=request.threads, tell=tell)
    if halos.problem is not None:
        return Probed(halos, (), budget, "")
    dtype = _dtype(scenes[0], bundle.spec)
    speeds, engine = _speeds(bundle, replace(request, dtype=dtype), batches, halos.chosen(), budget, tell=tell)
    return Probed(halos, speeds, budget, engine)


def find_halo(
    bundle: Bundle,
    scenes: Iterable[SceneAddress],
    *,
    within: float = WITHIN,
    memory: int | None = None,
    threads: int | None = None,
    tell: Tell = lambda _: None,
) -> Halos:
    """What halos cost on one crop of each scene, as large as memory allows; the bundle's own halo does not matter.

    Raises:
        SceneError: a scene cannot be read, or does not fit the bundle, or is too small.
    """
    from models.engines.whole import predictor

    fixed = bundle.spec.imported.edge if bundle.spec.imported else None
    if fixed is not None:
        raise ProbeError(
            f"the imported graph takes images of {fixed} px alone, so nothing can be predicted whole: state the halo, "
            "or export the graph with dynamic height and width"
        )
    whole = predictor(bundle, threads or resources.cores())
    edge = largest_crop(whole, bundle.spec, memory or resources.available_memory())
    crops = [crop_of(scene, bundle.spec, edge) for scene in scenes]
    return halos_of(whole, crops, bundle.spec, within=within, tell=tell)


def halos_of(
    whole: Whole, crops: Sequence[Crop], spec: ModelSpec, *, within: float = WITHIN, tell: Tell = lambda _: None
) -> Halos:
    """What halos cost on `crops`, all by the largest tile that leaves room for several of them; from the smallest halo
    on, until two after each other keep within the share.

    Raises:
        PlanError: a crop is too small for any tile and halo.
        ProbeError: the network is a classifier of squares, or sees but one class.
    """
    if spec.cell > 1:
        raise ProbeError("a classifier of squares has no halo: each square is predicted by itself")
    tile, halos = _setting(crops, spec, needed_for(within))
    felt = judged([influence(whole, crop, spec) for crop in crops])
    if felt.problem is not None:
        return Halos((), within, felt)
    everything = []
    for crop in crops:
        tell(f"{crop.name}: {crop.shape[0]} x {crop.shape[1]} px at once")
        everything.append(whole(crop.batch(crop.window))[0])
    _check_classes(crops, everything, spec)
    rows: list[HaloRow] = []
    for halo in halos:
        row = HaloRow(tile, halo, Counted(), Counted(), 0)
        for crop, planes in zip(crops, everything, strict=True):
            row += compared(whole, crop, planes, TileGrid(*crop.shape, tile, halo, spec.stride), spec)
        tell(f"tile {tile}, halo {halo}: {percent(row.share)} of labels near borders differ")
        rows.append(row)
        if len(rows) > 1 and all(each.keeps(within) for each in rows[-2:]):
            break
    return Halos(tuple(rows), within, felt)


def judged(found: Iterable[Felt]) -> Felt:
    """What decides about several images: one that shows a look at the whole, else one that shows that there is none."""
    return max(found, key=lambda felt: (("unknown", "local", "whole").index(felt.verdict), felt.far))


def _check_classes(crops: Sequence[Crop], everything: Sequence[Planes], spec: ModelSpec) -> None:
    at = spec.planes.index("labels")
    seen = {
        int(label)
        for crop, planes in zip(crops, everything, strict=True)
        for label in np.unique(planes[at][crop.valid])
    }
    if len(seen) < 2:
        told = ", ".join(f"{spec.classes[label].name}" for label in seen) or "no class: no pixel is valid"
        raise ProbeError(
            f"the network answers {told} on all crops, so that no halo can change anything: give scenes that show "
            "several classes"
        )


def _setting(crops: Sequence[Crop], spec: ModelSpec, needed: int) -> tuple[int, list[int]]:
    """The largest tile that leaves room for several halos in every crop, and the halos for it; smaller ones, whose
    borders are more, where fewer than `needed` pixels would lie near them.
    """
    edge = min(min(crop.shape) for crop in crops)
    found: list[tuple[int, int, list[int]]] = []
    for tile in sorted(spec.tiles, reverse=True):
        halos = [step * spec.stride for step in STEPS]
        fitting = [halo for halo in halos if tile + FAR * halo <= edge and 2 * halo < tile]
        if len(fitting) >= ENOUGH or (tile == spec.tiles[0] and len(fitting) > 1):
            near = _near(crops, tile, fitting[len(fitting) // 2], spec)
            found.append((min(near, needed), tile, fitting))
    if found:
        _, tile, halos = max(found)
        return tile, halos
    least = spec.tiles[0] + FAR * spec.stride
    raise PlanError(
        f"the smallest crop is {edge} px wide, tile {spec.tiles[0]} with its halos needs {least}: give larger scenes, "
        "or more memory"
    )


def _near(crops: Sequence[Crop], tile: int, halo: int, spec: ModelSpec) -> int:
    """Valid pixels near borders of cores."""
    grids = [TileGrid(*crop.shape, tile, halo, spec.stride) for crop in crops]
    return sum(
        int(np.count_nonzero(crop.valid & near_borders(grid.scene, grid.core, REACH, grid.scene)))
        for crop, grid in zip(crops, grids, strict=True)
    )


def compared(whole: Whole, crop: Crop, everything: Planes, grid: TileGrid, spec: ModelSpec) -> HaloRow:
    """The planes (P, H, W) of the whole crop against those of its tiles."""
    planes = dict(zip(spec.planes, tiled(whole, crop, grid), strict=True))
    wanted = dict(zip(spec.planes, everything, strict=True))
    labels = (planes["labels"] != wanted["labels"]) & crop.valid
    confidence = np.zeros_like(labels)
    if "confidence" in planes:
        change = planes["confidence"].astype(np.int16) - wanted["confidence"]
        confidence = (np.abs(change) > OFF * CERTAIN) & crop.valid
    near = near_borders(grid.scene, grid.core, REACH, grid.scene)
    borders, everywhere = _counted(crop.valid & near, labels & near), _counted(crop.valid, labels)
    return HaloRow(grid.tile, grid.halo, borders, everywhere, int(np.count_nonzero(confidence)))


def _counted(valid: NDArray[np.bool_], differ: NDArray[np.bool_]) -> Counted:
    return Counted(int(np.count_nonzero(valid)), int(np.count_nonzero(differ)))


def tiled(whole: Whole, crop: Crop, grid: TileGrid) -> Planes:
    """Planes (P, H, W) of a crop, tile by tile: each core is taken from its own tile."""
    planes: Planes | None = None
    for core in grid.cores(grid.scene):
        answer = whole(crop.batch(core.tile))[0]
        if planes is None:
            planes = np.empty((len(answer), *crop.shape), np.uint8)
        planes[:, *core.owned.slices] = answer[:, *core.kept.slices]
    assert planes is not None  # noqa: S101 - a crop is not empty
    return planes


def influence(whole: Whole, crop: Crop, spec: ModelSpec) -> Felt:
    """What a square of one stride in a crop's corner changes far away from it.

    Such a square is one pixel of the deepest features. The reach of convolutions fades with distance, long before the
    other end of a large crop; a pooling or a normalisation over the image, or attention, reaches everywhere.
    """
    edge = (spec.imported.edge if spec.imported else None) or SURVEYED
    window = Window(0, 0, *(min(length, edge) for length in crop.shape))
    before = crop.batch(window)
    after = replace(before, pixels=before.pixels.copy(), valid=before.valid.copy())
    after.valid[:, : spec.stride, : spec.stride] = True
    corner, seen = after.pixels[:, :, : spec.stride, : spec.stride], _seen(crop, window)
    low, high = seen.min(), seen.max()
    corner[...] = np.where(corner < low / 2 + high / 2, high, low)
    first, second = whole.logits(before), whole.logits(after)
    change, spread = np.abs(first - second), max(float(first.std()), 1e-12)
    half, far = (
        float(change[..., share * change.shape[2] // 4 :, share * change.shape[3] // 4 :].max()) / spread
        for share in (2, 3)
    )
    return Felt(half, far, max(window.height, window.width))


def _seen(crop: Crop, window: Window) -> NDArray[Any]:
    """Values of the valid pixels; of all where none is."""
    valid = crop.valid[window.slices]
    values: NDArray[Any] = crop.pixels[:, *window.slices][:, valid if valid.any() else ~valid]
    return values


def largest_crop(whole: Whole, spec: ModelSpec, memory: int) -> int:
    """Edge of the largest square that may be predicted at once, in pixels, by the memory that a small one takes."""
    edge, bands = max(spec.tiles[0], round_up(SAMPLE, spec.stride)), len(spec.bands)
    pixels, valid = np.zeros((1, bands, edge, edge), spec.dtypes[0]), np.ones((1, edge, edge), np.bool_)
    batch = Batch(pixels, valid, np.ones(bands, np.float32), np.zeros(bands, np.float32))
    taken = growth(lambda: whole(batch))
    largest = int(edge * (SPARE * memory / max(taken, 1)) ** 0.5)
    return max(min(largest, LARGEST), edge) // spec.stride * spec.stride


def growth(work: Callable[[], object]) -> int:
    """Bytes that this process's resident set grows by at most, while `work` runs."""
    resources.release_memory()
    this, done = psutil.Process(), threading.Event()
    start = peak = int(this.memory_info().rss)

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, int(this.memory_info().rss))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak - start


def crop_of(address: SceneAddress, spec: ModelSpec, edge: int) -> Crop:
    """The part of a scene with the most valid pixels, at most `edge` pixels high and wide.

    Raises:
        SceneError: it cannot be read, or does not fit the bundle.
    """
    with open_scene(address) as scene:
        address = choose_bands(scene, spec)
    with open_scene(address) as scene:
        check_fit(scene, spec, any_resolution=True)
        rows, cols = (min(length, edge) // spec.stride * spec.stride for length in (scene.height, scene.width))
        if min(rows, cols) == 0:
            raise PlanError(f"{address.path} has {scene.height} x {scene.width} pixels: less than one stride")
        window = max(_places(scene, rows, cols), key=lambda place: _valid_share(scene, place))
        pixels, valid = scene.read(window)
        used = radiometry_for(scene, spec)
    scale, offset = (np.asarray(values, np.float32) for values in (used.scale, used.offset))
    return Crop(Path(address.path).stem, pixels, valid, scale, offset)


def _places(scene: Scene, rows: int, cols: int) -> Iterator[Window]:
    """Up to nine places for a crop, the middle one first: `max` takes the first of equals."""
    tops, lefts = _starts(scene.height - rows), _starts(scene.width - cols)
    return (Window(top, left, rows, cols) for top in tops for left in lefts)


def _starts(room: int) -> list[int]:
    return sorted({0, room // 2, room}, key=lambda at: abs(at - room // 2))


def _valid_share(scene: Scene, window: Window) -> float:
    if scene.all_valid:
        return 1.0
    shape = (min(window.height, 64), min(window.width, 64))
    return float(scene.sample(window, shape)[1].mean())


def _dtype(address: SceneAddress, spec: ModelSpec) -> str:
    with open_scene(address) as scene:
        return scene.dtype if scene.dtype in spec.dtypes else spec.dtypes[0]


def _speeds(
    bundle: Bundle, request: EngineRequest, batches: Sequence[int], halo: int, memory: int, *, tell: Tell
) -> tuple[tuple[SpeedRow, ...], str]:
    """Each tile and batch, by the engine that serves the smallest tile; nothing larger than what takes too much."""
    tiles = [tile for tile in bundle.spec.tiles if tile > 2 * halo]
    if not tiles:
        raise ProbeError(
            f"halo {halo} leaves no core in the bundle's tiles, {', '.join(map(str, bundle.spec.tiles))} px: allow "
            "more with --within"
        )
    record = prepare(bundle.path, replace(request, tile=tiles[0], batch=1))
    rows: list[SpeedRow] = []
    for batch in batches:
        for tile in tiles:
            try:
                speed = measure(bundle, replace(record.request, tile=tile, batch=batch), Cache(None))
            except EngineError as error:  # memory ran out, most often
                tell(f"tile {tile}, batch {batch}: {error}")
                break
            rows.append(SpeedRow(tile, batch, speed.seconds_per_tile, speed.peak_bytes))
            tell(f"tile {tile}, batch {batch}: {speed.seconds_per_tile:.2f} s, {speed.peak_bytes / 1e9:.1f} GB")
            if speed.peak_bytes > memory:
                break
    return tuple(rows), f"{record.backend} {record.precision}, {record.threads} threads"


def percent(share: float) -> str:
    """To four places: what is promised is 0.01 %."""
    return f"{100 * share:.4f} %"
