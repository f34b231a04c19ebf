import io

import pytest
from rich.console import Console

from flows.show import area, score_table, summary


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


def facts(**changes):
    """Of a run, as older versions wrote them, with what `changes` adds."""
    return {
        "classes": [{"name": "water", "share": 0.25, "pixels": 25, "area_m2": None}],
        "coverage": {"valid": 100, "classified": 100, "pixels": 120},
        "blocks": {"done": 1, "resumed": 0, "total": 1},
        "engine": {"backend": "null", "precision": "fp32", "tile": 64, "threads": 1},
        "speed": {
            "seconds": {"segment": 2.0},
            "megapixels_per_second": {},
            "outside_engine_core_ms_per_megapixel": None,
        },
        "memory": {"peak_bytes": 10**9, "planned_bytes": 2 * 10**9},
        "notes": [],
        **changes,
    }


def summed_up(**changes):
    console = Console(file=io.StringIO(), width=250)
    console.print(summary(facts(**changes), "out"))
    return console.file.getvalue()


def test_the_result_of_an_older_version_is_shown_without_what_it_did_not_measure():
    text = summed_up()
    assert "valid = classified" in text
    assert "limit" not in text


def test_what_held_a_run_up_is_told_with_what_would_help():
    seconds = {"engine": 10.0, "waiting_for_input": 8.0, "waiting_for_output": 0.5, "read": 7.0, "write": 1.0}
    found = {"limit": "input", "advice": "stage it", "engine_share": 0.5, "seconds": seconds}
    found |= {"readers": 4, "writers": 1, "workers": 2}
    coverage = {"valid": 100, "classified": 100, "pixels": 120, "tiles": 1200, "empty_tiles": 34}
    text = " ".join(summed_up(bottleneck=found, coverage=coverage).split())
    assert "1,200 computed, 34 empty" in text
    assert "busy 50 % of the workers' time: 10.0 s; waited 8.0 s for input, 0.5 s for output" in text
    assert "read 7.0 s, write 1.0 s, by up to 4 and 1 threads in each of 2 workers" in text
    assert "limit: input │ stage it" in text
    assert "together" not in text
    shared = {"open": 0.25, "start": 0.0, "stage": 0.0, "publish": 3.0, "idle": 0.5}
    found |= {"together": 16, "wall": 14.0, "megapixels_per_second": 2.5, "seconds": seconds | shared}
    text = " ".join(summed_up(bottleneck=found, coverage=coverage).split())
    assert "together │ 16 scenes in 14.0 s, 2.50 Mpx/s, opening 0.2 s, publishing 3.0 s, idle 0.5 s" in text
