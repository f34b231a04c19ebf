"""Facts about this machine that decide which kernels run, hence which bytes come out. Loads no library of engines."""

import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.engines.base import Target

CPUINFO = Path("/proc/cpuinfo")
FLAGS = frozenset({
    "amx_bf16", "amx_int8", "amx_tile", "avx", "avx2", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx512bw",
    "avx512dq", "avx512f", "avx512vl", "avx_vnni", "asimd", "asimdhp", "bf16", "fma", "sse4_2", "sve",
})  # fmt: skip

QUERY = ("index", "uuid", "name", "compute_cap", "driver_version")
"""What `nvidia-smi` is asked about each GPU."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU that this process may use."""

    index: str
    """As `CUDA_VISIBLE_DEVICES` takes it."""
    uuid: str
    name: str
    capability: str
    """Compute capability, such as `9.0`."""
    driver: str


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """The GPUs at hand: all that the driver lists, less those that `CUDA_VISIBLE_DEVICES` hides; none without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found = [Gpu(*(value.strip() for value in line.split(","))) for line in told.splitlines() if line.strip()]
    return visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(found: Sequence[Gpu], shown: str | None) -> tuple[Gpu, ...]:
    """Those of `found` that `CUDA_VISIBLE_DEVICES` = `shown` leaves: by index or the beginning of the uuid, in its
    order, up to the first that does not exist.
    """
    if shown is None:
        return tuple(found)
    kept: list[Gpu] = []
    for name in filter(None, (part.strip() for part in shown.split(","))):
        match = [gpu for gpu in found if name == gpu.index or (not name.isdigit() and gpu.uuid.startswith(name))]
        if not match:
            break
        kept.append(match[0])
    return tuple(kept)


def default_target() -> Target:
    """`cuda` where there is a GPU."""
    return "cuda" if gpus() else "cpu"


@functools.cache
def device(target: Target = "cpu") -> str:
    """Processor and its relevant instruction sets, or GPU and driver, in one line: equal lines, equal kernels."""
    if target == "cuda":
        return next((f"{gpu.name}, compute {gpu.capability}, driver {gpu.driver}" for gpu in gpus()), "no GPU")
    facts = _cpuinfo()
    name = facts.get("model name") or platform.processor() or "unknown processor"
    kind = "/".join(facts[key] for key in ("cpu family", "model", "stepping") if key in facts)
    flags = FLAGS & set((facts.get("flags") or facts.get("Features") or "").split())
    return " ".join([platform.system(), platform.machine(), name, *([f"({kind})"] if kind else []), *sorted(flags)])


def _cpuinfo() -> dict[str, str]:
    if not CPUINFO.is_file():
        return {}
    first = CPUINFO.read_text().split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
