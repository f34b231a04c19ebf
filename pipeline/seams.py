"""What cutting a scene into tiles costs, seen without a prediction of the whole: the same scene on two lattices.

    published  |===============|===============|===============|     | border between two cores
    shifted          |===============|===============|=========|     half a core on, down and across

Each pixel near a border of one lattice lies deep inside a core of the other. Where context decides nothing but noise,
both lattices disagree near borders as often as in the interiors. Few networks get there: deep inside of two cores both
see the same, and hardly ever disagree, so that whatever little a border changes is many times that. A ratio of 1.2
alone is then out of reach for any halo short of the network's whole reach, at a price that nobody pays; so the share
near borders also passes where it is within what a bundle's halo may cost, by which `pipeline.probe` chose it.

Windows of the two stores are compared one by one, so any size will do; the shift is a multiple of the network's stride,
so that both see the same down-sampling phase.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.spec import NODATA
from pipeline import stop, store, workshop
from pipeline.errors import IncompleteError, OutputError, PlanError, SceneError, SpaceError, UsageError
from pipeline.executors import Executor
from pipeline.grid import TileGrid, Window, near_borders, round_up
from pipeline.outputs import MASK, PLAN
from pipeline.plan import Plan, PlanOptions, make_plan
from pipeline.scene import Scene, open_scene
from pipeline.schedule import Listener, Schedule
from pipeline.worker import perform

REACH = 16
"""Pixels on either side of a core's border that count as near it."""
RATIO = 1.2
"""Largest allowed share of labels that differ near borders, as a multiple of that in the interiors."""
PROMISE = 1e-4
"""Share of labels near borders that a bundle's halo may cost (`pipeline.probe`)."""
DISAGREE = 1e-2
"""Share of labels deep inside of cores that may differ: more do not come from borders, and hide them."""
WINDOW = 2048
"""Edge of what is compared at once, in pixels."""


@dataclass(frozen=True)
class Counted:
    """Valid pixels, and on how many of them the two lattices disagree."""

    pixels: int = 0
    differ: int = 0

    def __add__(self, other: "Counted") -> "Counted":
        """Both together."""
        return Counted(self.pixels + other.pixels, self.differ + other.differ)

    @property
    def share(self) -> float:
        """Of the pixels, those that differ; 0 where there are none."""
        return self.differ / self.pixels if self.pixels else 0.0


@dataclass(frozen=True)
class Seams:
    """How a result compares with itself on another lattice."""

    shift: tuple[int, int]
    """Rows and columns from the published lattice to the other, in pixels; 0 along an axis of one core."""
    compared: Window
    """In scene pixels: what no new edge reaches."""
    near: Counted
    """At most `REACH` pixels from a border of either lattice."""
    interior: Counted
    """All the others."""

    @property
    def ratio(self) -> float | None:
        """Share near borders over share in the interiors; None where the interiors do not differ at all."""
        return self.near.share / self.interior.share if self.interior.differ else None

    @property
    def share(self) -> float:
        """Of all pixels, those that differ, near borders or not."""
        return (self.near + self.interior).share

    @property
    def passed(self) -> bool:
        """Whether labels near borders differ hardly more often than elsewhere, or less often than a halo may cost; and
        whether there is anything to go by.
        """
        return self.problem is None

    @property
    def problem(self) -> str | None:
        """What is wrong, in a few words; None if nothing is."""
        if not self.near.pixels:
            return f"nothing was compared, no valid pixel lies within {REACH} px of borders: choose another --part"
        if self.interior.share > DISAGREE:
            return (
                f"even in interiors more than {100 * DISAGREE:g} % of labels differ: what the network answers depends "
                "on the whole tile (a normalisation or a pooling over it)"
            )
        if self.near.share <= PROMISE or (self.ratio is not None and self.ratio <= RATIO):
            return None
        return "seams"

    def line(self) -> str:
        """What was found, for people."""
        parts = " and ".join(
            f"{100 * part.share:.4f} % of {part.pixels:,} pixels {where}"
            for part, where in (
                (self.near, f"within {REACH} px of borders"),
                (self.interior, f"in interiors ({100 * self.share:.4f} % of all)"),
            )
        )
        alone = "no interior pixel differs" if self.interior.pixels else "cores are too small to have interiors"
        times = alone if self.ratio is None else f"ratio {self.ratio:.2f}"
        why = f"allowed are ratio {RATIO} or {100 * PROMISE:g} % near borders"
        return f"two lattices, {self.shift[0]} x {self.shift[1]} px apart: labels differ on {parts}; {times}; {why}"

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {**asdict(self), "share": self.share, "ratio": self.ratio, "passed": self.passed}


def seams(
    folder: Path, executor: Executor, *, part: Window | None = None, listen: Listener = lambda _: None
) -> Seams | None:
    """Segment the scene of a published result again, on the shifted lattice, by the same engine, and compare.

    The second result lies beside the first, in a folder that is gone afterwards. `part` stands for the scene where all
    of it would take too long. None: the scene is a single core, there is no border.

    Raises:
        UsageError: `part` holds no border, or the core is one stride.
        OutputError: nothing can be written beside the result, or a run holds it.
        SceneError: the scene has gone or changed, or cannot be segmented here again: this machine makes another
            engine, or has too little memory or disk.
    """
    plan = Plan.load(folder / PLAN)
    if plan.grid.shape == (1, 1):
        return None
    again = shifted(plan.grid, part)
    with _beside(folder.absolute()) as place:
        other = _other_plan(plan, again, place, executor)
        _segment(other, place, executor, listen)
        return _compare(folder / MASK, plan.grid, place / MASK, other.grid, again)


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A new folder among the runs of a result, which nobody else may write meanwhile. `clean` finds what is left."""
    out = next((parent for parent in folder.parents if (parent / workshop.HIDDEN).is_dir()), folder.parent)
    place = out / workshop.HIDDEN / "runs" / folder.relative_to(out)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(workshop.locked(place))
        except OutputError as error:
            raise OutputError(_instead(error, "the scene is segmented again there, beside its result")) from error
        yield Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seams-", dir=place)))


def _instead(error: Exception, way_out: str) -> str:
    """What an error says, with another way out: this command has other options."""
    return f"{str(error).rpartition(': ')[0] or error}: {way_out}"


def shifted(grid: TileGrid, part: Window | None = None) -> Window:
    """The scene, or a part of it, without its first rows and columns up to the middle of a core.

    Raises:
        UsageError: no border of cores lies in it.
    """
    wanted = grid.scene if part is None else grid.scene.intersect(part)
    if wanted is None:
        raise UsageError(f"--part {part}: it lies outside the scene of {grid.height} x {grid.width} pixels")
    rows = _cut(grid, wanted.row, wanted.stop_row, grid.height)
    cols = _cut(grid, wanted.col, wanted.stop_col, grid.width)
    return Window(rows[0], cols[0], rows[1] - rows[0], cols[1] - cols[0])


def _cut(grid: TileGrid, start: int, stop: int, length: int) -> tuple[int, int]:
    """First pixel and end of the shifted scene along one axis of `length` pixels."""
    if length <= grid.core:
        return 0, length
    half = grid.core // 2 // grid.stride * grid.stride
    if half == 0:
        raise UsageError(f"a core of {grid.core} px cannot be shifted by less than itself: the stride is {grid.stride}")
    first = start // grid.core * grid.core + half
    end = min(round_up(stop, grid.stride), length)
    least = grid.core + 2 * _margin(grid)
    if end - first < min(least, length - half):
        raise UsageError(f"--part is {stop - start} px long along one axis, {first + least - start} are needed here")
    return first, end


def _margin(grid: TileGrid) -> int:
    """Pixels beyond a new edge that it reaches: those of the halo, and some where there is hardly any."""
    return max(grid.halo, 2 * grid.stride, REACH)


def _other_plan(plan: Plan, again: Window, place: Path, executor: Executor) -> Plan:
    with open_scene(plan.scene) as scene:
        _unchanged(plan, scene)
    origin = plan.scene.window
    window = again if origin is None else again.shift(origin.row, origin.col)
    options = PlanOptions(
        block=plan.block,
        stage=plan.stage,
        any_resolution=True,  # it was segmented as it is
        workers=executor.workers,
        memory=executor.memory,
    )
    with open_scene(replace(plan.scene, window=window)) as scene:
        try:
            return make_plan(scene, plan.spec, plan.bundle, plan.engine, out=place, options=options)
        except SpaceError as error:
            raise SpaceError(_instead(error, "free some, or compare a part of the scene alone with --part")) from error
        except PlanError as error:
            raise PlanError(_instead(error, "compare where it was segmented, or with less memory in use")) from error


def _unchanged(plan: Plan, scene: Scene) -> None:
    if scene.fingerprint != plan.fingerprint:
        raise SceneError(f"{plan.scene.path} has changed since it was segmented: segment it again")


def _segment(plan: Plan, run: Path, executor: Executor, listen: Listener) -> None:
    """Fill the store in `run` as a run of `segment_scene` does; nothing is published.

    Raises:
        IncompleteError: a block failed.
    """
    schedule = Schedule(plan, run, workshop.open_run(plan, run), listen)
    with (
        workshop.staged(plan, run, run / "staged", keep=False),
        stop.current().watch(run),
        closing(executor.run(perform, schedule, plan.key[:16])) as outcomes,
    ):
        schedule.start()
        for outcome in outcomes:
            if outcome.fatal:
                raise IncompleteError(f"{plan.scene.path} cannot be segmented again: {outcome.error}")
            schedule.finish(outcome)
    stop.current().check()
    for window, error in schedule.failed.items():
        where = f"block at row {window.row}, column {window.col}"
        raise IncompleteError(f"{plan.scene.path} cannot be segmented again, {where}: {error}")
    schedule.check()


def _compare(first: Path, grid: TileGrid, second: Path, other: TileGrid, again: Window) -> Seams:
    """Labels of the published store against the other one, whose scene begins at `again`."""
    near, interior = Counted(), Counted()
    compared = _compared(grid, other, again)
    for window in _windows(compared):
        there = window.relative_to(again)
        ours, theirs = store.read_plane(first, "labels", window), store.read_plane(second, "labels", there)
        valid = (ours != NODATA) & (theirs != NODATA)
        differ = valid & (ours != theirs)
        border = near_borders(window, grid.core, REACH, grid.scene)
        border |= near_borders(there, other.core, REACH, other.scene)
        near += Counted(int(np.count_nonzero(valid & border)), int(np.count_nonzero(differ & border)))
        interior += Counted(int(np.count_nonzero(valid & ~border)), int(np.count_nonzero(differ & ~border)))
    shift = (again.row % grid.core, again.col % grid.core)
    return Seams(shift, compared, near, interior)


def _compared(grid: TileGrid, other: TileGrid, again: Window) -> Window:
    """Without what the shifted scene's new edges reach: those that the published scene does not have there."""
    margin = _margin(grid)
    rows = _inner(again.row, again.stop_row, again.row + other.extent.height, grid.extent.height, margin)
    cols = _inner(again.col, again.stop_col, again.col + other.extent.width, grid.extent.width, margin)
    return Window(rows[0], cols[0], rows[1] - rows[0], cols[1] - cols[0])


def _inner(first: int, end: int, seen: int, whole: int, margin: int) -> tuple[int, int]:
    """`seen` and `whole` are where the two networks' inputs end."""
    return first + (margin if first else 0), end - (0 if seen == whole else margin)


def _windows(whole: Window) -> Iterator[Window]:
    for row in range(whole.row, whole.stop_row, WINDOW):
        for col in range(whole.col, whole.stop_col, WINDOW):
            yield Window(row, col, min(WINDOW, whole.stop_row - row), min(WINDOW, whole.stop_col - col))
