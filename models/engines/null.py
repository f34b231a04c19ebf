"""An engine that predicts nothing: it measures the pipeline alone."""

from collections.abc import Iterable, Iterator

import numpy as np

from models.engines.base import Batch, EngineRecord, Planes, padded


class NullEngine:
    """Every pixel is class 0 with confidence 0."""

    def __init__(self, record: EngineRecord, planes: int) -> None:
        self.record = record
        self._planes = planes

    def map(self, batches: Iterable[Batch]) -> Iterator[Planes]:
        """Zeros (N, P, T, T) for each batch."""
        tile = self.record.tile
        for batch in batches:
            padded(batch, self.record)
            yield np.zeros((len(batch.pixels), self._planes, tile, tile), np.uint8)
