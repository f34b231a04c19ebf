from collections import Counter

import numpy as np
import pytest

from pipeline.publish.pyramid import mean_of_four, mode_of_four


def drawn(height, width):
    return np.random.default_rng(0).choice(np.array([0, 1, 7, 254, 255], np.uint8), (height, width))


def mode(four):
    return Counter(four).most_common(1)[0][0]  # of equals, the first that was met


def mean(four):
    return int(np.floor(np.mean(four) + 0.5))


@pytest.mark.parametrize(("halve", "oracle"), [(mode_of_four, mode), (mean_of_four, mean)])
@pytest.mark.parametrize("shape", [(40, 60), (41, 59), (1, 1)])
def test_each_pixel_stands_for_the_valid_ones_of_four(halve, oracle, shape):
    plane = drawn(*shape)
    found = halve(plane)
    assert found.dtype == np.uint8
    for row, col in np.ndindex(found.shape):
        four = plane[2 * row : 2 * row + 2, 2 * col : 2 * col + 2].ravel()
        valid = [int(value) for value in four if value != 255]
        assert found[row, col] == (oracle(valid) if valid else 255)
