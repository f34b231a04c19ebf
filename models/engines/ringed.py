"""An engine whose batches go through a ring: what all engines on a GPU have in common."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.engines.base import Batch, EngineRecord, Planes
from models.engines.meter import Meter
from models.engines.ring import SLOTS, Buffer, Device, Program, Ring
from models.engines.slots import overlapped, padded

Wire = Callable[[NDArray[Any]], NDArray[Any]]
"""Pixels (N, C, T, T) as they enter the device."""


class RingEngine:
    """A program on a device, fed through a ring. When it is dropped, so is all that it has there.

    Its slots' inputs are `pixels`, as `wire` gives them, `valid` (N, T, T) uint8, `scale` and `offset` (C,).
    """

    def __init__(  # noqa: PLR0917 - what it is, and where and how it runs
        self,
        record: EngineRecord,
        bands: int,
        planes: int,
        device: Device,
        program: Program,
        wire: Wire,
        slots: int = SLOTS,
    ) -> None:
        """`bands` go in, `planes` come out.

        Raises:
            EngineError: the device has no room for it, or the program takes other inputs.
        """
        self.record, self.meter, self._bands, self._device, self._wire = record, Meter(), bands, device, wire
        self._ring = Ring(device, _inputs(record, bands, wire), _output(record, planes), program, slots)

    @property
    def device_bytes(self) -> int:
        """Memory of the device that is taken now, by whomever: to be asked after it has run, alone."""
        return self._device.taken()

    def map(self, batches: Iterable[Batch]) -> Iterator[Planes]:
        """Planes (N, P, T, T) of each batch, in order, with as many batches in flight as the ring has slots."""
        return overlapped(batches, self._start, self._ring.slots, self.meter)

    def _start(self, batch: Batch) -> Callable[[], Planes]:
        full = padded(batch, self.record, self._bands)
        arrays = {
            "pixels": self._wire(full.pixels),
            "valid": full.valid.view(np.uint8),
            "scale": np.asarray(full.scale, np.float32),
            "offset": np.asarray(full.offset, np.float32),
        }
        answer = self._ring.start(arrays, self.meter.begin)
        return lambda: answer()[: len(batch.pixels)]


def _inputs(record: EngineRecord, bands: int, wire: Wire) -> dict[str, Buffer]:
    pixels = wire(np.zeros((record.batch, bands, record.tile, record.tile), record.dtype))
    kind = torch.from_numpy(np.zeros(1, pixels.dtype)).dtype
    return {
        "pixels": Buffer(pixels.shape, kind),
        "valid": Buffer((record.batch, record.tile, record.tile), torch.uint8),
        "scale": Buffer((bands,), torch.float32),
        "offset": Buffer((bands,), torch.float32),
    }


def _output(record: EngineRecord, planes: int) -> Buffer:
    return Buffer((record.batch, planes, record.tile, record.tile), torch.uint8)
