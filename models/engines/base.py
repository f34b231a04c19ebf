"""What an engine is: integers in, finished planes out. NumPy only."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models.engines.meter import Meter
from models.errors import EngineError

ENGINE_FORMAT = 2
"""Version of the served graph and of its gate: raised whenever either changes what an engine returns or promises."""

Backend = Literal["torch", "openvino", "null"]
Precision = Literal["fp32", "bf16"]
Planes = NDArray[np.uint8]
"""(N, P, T, T): the planes of `spec.planes`, in that order; confidence is `round(254 p)`, so that 255 stays nodata."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Tiles of one scene, as they were stored."""

    pixels: NDArray[np.generic]
    """(N, C, T, T), in the scene's own type."""
    valid: NDArray[np.bool_]
    """(N, T, T), True where the scene has data."""
    scale: NDArray[np.float32]
    """(C,): value = stored * scale + offset, in the band's unit."""
    offset: NDArray[np.float32]
    """(C,), in the band's unit."""


@dataclass(frozen=True)
class EngineRequest:
    """What the caller wants; `auto` is settled once, by `prepare`."""

    backend: Literal["auto", "torch", "openvino", "null"]
    precision: Literal["auto", "fp32", "bf16"]
    tile: int
    """Edge of the network's input, in pixels."""
    dtype: str
    """Type of the pixels that enter."""
    batch: int = 1
    """Tiles computed at once; shorter batches are padded to it."""
    threads: int = field(default_factory=lambda: min(_cores(), 8))
    """Threads of the engine: part of its identity, never derived from the number of workers."""

    def __post_init__(self) -> None:
        if min(self.tile, self.batch, self.threads) < 1:
            raise EngineError(f"tile {self.tile}, batch {self.batch}, threads {self.threads}: all must be at least 1")


@dataclass(frozen=True)
class EngineRecord:
    """One engine, as plans and reports name it."""

    digest: str
    """sha256 over everything that can change a byte of the output, and over the compiled graph itself."""
    backend: Backend
    version: str
    """Exact versions of the libraries that made it and run it."""
    precision: Precision
    device: str
    """Processor and the instruction sets that decide which kernels run."""
    tile: int
    batch: int
    dtype: str
    threads: int
    bundle: str
    """Digest of the bundle."""
    peak_bytes: int
    """Largest resident set of a process that loaded it and ran it, in bytes."""
    seconds_per_tile: float
    """Median, after warming up."""
    parity: dict[str, object] | None
    """Report of the gate; None for the null engine, which predicts nothing."""

    @property
    def request(self) -> EngineRequest:
        """The request that leads to this very engine."""
        return EngineRequest(self.backend, self.precision, self.tile, self.dtype, self.batch, self.threads)

    def to_json(self) -> str:
        """One line, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "EngineRecord":
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


class Engine(Protocol):
    """A bundle compiled for one device."""

    @property
    def record(self) -> EngineRecord:
        """What it is."""
        ...

    @property
    def meter(self) -> Meter:
        """What it did with its time."""
        ...

    def map(self, batches: Iterable[Batch]) -> Iterator[Planes]:
        """The planes of each batch, in order; one `map` at a time."""
        ...


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
