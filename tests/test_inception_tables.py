"""The tables of the networks against the public packages and the papers: parameters and shapes, without weights."""

import pytest
import torch
from drawn_weights import REFS

from models.classifier import create_classifier
from models.inception import create_encoder
from models.inception.blocks import scaled
from models.inception.v1 import TABLE

FACENET = {"classes": 8631, "variant": "facenet"}
NETWORKS = {
    "tv_googlenet": ("inception_v1", {"kernel5": 3, "aux": True}),
    "tv_inception_v3": ("inception_v3", {"aux": True}),
    "timm_inception_v3": ("inception_v3", {}),
    "timm_inception_v4": ("inception_v4", {}),
    "timm_inception_resnet_v2": ("inception_resnet_v2", {}),
    "cadene_bninception": ("inception_v2", {}),
    "cadene_inceptionv4": ("inception_v4", {"classes": 1001}),
    "cadene_inceptionresnetv2": ("inception_resnet_v2", {"classes": 1001}),
    "facenet_inception_resnet_v1": ("inception_resnet_v1", FACENET),
    "smp_inceptionv4": ("inception_v4", {}),
    "smp_inceptionresnetv2": ("inception_resnet_v2", {}),
}
"""Every public network, and which of ours it is."""


def classifier(reference, **more):
    name, options = NETWORKS[reference]
    with torch.device("meta"):
        return create_classifier(name, **options, **more).eval()


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("reference", NETWORKS)
def test_parameters_are_those_of_the_public_network(reference):
    public, ours = REFS["refs"][reference], classifier(reference)
    assert size(ours.encoder) == public["params_encoder"]
    if reference.startswith("smp"):  # which has no head
        return
    assert size(ours) == public["params_total"]
    assert size(ours) - size(ours.aux) == public["params_without_aux"]
    assert len(ours.state_dict()) == public["state_dict_tensors"]


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("inception_v1", {"bn": False}, 6_998_552),
        ("inception_v1", {}, 7_005_832),
        ("inception_v1", {"kernel5": 3}, 6_624_904),
        ("inception_v2_factorized", {}, 25_560_648),
        ("inception_v3", {}, 23_834_568),
        ("inception_resnet_v1", {}, 22_756_328),
        ("inception_resnet_v2", {"variant": "paper"}, 32_433_928),
    ],
)
def test_parameters_are_those_of_the_papers(name, options, parameters):
    assert parameters in {row["params"] for row in REFS["paper_variants"].values()}
    with torch.device("meta"):
        assert size(create_classifier(name, **options)) == parameters


@pytest.mark.parametrize("edges", [(512, 512), (513, 481)])
@pytest.mark.parametrize("reference", NETWORKS)
def test_maps_have_the_shapes_of_the_public_network(reference, edges):
    padding = "same" if reference.startswith("smp") else "valid"
    encoder = classifier(reference, padding=padding).encoder
    quarter = {"mixed_4a": "mixed_3a"} if padding == "valid" else {}  # where timm taps Inception v4
    names = [quarter.get(name, name) for name in encoder.ends]
    maps = encoder.maps(torch.zeros(1, 3, *edges, device="meta"), names)
    public = REFS["refs"][reference]["levels"][f"{edges[0]}x{edges[1]}"]
    assert [list(maps[name].shape[1:]) for name in names] == list(public.values())


def test_the_papers_table_gives_its_output_channels():
    encoder = create_encoder("inception_v1", width=1)
    channels = [encoder.widths[f"inception{name}"] for name in TABLE]
    assert channels == [256, 480, 512, 512, 512, 528, 832, 832, 1024]


@pytest.mark.parametrize(
    ("name", "layers", "channels"),
    [
        ("inception_v2", ["inception_3c", "inception_4c", "inception_4d", "inception_4e"], [576, 608, 608, 1056]),
        ("inception_v2_factorized", ["mixed5c", "reduction5", "reduction6", "mixed7b"], [288, 768, 1280, 2048]),
        ("inception_v4", ["mixed_5a", "reduction_a", "reduction_b"], [384, 1024, 1536]),
        ("inception_resnet_v1", ["conv2d_4b", "mixed_6a", "mixed_7a"], [256, 896, 1792]),
        ("inception_resnet_v2", ["mixed_5b", "mixed_6a", "mixed_7a"], [320, 1088, 2080]),
    ],
)
def test_modules_give_the_channels_that_the_papers_print(name, layers, channels):
    with torch.device("meta"):
        encoder = create_encoder(name)
    assert [encoder.widths[layer] for layer in layers] == channels


def test_widths_are_multiples_of_eight_and_at_least_eight():
    assert [scaled(c, 0.75) for c in (16, 24, 64, 208)] == [16, 16, 48, 160]
    assert [scaled(c, 0.25) for c in (16, 64)] == [8, 16]
    assert scaled(529, 1.0) == 529


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("inception_v9", {}, r"'inception_v9'.*inception_v1"),
        ("inception_v3", {"kernel5": 3}, "inception_v3 has no option 'kernel5': it has none"),
        ("inception_v1", {"kernel5": 7}, "kernel5 is 7"),
        ("inception_resnet_v1", {"variant": "released"}, "choose 'paper' or 'facenet'"),
        ("inception_resnet_v2", {"variant": "facenet"}, "choose 'released' or 'paper'"),
        ("inception_v4", {"padding": "half"}, "padding is 'half': choose 'same'"),
    ],
)
def test_what_no_table_has_is_refused(name, options, says):
    with pytest.raises(ValueError, match=says):
        create_encoder(name, **options)


def test_auxiliary_heads_are_refused_where_a_network_has_none():
    with pytest.raises(ValueError, match="inception_v4 has no auxiliary heads"):
        create_classifier("inception_v4", aux=True)
