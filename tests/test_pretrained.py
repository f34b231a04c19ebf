import os

import pytest
import torch
from drawn_weights import PUBLIC_KEYS, SOURCES, draw_empty, draw_state
from safetensors.torch import save_file

from models.classifier import create_classifier
from models.errors import WeightsError
from models.inception import create_encoder
from models.pretrained import load_public
from models.segmenter import create_segmenter

V1 = {"kernel5": 3}
FIRST = "conv1.conv.weight"


@pytest.fixture(scope="module")
def googlenet():
    """A seeded checkpoint of torchvision's GoogLeNet, auxiliary heads and all."""
    return draw_state(PUBLIC_KEYS["tv_googlenet"])


def sample(module, name="conv1.conv.weight"):
    return dict(getattr(module, "encoder", module).state_dict())[name]


@pytest.mark.parametrize("reference", SOURCES)
def test_every_public_name_has_a_place_in_the_classifier(reference):
    source, name, variant = SOURCES[reference]
    with torch.device("meta"):
        classifier = create_classifier(name, classes=8631 if source == "facenet" else 1000, **variant)
    report = load_public(classifier, draw_empty(reference), source, head=True)
    assert report.missing == ()
    assert {key.split(".")[0] for key in report.unused} <= {"aux1", "aux2"}


def test_auxiliary_heads_are_loaded_where_both_have_them(googlenet):
    classifier = create_classifier("inception_v1", aux=True, **V1)
    assert load_public(classifier, googlenet, "torchvision", head=True).used == 364
    assert torch.equal(classifier.aux["inception4d"].fc2.bias, googlenet["aux2.fc2.bias"].float())
    without = {key: value for key, value in googlenet.items() if not key.startswith("aux")}
    report = load_public(classifier, without, "torchvision", head=True)
    assert {key.split(".")[0] for key in report.missing} == {"aux"}


def test_an_encoder_leaves_the_heads_of_the_checkpoint_unused(googlenet):
    report = load_public(create_encoder("inception_v1", **V1), googlenet, "torchvision")
    assert {key.split(".")[0] for key in report.unused} == {"aux1", "aux2", "fc"}
    assert str(report).startswith(f"{report.used} tensors used; unused: aux1.conv.bn.bias, ")
    assert str(report).endswith("; missing: none")


def test_a_classifier_of_other_classes_is_loaded_without_its_head(googlenet):
    classifier = create_classifier("inception_v1", classes=7, **V1)
    with pytest.raises(WeightsError, match="has 1000 classes, the module 7: load with head=False"):
        load_public(classifier, googlenet, "torchvision", head=True)
    assert load_public(classifier, googlenet, "torchvision").missing == ("head.fc.weight", "head.fc.bias")


def test_a_segmenter_gets_its_encoder_and_no_head():
    segmenter = create_segmenter("inception_v3", 5)
    load_public(segmenter, draw_state(PUBLIC_KEYS["timm_inception_v3"]), "timm")
    encoder = create_encoder("inception_v3")
    load_public(encoder, draw_state(PUBLIC_KEYS["timm_inception_v3"]), "timm")
    assert all(torch.equal(a, b) for a, b in zip(segmenter.encoder.parameters(), encoder.parameters(), strict=True))
    for module in (segmenter, encoder):
        with pytest.raises(WeightsError, match="has no classifier that was released"):
            load_public(module, draw_empty("timm_inception_v3"), "timm", head=True)


@pytest.mark.parametrize("reference", ["timm_inception_v4", "timm_inception_resnet_v2"])
def test_of_1001_classes_the_first_is_the_background(reference):
    classifier = create_classifier(SOURCES[reference][1])
    state = draw_empty(reference)
    weight = next(key for key in state if key.startswith(("last_linear.w", "classif.w")))
    state[weight] = torch.arange(1001.0)[:, None].expand(1001, 1536)
    state[weight.replace("weight", "bias")] = torch.arange(1001.0)
    load_public(classifier, state, "cadene", head=True)
    assert torch.equal(classifier.head.fc.bias, torch.arange(1.0, 1001.0))
    assert classifier.head.fc.weight[0, 0] == 1


@pytest.mark.parametrize("prefix", ["module.", "model.", "encoder.", "module.encoder."])
def test_wrappers_and_prefixes_around_everything_are_taken_off(googlenet, prefix):
    encoder = create_encoder("inception_v1", **V1)
    wrapped = {"epoch": 3, "state_dict": {prefix + key: value for key, value in googlenet.items()}}
    load_public(encoder, wrapped, "torchvision")
    assert torch.equal(sample(encoder), googlenet[FIRST].float())


def test_counters_and_scales_may_be_missing(googlenet):
    encoder = create_encoder("inception_v1", **V1)
    torch.nn.init.zeros_(encoder.conv1.bn.weight)
    bare = {k: v for k, v in googlenet.items() if not k.endswith(("num_batches_tracked", "bn.weight"))}
    report = load_public(encoder, bare, "torchvision")
    assert {name.rsplit(".", 2)[-2] for name in report.missing} == {"bn"}
    assert encoder.conv1.bn.weight.eq(1).all()
    with pytest.raises(WeightsError, match=r"lacks 1 tensors of inception_v1, such as encoder.conv2.bn.weight"):
        load_public(encoder, {k: v for k, v in googlenet.items() if k != "conv2.bn.weight"}, "torchvision")


def test_vectors_stored_as_rows_and_half_precision_are_taken():
    encoder = create_encoder("inception_v2")
    state = draw_state(PUBLIC_KEYS["cadene_bninception"])
    rows = {key: value[None].half() if "_bn." in key and value.ndim else value for key, value in state.items()}
    load_public(encoder, rows, "cadene")
    assert torch.equal(encoder.conv2_3x3.bn.running_var, state["conv2_3x3_bn.running_var"].half().float())


def test_kernels_on_blue_green_red_are_turned():
    encoder = create_encoder("inception_v2")
    state = draw_state(PUBLIC_KEYS["cadene_bninception"])
    load_public(encoder, state, "cadene")
    assert torch.equal(encoder.conv1_7x7_s2.conv.weight, state["conv1_7x7_s2.weight"].flip(1).float())


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 6])
def test_a_first_convolution_of_other_bands_keeps_what_grey_gives(googlenet, bands):
    encoder = create_encoder("inception_v1", bands=bands, **V1)
    load_public(encoder, googlenet, "torchvision")
    kernels, public = sample(encoder), googlenet[FIRST].float()
    if bands in {2, 4}:  # red, green; red, green, blue, red
        assert torch.allclose(kernels, public[:, [0, 1, 2, 0][:bands]] * 3 / bands)
    else:
        assert torch.allclose(kernels.sum(1), public.sum(1), atol=1e-6)


def test_a_checkpoint_of_another_network_is_refused_and_nothing_is_copied(googlenet):
    encoder = create_encoder("inception_v3")
    before = sample(encoder, "Conv2d_1a_3x3.conv.weight").clone()
    with pytest.raises(WeightsError, match=r"looks like inception_v1, expected inception_v3: choose"):
        load_public(encoder, googlenet, "torchvision")
    mixed = draw_empty("timm_inception_v3") | {"Mixed_7c.branch1x1.conv.weight": torch.ones(320, 2048, 3, 3)}
    with pytest.raises(WeightsError, match=r"is \(320, 2048, 3, 3\), here \(320, 2048, 1, 1\)"):
        load_public(encoder, mixed, "timm")
    assert torch.equal(sample(encoder, "Conv2d_1a_3x3.conv.weight"), before)


@pytest.mark.parametrize(
    ("network", "options", "source", "says"),
    [
        ("inception_v1", V1 | {"width": 0.5}, "torchvision", "of another width than 1"),
        ("inception_v1", {}, "torchvision", "public weights are of inception_v1(kernel5=3) at width 1"),
        (
            "inception_v1",
            {"bn": False},
            "torchvision",
            "no public weights: choose inception_v1(kernel5=3), inception_v2",
        ),
        ("inception_v2_factorized", {}, "timm", "no public weights: choose"),
        ("inception_v1", V1, "timm", "inception_v1 has no weights from timm: choose torchvision"),
        ("inception_v1", V1, "keras", "source is 'keras': choose one of torchvision, timm"),
    ],
)
def test_what_has_no_public_weights_is_refused(network, options, source, says):
    with torch.device("meta"):
        encoder = create_encoder(network, **options)
    with pytest.raises(WeightsError) as refused:
        load_public(encoder, draw_empty("tv_googlenet"), source)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_no_network_of_ours_is_refused():
    with pytest.raises(WeightsError, match="a Linear has no Inception encoder"):
        load_public(torch.nn.Linear(2, 2), {}, "timm")
    with pytest.raises(WeightsError, match="looks like no network that is known here"):
        load_public(create_encoder("inception_v3"), {"a": torch.ones(1)}, "timm")
    with pytest.raises(WeightsError, match=r"no classifier .*missing.*: load with head=False"):
        load_public(create_classifier("inception_v4"), encoder_alone("timm_inception_v4"), "smp", head=True)


def encoder_alone(reference):
    return {key: value for key, value in draw_empty(reference).items() if key.startswith("features")}


@pytest.mark.parametrize("ending", ["pth", "pt", "safetensors"])
def test_files_give_what_mappings_give(googlenet, tmp_path, ending):
    file, encoder = tmp_path / f"w.{ending}", create_encoder("inception_v1", **V1)
    save_file(googlenet, file) if ending == "safetensors" else torch.save(googlenet, file)
    load_public(encoder, file, "torchvision")
    assert torch.equal(sample(encoder), googlenet[FIRST].float())


class Code:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_without_running_it(tmp_path, zipped):
    file, marker = tmp_path / "w.pth", tmp_path / "ran"
    torch.save({"a": Code(marker)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="holds code beside its tensors, which is never run"):
        load_public(create_encoder("inception_v3"), file, "timm")
    assert not marker.exists()


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_file_is_one_line(tmp_path, ending, share):
    file, state = tmp_path / f"w.{ending}", {"a": torch.ones(1000)}
    save_file(state, file) if ending == "safetensors" else torch.save(state, file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(WeightsError, match=r"w\.\w+ is truncated or no checkpoint \(.*\): download it again") as told:
        load_public(create_encoder("inception_v3"), file, "timm")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("none.pth", "none.pth cannot be read: No such file"),
        ("weights.h5", "give .pth, .pt, .safetensors"),
        ({}, "the mapping holds an empty dict"),
        ({"a": 1}, "the mapping holds a value of type int at 'a', not a tensor"),
    ],
)
def test_what_holds_no_tensors_is_refused(weights, says):
    with pytest.raises(WeightsError) as told:
        load_public(create_encoder("inception_v3"), weights, "timm")
    assert says in str(told.value)
