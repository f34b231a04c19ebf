import random
import threading
import time

import numpy as np
import pytest
import torch

from models.engines.ring import Buffer, Cuda, Ring, Threads, ThreadStream, device_errors
from models.errors import EngineError

INPUTS = {"x": Buffer((2, 64), torch.float32), "gain": Buffer((1,), torch.float32)}
OUTPUT = Buffer((2, 64), torch.float32)
POISON = -1e9


def doubled(slot, stream):
    """x * gain + 1; afterwards the inputs hold poison, so that nothing but a fresh copy gives the right answer."""

    def compute():
        torch.add(slot.device["x"] * slot.device["gain"], 1, out=slot.output)
        slot.device["x"].fill_(POISON)
        slot.device["gain"].fill_(POISON)

    return stream.graphed(compute)


def batch(number, gain=2.0):
    return {"x": np.full((2, 64), number, np.float32), "gain": np.full(1, gain, np.float32)}


class Jittery(Threads):
    """Each piece of work begins a little later, by chance, and copies are done in halves with a pause between."""

    def stream(self, name):
        stream, chance = ThreadStream(name), random.Random(name)
        enqueue = stream.enqueue
        stream.enqueue = lambda work: enqueue(lambda: (time.sleep(chance.random() * 3e-3), work()))
        return stream


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_the_answers_are_those_of_one_batch_after_the_other(slots):
    ring = Ring(Jittery(), INPUTS, OUTPUT, doubled, slots)
    waits = [ring.start(batch(number, gain)) for number, gain in enumerate([2, 3] * 20)]
    for (number, gain), answer in zip(enumerate([2, 3] * 20), waits, strict=True):
        np.testing.assert_array_equal(answer(), np.full((2, 64), number * gain + 1, np.float32))


def test_the_callers_arrays_are_its_own_again_at_once():
    ring, arrays = Ring(Jittery(), INPUTS, OUTPUT, doubled), batch(1)
    answers = []
    for number in range(20):
        arrays["x"].fill(number)
        answers.append(ring.start(arrays))
        arrays["x"].fill(POISON)
    assert [float(answer()[0, 0]) for answer in answers] == [2 * number + 1 for number in range(20)]


def test_an_answer_stays_when_its_slot_is_used_again():
    ring = Ring(Threads(), INPUTS, OUTPUT, doubled, slots=1)
    first = ring.start(batch(1))()
    ring.start(batch(5))()
    assert float(first[0, 0]) == 3


class Gated(Threads):
    """A device whose compute stream stands still until the gate is opened."""

    def __init__(self):
        self.gate = threading.Event()
        self.done = []

    def stream(self, name):
        stream = ThreadStream(name)
        enqueue = stream.enqueue

        def gated(work):
            enqueue(lambda: (name == "compute" and self.gate.wait(), work(), self.done.append(name)))

        stream.enqueue = gated
        return stream


def test_copies_run_beside_the_computation_and_no_batch_enters_a_ring_that_is_full():
    device = Gated()
    ring, started, begun = Ring(device, INPUTS, OUTPUT, doubled), [], []

    def begin():
        begun.append(len(begun))
        return lambda: None

    caller = threading.Thread(target=lambda: started.extend(ring.start(batch(number), begin) for number in range(5)))
    caller.start()
    while device.done != ["in"] * 3:
        time.sleep(1e-3)
    time.sleep(0.05)
    assert len(started) == len(begun) == 3
    assert device.done == ["in"] * 3
    device.gate.set()
    caller.join()
    assert [float(answer()[0, 0]) for answer in started] == [1, 3, 5, 7, 9]


def failing(slot, stream):
    """Refuses the batch whose first value is 3."""
    compute = doubled(slot, stream)

    def work():
        if slot.device["x"][0, 0] == 3:
            raise RuntimeError("the kernel was eaten")
        compute()

    return work


def test_a_failure_is_that_of_its_own_batch_alone_and_the_ring_goes_on():
    ring = Ring(Jittery(), INPUTS, OUTPUT, failing)
    for number, answer in [(number, ring.start(batch(number))) for number in range(8)]:
        if number == 3:
            with pytest.raises(EngineError, match="failed on a batch: the kernel was eaten"):
                answer()
        else:
            assert float(answer()[0, 0]) == 2 * number + 1


def test_who_asks_is_told_of_each_end_by_another_thread_also_of_a_failure():
    ring, told = Ring(Threads(), INPUTS, OUTPUT, failing), []
    answers = [
        ring.start(batch(number), lambda number=number: lambda: told.append((number, threading.current_thread().name)))
        for number in range(5)
    ]
    for number in (0, 1, 2, 4):
        answers[number]()
    assert [number for number, _ in told] == list(range(5))
    assert threading.current_thread().name not in {name for _, name in told}


class Refusing(Threads):
    """A device that cannot launch the third computation, as one whose memory has run out."""

    def stream(self, name):
        stream, counted = ThreadStream(name), []
        enqueue = stream.enqueue

        def refuse(work):
            counted.append(work)
            if name == "compute" and len(counted) == 5:  # waits are counted as well
                raise RuntimeError("out of memory")
            enqueue(work)

        stream.enqueue = refuse
        return stream


def test_a_batch_that_cannot_be_launched_leaves_its_slot_to_the_next():
    ring, told = Ring(Refusing(), INPUTS, OUTPUT, doubled), []
    ring.start(batch(0))
    ring.start(batch(1))
    with pytest.raises(EngineError, match="refused a batch: out of memory"):
        ring.start(batch(2), lambda: told.append("begin") or (lambda: told.append("end")))
    assert told == ["begin", "end"]
    assert float(ring.start(batch(3))()[0, 0]) == 7


@pytest.mark.parametrize(("name", "array"), [("x", np.zeros((1, 64), np.float32)), ("gain", np.zeros(1))])
def test_arrays_of_another_shape_or_type_are_refused(name, array):
    begun = []
    with pytest.raises(EngineError, match=f"input {name} is .*: this engine takes float32"):
        Ring(Threads(), INPUTS, OUTPUT, doubled).start(batch(0) | {name: array}, lambda: begun.append("begin"))
    assert not begun


FULL = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB"
ADVICE = (
    "Including non-PyTorch memory, this process has 79 GiB in use. If reserved but unallocated memory is large try ..."
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError(f"{FULL}. {ADVICE}"), f"{FULL}: choose a smaller --tile or --batch"),
        (MemoryError(), "MemoryError: choose a smaller --tile or --batch"),
        (RuntimeError("an illegal memory access\nCompile with TORCH_USE_CUDA_DSA"), "an illegal memory access"),
    ],
)
def test_what_a_device_says_is_one_line_and_has_a_way_out_where_memory_is_lacking(error, said):
    with pytest.raises(EngineError) as told, device_errors("it failed"):
        raise error
    assert str(told.value) == f"it failed: {said}"


def test_a_processor_that_is_full_is_told_of_as_well():
    with (
        pytest.raises(EngineError, match=r"it failed: .*: choose a smaller --tile or --batch"),
        device_errors("it failed"),
    ):
        torch.empty(1 << 60)


def weighted(slot, stream):
    """x * gain + 1, by a weight that nobody but the recording holds."""
    arrays, output, one = slot.device, slot.output, torch.ones_like(slot.output)
    return stream.graphed(lambda: torch.add(arrays["x"] * arrays["gain"], one, out=output))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.gpu
def test_on_a_gpu_recorded_computations_give_the_answers_of_one_batch_after_the_other():
    ring = Ring(Cuda(), INPUTS, OUTPUT, doubled)
    answers = []
    for number in range(60):
        answers.append(ring.start(batch(number, number % 5)))
        if len(answers) % 7 == 0:
            answers[-1]()
    for number, answer in enumerate(answers):
        np.testing.assert_array_equal(answer(), np.full((2, 64), number * (number % 5) + 1, np.float32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.gpu
def test_on_a_gpu_recorded_computations_keep_their_weights_and_tell_what_memory_is_taken():
    device = Cuda()
    ring = Ring(device, INPUTS, OUTPUT, weighted)
    before = device.taken()
    others = [torch.full((1 << 20,), POISON, device="cuda") for _ in range(64)]
    assert device.taken() - before >= 1 << 27
    assert float(ring.start(batch(3))()[0, 0]) == 7
    del others
