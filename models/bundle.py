"""A trained model on disk, under one digest. Opening one imports no torch.

BUNDLE/
bundle.json          schema number, digest, sha256 of every other file; written last
spec.json            the data contract (`models.spec.ModelSpec`)
weights.safetensors  the network's state, kernels in half precision where stored so
network.onnx         in its place, where the network was trained elsewhere: its maker's graph, weights included
probes.safetensors   real crops p0, p1, ... (C, T, T) and their valid masks v0, v1, ... (T, T)
metrics.json         scores on held-out chips
README.md            the model card
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from models.errors import BundleError
from models.spec import SCHEMA as SPEC_SCHEMA
from models.spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from models.classifier import Classifier
    from models.segmenter import Segmenter

SCHEMA = 2
"""Version of `bundle.json`; 1, which knew no imported networks, is read as well."""
WEIGHTS, NETWORK = "weights.safetensors", "network.onnx"
FILES = ("README.md", "metrics.json", "probes.safetensors", "spec.json", WEIGHTS)
"""What the digest of a bundle covers that was trained here."""
IMPORTED = (*FILES[:-1], NETWORK)
"""Likewise, of an imported one."""
_LISTS = (sorted(FILES), sorted(IMPORTED))
PROBE_BYTES = 1 << 20
"""Upper bound of `probes.safetensors`, in bytes."""
HALF_MAX = 65504.0
"""Largest finite value in half precision."""

SCORES = ("iou", "f1", "precision", "recall")
"""Columns of the model card."""

Storage = Literal["fp16", "fp32"]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose bytes have been verified."""

    path: Path
    digest: str
    """Its name everywhere: sha256 over the digests of its files."""
    spec: ModelSpec

    @property
    def files(self) -> tuple[str, ...]:
        """What the digest covers, in this bundle."""
        return IMPORTED if self.spec.imported else FILES

    @property
    def network(self) -> Path:
        """The file that holds the weights."""
        return self.path / (NETWORK if self.spec.imported else WEIGHTS)


def open_bundle(path: Path | str) -> Bundle:
    """Verify every file of the bundle at `path` and read its spec.

    Raises:
        BundleError: it is missing, incomplete, of another schema, or a byte of it has changed.
    """
    path = Path(path)
    index = _read_index(path)
    for name, expected in index["files"].items():
        if _sha256(path / name) != expected:
            raise BundleError(f"{path / name} has changed since the bundle was made: restore it, or train again")
    try:
        spec = ModelSpec.model_validate_json((path / "spec.json").read_bytes())
    except ValidationError as error:
        raise BundleError(f"{path / 'spec.json'} is no valid spec: {error}") from error
    bundle = Bundle(path, index["digest"], spec)
    if sorted(index["files"]) != sorted(bundle.files):
        raise BundleError(f"{path} holds {', '.join(index['files'])}: its spec asks for {bundle.network.name}")
    return bundle


def files_of(path: Path) -> tuple[str, ...]:
    """Names of the files that belong to the bundle at `path`, of which no more than bundle.json need be there.

    Raises:
        BundleError: it is no bundle's.
    """
    return tuple(_read_index(path)["files"])


def _read_index(path: Path) -> dict[str, Any]:
    file = path / "bundle.json"
    try:
        index = json.loads(file.read_bytes())
    except OSError as error:
        raise BundleError(f"{path} is no bundle: bundle.json cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise BundleError(f"{file} has changed: it is not JSON ({error})") from error
    found = index.get("schema") if isinstance(index, dict) else None
    if not isinstance(index, dict) or found not in {1, SCHEMA}:
        raise BundleError(f"{file} has schema {found}: this version reads schemas 1 and {SCHEMA}")
    files = index.get("files")
    if not isinstance(files, dict) or sorted(files) not in _LISTS or index.get("digest") != _digest(files):
        raise BundleError(f"{file} has changed: its digest does not fit the files that it lists")
    return index


def load_module(bundle: Bundle) -> "Segmenter | Classifier":
    """The network with the stored weights, in float32 and eval mode; every weight must fit.

    Raises:
        BundleError: the weights are not those of the network that the spec describes, or the network is imported.
    """
    from safetensors.torch import load_file

    from models.network import network_from_spec

    _ = bundle.spec.trained
    file = bundle.network
    try:
        module = network_from_spec(bundle.spec)
        state = load_file(file)
        module.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    except (OSError, ValueError, RuntimeError) as error:
        raise BundleError(f"{file} does not fit the network of spec.json: {error}") from error
    return module.eval()


def load_probes(bundle: Bundle) -> "list[tuple[NDArray[Any], NDArray[np.bool_]]]":
    """Real crops to compare engines on: pixels (C, T, T) in their own type, valid (T, T)."""
    from safetensors.numpy import load_file

    arrays = load_file(bundle.path / "probes.safetensors")
    return [(arrays[f"p{i}"], arrays[f"v{i}"] != 0) for i in range(len(arrays) // 2)]


def load_metrics(bundle: Bundle) -> dict[str, Any]:
    """The scores that were taken from the stored weights."""
    return dict(json.loads((bundle.path / "metrics.json").read_bytes()))


def save_bundle(  # noqa: PLR0917 - the parts of a bundle, in the order in which they are made
    path: Path | str,
    spec: ModelSpec,
    module: "nn.Module",
    metrics: dict[str, Any],
    card: str,
    probes: "list[NDArray[Any]]",
    *,
    valid: "list[NDArray[Any]] | None" = None,
    storage: Storage = "fp16",
) -> Bundle:
    """Write a bundle and open it. Until its last file is in place, the folder is no bundle.

    Args:
        path: folder, made if missing; a bundle in it is replaced.
        spec: the data contract.
        module: the network that the spec describes.
        metrics: scores, as JSON takes them.
        card: the model card, Markdown.
        probes: crops (C, T, T) in the chips' own type.
        valid: masks (T, T) of the probes; everything is valid if left out.
        storage: `fp16` stores kernels in half precision where they fit, vectors in single.

    Raises:
        BundleError: the probes take more than 1 MiB, or the folder cannot be written.
    """
    from safetensors.torch import save as save_tensors

    contents = _told(spec, metrics, card, probes, valid)
    return _save(Path(path), contents | {WEIGHTS: save_tensors(stored_state(module, storage))})


def save_imported(
    path: Path | str,
    spec: ModelSpec,
    network: bytes,
    card: str,
    probes: "list[NDArray[Any]]",
    *,
    valid: "list[NDArray[Any]] | None" = None,
) -> Bundle:
    """Write a bundle of a network that was trained elsewhere, and open it; as `save_bundle` otherwise.

    Args:
        path: folder, made if missing; a bundle in it is replaced.
        spec: the data contract.
        network: the ONNX file, weights included.
        card: the model card, Markdown.
        probes: crops (C, T, T) in the scenes' own type.
        valid: masks (T, T) of the probes; everything is valid if left out.

    Raises:
        BundleError: the probes take more than 1 MiB, or the folder cannot be written.
    """
    return _save(Path(path), _told(spec, {}, card, probes, valid) | {NETWORK: network})


def derived(bundle: Bundle, path: Path | str, **changes: Any) -> Bundle:
    """Write a bundle of the same weights whose spec differs in `changes`, and open it.

    Raises:
        BundleError: the changed spec is none, or the folder is the bundle's own or cannot be written.
    """
    path = Path(path)
    if path.resolve() == bundle.path.resolve():
        raise BundleError(f"{path} is the bundle itself, which never changes: give the new one a folder of its own")
    facts = bundle.spec.model_dump() | {"schema_version": SPEC_SCHEMA, "derived_from": bundle.digest} | changes
    try:
        spec = ModelSpec.model_validate(facts)
    except ValidationError as error:
        raise BundleError(f"no bundle can be made of {bundle.path} with {changes}: {error}") from error
    contents = {name: (bundle.path / name).read_bytes() for name in bundle.files}
    return _save(path, contents | {"spec.json": _to_json(spec.model_dump(mode="json"))})


def _told(
    spec: ModelSpec,
    metrics: dict[str, Any],
    card: str,
    probes: "list[NDArray[Any]]",
    valid: "list[NDArray[Any]] | None",
) -> dict[str, bytes]:
    """The files of a bundle that tell of its network."""
    import numpy as np
    from safetensors.numpy import save

    masks = valid or [np.ones(probe.shape[1:], np.uint8) for probe in probes]
    named = {f"p{i}": np.ascontiguousarray(probe) for i, probe in enumerate(probes)}
    named |= {f"v{i}": np.ascontiguousarray(mask, np.uint8) for i, mask in enumerate(masks)}
    packed = save(named)
    if len(packed) > PROBE_BYTES:
        raise BundleError(
            f"the probes take {len(packed)} bytes, at most {PROBE_BYTES} are allowed: give fewer or smaller crops"
        )
    return {
        "README.md": card.encode(),
        "metrics.json": _to_json(metrics),
        "probes.safetensors": packed,
        "spec.json": _to_json(spec.model_dump(mode="json")),
    }


def _save(path: Path, contents: dict[str, bytes]) -> Bundle:
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    index = _to_json({"schema": SCHEMA, "digest": _digest(files), "files": files})
    _write(path, {**contents, "bundle.json": index})
    return open_bundle(path)


def make_card(text: str, spec: ModelSpec, val: dict[str, Any]) -> str:
    """The model card: `text`, then the scores on the validation chips as `models.metrics.scores` has them."""
    rows = [
        f"| {c.name} | "
        + " | ".join(_percent(val[score][c.name]) for score in ("iou", "f1", "precision", "recall"))
        + " |"
        for c in spec.classes
    ]
    lines = [
        text.strip() or f"# {spec.name}",
        "",
        "## Scores",
        f"Over {val['pixels']:,} {_counted(spec)} of the validation chips, with the weights as stored.",
        "",
        "| class | IoU | F1 | precision | recall |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "## Licence",
        f"Weights: {spec.licence}. {spec.attribution}".rstrip(),
    ]
    return "\n".join(lines) + "\n"


def _counted(spec: ModelSpec) -> str:
    return "labelled pixels" if spec.cell == 1 else "images"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def stored_state(module: "nn.Module", storage: Storage) -> "dict[str, Tensor]":
    """The module's state as it is stored, on the CPU. Loading it and storing it again gives the same bytes."""
    return {name: _stored(tensor.detach().cpu(), storage) for name, tensor in module.state_dict().items()}


def _stored(tensor: "Tensor", storage: Storage) -> "Tensor":
    tensor = tensor.contiguous()
    half = storage == "fp16" and tensor.is_floating_point() and tensor.ndim > 1
    return tensor.half() if half and float(tensor.abs().max()) <= HALF_MAX else tensor


def _write(path: Path, contents: dict[str, bytes]) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / "bundle.json").unlink(missing_ok=True)
        for name, content in contents.items():
            partial = path / f"{name}.partial"
            with partial.open("wb") as file:
                file.write(content)
                os.fsync(file.fileno())
            partial.replace(path / name)
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error.strerror}") from error


def _digest(files: dict[str, str]) -> str:
    lines = "".join(f"{name} {files[name]}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{file} cannot be read ({error.strerror}): the bundle is incomplete") from error


def _to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
