import numpy as np
import pytest
import zarr
from drawn_chips import draw_chips
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.dataset import Chip, measure_bands, open_chips
from models.ground import cells
from models.validation import score


@given(st.integers(-60, 60), st.integers(-60, 60), st.integers(1, 40), st.integers(1, 40))
@settings(deadline=None)
def test_cells_partition_an_array_and_stay_where_they_are(row, col, height, width):
    seen = np.full((height, width), "", object)
    for name, part in cells(f"a/b/{row}/{col}", height, width, 16):
        assert (seen[part] == "").all()
        seen[part] = name
    for at in ((0, 0), (height - 1, width - 1), (height // 2, width // 3)):
        assert seen[at] == f"a/b/{(row + at[0]) // 16}/{(col + at[1]) // 16}"


def rewrite(path, change):
    group = zarr.open_group(path)
    group.attrs["chips"] = [{**chip, **change(index)} for index, chip in enumerate(group.attrs["chips"])]
    return open_chips(path)


def scored(chips):
    return score(nn.Conv2d(3, 2, 1), chips, measure_bands(chips, [0]), range(len(chips.header.chips)))


def test_ten_pictures_of_one_place_are_one_witness(tmp_path):
    """Else the intervals of a site that is seen every week get as narrow as one likes."""
    path = draw_chips(tmp_path / "c", count=10)
    dates = rewrite(path, lambda index: {"scene": f"date {index}", "row": 0, "col": 0})
    assert scored(dates).result()["blocks"] == 10  # nobody knows that it is one place
    placed = rewrite(path, lambda index: {"place": f"grid/{-1024 + 60 * index}/512"})
    assert sorted(scored(placed).blocks) == ["grid/-1/1", "grid/-2/1"]


def test_a_large_chip_is_validated_by_the_cells_that_it_lies_on(tmp_path):
    chips = rewrite(draw_chips(tmp_path / "c", count=1, edge=1024), lambda _: {"row": 256, "col": 1024})
    names = [f"a/{row}/{col}" for row in (0, 1, 2) for col in (2, 3)]
    assert sorted(scored(chips).blocks) == names
    assert scored(chips).blocks["a/0/2"].sum() == 256 * 512


def test_an_image_belongs_to_the_cell_it_begins_on(tmp_path):
    chips = rewrite(
        draw_chips(tmp_path / "c", count=4, task="classify"), lambda index: {"row": 500, "col": 512 * index}
    )
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    found = score(network, chips, measure_bands(chips, [0]), range(4))
    assert {name: int(counts.sum()) for name, counts in found.blocks.items()} == {f"a/0/{i}": 1 for i in range(4)}


def test_a_place_is_a_lattice_and_two_numbers():
    facts = {"scene": "s", "row": 3, "col": 4, "split": "val", "slot": 0}
    assert Chip(**facts).ground == "s/3/4"
    assert Chip(**facts, place="3a/-5/6").ground == "3a/-5/6"
    with pytest.raises(ValueError, match="string_pattern_mismatch"):
        Chip(**facts, place="here")
