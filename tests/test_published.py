import subprocess
import sys

import pytest

from models.errors import WeightsError
from models.inception import ENCODERS
from models.inception.family import find_network
from models.pretrained import LAYOUTS
from models.published import PUBLISHED, find, guess


def test_every_entry_is_of_a_network_and_a_source_that_can_be_loaded():
    known = {(layout.network, source) for layout in LAYOUTS for source in layout.sources}
    assert {(entry.network, entry.source) for entry in PUBLISHED.values()} <= known


def test_every_network_with_public_weights_is_listed():
    listed = {entry.network for entry in PUBLISHED.values()}
    assert listed == {layout.network for layout in LAYOUTS} == set(ENCODERS) - {"inception_v2_factorized"}


@pytest.mark.parametrize("entry", PUBLISHED.values(), ids=str)
def test_the_variant_is_the_one_that_the_loader_takes(entry):
    (layout,) = (layout for layout in LAYOUTS if layout.network == entry.network)
    options = {name: value for name, value in entry.variant.items() if name != "count_include_pad"}
    assert options == dict(layout.variant)
    assert find_network(entry.network, **options)


def test_a_checksum_is_known_where_the_published_name_carries_one():
    digits = {entry.file: entry.sha256 for entry in PUBLISHED.values() if entry.sha256}
    assert digits == {
        "googlenet-1378be20.pth": "1378be20",
        "inception_v3_google-0cc3c7bd.pth": "0cc3c7bd",
    }


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("inception_v3_google-0cc3c7bd.pth", "inception_v3.tv_in1k"),
        ("/a/b/inception_v3_google-1a9a5a14.pth", "inception_v3.tv_in1k"),
        ("inception_v3.tv_in1k.safetensors", "inception_v3.tv_in1k"),
        ("inception_v4.tf_in1k.pth", "inception_v4.tf_in1k"),
        ("20180402-114759-vggface2.pt", "inception_resnet_v1.vggface2"),
    ],
)
def test_a_file_is_known_by_its_name(file, name):
    assert guess(file) is PUBLISHED[name]


def test_a_name_that_says_nothing_is_not_guessed():
    assert guess("model.safetensors") is None
    with pytest.raises(WeightsError, match=r"'inception_v9'.*inception_v1.tv_in1k"):
        find("inception_v9")


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("inception_v3.tv_in1k", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
        ("inception_v3.gluon_in1k", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ("inception_v2.cadene_in1k", (128, 117, 104), (1, 1, 1)),  # published as blue 104, green 117, red 128
        ("inception_resnet_v1.vggface2", (127.5, 127.5, 127.5), (128, 128, 128)),
    ],
)
def test_normalisation_travels_with_the_weights(name, mean, std):
    normal = find(name).normalisation
    assert (normal.mean, normal.std) == (mean, std)


def test_the_table_imports_no_torch():
    code = "import sys, models.published, pipeline.download, flows.weights; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
