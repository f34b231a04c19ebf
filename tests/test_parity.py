import numpy as np
import pytest
import torch
from drawn_bundle import draw_bundle, drawn_spec
from torch import nn

from models import parity
from models.engines.base import EngineRecord
from models.engines.reference import references
from models.engines.slots import overlapped, padded
from models.engines.torch import laid_out, predict
from models.parity import Difference, Limits, Reference, difference, judge
from models.probes import POISON, Probe, probes
from models.serve import serve_network

PLANES = ("labels", "confidence")


def network():
    """Every pixel depends on bands, neighbours and biases."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).eval()


class Eager:
    """An engine of whatever serves planes here and now."""

    def __init__(self, serve, precision="fp32", batch=1):
        facts = {"version": "", "device": "", "tile": 64, "dtype": "uint8", "threads": 1, "bundle": ""}
        measured = {"peak_bytes": 0, "seconds_per_tile": 0.0, "parity": None}
        self.record = EngineRecord("", "torch", precision=precision, batch=batch, **facts, **measured)
        self.serve = serve

    def map(self, batches):
        def start(batch):
            planes = predict(self.serve, padded(batch, self.record))[: len(batch.pixels)]
            return lambda: planes

        return overlapped(batches, start)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return draw_bundle(tmp_path_factory.mktemp("bundle") / "b")


def compare(bundle, engine):
    with torch.inference_mode():
        stored = dict(references(serve_network(network(), drawn_spec()), probes(bundle, 64, "uint8")))
    return parity.differences(engine, probes(bundle, 64, "uint8"), stored.__getitem__, PLANES)


def report(bundle, serve, precision="fp32", **options):
    return judge(compare(bundle, Eager(serve, precision, **options)), {}, precision)


def altered(change):
    broken = network()
    with torch.no_grad():
        change(broken)
    return serve_network(broken, drawn_spec())


def test_eager_agrees_with_itself_whatever_the_batch(bundle):
    for batch in (1, 3):
        found = report(bundle, serve_network(network(), drawn_spec()), batch=batch)
        assert found["reasons"] == []
        assert (found["probes"], found["pixels"], found["real_pixels"]) == (20, 20 * 64**2, 8 * 64**2)


def permute_classes(broken):
    broken[2].weight.copy_(broken[2].weight.roll(1, 0))
    broken[2].bias.copy_(broken[2].bias.roll(1, 0))


def shift_by_one_pixel(broken):
    broken[0].weight.copy_(broken[0].weight.roll(1, 3))


def keep_a_stale_bias(broken):
    broken[2].bias[0] += 0.05


def swap_two_bands(broken):
    broken[0].weight.copy_(broken[0].weight[:, [1, 0, 2]])


def answer_constantly(broken):
    broken[2].weight.zero_()


@pytest.mark.parametrize(
    "change", [permute_classes, shift_by_one_pixel, keep_a_stale_bias, swap_two_bands, answer_constantly]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_gate_refuses_a_network_that_is_not_the_bundles(bundle, change, precision):
    assert report(bundle, altered(change), precision)["reasons"]


class Slotted(Eager):
    """In every slot but the first, an answer of the tile one slot before leaks in."""

    def map(self, batches):
        for planes in super().map(batches):
            leaky = planes.copy()
            leaky[1:, :, :2] = planes[:-1, :, :2]
            yield leaky


def test_the_gate_refuses_planes_that_depend_on_the_place_in_the_batch(bundle):
    serve = serve_network(network(), drawn_spec())
    chosen = list(probes(bundle, 64, "uint8"))
    assert parity.moved(Eager(serve, batch=3), chosen) == 0
    assert parity.moved(Slotted(serve, batch=1), chosen) == 0
    moved = parity.moved(Slotted(serve, batch=3), chosen)
    assert moved > 10
    assert "place in the batch" in judge({}, {}, "fp32", moved=moved)["reasons"][0]


def test_the_gate_refuses_probabilities_of_other_classes(bundle):
    planes = ("labels", "probability-c0", "probability-c1")
    right, wrong = (
        serve_network(network(), drawn_spec(), planes=order) for order in (planes, planes[:1] + planes[:0:-1])
    )
    known = dict(references(right, probes(bundle, 64, "uint8")))
    for serve, passes in ((right, True), (wrong, False)):
        found = parity.differences(Eager(serve), probes(bundle, 64, "uint8"), known.__getitem__, planes)
        assert (not judge(found, {}, "fp32")["reasons"]) == passes


def test_bf16_passes_only_as_far_as_eager_bf16_strays(bundle):
    eager = compare(bundle, Eager(laid_out(serve_network(network(), drawn_spec()), "bf16"), "bf16"))
    assert sum(value.labels for value in eager.values()) > 0
    exact = judge(eager, {}, "bf16")["limits"]
    assert judge(eager, eager, "bf16")["limits"]["labels"] > exact["labels"]
    real = {name: Difference(1000, 2) if name == "real-0" else value for name, value in eager.items()}
    assert "real_labels" in judge(real, real, "bf16")["reasons"][0]


def test_near_ties_count_on_real_probes_only():
    limits = parity.LIMITS["bf16"]
    assert limits == Limits(tie=10, grave=50, far=6, labels=1e-3)
    zeros = np.zeros((1, 4), np.uint8)
    known = {"labels": zeros, "confidence": zeros + 100}
    reference = Reference(known, np.array([[5, 11, 51, 255]], np.uint8))
    planes = {"labels": np.array([[1, 1, 1, 0]], np.uint8), "confidence": np.array([[100, 107, 90, 100]], np.uint8)}
    real, drawn = (Probe("", real=real, batch=None) for real in (True, False))
    assert difference(real, reference, planes, "bf16") == Difference(4, labels=3, grave=1, far=2, shift=17)
    assert difference(drawn, reference, planes, "bf16") == Difference(4, labels=2, grave=1, far=2, shift=17)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_probes_are_tiles_of_the_asked_type_that_repeat(bundle, dtype):
    first, second = list(probes(bundle, 96, dtype)), list(probes(bundle, 96, dtype))
    assert [probe.real for probe in first[:6]] == [True, True, False, False, False, True]
    assert len({probe.name for probe in first}) == 20
    for one, two in zip(first, second, strict=True):
        assert one.batch.pixels.shape == (1, 3, 96, 96)
        assert one.batch.pixels.dtype == dtype
        np.testing.assert_array_equal(one.batch.pixels, two.batch.pixels)
        np.testing.assert_array_equal(one.batch.scale, first[0].batch.scale)
        poisoned = one.batch.pixels[:, :, ~one.batch.valid[0]]
        np.testing.assert_array_equal(poisoned, np.full_like(poisoned, POISON[dtype]))


def test_real_probes_show_the_bundles_crops_in_the_bands_unit(bundle):
    crops = [next(iter(probes(bundle, 32, dtype))).batch for dtype in ("uint8", "float32")]
    values = [one.pixels[0] * one.scale[:, None, None] + one.offset[:, None, None] for one in crops]
    np.testing.assert_allclose(values[0], values[1], atol=1e-4)
    assert np.ptp(values[0]) > 200
