"""Facts about this machine that decide which kernels run, hence which bytes come out. Loads no library of engines."""

import functools
import logging
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.engines.base import Target
from models.errors import UnavailableError

CPUINFO = Path("/proc/cpuinfo")
FLAGS = frozenset({
    "amx_bf16", "amx_int8", "amx_tile", "avx", "avx2", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx512bw",
    "avx512dq", "avx512f", "avx512vl", "avx_vnni", "asimd", "asimdhp", "bf16", "fma", "sse4_2", "sve",
})  # fmt: skip

QUERY = ("index", "uuid", "name", "compute_cap", "driver_version")
"""What `nvidia-smi` is asked about each GPU."""
LISTED = re.compile(r"GPU \d+: .*\(UUID: (?P<gpu>[^)]+)\)|\s+MIG (?P<profile>\S+)\s.*\(UUID: (?P<slice>[^)]+)\)")
"""A line of `nvidia-smi -L`: a GPU, or one of the slices (MIG) that the GPU above it is divided into."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU that this process may use, or a slice (MIG) of one."""

    index: str
    """As `CUDA_VISIBLE_DEVICES` takes it, where CUDA counts as the driver does: `CUDA_DEVICE_ORDER=PCI_BUS_ID`."""
    uuid: str
    """As `CUDA_VISIBLE_DEVICES` takes it in any order."""
    name: str
    capability: str
    """Compute capability, such as `9.0`."""
    driver: str
    whole: str = ""
    """Index of the GPU that it is a slice of."""


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """The GPUs at hand: all that the driver lists, less those that `CUDA_VISIBLE_DEVICES` hides; none without it."""
    told = _driver(f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader")
    found = [Gpu(*(value.strip() for value in line.split(","))) for line in told.splitlines() if line.strip()]
    return visible(sliced(found, _driver("-L") if found else ""), os.environ.get("CUDA_VISIBLE_DEVICES"))


def sliced(found: Sequence[Gpu], listing: str) -> tuple[Gpu, ...]:
    """`found`, with the slices in the place of each GPU that is divided, as `nvidia-smi -L` lists them."""
    slices: dict[str, list[Gpu]] = {gpu.uuid: [] for gpu in found}
    whole = None
    for line in filter(None, map(LISTED.match, listing.splitlines())):
        if line["gpu"]:
            whole = next((gpu for gpu in found if gpu.uuid == line["gpu"]), None)
        elif whole:
            name = f"{whole.name} MIG {line['profile']}"
            slices[whole.uuid].append(
                replace(whole, index=line["slice"], uuid=line["slice"], name=name, whole=whole.index)
            )
    return tuple(one for gpu in found for one in slices[gpu.uuid] or [gpu])


def visible(found: Sequence[Gpu], shown: str | None) -> tuple[Gpu, ...]:
    """Those of `found` that `CUDA_VISIBLE_DEVICES` = `shown` leaves: by index or the beginning of the uuid, in its
    order, up to the first that does not exist. The index of a GPU that is divided means its first slice, as in CUDA.
    """
    if shown is None:
        return tuple(found)
    kept: list[Gpu] = []
    for name in filter(None, (part.strip() for part in shown.split(","))):
        match = [gpu for gpu in found if name in {gpu.index, gpu.whole} or _begins(gpu.uuid, name)]
        if not match:
            if name.startswith(("GPU", "MIG")):
                log.warning("CUDA_VISIBLE_DEVICES names %s, which nvidia-smi -L does not list: it is not used", name)
            break
        kept.append(match[0])
    return tuple(kept)


def _begins(uuid: str, name: str) -> bool:
    return not name.isdigit() and uuid.startswith(name)


def _driver(*asked: str) -> str:
    """What the driver's program answers; nothing where there is none, or it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        return subprocess.run([program, *asked], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def default_target() -> Target:
    """`cuda` where there is a GPU."""
    return "cuda" if gpus() else "cpu"


@functools.cache
def device(target: Target = "cpu") -> str:
    """Processor and its relevant instruction sets, or GPU and driver, in one line: equal lines, equal kernels.

    Raises:
        UnavailableError: there is no GPU.
    """
    if target == "cuda":
        if not gpus():
            raise UnavailableError(
                "no NVIDIA GPU is known here (nvidia-smi lists none, or CUDA_VISIBLE_DEVICES hides it): "
                "choose --device cpu"
            )
        gpu = gpus()[0]
        return f"{gpu.name}, compute {gpu.capability}, driver {gpu.driver}"
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
