"""What an engine is: integers in, finished planes out. NumPy only."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models.engines.meter import Meter
from models.errors import EngineError

BackendName = Literal["torch", "inductor", "openvino", "onnxruntime", "tensorrt", "null"]
Precision = Literal["fp32", "bf16", "fp16"]
Target = Literal["cpu", "cuda"]
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

    backend: Literal["auto"] | BackendName
    precision: Literal["auto"] | Precision
    tile: int
    """Edge of the network's input, in pixels."""
    dtype: str
    """Type of the pixels that enter."""
    batch: int = 1
    """Tiles computed at once; shorter batches are padded to it."""
    threads: int = field(default_factory=lambda: min(_cores(), 8))
    """Threads of the engine: part of its identity, never derived from the number of workers."""
    streams: int = 1
    """Batches that are computed side by side, each by its share of the threads; 0: as many as pay, by measurement.
    A GPU knows one."""
    target: Literal["auto"] | Target = "auto"
    """What it runs on; `auto`: a GPU where there is one."""
    tta: bool = False
    """Whether the tile is seen in its eight orientations, and their probabilities averaged."""
    planes: tuple[str, ...] = ()
    """What it returns; those of the spec if empty."""

    def __post_init__(self) -> None:
        if min(self.tile, self.batch, self.threads) < 1 or self.streams < 0:
            raise EngineError(
                f"tile {self.tile}, batch {self.batch}, threads {self.threads}, streams {self.streams}: all must be at "
                "least 1 (streams 0: as many as pay)"
            )
        object.__setattr__(self, "planes", tuple(self.planes))  # JSON knows lists alone

    @property
    def target_here(self) -> Target:
        """`target`, with `auto` settled for this machine."""
        from models.engines.device import default_target

        return default_target() if self.target == "auto" else self.target


@dataclass(frozen=True)
class EngineRecord:
    """One engine, as plans and reports name it."""

    digest: str
    """sha256 over everything that can change a byte of the output, and over the compiled graph itself."""
    backend: BackendName
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
    streams: int = 1
    target: Target = "cpu"
    tta: bool = False
    planes: tuple[str, ...] = ()
    """What it returns; those of the spec if empty."""
    device_bytes: int = 0
    """Memory of the GPU that is taken while it is loaded, other processes' included; 0 on a CPU."""

    @property
    def request(self) -> EngineRequest:
        """The request that leads to this very engine."""
        names = [field.name for field in fields(EngineRequest)]
        return EngineRequest(**{name: getattr(self, name) for name in names})

    def to_json(self) -> str:
        """One line, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "EngineRecord":
        """The inverse of `to_json`."""
        facts = json.loads(text)
        return cls(**facts | {"planes": tuple(facts.get("planes", ()))})


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

    @property
    def device_bytes(self) -> int:
        """Memory of its GPU that is taken now; 0 on a CPU."""
        ...

    def map(self, batches: Iterable[Batch]) -> Iterator[Planes]:
        """The planes of each batch, in order; one `map` at a time."""
        ...


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
