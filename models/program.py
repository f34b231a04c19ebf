"""A network saved by `torch.export.save`, made an ONNX graph without running anything that its file brings.

PyTorch's own reader unpickles parts of such a file, and evaluates others as Python. It never sees the file as it came:
what is needed is looked through, and copied into a new one; the rest is refused, or left out.

    weights, constants      tensors as raw bytes; pickled ones are refused
    models/<name>.json      the graph, whose operators are ATen's, whose sizes are arithmetic; without its Python guards
    data/sample_inputs      must be tensors alone
"""

import ast
import io
import json
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import onnx
import torch

from models.errors import BundleError
from models.export import OPSET
from models.onnxgraph import LARGEST, read_graph

KEPT: Final = re.compile(
    r"data/weights/(weight_\d+|\w+_weights_config\.json)|data/constants/(tensor_\d+|\w+_constants_config\.json)"
    r"|models/\w+\.json|data/sample_inputs/\w+\.pt|archive_format|archive_version|byteorder|version|\.data/\w+"
)
OPERATOR: Final = re.compile(
    r"torch\.ops\.aten\.[a-z0-9_]+\.[A-Za-z0-9_]+|torch\.sym_(max|min|int)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|getitem)"
)
"""What a graph may call."""
SYMBOL: Final = re.compile(r"[su]\d+")
CALLS: Final = {"Integer", "Rational", "Float", "Add", "Mul", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv"}
MARKS: Final = {"positive", "integer", "real", "nonnegative"}
OPERATIONS: Final = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
"""What an expression of a size may hold; and small powers, but not of powers, which would grow beyond all bounds."""
LONGEST, GREATEST, HIGHEST = 4000, 2**63, 8
"""Characters of an expression, numbers in it, and powers in it."""


def read_program(file: Path) -> onnx.ModelProto:
    """The ONNX graph of an exported program.

    Raises:
        BundleError: the file is none, holds more than tensors and ATen's operators, or has no ONNX graph.
    """
    clean = cleaned(file)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        path = Path(scratch) / "network.onnx"
        try:
            program = torch.export.load(clean)
            torch.onnx.export(program, (), path, dynamo=True, opset_version=OPSET, external_data=False, verbose=False)
        except Exception as error:  # of PyTorch's reader and of its exporter, which have no base of their own
            raise BundleError(
                f"{file} cannot be made an ONNX graph ({_root(error)}): export it with torch.export.Dim.AUTO for the "
                "axes N, H and W, or as ONNX"
            ) from error
        return read_graph(path)


def _root(error: BaseException) -> str:
    """The first cause, which the exporter wraps into pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def cleaned(file: Path) -> io.BytesIO:
    """A copy of the file with nothing in it that PyTorch would run.

    Raises:
        BundleError: something that is needed is of that kind.
    """
    copy = io.BytesIO()
    try:
        with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as kept:
            _check_size(file, archive)
            for entry in archive.infolist():
                place = entry.filename.partition("/")[2]
                if not KEPT.fullmatch(place):
                    raise BundleError(f"{file} holds {entry.filename}, which an exported network does not need")
                kept.writestr(f"program/{place}", _looked_through(place, archive.read(entry)))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile) as error:
        raise BundleError(f"{file} is no file of torch.export.save: {error}") from error
    copy.seek(0)
    return copy


def _check_size(file: Path, archive: zipfile.ZipFile) -> None:
    size = sum(entry.file_size for entry in archive.infolist())
    if size > LARGEST:
        raise BundleError(f"{file} unpacks to {size / 2**30:.1f} GiB: at most 2 GiB can be imported")


def _looked_through(place: str, content: bytes) -> bytes:
    if place.endswith("_config.json"):
        _check_tensors(place, json.loads(content))
    elif place.startswith("models/"):
        return _plain_graph(place, json.loads(content))
    elif place.startswith("data/sample_inputs/"):
        _check_samples(place, content)
    return content


def _check_tensors(place: str, config: dict[str, Any]) -> None:
    for name, entry in config["config"].items():
        if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise BundleError(f"{place}: {name} is pickled, which is code: save plain tensors alone")


def _check_samples(place: str, content: bytes) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # whatever a crafted pickle makes of it
        raise BundleError(f"{place} holds more than tensors, which is code: export with plain tensors") from error


def _plain_graph(place: str, graph: dict[str, Any]) -> bytes:
    graph["guards_code"] = []
    for holder, key, value in _fields(graph):
        if key == "metadata":
            holder[key] = {}
        elif key == "target" and not OPERATOR.fullmatch(str(value)):
            raise BundleError(f"{place} calls {value}: only ATen's operators can be imported")
        elif key == "expr_str" and not _is_arithmetic(str(value)):
            raise BundleError(f"{place} has a size {value!r}, which is no arithmetic")
    return json.dumps(graph).encode()


def _fields(value: Any) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Every object's keys and values, at any depth, outermost first."""
    if isinstance(value, dict):
        for key, inner in list(value.items()):
            yield value, key, inner
            yield from _fields(value[key])
    elif isinstance(value, list):
        for inner in value:
            yield from _fields(inner)


def _is_arithmetic(text: str) -> bool:
    """Whether evaluating it takes neither code of anybody's nor more than a moment."""
    try:
        tree = ast.parse(text.strip(), mode="eval") if len(text) <= LONGEST else None
        return tree is not None and _is_term(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_term(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=int() | float() as value):
            return abs(value) < GREATEST
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _is_term(operand)
        case (
            ast.BinOp(left=base, op=ast.Pow(), right=power)
            | ast.Call(func=ast.Name(id="Pow"), args=[base, power], keywords=[])
        ):
            return _is_small(power) and _is_term(base) and not any(map(_is_power, ast.walk(base)))
        case ast.BinOp(left=left, op=op, right=right):
            return isinstance(op, OPERATIONS) and _is_term(left) and _is_term(right)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in CALLS:
            return all(map(_is_term, arguments))
        case _:
            return _is_symbol(node)


def _is_symbol(node: ast.expr) -> bool:
    match node:
        case ast.Name(id=name):
            return SYMBOL.fullmatch(name) is not None
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str() as name)], keywords=marks):
            plain = all(mark.arg in MARKS and isinstance(mark.value, ast.Constant) for mark in marks)
            return SYMBOL.fullmatch(name) is not None and plain
        case _:
            return False


def _is_power(node: ast.AST) -> bool:
    return isinstance(node, ast.Pow) or (isinstance(node, ast.Name) and node.id == "Pow")


def _is_small(node: ast.expr) -> bool:
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _is_small(operand)
        case (
            ast.Constant(value=int() as power)
            | ast.Call(func=ast.Name(id="Integer"), args=[ast.Constant(value=int() as power)], keywords=[])
        ):
            return 0 <= power <= HIGHEST
        case _:
            return False
