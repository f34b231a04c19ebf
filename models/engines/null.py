"""An engine that predicts nothing: it measures the pipeline alone."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from models.engines.base import Batch, EngineRecord, Planes
from models.engines.meter import Meter
from models.engines.slots import overlapped, padded


class NullEngine:
    """Every pixel is class 0 with confidence 0."""

    device_bytes = 0

    def __init__(self, record: EngineRecord, planes: int) -> None:
        self.record, self.meter = record, Meter()
        self._planes = planes

    def map(self, batches: Iterable[Batch]) -> Iterator[Planes]:
        """Zeros (N, P, T, T) for each batch."""
        return overlapped(batches, self._start, meter=self.meter)

    def _start(self, batch: Batch) -> Callable[[], Planes]:
        padded(batch, self.record)
        with self.meter.running():
            planes = np.zeros((len(batch.pixels), self._planes, self.record.tile, self.record.tile), np.uint8)
        return lambda: planes
