import pytest

from flows.show import area


@pytest.mark.parametrize(
    ("square_metres", "text"),
    [
        (None, ""),
        (0.0, "0 m2"),
        (1_234_567.8, "1,234,568 m2"),
        (2.5, "2.5 m2"),
        (7.456e-6, "7.46 mm2"),
        (5.12e-10, "512 um2"),
    ],
)
def test_an_area_is_told_in_the_unit_that_suits_it(square_metres, text):
    assert area(square_metres) == text
