"""Exported networks beside PyTorch: every network, decoder and output stride, at odd borders, in batches of any length.

What runs by default has a width of 0.25; `make test-slow` has the whole product, and the networks at width 1.
"""

from itertools import product

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from drawn_bundle import drawn_spec
from drawn_classifier import CELL, classifier_spec
from drawn_weights import draw_state
from torch import nn

from models.classifier import create_classifier
from models.decoder import DECODERS
from models.export import INPUTS, OUTPUT, export_onnx, write_onnx
from models.inception import ENCODERS
from models.rewrite import rewritten
from models.segmenter import create_segmenter
from models.serve import COMPILED, serve_network

ODD = (97, 65)
"""Rows and columns that no stride divides."""
TILE = 64
NETWORKS = [
    *((name, {}) for name in ENCODERS),
    ("inception_v1", {"bn": False}),
    ("inception_v1", {"kernel5": 3}),
]
VARIANTS = [("inception_resnet_v1", {"variant": "facenet"}), ("inception_resnet_v2", {"variant": "paper"})]


class Answers(nn.Module):
    """Planes and logits of a served network."""

    def __init__(self, serve):
        super().__init__()
        self.serve = serve

    def forward(self, pixels, valid, scale, offset):
        logits = self.serve.logits(pixels, valid, scale, offset)
        return self.serve.spread(self.serve.decide(logits)), logits


def served(network, spec=None):
    """As bundles are served, with seeded weights."""
    network.load_state_dict(draw_state({name: tuple(value.shape) for name, value in network.state_dict().items()}))
    return serve_network(rewritten(network, 3, COMPILED), spec or drawn_spec())


def segmenter(encoder, decoder="unet", output_stride=1, width=0.25, **variant):
    """Its logits are centred, so that more than one class occurs."""
    serve = served(create_segmenter(encoder, 3, decoder=decoder, output_stride=output_stride, width=width, **variant))
    _, logits = answers(serve, tiles(*ODD))
    serve.network.head.bias.data -= torch.from_numpy(logits.mean((0, 2, 3)))
    return serve


def tiles(rows, columns, count=3):
    """The inputs of the graph; some pixels are invalid, the last row and column among them."""
    rng = np.random.default_rng(0)
    valid = (rng.random((count, rows, columns)) > 0.1).astype(np.uint8)
    valid[:, -1] = valid[:, :, -1] = 0
    pixels = rng.integers(0, 256, (count, 3, rows, columns)).astype(np.uint8)
    return pixels, valid, np.full(3, 1.5, np.float32), np.full(3, -20, np.float32)


def answers(serve, inputs):
    with torch.inference_mode():
        return [answer.numpy() for answer in Answers(serve)(*map(torch.from_numpy, inputs))]


def onnx_runtime(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, dict(zip(INPUTS, inputs, strict=True)))


def open_vino(path):
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: [np.array(answer) for answer in model(dict(zip(INPUTS, inputs, strict=True))).values()]


def agree(path, serve, inputs):
    """Each runtime gives PyTorch's planes, and its logits where the file has them, for three tiles and for one."""
    expected, logits = answers(serve, inputs)
    best = np.sort(logits, 1)
    tied = best[:, -1] - best[:, -2] < 1e-4 * np.abs(logits).max()
    tied = tied.repeat(serve.cell, 1).repeat(serve.cell, 2)
    assert tied.mean() < 0.01
    assert len(np.unique(expected[:, 0])) > 1
    for run, count in product((onnx_runtime(path), open_vino(path)), (3, 1)):
        planes, *others = run([inputs[0][:count], inputs[1][:count], *inputs[2:]])
        np.testing.assert_array_equal(planes[:, 0][~tied[:count]], expected[:count, 0][~tied[:count]])
        assert np.abs(planes[:, 1].astype(int) - expected[:count, 1]).max() <= 1
        for found in others:
            assert np.abs(found - logits[:count]).max() <= 1e-4 * np.abs(logits[:count]).max()


def agree_at_an_odd_size(path, serve):
    inputs, axes = tiles(*ODD), ({0: "batch"}, {0: "batch"}, None, None)
    example = tuple(map(torch.from_numpy, inputs))
    agree(
        write_onnx(Answers(serve), example, path, inputs=INPUTS, outputs=[OUTPUT, "logits"], axes=axes), serve, inputs
    )


def agree_on_tiles(path, serve, batch=None):
    agree(export_onnx(serve, path, tile=TILE, dtype="uint8", batch=batch), serve, tiles(TILE, TILE))


@pytest.mark.parametrize(
    ("encoder", "variant"),
    [pytest.param(name, how, marks=[pytest.mark.slow] * (number > 0)) for number, (name, how) in enumerate(NETWORKS)],
)
def test_a_network_with_a_unet_agrees_at_an_odd_size(tmp_path, encoder, variant):
    agree_at_an_odd_size(tmp_path / "model.onnx", segmenter(encoder, **variant))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_decoder_agrees_on_tiles_in_batches_of_any_length(tmp_path, decoder):
    agree_on_tiles(tmp_path / "model.onnx", segmenter("inception_v1", decoder, 2))


def test_a_classifier_over_squares_agrees_on_tiles_in_batches_of_any_length(tmp_path):
    network = create_classifier("inception_v1", classes=3, padding="same", width=0.25)
    assert TILE > CELL
    agree_on_tiles(tmp_path / "model.onnx", served(network, classifier_spec()))


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "decoder", "output_stride"), [*product(ENCODERS, DECODERS, (1, 2, 4))])
def test_every_network_agrees_with_every_decoder_and_output_stride(tmp_path, encoder, decoder, output_stride):
    serve = segmenter(encoder, decoder, output_stride)
    agree_at_an_odd_size(tmp_path / "odd.onnx", serve)
    agree_on_tiles(tmp_path / "tile.onnx", serve)


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "variant"), [*NETWORKS, *VARIANTS])
def test_every_network_agrees_at_its_full_width(tmp_path, encoder, variant):
    serve = segmenter(encoder, width=1, **variant)
    agree_at_an_odd_size(tmp_path / "odd.onnx", serve)
    agree_on_tiles(tmp_path / "tile.onnx", serve)
