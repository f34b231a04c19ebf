"""Our networks compute what the public ones do: fingerprints, and weights drawn from the public names."""

import pytest
import torch
from drawn_weights import PRINTS, PUBLIC_KEYS, SOURCES, draw_image, draw_state, fingerprint

from models.classifier import create_classifier
from models.inception import create_encoder
from models.pretrained import load_public

NATIVE = {"tv_googlenet": 224, "cadene_bninception": 224, "facenet_inception_resnet_v1": 160}
"""Edge of the images in pixels, where it is not 299."""
LEVELS = ("2", "4", "8", "16", "32")
SMP_V4_STAGES = {"8": ("inception_a", 3), "16": ("inception_b", 4)}
"""Modules after which smp taps Inception v4: before the ends of those stages."""


def assert_prints(tensor, wanted, level):
    got = fingerprint(tensor, level)
    scale = max(abs(wanted["min"]), abs(wanted["max"]))
    assert got["shape"] == wanted["shape"]
    for key in ("mean", "std", "l2", "min", "max", "proj", "head"):
        assert got[key] == pytest.approx(wanted[key], rel=1e-9, abs=1e-9 * scale), (level, key)


def public_maps(classifier, x):
    """The maps that the references have at each level; theirs of v4 at a quarter lies a layer before ours."""
    ends = dict(zip(LEVELS, classifier.encoder.ends, strict=True))
    if ends["4"] == "mixed_4a":
        ends["4"] = "mixed_3a"
    maps = classifier.encoder.maps(x, set(ends.values()))
    return {level: maps[name] for level, name in ends.items()}


@pytest.mark.parametrize("reference", SOURCES)
@torch.no_grad()
def test_every_public_network_is_rebuilt_to_the_last_digits(reference):
    source, name, variant = SOURCES[reference]
    classes = 8631 if source == "facenet" else 1000
    classifier = create_classifier(name, classes=classes, **variant)
    report = load_public(classifier, draw_state(PUBLIC_KEYS[reference]), source, head=True)
    assert report.missing == ()
    x = draw_image(*[NATIVE.get(reference, 299)] * 2)
    x = x.flip(1) if name == "inception_v2" else x  # its kernels were turned from BGR to RGB
    classifier = classifier.double().eval()
    maps = public_maps(classifier, x)
    for level, tensor in maps.items():
        assert_prints(tensor, PRINTS[reference][level], level)
    assert_prints(classifier.head(maps["32"]), PRINTS[reference]["logits"], "logits")


@torch.no_grad()
def smp_maps(encoder, x):
    """The maps where smp taps: ours, but those of Inception v4 within its stages."""
    maps = dict(zip(LEVELS, encoder(x), strict=True))
    if "inception_a" in encoder.widths:
        before = encoder.maps(x, {"mixed_5a", "reduction_a"})
        for level, (stage, count) in SMP_V4_STAGES.items():
            start = before["mixed_5a" if stage == "inception_a" else "reduction_a"]
            maps[level] = getattr(encoder, stage)[:count](start)
    return maps


@pytest.mark.parametrize(
    ("reference", "public", "name"),
    [
        ("smp_inceptionv4", "timm_inception_v4", "inception_v4"),
        ("smp_inceptionresnetv2", "timm_inception_resnet_v2", "inception_resnet_v2"),
    ],
)
def test_padding_same_is_what_smp_does_with_the_same_weights(reference, public, name):
    encoder = create_encoder(name, padding="same")
    load_public(encoder, draw_state(PUBLIC_KEYS[public]), "smp")
    maps = smp_maps(encoder.double().eval(), draw_image(256, 256))
    for level in LEVELS:
        assert_prints(maps[level], PRINTS[reference][level], level)


@torch.no_grad()
def test_a_fingerprint_tells_an_average_that_counts_the_padding():
    encoder = create_encoder("inception_v4", padding="same", count_include_pad=True)
    load_public(encoder, draw_state(PUBLIC_KEYS["timm_inception_v4"]), "smp")
    maps = smp_maps(encoder.double().eval(), draw_image(256, 256))
    assert_prints(maps["4"], PRINTS["smp_inceptionv4"]["4"], "4")  # there is no average before it
    with pytest.raises(AssertionError, match="mean"):
        assert_prints(maps["8"], PRINTS["smp_inceptionv4"]["8"], "8")
