"""A graph as native code, as AOTInductor compiles it for a processor, called through its C interface.

PyTorch's own loader holds Python's lock for as long as the graph computes, and every thread that reads or writes stands
still meanwhile; a foreign function is called without it. The functions are those of `aoti_runtime/interface.h` and of
`aoti_torch/c/shim.h`, which PyTorch promises to keep.
"""

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch  # noqa: F401 - the graph is linked to its libraries
from numpy.typing import NDArray

from models.errors import EngineError

TYPES: Final = ("uint8", "int16", "float32")
"""Of the arrays that may enter, as NumPy and PyTorch call them."""
CPU: Final = 0
"""PyTorch's number for processors."""


class NativeGraph:
    """Arrays in, one array of uint8 out. As many threads as there are `runners` may call it at once."""

    def __init__(self, library: Path, runners: int = 1) -> None:
        """Load `library` for as long as the process lives.

        Raises:
            EngineError: it is no such library, or one of another version of PyTorch.
        """
        try:
            self._library = ctypes.CDLL(str(library))
            self._types = {name: getattr(self._library, f"aoti_torch_dtype_{name}")() for name in TYPES}
            self._container = c_void_p()
            create = self._library.AOTInductorModelContainerCreateWithDevice
        except (OSError, AttributeError) as error:
            raise EngineError(f"{library} cannot be loaded ({error}): have the engine built again") from error
        self._check(create(byref(self._container), c_size_t(runners), c_char_p(b"cpu"), None))
        inputs = c_size_t()
        self._check(self._library.AOTInductorModelContainerGetNumInputs(self._container, byref(inputs)))
        self._inputs = inputs.value

    def __call__(self, *arrays: NDArray[Any]) -> NDArray[np.uint8]:
        """What the graph computes. It does not look at shapes: the caller gives those that it was compiled for.

        uint16 counts as the int16 of the same bits.

        Raises:
            EngineError: the graph takes another number of arrays, or failed.
        """
        if len(arrays) != self._inputs:  # it would end the process
            raise EngineError(f"got {len(arrays)} arrays: this graph takes {self._inputs}")
        held = [np.ascontiguousarray(array) for array in arrays]  # the tensors borrow this memory
        inputs = (c_void_p * len(held))(*(self._tensor(array) for array in held))
        output = (c_void_p * 1)()
        run = self._library.AOTInductorModelContainerRun
        self._check(run(self._container, inputs, c_size_t(len(held)), output, c_size_t(1), None, None))
        try:
            return self._array(c_void_p(output[0]))
        finally:
            self._check(self._library.aoti_torch_delete_tensor_object(c_void_p(output[0])))

    def _tensor(self, array: NDArray[Any]) -> int | None:
        """A tensor on the array's memory, which the graph takes over."""
        kind = "int16" if array.dtype == np.uint16 else str(array.dtype)
        strides = [stride // array.itemsize for stride in array.strides]
        tensor = c_void_p()
        create = self._library.aoti_torch_create_tensor_from_blob
        place = (c_int64(0), c_int32(self._types[kind]), c_int32(CPU), c_int32(0))
        shape = (c_int64(array.ndim), _longs(array.shape), _longs(strides))
        self._check(create(c_void_p(array.ctypes.data), *shape, *place, byref(tensor)))
        return tensor.value

    def _array(self, tensor: c_void_p) -> NDArray[np.uint8]:
        """A copy of a tensor of uint8."""
        rank, start = c_int64(), c_void_p()
        sizes, strides = ctypes.POINTER(c_int64)(), ctypes.POINTER(c_int64)()
        facts = {"dim": rank, "sizes": sizes, "strides": strides, "data_ptr": start}
        for name, value in facts.items():
            self._check(getattr(self._library, f"aoti_torch_get_{name}")(tensor, byref(value)))
        shape, steps = sizes[: rank.value], strides[: rank.value]
        if not prod(shape) or start.value is None:
            return np.empty(shape, np.uint8)
        size = 1 + sum((edge - 1) * step for edge, step in zip(shape, steps, strict=True))
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(start.value))
        return np.array(np.lib.stride_tricks.as_strided(memory, shape, steps))

    def _check(self, status: int) -> None:
        if status:
            said = c_char_p()
            if hasattr(self._library, "AOTInductorGetLastError"):  # since PyTorch 2.13; before, it is printed
                self._library.AOTInductorGetLastError(byref(said))
            raise EngineError(f"the compiled graph failed: {(said.value or b'see standard error').decode()}")


def _longs(values: Sequence[int]) -> "ctypes.Array[c_int64]":
    return (c_int64 * len(values))(*values)
