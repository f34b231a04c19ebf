import numpy as np
import pytest
import torch
from drawn_bundle import draw_bundle, drawn_network, drawn_spec
from torch import nn

from models.bundle import load_module
from models.errors import EngineError
from models.rewrite import fold_norms, rewritten
from models.serve import serve_network, served


class Pointwise(nn.Module):
    """Two classes: 3 x and -x of the first band."""

    def forward(self, x):
        return torch.cat((3 * x[:, :1], -x[:, :1]), 1)


def run(serve, pixels, valid, scale=1.0, offset=0.0):
    bands = pixels.shape[1]
    radiometry = (torch.full((bands,), scale), torch.full((bands,), offset))
    return serve(torch.from_numpy(pixels), torch.from_numpy(valid.astype(np.uint8)), *radiometry).numpy()


def test_folding_removes_every_batch_norm_and_leaves_the_logits_alone():
    network = drawn_network(drawn_spec()).double()
    copy = rewritten(network, 3, [fold_norms])
    assert not [module for module in copy.modules() if isinstance(module, nn.BatchNorm2d)]
    x = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(copy(x), network(x), rtol=1e-10, atol=1e-10)
    assert [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def test_folding_is_refused_where_neighbours_in_declaration_are_none_in_computation():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
            nn.init.uniform_(self.bn.running_var, 2, 3)

        def forward(self, x):
            return self.conv(self.bn(x))

    with pytest.raises(EngineError, match="right behind"):
        rewritten(Crossed(), 3, [fold_norms])


def test_planes_are_the_argmax_and_the_rounded_probability():
    serve = serve_network(Pointwise(), drawn_spec())
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8)
    x = (pixels[:, 0].astype(np.float64) - 100) / 50
    p = np.exp(3 * x) / (np.exp(3 * x) + np.exp(-x))
    planes = run(serve, pixels, np.ones((2, 8, 8)))
    assert planes.dtype == np.uint8
    np.testing.assert_array_equal(planes[:, 0], x < 0)
    np.testing.assert_allclose(planes[:, 1], 254 * np.maximum(p, 1 - p), atol=0.501)


def test_planes_follow_the_spec():
    serve = serve_network(Pointwise(), drawn_spec(planes=("confidence", "labels")))
    only = serve_network(Pointwise(), drawn_spec(planes=("labels",)))
    pixels = np.full((1, 3, 4, 4), 20, np.uint8)
    assert run(serve, pixels, np.ones((1, 4, 4)))[0, :, 0, 0].tolist() == [254, 1]
    assert run(only, pixels, np.ones((1, 4, 4))).tolist() == np.ones((1, 1, 4, 4)).tolist()


@pytest.mark.parametrize(("dtype", "poison"), [("float32", np.nan), ("float32", np.inf), ("int16", -9999)])
def test_what_invalid_pixels_store_reaches_nobody(tmp_path, dtype, poison):
    serve = served(draw_bundle(tmp_path / "b"))
    valid = np.random.default_rng(0).random((1, 64, 64)) > 0.2
    values = np.random.default_rng(1).integers(0, 256, (1, 3, 64, 64))
    mean, other = np.array([100, 110, 120]).reshape(1, 3, 1, 1), np.where(valid, values, poison)
    expected = run(serve, np.where(valid, values, mean).astype(dtype), np.ones_like(valid))
    np.testing.assert_array_equal(run(serve, other.astype(dtype), valid), expected)


def test_radiometry_turns_stored_integers_into_the_bands_unit(tmp_path):
    serve = served(draw_bundle(tmp_path / "b"))
    values, valid = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64)), np.ones((1, 64, 64))
    expected = run(serve, values.astype(np.uint8), valid)
    np.testing.assert_array_equal(run(serve, (values * 4 + 1000).astype(np.uint16), valid, 0.25, -250.0), expected)
    assert not np.array_equal(run(serve, (values * 4 + 1000).astype(np.uint16), valid), expected)


def test_the_served_graph_decides_as_the_bundles_network_does(tmp_path):
    bundle = draw_bundle(tmp_path / "b")
    pixels, valid = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64), np.uint8), np.ones((1, 64, 64))
    x = (torch.from_numpy(pixels) - torch.tensor([100.0, 110, 120]).reshape(3, 1, 1)) / 50
    with torch.inference_mode():
        labels = load_module(bundle)(x).argmax(1).numpy()
    found = run(served(bundle), pixels, valid)[:, 0]
    assert len(np.unique(labels)) > 1
    assert np.mean(found != labels) < 1e-3


def two_classes(**changes):
    return drawn_spec(classes=drawn_spec().classes[:2], **changes)


def test_a_threshold_parts_two_classes_and_the_confidence_is_that_of_the_label():
    pixels = np.random.default_rng(0).integers(60, 140, (1, 3, 16, 16), np.uint8)
    x = (pixels[:, 0].astype(np.float64) - 100) / 50
    second = 1 / (1 + np.exp(4 * x))
    serve = serve_network(Pointwise(), two_classes(threshold=0.2), planes=("labels", "confidence", "probability-c1"))
    planes = run(serve, pixels, np.ones((1, 16, 16)))
    np.testing.assert_array_equal(planes[:, 0], second >= 0.2)
    assert (planes[:, 0] != (second > 0.5)).any()
    np.testing.assert_allclose(planes[:, 1], 254 * np.where(planes[:, 0] == 1, second, 1 - second), atol=0.501)
    np.testing.assert_allclose(planes[:, 2], 254 * second, atol=0.501)


def test_probabilities_of_classes_come_in_the_order_that_was_asked_for():
    network = nn.Conv2d(3, 3, 3, padding=1)
    serve = serve_network(network, drawn_spec(), planes=("probability-c2", "labels", "probability-c0"))
    pixels, valid = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8), np.uint8), np.ones((1, 8, 8), np.uint8)
    one, zero = torch.ones(3), torch.zeros(3)
    with torch.inference_mode():
        p = torch.softmax(serve.logits(torch.from_numpy(pixels), torch.from_numpy(valid), one, zero), 1).numpy()
        planes = run(serve, pixels, valid)
    np.testing.assert_allclose(planes[:, [0, 2]], 254 * p[:, [2, 0]], atol=0.501)
    np.testing.assert_array_equal(planes[:, 1], p.argmax(1))


def test_augmentation_averages_the_probabilities_of_eight_orientations():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    plain, average = (serve_network(network, drawn_spec(), tta=tta) for tta in (False, True))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), np.uint8))
    valid, one, zero = torch.ones((2, 16, 16), dtype=torch.uint8), torch.ones(3), torch.zeros(3)
    valid[:, 3:5, 7] = 0
    total = np.zeros((2, 3, 16, 16))
    with torch.inference_mode():
        for turns in range(4):
            for mirror in (False, True):
                seen = [np.rot90(part.numpy(), turns, (-2, -1)) for part in (pixels, valid)]
                seen = [torch.from_numpy((part[..., ::-1] if mirror else part).copy()) for part in seen]
                p = torch.softmax(plain.logits(*seen, one, zero), 1).numpy()
                total += np.rot90(p[..., ::-1] if mirror else p, -turns, (-2, -1))
        planes = average(pixels, valid, one, zero).numpy()
    np.testing.assert_array_equal(planes[:, 0], total.argmax(1))
    np.testing.assert_allclose(planes[:, 1], 254 * total.max(1) / 8, atol=0.501)


def test_views_one_by_one_give_the_planes_of_all_views_at_once():
    seen = []

    class Watched(nn.Conv2d):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    torch.manual_seed(0)
    network = Watched(3, 3, 3, padding=1)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), np.uint8)
    with torch.inference_mode():
        stacked, single = (
            run(serve_network(network, drawn_spec(), tta=True, stacked=stacked), pixels, np.ones((2, 16, 16)))
            for stacked in (True, False)
        )
    assert seen == [16, *[2] * 8]
    np.testing.assert_array_equal(stacked[:, 0], single[:, 0])
    np.testing.assert_allclose(stacked.astype(int), single, atol=1)


def test_with_augmentation_a_turned_tile_gives_the_turned_planes():
    torch.manual_seed(0)
    serve = serve_network(nn.Conv2d(3, 3, 3, padding=1), drawn_spec(), tta=True)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16), np.uint8)
    with torch.inference_mode():
        upright = run(serve, pixels, np.ones((1, 16, 16)))
        turned = run(serve, np.rot90(pixels, 1, (2, 3)).copy(), np.ones((1, 16, 16)))
    np.testing.assert_array_equal(np.rot90(upright, 1, (2, 3)), turned)
