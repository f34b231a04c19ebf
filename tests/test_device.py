"""Which GPUs a process may use, and what tells one machine's engines from another's."""

import stat

import pytest

from models.engines import device
from models.engines.device import Gpu, gpus, sliced, visible
from models.errors import UnavailableError

TWO = [
    Gpu("0", "GPU-aa11", "NVIDIA H200", "9.0", "580.1"),
    Gpu("1", "GPU-bb22", "NVIDIA L4", "8.9", "580.1"),
]


@pytest.mark.parametrize(
    ("shown", "left"),
    [(None, "01"), ("", ""), ("1", "1"), ("1,0", "10"), ("GPU-bb", "1"), ("0,7,1", "0"), ("-1", ""), (" 1 ", "1")],
)
def test_cuda_visible_devices_is_obeyed(shown, left):
    assert "".join(gpu.index for gpu in visible(TWO, shown)) == left


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A program in the place of the driver's, which says what it is told to."""

    def install(text):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for cached in (device.gpus, device.device):
            cached.cache_clear()

    yield install
    for cached in (device.gpus, device.device):
        cached.cache_clear()


def test_what_the_driver_lists_is_found_and_named(driver):
    driver('echo "0, GPU-aa11, NVIDIA H200, 9.0, 580.1"; echo "1, GPU-bb22, NVIDIA L4, 8.9, 580.1"')
    assert gpus() == tuple(TWO)
    assert device.default_target() == "cuda"
    assert device.device("cuda") == "NVIDIA H200, compute 9.0, driver 580.1"


def test_a_driver_that_fails_means_no_gpu(driver):
    driver("echo 'No devices were found'; exit 6")
    assert gpus() == ()
    assert device.default_target() == "cpu"
    with pytest.raises(UnavailableError, match="choose --device cpu"):
        device.device("cuda")


LISTING = """GPU 0: NVIDIA H200 (UUID: GPU-aa11)
  MIG 1g.18gb     Device  0: (UUID: MIG-cc33)
  MIG 3g.71gb     Device  1: (UUID: MIG-dd44)
GPU 1: NVIDIA L4 (UUID: GPU-bb22)
"""


def test_a_divided_gpu_is_its_slices():
    found = sliced(TWO, LISTING)
    assert [gpu.uuid for gpu in found] == ["MIG-cc33", "MIG-dd44", "GPU-bb22"]
    assert found[1] == Gpu("MIG-dd44", "MIG-dd44", "NVIDIA H200 MIG 3g.71gb", "9.0", "580.1", whole="0")
    assert sliced(TWO, "") == tuple(TWO)


@pytest.mark.parametrize(
    ("shown", "left"), [("MIG-dd44", ["MIG-dd44"]), ("0", ["MIG-cc33"]), ("1,MIG-cc33", ["GPU-bb22", "MIG-cc33"])]
)
def test_slices_are_chosen_by_uuid_or_as_the_first_of_their_gpu(shown, left):
    assert [gpu.uuid for gpu in visible(sliced(TWO, LISTING), shown)] == left


def test_a_slice_that_the_driver_does_not_list_is_told(caplog):
    assert visible(TWO, "MIG-ee55") == ()
    assert "CUDA_VISIBLE_DEVICES names MIG-ee55, which nvidia-smi -L does not list" in caplog.text


def test_the_processor_is_named_with_the_instructions_that_decide_kernels():
    assert device.device("cpu") == device.device()
    assert device.device().split()[0] in {"Linux", "Darwin"}
