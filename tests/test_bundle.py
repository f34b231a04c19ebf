import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from models.bundle import (
    FILES,
    IMPORTED,
    derived,
    load_metrics,
    load_module,
    load_probes,
    open_bundle,
    save_bundle,
    save_imported,
    stored_state,
)
from models.errors import BundleError
from models.init import glorot_normal_
from models.network import network_from_spec
from models.spec import Architecture, Band, Class, Imported, ModelSpec

SPEC = ModelSpec(
    name="drawn",
    architecture=Architecture(encoder="inception_v1", width=0.25, decoder_channels=(8, 8, 8, 8, 8)),
    bands=(Band(name="grey", low=0, high=255, mean=1 / 3, std=0.1),),
    dtypes=("uint8",),
    classes=(Class(id=0, name="no", color="#000000"), Class(id=1, name="yes", color="#FFFFFF")),
    halo=64,
    tiles=(256,),
    licence="Apache-2.0",
)
PROBES = [np.arange(64, dtype=np.uint16).reshape(1, 8, 8), np.zeros((1, 4, 4), np.uint16)]


def network(seed=0):
    return glorot_normal_(network_from_spec(SPEC), seed=seed).eval()


def save(path, module=None, **options):
    return save_bundle(path, SPEC, module or network(), {"val": {"iou": 0.5}}, "# Card\n", PROBES, **options)


def test_a_bundle_saved_and_loaded_gives_the_same_logits(tmp_path):
    module, x = network(), torch.randn(1, 1, 64, 64)
    loaded = load_module(save(tmp_path / "b", module, storage="fp32"))
    assert not loaded.training
    assert torch.equal(loaded(x), module(x))


def test_half_precision_rounds_kernels_once_and_halves_the_file(tmp_path):
    half, full = save(tmp_path / "half"), save(tmp_path / "full", storage="fp32")
    sizes = [(bundle.path / "weights.safetensors").stat().st_size for bundle in (half, full)]
    assert sizes[0] < 0.6 * sizes[1]
    module = load_module(half)
    assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}
    assert save(tmp_path / "again", module).digest == half.digest


def test_what_half_precision_cannot_hold_stays_in_single():
    module = network()
    with torch.no_grad():
        module.head.weight.fill_(1e6)
        module.encoder.conv1.bn.running_var.fill_(1e-9)
    state = stored_state(module, "fp16")
    assert state["head.weight"].dtype == state["encoder.conv1.bn.running_var"].dtype == torch.float32
    assert state["encoder.conv1.conv.weight"].dtype == torch.float16


def test_everything_that_is_saved_comes_back(tmp_path):
    masks = [np.eye(8, dtype=np.uint8), np.ones((4, 4), np.uint8)]
    bundle = save(tmp_path / "b", valid=masks)
    assert bundle.spec == SPEC
    assert load_metrics(bundle) == {"val": {"iou": 0.5}}
    for (pixels, valid), probe, mask in zip(load_probes(bundle), PROBES, masks, strict=True):
        assert pixels.dtype == np.uint16
        assert np.array_equal(pixels, probe)
        assert np.array_equal(valid, mask != 0)


@pytest.mark.parametrize("name", [*FILES, "bundle.json"])
def test_a_changed_byte_is_refused_by_the_name_of_its_file(tmp_path, name):
    file = save(tmp_path).path / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=name):
        open_bundle(tmp_path)


@pytest.mark.parametrize("name", [*FILES, "bundle.json"])
def test_a_missing_file_is_refused_by_its_name(tmp_path, name):
    (save(tmp_path).path / name).unlink()
    with pytest.raises(BundleError, match=name):
        open_bundle(tmp_path)


def test_another_schema_is_refused(tmp_path):
    (tmp_path / "bundle.json").write_text('{"schema": 9}')
    with pytest.raises(BundleError, match="has schema 9: this version reads schemas 1 and 2"):
        open_bundle(tmp_path)


def test_weights_of_another_network_are_refused(tmp_path):
    other = SPEC.model_copy(update={"architecture": Architecture(encoder="inception_v1", width=0.5)})
    bundle = save_bundle(tmp_path, other, network(), {}, "", PROBES)
    with pytest.raises(BundleError, match=r"weights.safetensors does not fit the network of spec.json"):
        load_module(bundle)


def test_probes_beyond_one_mebibyte_are_refused(tmp_path):
    with pytest.raises(BundleError, match="at most 1048576 are allowed"):
        save_bundle(tmp_path, SPEC, network(), {}, "", [np.zeros((1, 1024, 1024), np.uint8)])


def test_opening_a_bundle_loads_no_torch(tmp_path):
    save(tmp_path)
    use = f"import sys, models.bundle as b; b.load_probes(b.open_bundle({str(tmp_path)!r}))"
    code = f"{use}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_specs_of_all_schemas_are_read(version):
    written = SPEC.model_dump(mode="json", exclude={"objects", "boundary"}) | {"schema_version": version}
    assert (ModelSpec.model_validate(written).objects, ModelSpec.model_validate(written).boundary) == ((), None)


@pytest.mark.parametrize(
    ("objects", "boundary", "message"),
    [((2,), None, "2 is no class, ids are below 2"), ((1,), 1, "a class is named twice"), ((), 5, "5 is no class")],
)
def test_objects_and_what_parts_them_are_different_classes(objects, boundary, message):
    with pytest.raises(ValueError, match=message):
        ModelSpec.model_validate(SPEC.model_dump() | {"objects": objects, "boundary": boundary})


def test_a_boundary_parts_the_objects_of_one_class():
    classes = [SPEC.classes[0].model_copy(update={"id": i, "name": f"c{i}"}).model_dump() for i in range(4)]
    three = {**SPEC.model_dump(), "classes": classes, "boundary": 3}
    assert ModelSpec.model_validate({**three, "objects": (1,)}).boundary == 3
    assert ModelSpec.model_validate({**three, "objects": ()}).boundary == 3
    with pytest.raises(ValueError, match="a boundary parts the objects of one class"):
        ModelSpec.model_validate({**three, "objects": (1, 2)})


def test_a_derived_bundle_has_the_same_weights_and_names_the_one_it_was_made_from(tmp_path):
    first = save(tmp_path / "first")
    second = derived(first, tmp_path / "second", halo=32, tiles=(512,))
    assert (second.spec.derived_from, second.spec.halo, second.spec.tiles) == (first.digest, 32, (512,))
    assert second.network.read_bytes() == first.network.read_bytes()
    assert open_bundle(tmp_path / "first").digest == first.digest


def test_a_bundle_is_never_changed_and_never_derived_into_nonsense(tmp_path):
    first = save(tmp_path / "first")
    with pytest.raises(BundleError, match="is the bundle itself, which never changes"):
        derived(first, tmp_path / "first", halo=32)
    with pytest.raises(BundleError, match="leaves no core with halo 128"):
        derived(first, tmp_path / "second", halo=128)


def test_an_imported_network_is_covered_by_the_digest(tmp_path):
    spec = SPEC.model_copy(update={"architecture": Imported(input="x", output="y", channels=2)})
    bundle = save_imported(tmp_path, spec, b"graph", "# Card\n", [])
    assert (bundle.network.name, load_probes(bundle), bundle.files) == ("network.onnx", [], IMPORTED)
    with pytest.raises(BundleError, match="holds an imported ONNX graph"):
        load_module(bundle)
    bundle.network.write_bytes(b"Graph")
    with pytest.raises(BundleError, match=r"network\.onnx has changed"):
        open_bundle(tmp_path)


def test_a_spec_and_its_network_belong_together(tmp_path):
    spec = SPEC.model_copy(update={"architecture": Imported(input="x", output="y", channels=2)})
    imported = save_imported(tmp_path / "b", spec, b"graph", "", [])
    index = json.loads((imported.path / "bundle.json").read_text())
    files = {name: index["files"][name] for name in imported.files if name != "network.onnx"}
    files["weights.safetensors"] = hashlib.sha256(b"").hexdigest()
    digest = hashlib.sha256("".join(f"{name} {files[name]}\n" for name in sorted(files)).encode()).hexdigest()
    (imported.path / "weights.safetensors").write_bytes(b"")
    (imported.path / "bundle.json").write_text(json.dumps({"schema": 2, "digest": digest, "files": files}))
    with pytest.raises(BundleError, match=r"its spec asks for network\.onnx"):
        open_bundle(imported.path)
