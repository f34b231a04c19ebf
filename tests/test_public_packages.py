"""Our networks beside the public packages with the same weights, in double precision: to the last digits.

`make parity` installs the packages and runs this; without them it is skipped. They come as they are published, and
torchvision's compiled operators, which do not load beside a torch for CPUs, are declared by hand.
"""

import importlib

import pytest
import torch
from drawn_weights import draw_image, draw_state

from models.classifier import create_classifier
from models.inception import create_encoder
from models.pretrained import load_public

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", autouse=True)
def _operators():
    """torchvision registers Python parts of two operators of its library as it is imported: they have to exist."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library  # what it defines goes with it


def package(name):
    """The public package, or a skipped test."""
    return pytest.importorskip(name, reason=f"{name} is not installed: `make parity` does", exc_type=ImportError)


def torchvision(name):
    return getattr(package("torchvision.models"), name)(
        weights=None, init_weights=False, transform_input=False, aux_logits=True
    )


def timm(name):
    return package("timm").create_model(name, pretrained=False)


def cadene(module, name, classes):
    package("pretrainedmodels")
    return getattr(importlib.import_module(f"pretrainedmodels.models.{module}"), name)(num_classes=classes)


def facenet():
    return package("facenet_pytorch").InceptionResnetV1(pretrained=None, classify=True, num_classes=8631)


CLASSIFIERS = {
    "torchvision googlenet": (lambda: torchvision("googlenet"), "torchvision", "inception_v1", {"kernel5": 3}, 224),
    "torchvision inception_v3": (lambda: torchvision("inception_v3"), "torchvision", "inception_v3", {}, 299),
    "timm inception_v3": (lambda: timm("inception_v3"), "timm", "inception_v3", {}, 299),
    "timm inception_v4": (lambda: timm("inception_v4"), "timm", "inception_v4", {}, 299),
    "timm inception_resnet_v2": (lambda: timm("inception_resnet_v2"), "timm", "inception_resnet_v2", {}, 299),
    "Cadene bninception": (lambda: cadene("bninception", "BNInception", 1000), "cadene", "inception_v2", {}, 224),
    "Cadene inceptionv4": (lambda: cadene("inceptionv4", "InceptionV4", 1001), "cadene", "inception_v4", {}, 299),
    "Cadene inceptionresnetv2": (
        *(lambda: cadene("inceptionresnetv2", "InceptionResNetV2", 1001), "cadene", "inception_resnet_v2", {}, 299),
    ),
    "facenet-pytorch": (facenet, "facenet", "inception_resnet_v1", {"variant": "facenet", "classes": 8631}, 160),
}
"""Name -> how the public network is made, its source, ours and its options, and its native size in pixels."""
ENCODERS = {"inceptionv4": "inception_v4", "inceptionresnetv2": "inception_resnet_v2"}
"""smp's encoders, and ours."""


def seeded(public):
    """The public network with seeded weights, in double precision, and those weights."""
    state = draw_state({name: tuple(tensor.shape) for name, tensor in public.state_dict().items()})
    public.load_state_dict(state)
    return public.double().eval(), state


def difference(public, ours):
    return (public - ours).abs().max().item()


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_public_classifier_and_ours_give_the_same_logits(name):
    make, source, network, options, size = CLASSIFIERS[name]
    public, state = seeded(make())
    ours = create_classifier(network, **options)
    load_public(ours, state, source, head=True)
    x = draw_image(size, size)
    logits = ours.double().eval()(x.flip(1) if network == "inception_v2" else x)
    expected = public(x)[:, -logits.shape[1] :]  # of 1001 classes, the first is the background
    rounding = 1e-14 * expected.abs().max() if source == "cadene" else 0  # it sums the last map in another order
    assert difference(expected, logits) <= rounding


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name.startswith("Cadene")])
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_in_front_of_the_average_cadenes_networks_and_ours_are_the_same(name):
    make, source, network, _, size = CLASSIFIERS[name]
    public, state = seeded(make())
    ours = create_encoder(network, padding="valid")
    load_public(ours, state, source)
    if network == "inception_v2":  # sums of red, green, blue and of blue, green, red differ in the last bit
        ours.conv1_7x7_s2.conv.weight.copy_(ours.conv1_7x7_s2.conv.weight.flip(1))
    x = draw_image(size, size)
    assert difference(public.features(x), ours.double().eval()(x)[-1]) == 0


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_smps_encoder_and_ours_with_padding_same_give_the_same_deepest_map(name):
    public, state = seeded(package("segmentation_models_pytorch").encoders.get_encoder(name, weights=None))
    ours = create_encoder(ENCODERS[name], padding="same")
    load_public(ours, state, "smp")
    for size in (256, 320):
        x = draw_image(size, size)
        expected, given = public(x)[-1], ours.double().eval()(x)[-1]
        assert difference(expected, given) == 0
