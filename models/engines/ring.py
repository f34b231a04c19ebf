"""Batches in flight on a device: a ring of slots, three streams, and no buffer touched before its time.

    caller      fill slot 0 │ fill slot 1 │ fill slot 2 │ wait until slot 0 is free, fill it ...
    in          ······copy 0│······copy 1 │······copy 2 │
    compute     ·············network 0    │network 1    │network 2
    out         ··························│copy 0·······│copy 1 ...
    watcher     ········································│planes 0: slot 0 is free

Each slot has buffers of its own on both sides, pinned on the host's, which keep their addresses: what a slot computes
can be recorded once and replayed. A slot is filled again only when its answer has left it.

What the ring needs of a device are the three small protocols below: `Cuda` has them from CUDA, `Threads` from threads,
one a stream, so that the order of things is the same wherever it runs.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.errors import EngineError

SLOTS = 3
"""One batch on its way in, one computed, one on its way out."""

WARM_UP = 3
"""Runs before a computation is recorded, in which libraries choose their kernels and take their memory."""

LACKING = ("out of memory", "allocate memory", "ALLOC_FAILED")
"""In what PyTorch says where memory ran out."""

Work = Callable[[], None]


class Event(Protocol):
    """A point in the order of a stream."""

    def synchronize(self) -> None:
        """Block the caller until the stream has come here; raise what failed on the way."""
        ...


class Stream(Protocol):
    """Work that a device does one after the other, beside the work of other streams."""

    handle: int
    """The stream's address, as libraries of the device take it."""

    def enqueue(self, work: Work) -> None:
        """Have `work` done after all that was enqueued before; return at once."""
        ...

    def record(self) -> Event:
        """The point that the stream reaches after all that was enqueued so far."""
        ...

    def wait(self, event: Any) -> None:
        """Do what is enqueued from now on after `event` of another stream; return at once."""
        ...

    def graphed(self, work: Work, warm_up: int = WARM_UP) -> Work:
        """`work`, to be enqueued again and again on the same buffers, in the form that costs the host least.

        Before, it is run `warm_up` times: none where the same was done on other buffers. What it holds lives as long
        as the stream.
        """
        ...


class Device(Protocol):
    """Memory and streams."""

    def host(self, buffer: "Buffer") -> Tensor:
        """Memory of the host that the device copies to and from by itself."""
        ...

    def memory(self, buffer: "Buffer") -> Tensor:
        """Memory of the device."""
        ...

    def stream(self, name: str) -> Stream:
        """A stream that waits for no other."""
        ...

    def synchronize(self) -> None:
        """Block the caller until everything is done."""
        ...

    def taken(self) -> int:
        """Bytes of its memory that are not free now, whoever has them; 0 for a processor."""
        ...


@contextmanager
def device_errors(what: str) -> Iterator[None]:
    """What PyTorch says of a failure, in one line, and the way out where memory ran out.

    Raises:
        EngineError: "`what`: the reason".
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # also torch.OutOfMemoryError and torch.AcceleratorError
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        lacking = isinstance(error, MemoryError) or any(words in said for words in LACKING)
        reason = ". ".join(said.split(". ")[:3])  # then PyTorch advises programmers
        raise EngineError(f"{what}: {reason}{': choose a smaller --tile or --batch' if lacking else ''}") from error


@dataclass(frozen=True)
class Buffer:
    """Shape and type of one input, or of the output."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(eq=False)
class Slot:
    """The buffers of one batch, which stay where they are."""

    index: int
    arrays: dict[str, NDArray[Any]]
    """The inputs on the host, by name, as NumPy sees them."""
    host: dict[str, Tensor]
    """The same memory, as the device's copies see it."""
    device: dict[str, Tensor]
    """The inputs on the device, by name."""
    output: Tensor
    """The answer on the device."""
    answer: Tensor
    """The answer on the host."""
    compute: Work = lambda: None
    """Enqueued on the compute stream: reads `device`, writes `output`."""
    pending: "Future[NDArray[Any]]" = field(default_factory=Future)
    """The answer, copied out of the slot; done when the slot may be filled again."""


Program = Callable[[Slot, Stream], Work]
"""(slot, compute stream) -> what computes `slot.output` from `slot.device`, enqueued on that stream for each batch."""


class Ring:
    """Slots of one computation on one device. One thread fills it."""

    def __init__(
        self, device: Device, inputs: Mapping[str, Buffer], output: Buffer, program: Program, slots: int = SLOTS
    ) -> None:
        """`program` is called once for each slot.

        Raises:
            EngineError: the device has no room for the slots, or fails in recording the computation.
        """
        self._inputs, self._turn = dict(inputs), 0
        self._in, self._compute, self._out = (device.stream(name) for name in ("in", "compute", "out"))
        self._watcher = ThreadPoolExecutor(1, "ring")
        with device_errors(f"{slots} slots of {output.shape} cannot be made on the device"):
            self._slots = [_slot(device, index, inputs, output) for index in range(slots)]
            device.synchronize()
            for slot in self._slots:
                slot.compute = program(slot, self._compute)
            device.synchronize()

    @property
    def slots(self) -> int:
        """Batches that can be in flight."""
        return len(self._slots)

    def start(
        self, arrays: Mapping[str, NDArray[Any]], begin: Callable[[], Work] = lambda: lambda: None
    ) -> "Callable[[], NDArray[Any]]":
        """Begin one batch, as soon as the next slot is free; the function that waits for its answer.

        The arrays are copied: they are the caller's again. Then `begin` is called, before the device is given the
        batch; what it returns is called once, as soon as the device is done or has failed, mostly by another thread.

        Raises:
            EngineError: an array is not of its input's shape and type, or the device cannot take the batch; when the
                answer is waited for: it failed on the batch.
        """
        slot = self._slots[self._turn]
        wait([slot.pending])
        for name, buffer in slot.arrays.items():
            _fill(name, buffer, arrays[name])
        finished = begin()
        try:
            done = self._enqueue(slot)
        except EngineError:
            finished()
            raise
        self._turn = (self._turn + 1) % len(self._slots)
        slot.pending = self._watcher.submit(_collect, slot, done, finished)
        return slot.pending.result

    def _enqueue(self, slot: Slot) -> Event:
        """The three steps of one batch, each behind the one before; the event of the last."""
        steps = (
            (self._in, lambda: _copy(slot.device, slot.host)),
            (self._compute, slot.compute),
            (self._out, lambda: _copy({"": slot.answer}, {"": slot.output})),
        )
        done = None
        try:
            with device_errors("the device refused a batch"):
                for stream, work in steps:
                    if done is not None:
                        stream.wait(done)
                    stream.enqueue(work)
                    done = stream.record()
        except EngineError:
            self._settle()  # what was begun still uses the slot
            raise
        assert done is not None  # noqa: S101 - there are three steps
        return done

    def _settle(self) -> None:
        """Wait until the device has done what it was given, or fails in doing it."""
        for stream in (self._in, self._compute, self._out):
            with suppress(RuntimeError):
                stream.record().synchronize()


def _slot(device: Device, index: int, inputs: Mapping[str, Buffer], output: Buffer) -> Slot:
    host = {name: device.host(buffer) for name, buffer in inputs.items()}
    slot = Slot(
        index,
        arrays={name: tensor.numpy() for name, tensor in host.items()},
        host=host,
        device={name: device.memory(buffer) for name, buffer in inputs.items()},
        output=device.memory(output),
        answer=device.host(output),
    )
    slot.pending.set_result(np.empty(0, np.uint8))
    return slot


def _fill(name: str, buffer: NDArray[Any], array: NDArray[Any]) -> None:
    if (array.shape, array.dtype) != (buffer.shape, buffer.dtype):
        got, wanted = (f"{each.dtype} {each.shape}" for each in (array, buffer))
        raise EngineError(f"input {name} is {got}: this engine takes {wanted}")
    np.copyto(buffer, array)


def _copy(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    for name, target in targets.items():
        target.copy_(sources[name], non_blocking=True)


def _collect(slot: Slot, done: Event, finished: Work) -> NDArray[Any]:
    """The answer, in memory of its own."""
    try:
        with device_errors("the device failed on a batch"):
            done.synchronize()
    finally:
        finished()
    return np.array(slot.answer.numpy())


class Cuda:
    """A GPU."""

    def __init__(self, index: int = 0) -> None:
        self._device = torch.device("cuda", index)

    def host(self, buffer: Buffer) -> Tensor:
        """Pinned, so that copies run beside everything else."""
        return torch.zeros(buffer.shape, dtype=buffer.dtype, pin_memory=True)

    def memory(self, buffer: Buffer) -> Tensor:
        """Zeros on the GPU."""
        return torch.zeros(buffer.shape, dtype=buffer.dtype, device=self._device)

    def stream(self, name: str) -> "CudaStream":  # noqa: ARG002 - streams of CUDA have no names
        """A stream that the default stream does not hold up."""
        return CudaStream(torch.cuda.Stream(self._device))  # type: ignore[no-untyped-call] # torch

    def synchronize(self) -> None:
        """Wait for every stream of the GPU."""
        torch.cuda.synchronize(self._device)

    def taken(self) -> int:
        """What the driver says, so that memory which PyTorch did not allocate counts as well."""
        free, total = torch.cuda.mem_get_info(self._device)
        return int(total - free)


class CudaStream:
    """A stream of a GPU; what is enqueued are calls that launch kernels and return."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.handle: int = stream.cuda_stream
        self._stream = stream
        self._graphs: list[tuple[torch.cuda.CUDAGraph, Work]] = []
        """What was recorded, beside what holds the weights that it reads: a graph knows addresses alone."""

    def enqueue(self, work: Work) -> None:
        """Launch the kernels of `work`."""
        with torch.cuda.stream(self._stream):
            work()

    def record(self) -> torch.cuda.Event:
        """An event that a thread waits for asleep: the cores are needed for decoding."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call] # torch
        event.record(self._stream)
        return event

    def wait(self, event: torch.cuda.Event) -> None:
        """Hold up what is enqueued from now on."""
        self._stream.wait_event(event)

    def graphed(self, work: Work, warm_up: int = WARM_UP) -> Work:
        """A CUDA graph of `work`, replayed by one call: hundreds of launches take the host milliseconds otherwise.

        The graphs of a stream run one after the other and keep nothing between two runs: they share their memory.
        """
        for _ in range(warm_up):
            self.enqueue(work)
        self._stream.synchronize()
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._stream.device)
        pool = self._graphs[0][0].pool() if self._graphs else None
        try:
            # What other threads do meanwhile, such as freeing an older engine's memory, is none of its business.
            with torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            torch.cuda.set_stream(before)  # PyTorch does not leave the stream of a recording that failed
            if isinstance(error.__context__, RuntimeError):
                raise error.__context__ from None  # which says what ended it
            raise
        self._graphs.append((graph, work))
        return graph.replay


class Threads:
    """The processor as a device: its memory on both sides, a thread for each stream."""

    def host(self, buffer: Buffer) -> Tensor:
        """Zeros."""
        return torch.zeros(buffer.shape, dtype=buffer.dtype)

    def memory(self, buffer: Buffer) -> Tensor:
        """Zeros, elsewhere."""
        return torch.zeros(buffer.shape, dtype=buffer.dtype)

    def stream(self, name: str) -> "ThreadStream":
        """A thread that waits for work."""
        return ThreadStream(name)

    def synchronize(self) -> None:
        """Nothing runs but what the ring waits for itself."""

    def taken(self) -> int:
        """It has no memory but the host's."""
        return 0


class ThreadEvent:
    """A point in the order of a thread."""

    def __init__(self, reached: "Future[None]") -> None:
        self._reached = reached

    def synchronize(self) -> None:
        """Wait, and raise what failed on the way here."""
        self._reached.result()


class ThreadStream:
    """One thread. What fails is skipped up to the next event, which carries the failure to those who wait for it."""

    def __init__(self, name: str) -> None:
        self.handle = 0
        self._pool = ThreadPoolExecutor(1, f"stream-{name}")
        self._failed: Exception | None = None

    def enqueue(self, work: Work) -> None:
        """Have the thread call `work`."""
        self._pool.submit(self._run, work)

    def record(self) -> ThreadEvent:
        """Done when the thread comes to it."""
        return ThreadEvent(self._pool.submit(self._mark))

    def wait(self, event: ThreadEvent) -> None:
        """Let the thread wait."""
        self.enqueue(event.synchronize)

    def graphed(self, work: Work, warm_up: int = WARM_UP) -> Work:
        """`work` as it is."""
        del warm_up
        return work

    def _run(self, work: Work) -> None:
        if self._failed is None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - it is raised where the event is waited for
                self._failed = error

    def _mark(self) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed
