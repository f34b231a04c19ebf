import pytest
import torch
from torch.nn import functional

from models.classifier import Patches, create_classifier
from models.inception.blocks import LocalResponseNorm, adaptive_mean


@pytest.mark.parametrize(("size", "cells"), [((14, 14), 4), ((7, 9), 4), ((12, 16), 5), ((3, 5), 5)])
def test_the_adaptive_mean_is_torchs(size, cells):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(adaptive_mean(x, cells), functional.adaptive_avg_pool2d(x, cells))


def test_local_response_normalisation_is_torchs_with_caffes_constants():
    x = torch.randn(2, 12, 5, 6, dtype=torch.float64).abs() * 100
    torch.testing.assert_close(LocalResponseNorm()(x), functional.local_response_norm(x, 5, 1e-4, 0.75, 1.0))


def test_patches_are_classified_each_for_itself():
    network = create_classifier("inception_v1", classes=4, padding="same", width=0.1).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        squares = Patches(network, 32)(x)
        assert squares.shape == (2, 4, 2, 3)
        torch.testing.assert_close(squares[1, :, 1, 2], network(x[1:, :, 32:, 64:])[0], rtol=1e-4, atol=1e-6)
