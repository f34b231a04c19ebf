"""What can run a network, as a table, and the module behind each name. Imports none of them."""

import functools
import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, Protocol, cast

from models.bundle import Bundle
from models.engines.base import BackendName, Engine, EngineRecord, EngineRequest, Precision, Target
from models.errors import EngineError

TENSORRT = ("tensorrt", "tensorrt-cu13-bindings", "tensorrt-rtx", "tensorrt-rtx-cu13-bindings")
"""Distributions that bring TensorRT, those that are preferred first."""
MODELS = Path(__file__).resolve().parents[1]
NETWORK = (
    "network", "segmenter", "classifier", "decoder", "inception/*",
    "serve", "rewrite", "export", "imported", "onnxgraph",
)  # fmt: skip
"""Modules of `models` that decide what every engine computes; `*` stands for all in a package."""
GATE = ("probes", "parity", "engines/gate", "engines/reference", "engines/torch")
"""Modules that decide which engines serve."""
_RING = ("engines/ringed", "engines/ring")


class BackendModule(Protocol):
    """What `models.engines.<name>` holds."""

    def unavailable(self, target: Target, precision: Precision) -> str | None:
        """Why it cannot serve on this machine, in one line with the way out; None if it can. Loads its library."""

    def compile_graph(self, bundle: Bundle, request: EngineRequest, folder: Path) -> None:
        """Fill `folder` with what is compiled, or raise EngineError. Runs in a child process."""

    def load(self, record: EngineRecord, bundle: Bundle, folder: Path | None) -> Engine:
        """The engine; `folder` holds what `compile_graph` wrote, its bytes verified."""


@dataclass(frozen=True)
class Backend:
    """One way to run a network."""

    name: BackendName
    targets: tuple[Target, ...]
    precisions: tuple[Precision, ...]
    """Best first."""
    libraries: tuple[str, ...]
    """Distributions whose exact versions decide what comes out."""
    artefact: Literal["portable", "compiled"] | None = None
    """What is kept in the cache: nothing, a graph that any machine and precision takes, or one made for this device."""
    raced: bool = True
    """Whether `auto` considers it on a CPU: what takes minutes to compile must be asked for."""
    runs_graphs: bool = True
    """Whether it takes the ONNX graph of an imported network."""
    extra: str = ""
    """The project's extra that installs what it needs."""
    on_gpu: tuple[str, ...] = ()
    """Distributions that decide as well where it runs on a GPU."""
    helpers: tuple[str, ...] = ()
    """Modules that decide what it computes, beside `NETWORK` and its own."""

    @cached_property
    def module(self) -> BackendModule:
        """The module that builds and runs it; its library is loaded by this or at its first use."""
        return cast("BackendModule", importlib.import_module(f"models.engines.{self.name}"))

    def missing(self) -> str | None:
        """Which library is not installed, and how to get it; looks at metadata alone."""
        lacking = [name for name in self.libraries if _version(name) is None]
        if self.name == "tensorrt":
            lacking = [*lacking, *(() if _tensorrt() else ("tensorrt or tensorrt-rtx",))]
        if not lacking:
            return None
        return f"{' and '.join(lacking)} not installed" + (
            f": pip install 'widefield[{self.extra}]'" if self.extra else ""
        )

    def versions(self, target: Target = "cpu") -> str:
        """Exact versions of its libraries, read without importing them."""
        libraries = [*self.libraries, *([_tensorrt()] if self.name == "tensorrt" else [])]
        libraries += self.on_gpu if target == "cuda" else ()
        return ", ".join(f"{name} {_version(name)}" for name in libraries if name) or "none"

    def sources(self) -> str:
        """Digest of the code that decides what it computes: its options, and how the graph is made."""
        return digest_of_sources(*(() if self.name == "null" else NETWORK), f"engines/{self.name}", *self.helpers)


_EXPORT = ("onnx", "onnxscript", "torch")

BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            "tensorrt",
            ("cuda",),
            ("fp16", "bf16", "fp32"),
            _EXPORT,
            "compiled",
            extra="gpu",
            helpers=("engines/trt_plan", "halves", "wire", *_RING),
        ),
        Backend("openvino", ("cpu",), ("bf16", "fp32"), ("openvino", *_EXPORT), "portable"),
        Backend(
            "inductor",
            ("cpu", "cuda"),
            ("bf16", "fp16", "fp32"),
            ("torch",),
            "compiled",
            raced=False,
            runs_graphs=False,
            on_gpu=("triton",),
            helpers=("engines/fused", "engines/native", "engines/torch", *_RING),
        ),
        Backend("onnxruntime", ("cpu",), ("fp32",), ("onnxruntime", *_EXPORT), "portable"),
        Backend("torch", ("cpu", "cuda"), ("bf16", "fp16", "fp32"), ("torch",), runs_graphs=False, helpers=_RING),
        Backend("null", ("cpu", "cuda"), ("fp32",), ()),
    )
}
"""By name, in the order in which they are tried: `null`, which predicts nothing, is never chosen."""


def backend_of(name: str) -> Backend:
    """The backend of that name.

    Raises:
        EngineError: there is none.
    """
    if name not in BACKENDS:
        raise EngineError(f"no engine is called {name!r}: choose one of auto, {', '.join(BACKENDS)}")
    return BACKENDS[name]


@functools.cache
def digest_of_sources(*modules: str) -> str:
    """sha256 over the sources of modules of `models`, none of which is imported."""
    digest = hashlib.sha256()
    for file in sorted({file for name in modules for file in MODELS.glob(f"{name}.py")}):
        digest.update(f"{file.relative_to(MODELS)} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _tensorrt() -> str | None:
    return next((name for name in TENSORRT if _version(name)), None)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
