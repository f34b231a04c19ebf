import io

import pytest
from rich.console import Console

from flows.show import area, score_table


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


def scores(**changes):
    """Of one class, as `models.scoring` gives them."""
    one = {key: {"nucleus": 0.5} for key in ("iou", "f1", "precision", "recall", "boundary_f1")}
    ends = {"mean_iou": [0.25, 0.75], "iou": {"nucleus": [0.25, 0.75]}, "boundary_f1": {"nucleus": None}}
    borders = {"within_16": {"mean_iou": None}, "interior": {"mean_iou": 0.5}}
    return {**one, "mean_iou": 0.5, "intervals": ends, "blocks": 1234, "borders": borders, **changes}


def printed(result):
    console = Console(file=io.StringIO(), width=200)
    console.print(score_table(result))
    return console.file.getvalue()


def test_scores_are_told_with_their_intervals():
    text = printed({"scenes": {"a\x1b[31m": scores()}, "pooled": scores(ece=0.125)})
    rows = [line.strip("│ ").split("│") for line in text.splitlines() if line.startswith("│")]
    assert [cell.strip() for cell in rows[0]] == [
        "a\\x1b[31m",
        "nucleus",
        "0.500 [0.250, 0.750]",
        *["0.500"] * 4,
    ]
    assert "mean IoU 0.500 [0.250, 0.750]; within 16 px of the borders of cores -, elsewhere 0.500" in text
    assert "calibration error of the confidence 0.125" in text
    assert "1,234 squares of ground" in text


def test_objects_are_told_where_a_class_has_them():
    found = {"iou": 0.75, "f1": 0.875, "ap50": 0.5, "ap50_pooled": 0.25, "tp": 1, "fp": 2, "fn": 1000}
    pooled = scores(objects={"nucleus": found})
    pooled["intervals"]["ap50"] = {"nucleus": [0.375, 0.625]}
    text = printed({"scenes": {}, "pooled": pooled})
    assert "0.500 [0.375, 0.625]" in text
    assert "nucleus as objects: found 1, missed 1,000, invented 2; AP50 0.500 as a mean over images, 0.250 over" in text
