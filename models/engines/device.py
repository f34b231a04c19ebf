"""Facts about this processor that decide which kernels run, hence which bytes come out."""

import functools
import platform
from importlib.metadata import version
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
FLAGS = frozenset({
    "amx_bf16", "amx_int8", "amx_tile", "avx", "avx2", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx512bw",
    "avx512dq", "avx512f", "avx512vl", "avx_vnni", "asimd", "asimdhp", "bf16", "fma", "sse4_2", "sve",
})  # fmt: skip

LIBRARIES = {"openvino": ("openvino", "onnx", "onnxscript", "torch"), "torch": ("torch",), "null": ()}


@functools.cache
def device() -> str:
    """Processor and its relevant instruction sets, in one line: equal lines, equal kernels."""
    facts = _cpuinfo()
    name = facts.get("model name") or platform.processor() or "unknown processor"
    kind = "/".join(facts[key] for key in ("cpu family", "model", "stepping") if key in facts)
    flags = FLAGS & set((facts.get("flags") or facts.get("Features") or "").split())
    return " ".join([platform.system(), platform.machine(), name, *([f"({kind})"] if kind else []), *sorted(flags)])


def versions(backend: str) -> str:
    """Exact versions of the libraries that make and run an engine of `backend`; read without importing them."""
    return ", ".join(f"{name} {version(name)}" for name in LIBRARIES[backend]) or "none"


def _cpuinfo() -> dict[str, str]:
    if not CPUINFO.is_file():
        return {}
    first = CPUINFO.read_text().split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
