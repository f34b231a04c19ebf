"""Files of torch.export.save: their graph is taken, and nothing in them is run."""

import json
import pickle
import zipfile

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from models.errors import BundleError
from models.program import _is_arithmetic, cleaned, read_program

slow = pytest.mark.slow  # exporting one takes PyTorch seconds


class Boom:
    """Unpickling one raises, and would do anything else as well."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)]
    return nn.Sequential(*layers, nn.Conv2d(8, 3, 1)).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    file = tmp_path_factory.mktemp("program") / "m.pt2"
    auto = torch.export.Dim.AUTO
    program = torch.export.export(
        network(), (torch.zeros(2, 3, 32, 48),), dynamic_shapes=({0: auto, 2: auto, 3: auto},)
    )
    torch.export.save(program, file)
    return file


def changed(file, folder, place, change):
    """A copy in which `change` was made to the content of the file whose name ends in `place`."""
    copy = folder / "changed.pt2"
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as target:
        for entry in archive.infolist():
            content = archive.read(entry)
            target.writestr(entry.filename, change(content) if entry.filename.endswith(place) else content)
    return copy


def edited(edit):
    def change(content):
        facts = json.loads(content)
        edit(facts)
        return json.dumps(facts).encode()

    return change


def first_node(facts):
    return facts["graph_module"]["graph"]["nodes"][0]


def first_size(facts):
    values = facts["graph_module"]["graph"]["tensor_values"]
    return next(s["as_expr"] for value in values.values() for s in value["sizes"] if "as_expr" in s)


@pytest.mark.parametrize(
    "text",
    [
        "s0",
        "2*s0 - 1",
        "-((-s0)//2)",
        "s0*s1**2",
        "(s0//2 + 1)**2",
        "Mul(Integer(2), Symbol('s77', positive=True, integer=True))",
        "Pow(Symbol('s0', integer=True), Integer(2))",
        "Max(1, Mod(u0, 32))",
        "16",
    ],
)
def test_sizes_are_arithmetic(text):
    assert _is_arithmetic(text)


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9",
        "(9**9)**9",
        "Pow(9, Pow(9, 9))",
        "Pow(10, 99999999)",
        "s0**99999999",
        "((s0 + 9)**8)**8",
        "s0**s0",
        "'s0'*999999999999",
        "(1, 2)*999999999999",
        "9" * 100,
        "(" * 3000 + "1" + ")" * 900,
        "exec('s0')",
        "s0.__class__",
        "Symbol('os')",
        "[s0 for s0 in s1]",
        "",
    ],
)
def test_what_takes_more_than_a_moment_or_runs_is_no_arithmetic(text):
    assert not _is_arithmetic(text)


def pickled(facts):
    next(iter(facts["config"].values()))["use_pickle"] = True


@slow
def test_an_exported_program_becomes_the_same_network(saved):
    model = read_program(saved)
    x = np.random.default_rng(0).normal(size=(3, 3, 64, 32)).astype(np.float32)
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {model.graph.input[0].name: x})[0]
    with torch.inference_mode():
        np.testing.assert_allclose(found, network()(torch.from_numpy(x)), atol=1e-5)


@slow
def test_what_is_kept_loads_and_has_no_guards(saved):
    clean = cleaned(saved)
    with zipfile.ZipFile(clean) as archive:
        (name,) = (name for name in archive.namelist() if "/models/" in name)
        assert json.loads(archive.read(name))["guards_code"] == []
    clean.seek(0)
    assert len(torch.export.load(clean).state_dict) == len(network().state_dict())


@slow
@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ("sample_inputs/model.pt", lambda _: pickle.dumps(Boom()), "holds more than tensors, which is code"),
        ("weights_config.json", edited(pickled), "is pickled, which is code"),
        ("model.json", edited(lambda f: first_node(f).update(target="torch.hub.load")), r"calls torch\.hub\.load"),
        ("model.json", edited(lambda f: first_node(f).update(target="_operator.call.__class__")), "calls _operator"),
        ("model.json", edited(lambda f: first_size(f).update(expr_str="__import__('os').getpid()")), "no arithmetic"),
        ("model.json", edited(lambda f: first_size(f).update(expr_str="exec('s0')")), "no arithmetic"),
        ("model.json", edited(lambda f: first_node(f).update(target="_operator.call")), "calls _operator"),
        ("weights_config.json", lambda _: b"[]", r"is no file of torch\.export\.save"),
        ("model.json", lambda _: b"{", r"is no file of torch\.export\.save"),
    ],
)
def test_what_pytorch_would_run_is_refused(saved, tmp_path, place, change, message):
    with pytest.raises(BundleError, match=message):
        cleaned(changed(saved, tmp_path, place, change))


@slow
def test_compiled_code_beside_the_graph_is_refused(saved, tmp_path):
    copy = tmp_path / "more.pt2"
    copy.write_bytes(saved.read_bytes())
    with zipfile.ZipFile(copy, "a") as archive:
        archive.writestr("m/data/aotinductor/model/model.so", b"\x7fELF")
    with pytest.raises(BundleError, match=r"model\.so, which an exported network does not need"):
        cleaned(copy)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04nothing"])
def test_a_file_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "m.pt2").write_bytes(content)
    with pytest.raises(BundleError, match=r"is no file of torch\.export\.save"):
        cleaned(tmp_path / "m.pt2")
