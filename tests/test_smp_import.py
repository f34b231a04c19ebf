"""A U-Net of segmentation-models-pytorch through the door for other networks, as `examples/smp_unet.py` makes it.

`make parity` installs the package and runs this; without it, it is skipped.
"""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from examples.smp_unet import BUILDINGS, network, said, write_onnx
from models.bundle import open_bundle
from models.engines.base import EngineRequest
from models.engines.prepare import prepare
from models.imported import load_imported
from models.importing import Said
from pipeline.importing import import_network
from pipeline.scene import SceneAddress

pytestmark = pytest.mark.parity
SCENE = BUILDINGS.parents[1] / "scenes" / "catanduanes-val.tif"


@pytest.fixture(scope="module")
def theirs():
    if find_spec("segmentation_models_pytorch") is None:
        pytest.skip("segmentation-models-pytorch is not installed: `make parity` does")
    return network("resnet18", 2, 3, None)


@pytest.fixture(scope="module")
def bundle(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smp")
    write_onnx(theirs, 3, folder / "model.onnx")
    like = open_bundle(BUILDINGS).spec.model_dump(mode="json")
    facts = Said.model_validate({**said("resnet18", like), "halo": 96, "tiles": [256, 512]})
    return import_network(folder / "model.onnx", facts, folder / "b", scenes=[SceneAddress(str(SCENE))])


def test_its_logits_are_those_of_the_package(theirs, bundle):
    x = torch.randn(2, 3, 128, 96)
    with torch.inference_mode():
        expected = theirs(x)
    np.testing.assert_allclose(load_imported(bundle)(x), expected, atol=1e-4 * float(expected.std()))


def test_all_its_axes_are_free_and_its_crops_are_real(bundle):
    assert (bundle.spec.imported.batch, bundle.spec.imported.edge, bundle.spec.imported.output_stride) == (
        None,
        None,
        1,
    )
    assert (bundle.spec.halo, bundle.spec.tiles, bundle.spec.stride) == (96, (256, 512), 32)


@pytest.mark.parametrize(
    ("backend", "precision"), [("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "auto")]
)
def test_engines_of_it_pass_the_gate(bundle, backend, precision, tmp_path):
    request = EngineRequest(backend, precision, tile=256, dtype="uint8", threads=1, target="cpu")
    assert prepare(bundle.path, request, tmp_path / "cache").parity["reasons"] == []
