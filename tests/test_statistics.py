import numpy as np
import pytest

from pipeline.georef import Georef
from pipeline.grid import Window
from pipeline.statistics import class_sums, histogram

GEOSTATIONARY = "+proj=geos +h=35785831 +lon_0=0 +sweep=y +a=6378137 +b=6356752.3"


def test_what_lies_beyond_the_limb_of_the_earth_has_no_area():
    georef = Georef(GEOSTATIONARY, (10_000.0, 0.0, -7e6, 0.0, -10_000.0, 7e6))
    labels = np.ones((1400, 1400), np.uint8)
    seen = class_sums(labels, Window(0, 0, 1400, 1400), georef)[1][1]
    assert seen == pytest.approx(2.12e14, rel=0.1)  # a cap of 81 degrees around the satellite's foot
    assert class_sums(labels[:100, :100], Window(0, 0, 100, 100), georef) == ({1: 10_000}, {})


def test_areas_of_a_slide_are_its_pixels_times_their_size():
    slide = Georef(None, None, pixel_size=(5e-7, 4e-7))
    labels = np.zeros((300, 200), np.uint8)
    labels[:10, :10] = 3
    counts, areas = class_sums(labels, Window(64, 0, 300, 200), slide)
    assert counts == {0: 59_900, 3: 100}
    assert areas == pytest.approx({0: 59_900 * 2e-13, 3: 100 * 2e-13}, rel=1e-12)


def test_pixels_are_counted_where_no_area_is_known_too():
    labels = np.array([[0, 0, 255], [4, 255, 255]], np.uint8)
    assert class_sums(labels, Window(0, 0, 2, 3), Georef(None, None)) == ({0: 2, 4: 1}, {})


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 5), (0, 4), (128, 127)])
def test_each_pixel_is_counted_once(shape):
    values = np.random.default_rng(0).integers(0, 256, (*shape, 2), np.uint8)[..., 0]
    np.testing.assert_array_equal(histogram(values), np.bincount(values.ravel(), minlength=256))
