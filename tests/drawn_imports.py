"""Bundles of drawn ONNX graphs, and what their owners say of them."""

from drawn_bundle import drawn_crops, drawn_spec
from drawn_onnx import drawn_graph

from models.bundle import save_imported
from models.importing import Said
from models.spec import Imported


def drawn_import(path, *, classes=3, plan=None, graph=None, **changes):
    """A bundle of a drawn graph of `classes` classes; `plan`: what differs in its description, `graph` in itself."""
    spec = drawn_spec()
    described = Imported(**{"input": "x", "output": "y", "channels": classes, **(plan or {})})
    facts = {"architecture": described, "classes": spec.classes[:classes], "dtypes": ("uint8", "uint16"), "stride": 4}
    spec = drawn_spec(**{**facts, **changes})
    model = drawn_graph(channels=described.channels, **(graph or {}))
    return save_imported(path, spec, model.SerializeToString(), "# Drawn\n", drawn_crops())


def said(**changes):
    bands = [{"name": name, "mean": 0.4 + i / 10, "std": 0.2} for i, name in enumerate("rgb")]
    facts = {
        "name": "drawn",
        "licence": "MIT",
        "divisor": 255,
        "activation": "logits",
        "bands": bands,
        "classes": [{"name": name} for name in ("c0", "c1", "c2")],
        "stride": 4,
        "halo": 16,
        "tiles": [64],
    }
    return Said.model_validate({**facts, **changes})
