"""The part of TensorRT 11 that is used here, written down: its wheels carry no types.

`tensorrt` and `tensorrt_rtx` have it in common; a test holds each name, and the number of arguments of each method, to
the library that is installed. Imports neither.
"""

from collections.abc import Sequence
from typing import Any, Protocol


class HostMemory(Protocol):
    """`IHostMemory`: bytes that TensorRT owns."""

    @property
    def nbytes(self) -> int:
        """How many."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """The bytes in place."""


class Tensor(Protocol):
    """`ITensor`: a value of a parsed network."""

    name: str
    dtype: Any
    shape: Sequence[int]


class Layer(Protocol):
    """`ILayer`: an operation of a parsed network."""

    name: str

    @property
    def type(self) -> Any:
        """A `LayerType`."""

    @property
    def num_outputs(self) -> int:
        """At least one."""

    def get_output(self, index: int, /) -> Tensor:
        """One of them."""


class NetworkDefinition(Protocol):
    """`INetworkDefinition`: what the parser fills."""

    @property
    def num_layers(self) -> int:
        """In the order of the file."""

    @property
    def num_inputs(self) -> int:
        """As the file declares them."""

    def get_layer(self, index: int, /) -> Layer:
        """One of them."""

    def get_input(self, index: int, /) -> Tensor:
        """One of them."""


class OptimizationProfile(Protocol):
    """`IOptimizationProfile`: the shapes that a plan is made for."""

    def set_shape(self, name: str, least: Sequence[int], best: Sequence[int], most: Sequence[int], /) -> None:
        """Of one input."""


class TimingCache(Protocol):
    """`ITimingCache`: how fast each kernel was, on one kind of GPU."""

    def serialize(self) -> HostMemory:
        """Its bytes."""


class BuilderConfig(Protocol):
    """`IBuilderConfig`: how a plan is made."""

    builder_optimization_level: int

    def set_memory_pool_limit(self, pool: Any, size: int, /) -> None:
        """In bytes."""

    def set_flag(self, flag: Any, /) -> None:
        """Of `BuilderFlag`."""

    def clear_flag(self, flag: Any, /) -> None:
        """Of `BuilderFlag`."""

    def add_optimization_profile(self, profile: OptimizationProfile, /) -> int:
        """Its index; -1 if it contradicts itself."""

    def create_timing_cache(self, content: bytes, /) -> TimingCache:
        """From bytes that `serialize` gave, or none."""

    def set_timing_cache(self, cache: TimingCache, ignore: bool, /) -> bool:
        """Whether it is of this GPU."""

    def get_timing_cache(self) -> TimingCache:
        """What is known after a build."""


class Builder(Protocol):
    """`Builder`."""

    def create_network(self, flags: int = 0, /) -> NetworkDefinition:
        """An empty one; every network is strongly typed."""

    def create_builder_config(self) -> BuilderConfig:
        """With its defaults."""

    def create_optimization_profile(self) -> OptimizationProfile:
        """An empty one."""

    def build_serialized_network(self, network: NetworkDefinition, config: BuilderConfig, /) -> HostMemory | None:
        """The plan; None if there can be none, and the logger knows why."""


class ParserError(Protocol):
    """`ParserError`."""

    def desc(self) -> str:
        """In words."""


class OnnxParser(Protocol):
    """`OnnxParser`."""

    @property
    def num_errors(self) -> int:
        """Of the last call of `parse`."""

    def parse(self, model: bytes, /) -> bool:
        """Whether the network could be filled."""

    def get_error(self, index: int, /) -> ParserError:
        """One of them."""


class ExecutionContext(Protocol):
    """`IExecutionContext`: one use of an engine at a time."""

    def set_device_memory(self, address: int, size: int, /) -> None:
        """Where it keeps what lies between input and output, in bytes."""

    def set_tensor_address(self, name: str, address: int, /) -> bool:
        """Where an input or output lies on the GPU."""

    def execute_async_v3(self, stream: int, /) -> bool:
        """Whether the work has been given to a CUDA stream."""


class CudaEngine(Protocol):
    """`ICudaEngine`: a plan on a GPU."""

    @property
    def num_io_tensors(self) -> int:
        """Inputs and outputs."""

    @property
    def device_memory_size_v2(self) -> int:
        """What each context needs, in bytes."""

    def get_tensor_name(self, index: int, /) -> str:
        """Of an input or output."""

    def get_tensor_shape(self, name: str, /) -> Sequence[int]:
        """Of an input or output."""

    def get_tensor_dtype(self, name: str, /) -> Any:
        """Of an input or output: a `DataType`."""

    def create_execution_context(self, strategy: Any, /) -> ExecutionContext | None:
        """A new one, its memory as an `ExecutionContextAllocationStrategy` says; None if there is not enough."""


class Runtime(Protocol):
    """`Runtime`: what brings plans onto a GPU."""

    engine_host_code_allowed: bool

    def deserialize_cuda_engine(self, plan: bytes, /) -> CudaEngine | None:
        """None if the plan is of another version or for another GPU."""


class Library(Protocol):
    """The module."""

    __name__: str
    __version__: str
    ILogger: Any
    BuilderFlag: Any
    ExecutionContextAllocationStrategy: Any
    MemoryPoolType: Any

    def Builder(self, logger: Any, /) -> Builder:  # noqa: N802 - a class of theirs
        """What makes plans."""

    def OnnxParser(self, network: NetworkDefinition, logger: Any, /) -> OnnxParser:  # noqa: N802 - likewise
        """What reads ONNX."""

    def Runtime(self, logger: Any, /) -> Runtime:  # noqa: N802 - likewise
        """Only where there is a GPU: elsewhere its use may end the process."""
