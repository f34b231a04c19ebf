"""What would change if another bundle took over."""

import pytest
from drawn_bundle import draw_bundle
from drawn_scenes import noise, write_tiff

from pipeline import shadow as module
from pipeline.executors import SerialExecutor
from pipeline.scene import SceneAddress
from pipeline.segment import SegmentRequest
from pipeline.shadow import shadow


@pytest.fixture
def pattern(tmp_path, bundle):
    return SegmentRequest(SceneAddress(""), bundle, tmp_path / "out", "", backend="torch")


@pytest.fixture
def scene(tmp_path):
    return write_tiff(tmp_path / "scene.tif", noise(3, 200, 300))


def test_a_bundle_changes_nothing_against_itself(scene, pattern, bundle):
    (found,) = shadow([scene], bundle, bundle, pattern, SerialExecutor())
    assert found.changed == 0
    assert all(before == after for before, after in found.areas.values())
    assert list(pattern.out.glob("shadow-*")) == []


def test_areas_of_both_bundles_are_told_by_class_and_add_up_to_the_scene(scene, pattern, bundle, tmp_path):
    other = draw_bundle(tmp_path / "other", halo=32, tiles=(128, 256), seed=5).path
    (found,) = shadow([scene], other, bundle, pattern, SerialExecutor())
    assert 0 < found.changed <= 1
    before, after = (sum(pair[side] for pair in found.areas.values()) for side in (0, 1))
    assert before == pytest.approx(after)
    assert found.to_json()["scene"] == "scene"


def test_of_a_large_scene_the_middle_is_looked_at(scene, pattern, bundle, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 128)
    (found,) = shadow([scene], bundle, bundle, pattern, SerialExecutor())
    assert found.unit == "m2"
    assert sum(after for _, after in found.areas.values()) == pytest.approx(128 * 128 * 0.5**2, rel=0.01)
