"""What a spec refuses: planes, thresholds and imported networks that do not fit its classes."""

import pytest
from pydantic import ValidationError

from models.errors import BundleError
from models.spec import Architecture, Band, Class, Imported, ModelSpec, probability_of

NAMES = ("no", "yes", "perhaps")
GRAPH = Imported(input="x", output="y", channels=2)


def spec(classes=2, **changes):
    facts = {
        "name": "drawn",
        "architecture": Architecture(encoder="inception_v1"),
        "bands": (Band(name="grey", low=0, high=255, mean=1, std=1),),
        "dtypes": ("uint8",),
        "classes": tuple(Class(id=i, name=NAMES[i], color="#000000") for i in range(classes)),
        "halo": 64,
        "tiles": (256,),
        "licence": "MIT",
    }
    return ModelSpec(**{**facts, **changes})


def test_a_plane_of_a_class_is_known_by_the_name_of_the_class():
    planes = ("probability-yes", "labels")
    assert spec(planes=planes).planes == planes
    assert [probability_of(plane, spec().classes) for plane in planes] == [1, None]


@pytest.mark.parametrize(
    ("planes", "message"),
    [
        (("labels", "logits"), "plane logits: planes are labels, confidence, probability-no, probability-yes"),
        (("labels", "probability-perhaps"), "plane probability-perhaps"),
        (("labels", "labels"), "planes labels, labels: name labels at least, and each once"),
        (("confidence", "probability-no"), "planes confidence, probability-no: name labels at least"),
        ((), "planes none: name labels at least"),
    ],
)
def test_planes_that_do_not_exist_are_refused(planes, message):
    with pytest.raises(ValidationError, match=message):
        spec(planes=planes)


def test_a_threshold_parts_two_classes_alone():
    assert spec(threshold=0.3).threshold == 0.3
    with pytest.raises(ValidationError, match=r"threshold 0\.3 with 3 classes"):
        spec(3, threshold=0.3)
    with pytest.raises(ValidationError, match="less than 1"):
        spec(threshold=1)


@pytest.mark.parametrize(
    ("classes", "change", "message"),
    [
        (3, {}, "the graph has 2 channels for 3 classes: one a class, or 1 for two"),
        (2, {"activation": "sigmoid"}, "activation sigmoid of 2 channels: sigmoid is of one"),
        (2, {"channels": 1, "activation": "softmax"}, "activation softmax of 1 channels"),
        (2, {"edge": 512}, r"tiles are \(256,\): the graph takes 512 pixels alone"),
        (2, {"output_stride": 3}, "stride 32 is no multiple of the graph's output stride 3"),
    ],
)
def test_a_graph_must_fit_the_classes_and_the_tiles(classes, change, message):
    with pytest.raises(ValidationError, match=message):
        spec(classes, architecture=GRAPH.model_copy(update=change))


@pytest.mark.parametrize("change", [{}, {"channels": 1}, {"channels": 1, "activation": "sigmoid"}, {"edge": 256}])
def test_an_imported_network_comes_back_from_json(change):
    made = spec(architecture=GRAPH.model_copy(update=change))
    read = ModelSpec.model_validate_json(made.model_dump_json())
    assert read == made
    assert read.imported == made.architecture


def test_an_imported_network_is_none_that_was_trained_here():
    with pytest.raises(BundleError, match="drawn holds an imported ONNX graph"):
        _ = spec(architecture=GRAPH).trained
    assert spec().imported is None


@pytest.mark.parametrize("wrong", [{"format": "tflite"}, {"width": 2}])
def test_what_is_wrong_with_a_network_is_told_of_that_kind_alone(wrong):
    with pytest.raises(ValidationError, match="1 validation error"):
        spec(architecture=GRAPH.model_dump() | wrong)
