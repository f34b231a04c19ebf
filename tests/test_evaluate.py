import json

import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.features
import shapely
from affine import Affine
from drawn_bundle import draw_bundle
from drawn_scenes import UTM, noise, write_tiff
from scipy import ndimage

from models.boundaries import Agreement, f1
from pipeline.errors import LabelError
from pipeline.evaluate import evaluate
from pipeline.executors import SerialExecutor
from pipeline.scene import SceneAddress
from pipeline.segment import SegmentRequest

HEIGHT, WIDTH = 150, 170
FIELDS = [("c1", shapely.box(10.2, 20.3, 90.7, 77.1)), ("c2", shapely.Point(120, 90).buffer(35.3))]
"""Class and outline of each polygon, in columns and rows of the scene."""


def on_the_ground(shape):
    """From (column, row) to the scene's CRS."""
    return shapely.transform(shape, lambda x, y: UTM @ (x, y), interleaved=False)


def draw(folder, name):
    """A scene with a hole, and its labels in longitude and latitude."""
    pixels = noise(3, HEIGHT, WIDTH, seed=len(name))
    pixels[:, 40:60, 50:80] = 0
    write_tiff(folder / f"{name}.tif", pixels, nodata=0)
    to_degrees = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    shapes = [shapely.transform(on_the_ground(s), to_degrees.transform, interleaved=False) for _, s in FIELDS]
    features = [
        {"type": "Feature", "properties": {"kind": kind}, "geometry": json.loads(shapely.to_geojson(shape))}
        for (kind, _), shape in zip(FIELDS, shapes, strict=True)
    ]
    (folder / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def truth():
    """(H, W) classes, by rasterio alone."""
    burn = [(on_the_ground(shape), int(kind[1])) for kind, shape in FIELDS]
    return rasterio.features.rasterize(burn, (HEIGHT, WIDTH), transform=Affine(*UTM[:6]), dtype="uint8")


def read(file):
    """(H, W) of a published plane."""
    with rasterio.open(file) as plane:
        return plane.read(1)


def count(wanted, predicted):
    """(3, 3) pixels by true and predicted class, by NumPy alone."""
    return np.array([[np.sum((wanted == t) & (predicted == p)) for p in range(3)] for t in range(3)])


def pattern(bundle, out, backend="torch"):
    return SegmentRequest(SceneAddress(""), bundle, out, "", backend=backend, precision="fp32", tile=128, threads=1)


def test_scores_equal_an_independent_computation(bundle, tmp_path):
    for name in ("one", "three"):
        draw(tmp_path, name)
    result = evaluate(pattern(bundle, tmp_path / "o"), tmp_path, tmp_path, SerialExecutor(), attribute="kind")
    masks = {name: read(tmp_path / "o" / name / "mask.tif") for name in ("one", "three")}
    assert all((mask == 255).sum() == 20 * 30 for mask in masks.values())
    counts = {name: count(truth(), mask) for name, mask in masks.items()}
    for matrix, got in ((counts["three"], result["scenes"]["three"]), (sum(counts.values()), result["pooled"])):
        assert got["pixels"] == matrix.sum()
        for k in range(3):
            hit, union = matrix[k, k], matrix[k].sum() + matrix[:, k].sum() - matrix[k, k]
            assert got["iou"][f"c{k}"] == pytest.approx(hit / union)
            assert got["precision"][f"c{k}"] == (pytest.approx(hit / p) if (p := matrix[:, k].sum()) else None)


def test_outlines_and_confidence_equal_an_independent_computation(bundle, tmp_path):
    draw(tmp_path, "one")
    got = evaluate(pattern(bundle, tmp_path / "o"), tmp_path, tmp_path, SerialExecutor(), attribute="kind")["pooled"]
    mask, stored = (read(tmp_path / "o" / "one" / name) for name in ("mask.tif", "confidence.tif"))
    assert list(got["boundary_f1"].values()) == pytest.approx(f1(Agreement.of(truth(), mask).counts(3)), nan_ok=True)
    confidence, hit = stored[mask != 255] / 254, (truth() == mask)[mask != 255]
    bins = [(confidence >= i / 15) & (confidence < (i + 1) / 15 + (i == 14)) for i in range(15)]
    gaps = [abs(confidence[inside].sum() - hit[inside].sum()) for inside in bins]
    assert got["ece"] == pytest.approx(sum(gaps) / len(hit), abs=1e-6)


def test_pixels_near_the_borders_of_cores_are_told_from_the_others(bundle, tmp_path):
    draw(tmp_path, "one")
    got = evaluate(pattern(bundle, tmp_path / "o"), tmp_path, tmp_path, SerialExecutor(), attribute="kind")["pooled"]
    rows, cols = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    near = np.logical_or.reduce([abs(axis - border) < 16 for axis in (rows, cols) for border in (64, 128)])
    mask = read(tmp_path / "o" / "one" / "mask.tif")
    for name, part in (("within_16", near), ("interior", ~near)):
        matrix = count(truth()[part], mask[part])
        assert got["borders"][name]["pixels"] == matrix.sum()
        assert got["borders"][name]["iou"]["c0"] == pytest.approx(
            matrix[0, 0] / (matrix[0].sum() + matrix[:, 0].sum() - matrix[0, 0])
        )


def test_scores_do_not_depend_on_the_windows_that_are_compared(bundle, tmp_path, monkeypatch):
    draw(tmp_path, "one")
    run = pattern(bundle, tmp_path / "o"), tmp_path, tmp_path, SerialExecutor()
    monkeypatch.setattr("pipeline.evaluate.CELL", 64)
    whole = evaluate(*run, attribute="kind")["pooled"]
    monkeypatch.setattr("pipeline.evaluate.WINDOW", 64)
    cut = evaluate(*run, attribute="kind")["pooled"]
    for key in ("confusion", "borders", "blocks"):
        assert cut[key] == whole[key]
    assert cut["ece"] == pytest.approx(whole["ece"])
    assert cut["intervals"]["mean_iou"] == pytest.approx(whole["intervals"]["mean_iou"])


def test_two_scenes_of_one_place_are_one_sample_of_the_ground(bundle, tmp_path, monkeypatch):
    """Else twice the pictures of the same ground would look like twice the evidence."""
    for name in ("one", "three"):
        draw(tmp_path, name)
    monkeypatch.setattr("pipeline.evaluate.CELL", 64)
    got = evaluate(pattern(bundle, tmp_path / "o", "null"), tmp_path, tmp_path, SerialExecutor(), attribute="kind")
    assert got["scenes"]["one"]["blocks"] == got["pooled"]["blocks"] == 3 * 3
    assert got["scenes"]["one"]["intervals"]["mean_iou"] is not None


def test_scenes_without_a_place_are_samples_of_their_own(bundle, tmp_path):
    for name in ("one", "three"):
        write_tiff(tmp_path / f"{name}.tif", noise(3, 150, 170), crs=None, transform=None)
        write_tiff(tmp_path / f"{name}-labels.tif", np.ones((1, 150, 170), np.uint8), crs=None, transform=None)
    got = evaluate(pattern(bundle, tmp_path / "o", "null"), tmp_path, tmp_path, SerialExecutor())
    assert got["scenes"]["one"]["blocks"] == 1
    assert got["pooled"]["blocks"] == 2


def test_each_polygon_is_an_object(tmp_path):
    draw(tmp_path, "one")
    draw_bundle(tmp_path / "b", halo=32, tiles=(128, 256), objects=(1, 2))
    run = pattern(tmp_path / "b", tmp_path / "o"), tmp_path, tmp_path, SerialExecutor()
    objects = evaluate(*run, attribute="kind")["pooled"]["objects"]
    mask = read(tmp_path / "o" / "one" / "mask.tif")
    assert set(objects) == {"c1", "c2"}
    for name, found in objects.items():
        assert found["tp"] + found["fn"] == 1
        assert found["tp"] + found["fp"] == ndimage.label(mask == int(name[1]))[1]


def test_what_is_no_object_parts_none(tmp_path):
    """The two polygons touch, and only the first is an object: no pixel of it is of the boundary, which is c2 here."""
    draw(tmp_path, "one")
    draw_bundle(tmp_path / "b", halo=32, tiles=(128, 256), objects=(1,), boundary=2)
    run = pattern(tmp_path / "b", tmp_path / "o", "null"), tmp_path, tmp_path, SerialExecutor()
    counts = np.array(evaluate(*run, attribute="kind")["pooled"]["confusion"])
    valid = np.ones((HEIGHT, WIDTH), bool)
    valid[40:60, 50:80] = False
    assert counts.sum(1).tolist() == np.bincount(truth()[valid]).tolist()


def test_a_scene_without_labels_is_told_before_anything_is_segmented(bundle, tmp_path):
    draw(tmp_path, "one")
    write_tiff(tmp_path / "two.tif", noise(3, 60, 70))
    with pytest.raises(LabelError, match=r"holds no labels of two\.tif"):
        evaluate(pattern(bundle, tmp_path / "o", "null"), tmp_path, tmp_path, SerialExecutor(), attribute="kind")
    assert not (tmp_path / "o").exists()
