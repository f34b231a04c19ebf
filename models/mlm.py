"""A bundle as a STAC item of the machine-learning model extension (MLM): what it takes, what it gives, who made it.

Importing this loads no torch. The item lies beside the bundle's files and names them relative to itself.
"""

import hashlib
import json
import math
import re
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.bundle import Bundle, load_metrics
from models.spec import Class, ModelSpec

SCHEMA = 1
"""Version of our own fields, `widefield:*`."""
ITEM = "item.json"

_EXTENSIONS = ("mlm/v1.5.2", "classification/v2.0.0", "file/v2.1.0")
_SHA256 = "1220"
"""Multihash prefix: sha2-256, 32 bytes."""
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]")
"""What MLM allows as a model's name."""
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of the names of stored tensors that no optimizer ever moved."""
_SAFETENSORS = "application/octet-stream; application=safetensors"
_ONNX = "application/octet-stream; application=onnx"

Json = dict[str, Any]


def item(bundle: Bundle, *, created: datetime | None = None) -> Json:
    """The STAC item of a bundle; its assets lie in the same folder.

    A model of unknown ground has a null geometry and no bounding box, as STAC asks.

    Args:
        bundle: the bundle.
        created: when it was made, with a time zone; now if not given.
    """
    made = (created or datetime.now(UTC)).astimezone(UTC)
    metrics, time = load_metrics(bundle), made.isoformat(timespec="seconds").replace("+00:00", "Z")
    extent = _extent(metrics)
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [f"https://stac-extensions.github.io/{name}/schema.json" for name in _EXTENSIONS],
        "id": bundle.digest,
        "geometry": _geometry(extent),
        **({"bbox": extent} if extent else {}),
        "properties": _properties(bundle, metrics, time),
        "links": _links(bundle.spec),
        "assets": _assets(bundle),
    }


def _properties(bundle: Bundle, metrics: Json, time: str) -> Json:
    spec, training, parameters = bundle.spec, metrics.get("training", {}), count_parameters(bundle)
    start = training.get("start") or training.get("encoder_from")
    return {
        "datetime": time,
        "created": time,
        "license": spec.licence,
        "bands": _bands(spec),
        "mlm:name": spec.name if _NAME.fullmatch(spec.name) else f"widefield {spec.name.strip('-_') or 'model'}",
        "mlm:architecture": _architecture(spec),
        "mlm:tasks": _tasks(spec),
        "mlm:framework": "ONNX" if spec.imported else "PyTorch",
        "mlm:total_parameters": parameters,
        "mlm:memory_size": 4 * parameters,
        "mlm:batch_size_suggestion": 1,
        "mlm:pretrained": start is not None,
        "mlm:pretrained_source": start["name"] if start else None,
        "mlm:input": [_input(spec)],
        "mlm:output": [_output(spec)],
        "mlm:hyperparameters": _hyperparameters(spec, training),
        "widefield:schema": SCHEMA,
        "widefield:digest": bundle.digest,
        **({"widefield:attribution": spec.attribution} if spec.attribution else {}),
    }


def count_parameters(bundle: Bundle) -> int:
    """Weights that were trained, counted from the header of the weights' file alone; of a graph, all its constants."""
    if bundle.spec.imported:
        import onnx

        graph = onnx.load(bundle.network).graph
        return sum(math.prod(tensor.dims) for tensor in graph.initializer)
    with bundle.network.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if not name.endswith(_STATISTICS))


def _architecture(spec: ModelSpec) -> str:
    if spec.imported:
        return "imported ONNX graph"
    built = spec.trained
    parts = [built.encoder.replace("_", " ").capitalize(), f"width {built.width:g}"]
    parts.append("classifier" if built.decoder is None else {"unet": "U-Net", "fpn": "FPN"}[built.decoder])
    return ", ".join(parts)


def _tasks(spec: ModelSpec) -> list[str]:
    return ["semantic-segmentation" if spec.cell == 1 else "scene-classification"]


def _input(spec: ModelSpec) -> Json:
    edge = spec.tiles[-1]
    return {
        "name": "tile",
        "bands": [band.name for band in spec.bands],
        "input": {
            "shape": [-1, len(spec.bands), edge, edge],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": spec.dtypes[0],
        },
        "value_scaling": [{"type": "z-score", "mean": band.mean, "stddev": band.std} for band in spec.bands],
        "pre_processing_function": {
            "format": "python",
            "expression": "models.serve:Serve",
            "description": "value = stored * scale + offset with the scene's own scale and offset, into "
            f"{', '.join(dict.fromkeys(band.unit for band in spec.bands))}; then the z-score of each band; invalid "
            "pixels enter as 0, the mean",
        },
    }


def _output(spec: ModelSpec) -> Json:
    edge = spec.tiles[-1] // spec.cell
    return {
        "name": "labels",
        "tasks": _tasks(spec),
        "result": {"shape": [-1, edge, edge], "dim_order": ["batch", "height", "width"], "data_type": "uint8"},
        "classification:classes": [_class(entry) for entry in spec.classes],
        "post_processing_function": {
            "format": "python",
            "expression": "models.serve:Serve",
            "description": "softmax over the classes, then the class of the largest probability; 255 where invalid",
        },
    }


def _class(entry: Class) -> Json:
    return {
        "value": entry.id,
        "name": entry.name,
        "description": entry.title or entry.name,
        "color_hint": entry.color.removeprefix("#"),
    }


def _hyperparameters(spec: ModelSpec, training: Json) -> Json:
    """What a user of the model needs and MLM has no field for, and what it was trained with."""
    names = ("encoder", "width", "decoder", "output_stride")
    facts = {
        "tile_size": spec.tiles[-1],
        "tile_sizes": list(spec.tiles),
        "halo": spec.halo,
        "stride": spec.stride,
        "gsd_min_m": spec.resolution[0] if spec.resolution else None,
        "gsd_max_m": spec.resolution[1] if spec.resolution else None,
        **{name: getattr(spec.architecture, name, None) for name in names},
        **{name: training.get(name) for name in ("steps", "batch", "crop", "lr", "weight_decay", "warmup", "seed")},
    }
    return {name: value for name, value in facts.items() if value is not None}


def _links(spec: ModelSpec) -> list[Json]:
    if spec.derived_from is None:
        return []
    return [{"rel": "derived_from", "href": f"../{spec.derived_from}/{ITEM}", "type": "application/json"}]


def _bands(spec: ModelSpec) -> list[Json]:
    """MLM looks for them among the properties, where STAC allows them only if an asset has them too."""
    return [{"name": band.name} for band in spec.bands]


def _assets(bundle: Bundle) -> Json:
    weights, kind, call = _SAFETENSORS, "Weights", "safetensors.torch.save_file"
    if bundle.spec.imported:
        weights, kind, call = _ONNX, "Network and weights", "onnx.save"
    told = {
        "weights": (bundle.network.name, kind, weights, ["mlm:model", "mlm:weights"]),
        "spec": ("spec.json", "Data contract", "application/json", ["metadata"]),
        "card": ("README.md", "Model card", "text/markdown", ["metadata"]),
        "metrics": ("metrics.json", "Scores on held-out chips", "application/json", ["metadata"]),
        "probes": ("probes.safetensors", "Crops that engines are compared on", _SAFETENSORS, ["data"]),
        "bundle": ("bundle.json", "Digests of all files", "application/json", ["metadata"]),
    }
    assets = {key: _asset(bundle.path / name, title, kind, roles) for key, (name, title, kind, roles) in told.items()}
    assets["weights"] |= {"mlm:artifact_type": call, "bands": _bands(bundle.spec)}
    return assets


def _asset(path: Path, title: str, kind: str, roles: list[str]) -> Json:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "href": f"./{path.name}",
        "title": title,
        "type": kind,
        "roles": roles,
        "file:size": path.stat().st_size,
        "file:checksum": _SHA256 + digest,
    }


def _extent(metrics: Json) -> list[float] | None:
    """`[west, south, east, north]` in degrees, of the ground that the model has seen."""
    extent = metrics.get("extent")
    if not isinstance(extent, list) or len(extent) != 4 or not all(math.isfinite(value) for value in extent):
        return None
    return [float(value) for value in extent]


def _geometry(extent: list[float] | None) -> Json | None:
    if extent is None:
        return None
    west, south, east, north = extent
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}
