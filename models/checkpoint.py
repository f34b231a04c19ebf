"""What a file of weights holds: tensors by name, read without running anything that lies in it."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import WeightsError

ENDINGS = (".pth", ".pt", ".safetensors")
"""Of files that are read."""
PREFIXES = ("module.", "model.", "encoder.")
"""Taken off where every name has them: what wrappers put in front."""


def read_tensors(source: Mapping[str, Any] | Path | str) -> dict[str, Tensor]:
    """The tensors of a mapping or a file by name, out of a `{"state_dict": ...}` and without common prefixes.

    Raises:
        WeightsError: no such file, truncated, of another kind, or it holds code or anything else than tensors.
    """
    name = "the mapping" if isinstance(source, Mapping) else str(source)
    held = source if isinstance(source, Mapping) else _read(Path(source))
    if isinstance(held, Mapping) and isinstance(held.get("state_dict"), Mapping):
        held = held["state_dict"]
    if not isinstance(held, Mapping) or not held:
        raise WeightsError(f"{name} holds {_kind(held)}, not tensors by name: give a state_dict")
    strange = [key for key, value in held.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if strange:
        raise WeightsError(f"{name} holds {_kind(held[strange[0]])} at {strange[0]!r}, not a tensor: give a state_dict")
    return _bare(held)


def _kind(value: Any) -> str:
    return f"an empty {type(value).__name__}" if value == {} else f"a value of type {type(value).__name__}"


def _bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            return _bare({key.removeprefix(prefix): tensor for key, tensor in tensors.items()})
    return dict(tensors)


def _read(path: Path) -> Any:
    if path.suffix not in ENDINGS:
        raise WeightsError(f"{path} is no file of weights that is read here: give {', '.join(ENDINGS)}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except WeightsError:
        raise
    except Exception as error:  # an unpickler may raise anything on what is no pickle
        raise WeightsError(f"{path} is truncated or no checkpoint ({_line(error)}): download it again") from error


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise
        raise WeightsError(
            f"{path} holds code beside its tensors, which is never run: save its state_dict alone, or as .safetensors"
        ) from error


def _line(error: Exception) -> str:
    """The first sentence of what a library said."""
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".") or type(error).__name__
