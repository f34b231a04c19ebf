import json

import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.features
import shapely
from affine import Affine
from drawn_scenes import UTM, noise, write_tiff

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


def count(mask_file):
    """(3, 3) pixels by true and predicted class, by rasterio and NumPy alone."""
    burn = [(on_the_ground(shape), int(kind[1])) for kind, shape in FIELDS]
    truth = rasterio.features.rasterize(burn, (HEIGHT, WIDTH), transform=Affine(*UTM[:6]), dtype="uint8")
    with rasterio.open(mask_file) as mask:
        predicted = mask.read(1)
    assert (predicted == 255).sum() == 20 * 30
    return np.array([[np.sum((truth == t) & (predicted == p)) for p in range(3)] for t in range(3)])


def pattern(bundle, out, backend="torch"):
    return SegmentRequest(SceneAddress(""), bundle, out, "", backend=backend, precision="fp32", tile=128, threads=1)


def test_scores_equal_an_independent_computation(bundle, tmp_path):
    for name in ("one", "three"):
        draw(tmp_path, name)
    result = evaluate(pattern(bundle, tmp_path / "o"), tmp_path, tmp_path, SerialExecutor(), attribute="kind")
    counts = {name: count(tmp_path / "o" / name / "mask.tif") for name in ("one", "three")}
    for matrix, got in ((counts["three"], result["scenes"]["three"]), (sum(counts.values()), result["pooled"])):
        assert got["pixels"] == matrix.sum()
        for k in range(3):
            hit, union = matrix[k, k], matrix[k].sum() + matrix[:, k].sum() - matrix[k, k]
            assert got["iou"][f"c{k}"] == pytest.approx(hit / union)
            assert got["precision"][f"c{k}"] == (pytest.approx(hit / p) if (p := matrix[:, k].sum()) else None)


def test_a_scene_without_labels_is_told_before_anything_is_segmented(bundle, tmp_path):
    draw(tmp_path, "one")
    write_tiff(tmp_path / "two.tif", noise(3, 60, 70))
    with pytest.raises(LabelError, match=r"holds no labels of two\.tif"):
        evaluate(pattern(bundle, tmp_path / "o", "null"), tmp_path, tmp_path, SerialExecutor(), attribute="kind")
    assert not (tmp_path / "o").exists()
