"""Networks that were trained elsewhere: an ONNX graph as a module of PyTorch, and inside the graph that is compiled.

As a module, ONNX Runtime computes the maker's graph in float32 and the rest of the code base cannot tell it from a
network of its own: that is the reference which every engine is held to. The compiled graph takes another way, through
no session: its nodes are raised to our operator set and joined with the normalisation and the decision.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.bundle import Bundle
from models.engines.base import EngineRequest
from models.engines.onnxruntime import answer, session
from models.errors import EngineError
from models.export import INPUTS, OPSET, OUTPUT, example, write_onnx
from models.onnxgraph import joined, opset_of, raised, rounded, shaped
from models.serve import VIEWS, Serve, serve_network
from models.spec import Imported, ModelSpec

Entrance = Callable[[Serve, EngineRequest], tuple[nn.Module, tuple[Tensor, ...]]]

LEAST = 1e-7
"""Probability below which float32 cannot tell a saturated activation from another."""


class OnnxNetwork(nn.Module):
    """An ONNX graph as a network: normalised images in, logits of the same size out."""

    def __init__(self, graph: Path | bytes, plan: Imported, threads: int) -> None:
        super().__init__()
        self.plan, self._session = plan, session(graph, threads)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float32 -> (N, K, H, W) float32."""
        return as_logits(self.answers(x), self.plan)

    def answers(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, channels, H / output stride, W / output stride), as the graph gives them."""
        size = self.plan.batch or len(x)
        return torch.cat([self._answer(part, size) for part in torch.split(x.to(torch.float32), size)])

    def _answer(self, x: Tensor, size: int) -> Tensor:
        full = functional.pad(x, (0, 0, 0, 0, 0, 0, 0, size - len(x)))
        return torch.from_numpy(answer(self._session, {self.plan.input: full.numpy()}, self.plan.output))[: len(x)]


def as_logits(answers: Tensor, plan: Imported) -> Tensor:
    """(N, channels, h, w) as a graph gives them -> (N, K, H, W) float32, of which a softmax makes the probabilities."""
    x = answers.to(torch.float32)
    if plan.activation == "softmax":
        x = torch.log(x.clamp_min(LEAST))
    elif plan.activation == "sigmoid":
        x = torch.log(torch.cat([1 - x, x], 1).clamp_min(LEAST))
    elif plan.channels == 1:
        x = torch.cat([torch.zeros_like(x), x], 1)
    if plan.output_stride > 1:
        x = functional.interpolate(x, scale_factor=plan.output_stride, mode="bilinear")
    return x


def load_imported(bundle: Bundle, precision: str = "fp32", threads: int = 1) -> OnnxNetwork:
    """The bundle's graph as its maker wrote it; below fp32, with every convolution's inputs and output rounded.

    Raises:
        EngineError: ONNX Runtime does not take it.
    """
    plan = plan_of(bundle.spec)
    if precision == "fp32":
        return OnnxNetwork(bundle.network, plan, threads)
    return OnnxNetwork(rounded(onnx.load(bundle.network), precision).SerializeToString(), plan, threads)


def plan_of(spec: ModelSpec) -> Imported:
    """The description of an imported network.

    Raises:
        EngineError: the network was trained here.
    """
    if spec.imported is None:
        raise EngineError(f"bundle {spec.name} holds no imported network")
    return spec.imported


def write_served(
    bundle: Bundle,
    request: EngineRequest,
    path: Path,
    *,
    opset: int = OPSET,
    entrance: Entrance | None = None,
    rework: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda network: network,
) -> Path:
    """Write the graph that serves an imported network: its own nodes between our normalisation and our decision.

    `entrance`: what stands in the place of `Serve.enter`, and examples of its inputs; `rework` changes the network.

    Raises:
        EngineError: the graph takes another number of images.
    """
    plan, spec = plan_of(bundle.spec), bundle.spec
    images = request.batch * (VIEWS if request.tta else 1)
    if plan.batch not in {None, images}:
        raise EngineError(
            f"the imported graph takes {plan.batch} images at once, not {images}"
            f"{' (8 orientations of each tile)' if request.tta else ''}: export it with a dynamic batch, or choose "
            f"batch {plan.batch} without augmentation"
        )
    network = raised(onnx.load(bundle.network), opset)
    network = rework(shaped(network, plan.input, (images, len(spec.bands), request.tile, request.tile)))
    serve = serve_network(nn.Identity(), spec, planes=request.planes, tta=request.tta)
    edge, opset = request.tile // plan.output_stride, opset_of(network)
    enter, pixels = (entrance or _entrance)(serve, request)
    answers = torch.zeros(images, plan.channels, edge, edge)
    parts = [
        ("enter", _written(enter, pixels, INPUTS, plan.input, opset)),
        ("network", network),
        ("leave", _written(_Leave(serve, plan), (answers,), ["answers"], OUTPUT, opset)),
    ]
    whole = joined(parts, [(plan.input, plan.input), (plan.output, "answers")])
    onnx.checker.check_model(whole, full_check=True)
    path.write_bytes(whole.SerializeToString(deterministic=True))
    return path


def _entrance(serve: Serve, request: EngineRequest) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _Enter(serve), example(serve, request.tile, request.dtype, request.batch)


class _Enter(nn.Module):
    def __init__(self, serve: Serve) -> None:
        super().__init__()
        self.serve = serve

    def forward(self, pixels: Tensor, valid: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        return self.serve.enter(pixels, valid, scale, offset)


class _Leave(nn.Module):
    def __init__(self, serve: Serve, plan: Imported) -> None:
        super().__init__()
        self.serve, self.plan = serve, plan

    def forward(self, answers: Tensor) -> Tensor:
        return self.serve.leave(as_logits(answers, self.plan))


def _written(
    module: nn.Module, inputs: tuple[Tensor, ...], names: Sequence[str], output: str, opset: int
) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "part.onnx"
        return onnx.load(write_onnx(module, inputs, path, inputs=names, outputs=[output], opset=opset))
