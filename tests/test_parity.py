import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from drawn_bundle import draw_bundle, drawn_spec
from torch import nn

from models import parity
from models.engines.base import EngineRecord
from models.engines.reference import references, strayed
from models.engines.slots import overlapped, padded
from models.engines.torch import laid_out, predict
from models.errors import EngineError
from models.parity import Difference, Reference, difference, judge
from models.probes import POISON, Probe, probes
from models.serve import serve_network

PLANES = ("labels", "confidence")


def network():
    """Every pixel depends on bands, neighbours and biases."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).eval()


class Eager:
    """An engine of whatever serves planes here and now."""

    def __init__(self, serve, precision="fp32", batch=1, dtype="uint8"):
        facts = {"version": "", "device": "", "tile": 64, "dtype": dtype, "threads": 1, "bundle": ""}
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


class Long(Eager):
    """The slots behind the first twenty hold nothing but zeros."""

    def map(self, batches):
        for planes in super().map(batches):
            planes[20:] = 0
            yield planes


def test_every_slot_of_a_batch_longer_than_the_probes_holds_content(bundle):
    serve, chosen = serve_network(network(), drawn_spec()), list(probes(bundle, 64, "uint8"))
    assert not judge(compare(bundle, Long(serve, batch=24)), {}, "fp32")["reasons"]
    assert parity.moved(Eager(serve, batch=24), chosen) == 0
    assert parity.moved(Long(serve, batch=24), chosen) > 0


@pytest.mark.parametrize("size", [2, 6, 7, 20, 64])
@pytest.mark.parametrize("count", [6, 20])
def test_content_passes_through_all_slots_with_bounded_work(bundle, size, count):
    chosen = list(probes(bundle, 64, "uint8"))[:count]
    order = list(parity._through_all_slots(chosen, size))
    assert order[:count] == chosen
    assert {place % size for place, probe in enumerate(order) if probe.varied} == set(range(size))
    assert len(order) <= count + size


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


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_no_label_is_excused_by_a_network_that_is_broken_itself(precision):
    wrong = {"noise": Difference(1000, labels=900, grave=900)}
    report = judge(wrong, wrong, precision)
    assert [reason.split()[0] for reason in report["reasons"]] == ["labels", "grave"]


def test_a_bundle_without_real_crops_is_reported(bundle):
    found = compare(bundle, Eager(serve_network(network(), drawn_spec())))
    assert judge(found, {}, "fp32")["notes"] == []
    drawn = judge({name: value for name, value in found.items() if "real" not in name}, {}, "fp32")
    assert (drawn["real_pixels"], drawn["reasons"]) == (0, [])
    assert "no real crops" in drawn["notes"][0]


def test_logits_that_are_not_finite_are_refused(bundle):
    """Weights close to 65504, the largest number that fp16 holds."""
    chosen, network = list(probes(bundle, 64, "uint8")), nn.Conv2d(3, 3, 1)
    nn.init.constant_(network.weight, 6e4)
    serve = serve_network(network, drawn_spec())
    known = dict(references(serve, chosen))
    with pytest.raises(EngineError, match="real-0 are not finite in fp16: its values leave what fp16 holds"):
        dict(strayed(laid_out(serve, "fp16"), chosen, known.__getitem__, "fp16"))
    nn.init.constant_(network.bias, np.nan)
    with pytest.raises(EngineError, match="not finite in fp32: its weights are damaged"):
        dict(references(laid_out(serve, "fp32"), chosen))


def rare_class(damage, precision="fp32", eager_damage=0):
    """The report of a megapixel, 0.2 % of it of class 2, of which so many pixels get another label."""
    labels = np.ones((1024, 1024), np.uint8)
    labels[:512], labels.flat[:2097] = 0, 2
    reference = Reference({"labels": labels, "confidence": labels}, np.full_like(labels, 40))
    probe = Probe("real-0", real=True, batch=None)

    def damaged(count):
        planes = labels.copy()
        planes.flat[:count] = 0
        return {"real-0": difference(probe, reference, {"labels": planes}, precision)}

    eager = damaged(eager_damage) if precision != "fp32" else {}
    return judge(damaged(damage), eager, precision)


def test_a_rare_class_may_not_lose_its_iou():
    assert rare_class(2, "bf16")["reasons"] == []
    report = rare_class(90, "bf16")
    assert report["figures"]["labels"] < 1e-4  # which hides it
    assert report["figures"]["lost_iou_of_2"] == pytest.approx(90 / 2097)
    assert [reason.split()[0] for reason in report["reasons"]] == ["lost_iou", "lost_iou_of_2"]


def test_a_class_may_lose_what_the_network_itself_loses_at_that_precision():
    assert rare_class(50, "bf16", eager_damage=40)["reasons"] == []
    assert "lost_iou_of_2" in rare_class(90, "bf16", eager_damage=40)["figures"]
    assert rare_class(90, "bf16", eager_damage=40)["reasons"]


def test_a_class_that_the_network_does_not_know_there_is_refused():
    labels = np.zeros((512, 512), np.uint8)
    ours = labels.copy()
    ours.flat[:1000] = 5
    probe, reference = Probe("real-0", real=True, batch=None), Reference({"labels": labels}, np.zeros_like(labels))
    found = difference(probe, reference, {"labels": ours}, "bf16")
    assert found.either == (512**2, 0, 0, 0, 0, 1000)
    assert judge({"real-0": found}, {}, "bf16")["figures"]["lost_iou_of_5"] == 1


def test_differences_add_up_and_survive_json():
    one = Difference(4, labels=1, common=(2, 1), either=(3, 2))
    other = Difference(4, far=2, common=(1, 0, 3), either=(1, 0, 3))
    assert one + other == Difference(8, labels=1, far=2, common=(3, 1, 3), either=(4, 2, 3))
    assert Difference(**json.loads(json.dumps(asdict(one)))) == one


def test_near_ties_count_on_real_probes_only():
    assert parity.LIMITS["bf16"].tie == 10
    zeros = np.zeros((1, 4), np.uint8)
    known = {"labels": zeros, "confidence": zeros + 100}
    reference = Reference(known, np.array([[5, 11, 51, 255]], np.uint8))
    planes = {"labels": np.array([[1, 1, 1, 0]], np.uint8), "confidence": np.array([[100, 107, 90, 100]], np.uint8)}
    real, drawn = (Probe("", real=real, batch=None) for real in (True, False))
    counts = {"grave": 1, "far": 2, "shift": 17}
    assert difference(real, reference, planes, "bf16") == Difference(4, 3, **counts, common=(1, 0), either=(4, 3))
    assert difference(drawn, reference, planes, "bf16") == Difference(4, 2, **counts, common=(2, 0), either=(4, 2))


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


class Unsigned(Eager):
    """Reads int16 as uint16."""

    def map(self, batches):
        return super().map(replace(batch, pixels=batch.pixels.view(np.uint16)) for batch in batches)


def test_the_gate_refuses_an_engine_that_reads_signed_integers_as_unsigned(bundle):
    first = next(iter(probes(bundle, 64, "int16"))).batch
    assert first.pixels.min() < -20000
    assert first.pixels.max() > 20000
    serve, chosen = serve_network(network(), drawn_spec()), list(probes(bundle, 64, "int16"))
    known = dict(references(serve, chosen))
    found = parity.differences(Unsigned(serve, dtype="uint16"), chosen, known.__getitem__, PLANES)
    assert judge(found, {}, "fp32")["figures"]["real_labels"] > 0.1
    right = parity.differences(Eager(serve, dtype="int16"), chosen, known.__getitem__, PLANES)
    assert not judge(right, {}, "fp32")["reasons"]
