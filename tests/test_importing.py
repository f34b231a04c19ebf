"""Any segmentation network becomes a bundle, or is refused with the way out."""

import json

import numpy as np
import onnx
import pytest
import yaml
from drawn_imports import said
from drawn_onnx import FREE, drawn_graph, model_of
from drawn_scenes import noise, write_tiff
from onnx import helper
from pydantic import ValidationError

from models.bundle import load_probes, open_bundle
from models.errors import BundleError
from models.importing import examined, read_network, read_said, spec_of
from models.onnxgraph import shape_of
from models.spec import Imported
from pipeline.errors import ProbeError, UsageError
from pipeline.importing import import_network
from pipeline.scene import SceneAddress

YAML = """
name: roofs
licence: MIT
activation: logits
divisor: 255
bands:
- {name: red, mean: 0.485, std: 0.229}
- {name: green, mean: 0.5, std: 0.25, low: 10, high: 200}
classes: [background, {name: roof, color: "#aabbcc"}]
"""


def written(folder, text):
    (folder / "spec.yaml").write_text(text)
    return folder / "spec.yaml"


def saved(folder, model):
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def pooled():
    """A network that looks at the whole image: each pixel and the mean of all."""
    weights = {"w": np.random.default_rng(0).normal(size=(3, 3, 1, 1))}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["t"]),
        helper.make_node("GlobalAveragePool", ["t"], ["g"]),
        helper.make_node("Add", ["t", "g"], ["y"]),
    ]
    return model_of(nodes, weights, FREE, ["y"], 20)


def test_means_are_scaled_by_the_divisor_and_names_alone_are_classes(tmp_path):
    spec = spec_of(read_said(written(tmp_path, YAML)), Imported(input="x", output="y", channels=1), 96)
    assert (spec.bands[0].mean, spec.bands[0].std) == (0.485 * 255, 0.229 * 255)
    assert [(band.low, band.high) for band in spec.bands] == [(0, 255), (10, 200)]
    assert [(entry.name, entry.color) for entry in spec.classes] == [("background", "#3B4252"), ("roof", "#AABBCC")]
    assert (spec.tiles, spec.halo, spec.stride) == ((512, 1024, 1152, 2048), 96, 32)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (YAML.replace("licence: MIT\n", ""), "licence: Field required"),
        (YAML.replace("std: 0.229", "std: 0"), r"bands\.0\.std: Input should be greater than 0"),
        (YAML + "hallo: 3\n", "hallo: Extra inputs are not permitted"),
        (YAML.replace("logits", "relu"), "activation: Input should be 'logits', 'softmax' or 'sigmoid'"),
        (YAML + "dtypes: [uint16]\n", "band red of uint16 pixels: give low and high"),
        ("[1", "cannot be read"),
        ("just words", "holds no keys"),
    ],
)
def test_what_is_wrong_with_a_spec_is_said_in_one_line(tmp_path, text, message):
    with pytest.raises(BundleError, match=message) as refused:
        read_said(written(tmp_path, text))
    assert "\n" not in str(refused.value)


def test_objects_are_named_by_class():
    spec = spec_of(said(objects=["c2"], boundary="c1"), Imported(input="x", output="y", channels=3), 0)
    assert (spec.objects, spec.boundary) == ((2,), 1)
    with pytest.raises(BundleError, match="roof is no class, classes are c0, c1, c2"):
        spec_of(said(objects=["roof"]), Imported(input="x", output="y", channels=3), 0)


@pytest.mark.parametrize("axes", [FREE, (1, 3, 64, 64), (None, 3, None, None)])
def test_axes_that_turn_out_to_be_free_are_set_free(axes):
    model, plan = examined(drawn_graph(axes=axes), said())
    assert (plan.batch, plan.edge, plan.output_stride, plan.channels) == (None, None, 1, 3)
    assert shape_of(model.graph, "x") == [None, 3, None, None]


def test_axes_that_the_graph_itself_fixes_stay_fixed():
    tail = [("Reshape", {})]
    model = drawn_graph(axes=(1, 3, 64, 64), tail=tail)
    model.graph.node[-1].input.append("shape")
    model.graph.initializer.append(helper.make_tensor("shape", onnx.TensorProto.INT64, [4], [1, 3, 64, 64]))
    found, plan = examined(model, said())
    assert (plan.batch, plan.edge) == (1, 64)
    assert shape_of(found.graph, "x") == [1, 3, 64, 64]


def test_coarse_answers_and_one_channel_are_understood():
    plan = examined(drawn_graph(channels=1, per=2, tail=[("Sigmoid", {})]), two(activation="sigmoid"))[1]
    assert (plan.channels, plan.output_stride, plan.activation) == (1, 2, "sigmoid")


def two(**changes):
    return said(classes=[{"name": "no"}, {"name": "yes"}], **changes)


def labels():
    """A network that gives out the best class in place of what it was chosen by."""
    model = drawn_graph(tail=[("ArgMax", {"axis": 1})])
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    return model


@pytest.mark.parametrize(
    ("model", "what", "message"),
    [
        (drawn_graph(), two(), "answers with 3 channels for 2 classes"),
        (drawn_graph(axes=("n", 4, "h", "w")), said(), r"must be \(N, 3, H, W\), one channel a band"),
        (drawn_graph(axes=("n", "h", "w", 3)), said(), r"this is \(N, H, W, C\): put a transposition before"),
        (drawn_graph(axes=(1, 3, 64, 128)), said(), "takes 64 x 128 px: tiles are square"),
        (drawn_graph(outputs=("y", "t2")), said(), "has outputs y, t2: name one of them"),
        (drawn_graph(), said(output="z"), "has no output z: its outputs are y"),
        (drawn_graph(), said(input="z"), "has inputs x: name one of them"),
        (drawn_graph(), said(activation="softmax"), "no probabilities of a softmax, say `activation: logits`"),
        (drawn_graph(tail=[("Softmax", {"axis": 1})]), said(), "which sum to 1: say `activation: softmax`"),
        (drawn_graph(channels=1, tail=[("Sigmoid", {})]), two(), "are probabilities: say `activation: sigmoid`"),
        (drawn_graph(channels=2, tail=[("Softmax", {"axis": 1})]), two(), "which sum to 1: say `activation: softmax`"),
        (drawn_graph(tail=[("Flatten", {})], rank=2), said(), "it must be .N, K, H, W."),
        (labels(), two(), "is of type int64, not float32: export what the best"),
        (drawn_graph(tail=[("Log", {})]), said(), "not finite, or differs from call to call"),
        (drawn_graph(), said(stride=5, tiles=[65], halo=0), "is its stride 5?|must be .N, K, H, W."),
    ],
)
def test_networks_that_do_not_fit_are_refused_with_the_way_out(model, what, message):
    with pytest.raises(BundleError, match=message):
        examined(model, what)


def test_a_network_without_a_halo_gets_the_measured_one(tmp_path):
    scene = write_tiff(tmp_path / "scene.tif", noise(3, 256, 256))
    file, heard = saved(tmp_path, drawn_graph()), []
    scenes = [SceneAddress(str(scene))]
    bundle = import_network(file, said(halo=None), tmp_path / "b", scenes=scenes, within=1e-3, tell=heard.append)
    assert bundle.spec.halo in {4, 8}
    ((pixels, valid),) = load_probes(open_bundle(tmp_path / "b"))
    assert pixels.shape == (3, 256, 256)
    assert valid.all()
    assert any("halo 4" in line for line in heard)


def test_a_network_that_looks_at_the_whole_image_is_refused(tmp_path):
    file = saved(tmp_path, pooled())
    with pytest.raises(ProbeError, match="the network looks at the whole image"):
        import_network(file, said(stride=32, halo=0), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_graph_of_a_fixed_size_that_looks_at_the_whole_image_is_refused_too(tmp_path):
    def fixed(name, graph):
        graph.graph.initializer.append(helper.make_tensor("shape", onnx.TensorProto.INT64, [4], [1, 3, 64, 64]))
        graph.graph.node[-1].output[0] = "free"
        graph.graph.node.append(helper.make_node("Reshape", ["free", "shape"], ["y"]))
        return import_network(saved(tmp_path, graph), said(), tmp_path / name)

    assert fixed("local", drawn_graph()).spec.imported.edge == 64
    with pytest.raises(ProbeError, match=r"changes logits 48 px away .* looks at the whole image"):
        fixed("pooled", pooled())


def test_a_halo_must_be_said_where_it_cannot_be_measured(tmp_path):
    file = saved(tmp_path, drawn_graph())
    with pytest.raises(UsageError, match=r"spec\.yaml says no halo: name scenes"):
        import_network(file, said(halo=None), tmp_path / "b")


def test_what_is_kept_of_many_scenes_fits_a_bundle(tmp_path):
    scenes = [SceneAddress(str(write_tiff(tmp_path / f"{i}.tif", noise(3, 300, 280, seed=i)))) for i in range(6)]
    bundle = import_network(saved(tmp_path, drawn_graph()), said(), tmp_path / "b", scenes=scenes)
    crops = load_probes(bundle)
    assert len(crops) == 6
    assert 180 < crops[0][0].shape[1] < 256


def test_the_command_makes_a_bundle_shows_it_and_replaces_none(tmp_path, widefield):
    file = saved(tmp_path, drawn_graph())
    facts = said().model_dump(mode="json", exclude_none=True)
    spec = written(tmp_path, yaml.safe_dump(facts))
    arguments = ("bundle", "import", "--onnx", file, "--spec", spec, "--out", tmp_path / "b")
    code, told, err = widefield(*arguments)
    assert code == 0, err
    assert "halo 16, tiles 64" in told
    code, told, _ = widefield("bundle", "show", tmp_path / "b")
    assert "imported ONNX graph, 3 channels of logits" in told
    _, told, _ = widefield("bundle", "show", tmp_path / "b", "--json")
    assert json.loads(told)["spec"]["architecture"]["format"] == "onnx"
    code, _, err = widefield(*arguments)
    assert (code, "bundles never change" in err) == (2, True)


def test_the_same_network_gives_the_same_bytes(tmp_path):
    file = saved(tmp_path, drawn_graph())
    assert read_network(file, "onnx", said()) == read_network(file, "onnx", said())


def test_unknown_planes_are_refused_before_anything_is_tried():
    with pytest.raises((BundleError, ValidationError), match="plane probability-roof"):
        spec_of(said(planes=["labels", "probability-roof"]), Imported(input="x", output="y", channels=3), 0)
