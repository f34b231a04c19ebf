import hashlib
import json
from datetime import UTC, datetime

import pystac
import pytest
from drawn_bundle import draw_bundle, drawn_crops, drawn_network, drawn_spec
from drawn_imports import drawn_import
from jsonschema import Draft7Validator
from pystac.extensions.mlm import MLMExtension
from pystac.validation.local_validator import get_local_schema_cache
from referencing import Registry, Resource
from stac_model.schema import MLModelProperties

from models.bundle import load_module, save_bundle
from models.mlm import count_parameters, item

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    spec = drawn_spec(resolution=(0.2, 0.5), derived_from="d" * 64, attribution="OSM")
    metrics = {
        "extent": [5.5, 47.0, 15.0, 55.0],
        "training": {"steps": 600, "lr": 0.001, "encoder_from": {"name": "v1.pth"}},
    }
    folder = tmp_path_factory.mktemp("mlm") / "bundle"
    return save_bundle(folder, spec, drawn_network(spec), metrics, "# Drawn\n", drawn_crops(), storage="fp32")


def test_stac_models_own_classes_read_what_we_write(bundle):
    made = item(bundle, created=NOON)
    read = MLModelProperties(**made["properties"])
    assert (read.name, read.architecture, read.tasks) == (
        "drawn",
        "Inception v1, width 0.05, U-Net",
        {"semantic-segmentation"},
    )
    assert (read.input[0].bands, read.input[0].input.shape) == (["r", "g", "b"], [-1, 3, 64, 64])
    assert [(z.mean, z.stddev) for z in read.input[0].value_scaling] == [(100, 50), (110, 50), (120, 50)]
    assert [(c.value, c.name, c.color_hint) for c in read.output[0].classes][2] == (2, "c2", "000002")
    assert (read.pretrained, read.pretrained_source) == (True, "v1.pth")


def test_a_model_that_goes_on_from_another_is_pretrained(tmp_path):
    spec, training = drawn_spec(), {"start": {"name": "champion", "digest": "d" * 64}, "encoder_from": None}
    folder = tmp_path / "bundle"
    made = save_bundle(
        folder, spec, drawn_network(spec), {"training": training}, "# Drawn\n", drawn_crops(), storage="fp32"
    )
    told = item(made, created=NOON)["properties"]
    assert (told["mlm:pretrained"], told["mlm:pretrained_source"]) == (True, "champion")


def test_the_item_is_valid_stac(bundle):
    made = item(bundle, created=NOON)
    schemas = {uri: Resource.from_contents(schema) for uri, schema in get_local_schema_cache().items()}
    core = get_local_schema_cache()["https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"]
    Draft7Validator(core, registry=Registry().with_resources(schemas.items())).validate(made)
    read = pystac.Item.from_dict(made)
    assert (read.datetime, read.bbox, read.id) == (NOON, [5.5, 47.0, 15.0, 55.0], bundle.digest)
    assert read.get_single_link("derived_from").href == f"../{'d' * 64}/item.json"


def test_pystac_reads_the_model(bundle):
    read = MLMExtension.ext(pystac.Item.from_dict(item(bundle, created=NOON)))
    assert (read.mlm_name, read.tasks, read.total_parameters) == (
        "drawn",
        ["semantic-segmentation"],
        count_parameters(bundle),
    )
    assert read.output[0].result.shape == [-1, 64, 64]


def test_parameters_are_those_that_torch_counts(bundle):
    assert count_parameters(bundle) == sum(p.numel() for p in load_module(bundle).parameters())


def test_assets_are_the_files_with_their_sizes_and_checksums(bundle):
    assets = item(bundle, created=NOON)["assets"]
    assert set(assets) == {"weights", "spec", "card", "metrics", "probes", "bundle"}
    for asset in assets.values():
        content = (bundle.path / asset["href"]).read_bytes()
        assert asset["file:size"] == len(content)
        assert asset["file:checksum"] == "1220" + hashlib.sha256(content).hexdigest()
    assert assets["weights"]["roles"] == ["mlm:model", "mlm:weights"]
    assert assets["weights"]["mlm:artifact_type"] == "safetensors.torch.save_file"


def test_what_has_no_field_stands_among_the_hyperparameters(bundle):
    told = item(bundle, created=NOON)["properties"]["mlm:hyperparameters"]
    assert (told["tile_size"], told["halo"], told["gsd_min_m"], told["gsd_max_m"]) == (64, 0, 0.2, 0.5)
    assert (told["steps"], told["lr"], "batch" in told) == (600, 0.001, False)


def test_a_model_of_unknown_ground_has_no_place(tmp_path):
    made = item(draw_bundle(tmp_path / "b", name="2-"), created=NOON)
    assert (made["geometry"], "bbox" in made, made["links"]) == (None, False, [])
    assert made["properties"]["mlm:name"] == "widefield 2"
    assert (made["properties"]["mlm:pretrained"], made["properties"]["mlm:pretrained_source"]) == (False, None)
    json.dumps(made, allow_nan=False)


def test_an_imported_network_is_told_as_what_it_is(tmp_path):
    bundle = drawn_import(tmp_path)
    made = item(bundle, created=NOON)
    read = MLModelProperties(**made["properties"])
    assert (read.framework, read.architecture, read.pretrained) == ("ONNX", "imported ONNX graph", False)
    assert read.total_parameters == 8 * 3 * 9 + 8 * 8 * 9 + 8 * 8 * 4 + 3 * 8 + 3
    assert made["assets"]["weights"]["href"] == "./network.onnx"
