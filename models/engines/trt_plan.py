"""From ONNX to a plan of TensorRT: parsed, its layers' types asserted, built for one shape of each input.

The library is handed in: `models.engines.tensorrt` alone imports it. TensorRT for RTX makes plans without a GPU; what
it says against a graph, it says of TensorRT's rules.
"""

import functools
import hashlib
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from models.engines.trt_api import Builder, BuilderConfig, Library, NetworkDefinition
from models.errors import EngineError

TYPES: Final = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
"""TensorRT's names of the precisions."""
CONVOLUTIONS: Final = frozenset({"CONVOLUTION", "DECONVOLUTION"})
"""Kinds of layers whose type is a network's precision."""
LEVEL: Final = 3
"""Of optimisation, 0 to 5: how hard the best kernel of each layer is searched for."""
WORKSPACE: Final = 8 << 30
"""Memory that kernels may use beside their maps, in bytes."""
NO_GPU: Final = "catchCudaError"
"""In what TensorRT says because there is no GPU, which keeps it from nothing here."""

Shapes = Mapping[str, tuple[int, ...]]
"""Of the inputs, by name."""
Census = Counter[tuple[str, str]]
"""How many layers there are of each kind and type of output: `("CONVOLUTION", "HALF")`."""

log = logging.getLogger(__name__)


class Plans:
    """What makes plans with one library. Not for several threads at once."""

    def __init__(self, trt: Library, *, timings: Path | None = None) -> None:
        """`timings`: a file in which it is kept which kernels are fast on this GPU; it may be missing."""
        self._trt, self._timings = trt, timings
        self._log = logger(trt.ILogger)

    def plan(
        self, model: bytes, shapes: Shapes, precision: str, *, level: int = LEVEL, workspace: int = WORKSPACE
    ) -> bytes:
        """The plan of an ONNX graph for inputs of `shapes`, all of whose convolutions compute in `precision`.

        Raises:
            EngineError: TensorRT refuses the graph or the shapes, or a convolution has another type; its own words.
        """
        del self._log.errors[:]
        try:
            builder = self._trt.Builder(self._log)
        except TypeError as error:  # its constructor's way of saying that it gave nothing
            raise EngineError(f"TensorRT cannot start: {self._said()}") from error
        network = self.parsed(builder, model)
        check_precision(census(network), precision)
        config = self._configured(builder, precision, level, workspace)
        if config.add_optimization_profile(self._profile(builder, shapes)) < 0:
            raise EngineError(f"TensorRT refuses inputs of {dict(shapes)}: {self._said()}")
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(f"TensorRT cannot make a plan for inputs of {dict(shapes)}: {self._said()}")
        self._remember(config)
        return bytes(plan)

    def parsed(self, builder: Builder, model: bytes) -> NetworkDefinition:
        """The network that ONNX describes.

        Raises:
            EngineError: TensorRT does not take it.
        """
        network = builder.create_network(0)
        parser = self._trt.OnnxParser(network, self._log)
        if not parser.parse(model):
            told = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            raise EngineError(f"TensorRT refuses the graph: {sentence(told)}")
        return network

    def _configured(self, builder: Builder, precision: str, level: int, workspace: int) -> BuilderConfig:
        config = builder.create_builder_config()
        config.builder_optimization_level = level
        config.set_memory_pool_limit(self._trt.MemoryPoolType.WORKSPACE, workspace)
        if precision == "fp32":
            config.clear_flag(self._trt.BuilderFlag.TF32)  # which has the mantissa of fp16
        if self._timings is not None:
            known = config.create_timing_cache(remembered(self._timings))
            if known is None or not config.set_timing_cache(known, False):
                log.info("%s is of another GPU or version: kernels are timed anew", self._timings)
                config.set_timing_cache(config.create_timing_cache(b""), False)
        return config

    def _profile(self, builder: Builder, shapes: Shapes) -> Any:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape, shape, shape)
        return profile

    def _remember(self, config: BuilderConfig) -> None:
        if self._timings is not None:
            remember(self._timings, bytes(config.get_timing_cache().serialize()))

    def _said(self) -> str:
        return sentence(self._log.errors)


def census(network: NetworkDefinition) -> Census:
    """What a parsed network computes in."""
    return Counter((layer.type.name, layer.get_output(0).dtype.name) for layer in _layers(network))


def check_precision(found: Census, precision: str) -> None:
    """Every convolution must compute in `precision`: TensorRT takes the types as they are written.

    Raises:
        EngineError: one does not, or there is none.
    """
    kinds = {kind for layer, kind in found if layer in CONVOLUTIONS}
    if kinds != {TYPES[precision]}:
        raise EngineError(
            f"its convolutions would compute in {', '.join(sorted(kinds)) or 'nothing'}, not in {precision}: "
            "the graph must be exported in that type"
        )


@functools.cache
def logger(base: Any) -> Any:
    """The one logger of this process, which TensorRT wants to be one: keeps the errors, passes warnings on.

    `base`: the library's `ILogger`.
    """

    class Log(base):  # type: ignore[misc] # known at run time alone
        def __init__(self) -> None:
            base.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in {base.INTERNAL_ERROR, base.ERROR}:
                self.errors.append(message)
            elif severity == base.WARNING:
                log.warning("TensorRT: %s", message)

    return Log()


def remembered(file: Path) -> bytes:
    """What `remember` wrote; nothing if it is missing, is a link, or has changed."""
    content = b""
    with suppress(OSError), os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW), "rb") as opened:
        content = opened.read()
    digest, content = content[:32], content[32:]
    return content if hashlib.sha256(content).digest() == digest else b""


def remember(file: Path, content: bytes) -> None:
    """Write `content` behind its digest, whole or not at all."""
    descriptor, partial = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(hashlib.sha256(content).digest() + content)
    Path(partial).replace(file)


def _layers(network: NetworkDefinition) -> Iterator[Any]:
    return (network.get_layer(index) for index in range(network.num_layers))


def sentence(told: list[str]) -> str:
    """TensorRT's words in one line, without what it says of a missing GPU if there is anything else."""
    lines = [" ".join(part.split()) for text in told for part in text.splitlines() if part.strip()]
    relevant = [line for line in lines if NO_GPU not in line] or lines
    return "; ".join(dict.fromkeys(relevant)) or "it does not say why"
