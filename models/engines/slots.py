"""How batches go through an engine: padded to its size, a few of them in flight.

    batches ──► [pad the tail] ──► slot 0 │ computing ──► planes, in order
                                   slot 1 │ queued

While one batch is computed the next is pulled from the caller's iterator, so reading and computing overlap.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from models.engines.base import Batch, EngineRecord, Planes
from models.engines.meter import Meter
from models.errors import EngineError

SLOTS = 2
"""Batches in flight inside an engine of one stream; with more streams, one more than these."""


def slots_of(record: EngineRecord) -> int:
    """Batches in flight inside an engine: one for each stream to compute, and one that waits."""
    return record.streams + 1


def padded(batch: Batch, record: EngineRecord, bands: int | None = None) -> Batch:
    """`batch` with invalid tiles added up to the engine's fixed size. `bands`: None where the engine takes any number.

    Raises:
        EngineError: it is not what the engine takes.
    """
    _check(batch, record, bands)
    missing = record.batch - len(batch.pixels)
    if not missing:
        return batch
    edge = [(0, missing), (0, 0), (0, 0)]
    return replace(batch, pixels=np.pad(batch.pixels, [*edge, (0, 0)]), valid=np.pad(batch.valid, edge))


def _check(batch: Batch, record: EngineRecord, bands: int | None) -> None:
    count, *got = batch.pixels.shape
    wanted = [bands or got[0], record.tile, record.tile]
    if (str(batch.pixels.dtype), got) != (record.dtype, wanted) or not 1 <= count <= record.batch:
        raise EngineError(
            f"got {count} tiles of {batch.pixels.dtype} {got}, bands first: this engine takes 1 to {record.batch} "
            f"tiles of {record.dtype} {wanted}: prepare one for this shape"
        )
    shapes = {"valid": (count, *wanted[1:]), "scale": (wanted[0],), "offset": (wanted[0],)}
    for name, shape in shapes.items():
        if (found := np.shape(getattr(batch, name))) != shape:
            raise EngineError(f"got {name} of shape {found}: pixels of shape {batch.pixels.shape} go with {shape}")


def overlapped(
    batches: Iterable[Batch],
    start: Callable[[Batch], Callable[[], Planes]],
    slots: int = SLOTS,
    meter: Meter | None = None,
) -> Iterator[Planes]:
    """Planes in the order of `batches`, with at most `slots` started and not yet collected.

    `start` begins a batch, telling `meter` of it, and returns the function that waits for its planes. When the consumer
    stops early, or a batch fails, all that was started is waited for, so that no buffer is released under a
    computation; then the first failure is raised.
    """
    meter = meter or Meter()
    running: deque[Callable[[], Planes]] = deque()
    source = iter(batches)
    with meter.doing("handling"):
        try:
            while True:
                with meter.doing("input"):
                    batch = next(source, None)
                if batch is None:
                    break
                running.append(start(batch))
                if len(running) == slots:
                    yield from _collected(running, meter)
            while running:
                yield from _collected(running, meter)
        except GeneratorExit:
            if failures := _failures(running):
                raise failures[0] from None
            raise
        except BaseException:
            _failures(running)
            raise


def _failures(running: Iterable[Callable[[], Planes]]) -> list[Exception]:
    """What comes of batches that nobody asks for any more: each is waited for, also where one before it failed."""
    failures: list[Exception] = []
    for wait in running:
        try:
            wait()
        except Exception as error:  # noqa: BLE001 - an engine may raise anything, and the next must be waited for
            failures.append(error)
    return failures


def _collected(running: deque[Callable[[], Planes]], meter: Meter) -> Iterator[Planes]:
    planes = running.popleft()()
    with meter.doing("output"):
        yield planes
