import json

import numpy as np
import pyproj
import pytest
from affine import Affine
from drawn_scenes import UTM, noise, write_tiff

from pipeline.errors import LabelError, SceneError
from pipeline.grid import Window
from pipeline.labels import find_labels, list_images, open_labels
from pipeline.scene import SceneAddress, open_scene

CLASSES = ("ground", "roof", "road")
WHOLE = Window(0, 0, 40, 60)


@pytest.fixture
def scene(tmp_path):
    return open_scene(SceneAddress(str(write_tiff(tmp_path / "a.tif", noise(3, 40, 60)))))


def rectangle(top, left, bottom, right, crs="EPSG:4326"):
    """Polygon around pixels [top, bottom) x [left, right) of `UTM`, in `crs`."""
    x, y = UTM @ (np.array([left, right, right, left, left]), np.array([top, top, bottom, bottom, top]))
    to = pyproj.Transformer.from_crs("EPSG:32633", crs, always_xy=True)
    return {"type": "Polygon", "coordinates": [np.column_stack(to.transform(x, y)).tolist()]}


def write_polygons(path, shapes, **fields):
    features = [
        {"type": "Feature", "geometry": shape, "properties": {name: values[i] for name, values in fields.items()}}
        for i, shape in enumerate(shapes)
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_polygons_of_another_crs_mark_the_pixels_whose_centres_they_hold(tmp_path, scene):
    path = write_polygons(tmp_path / "l.geojson", [rectangle(5, 10, 20, 30), rectangle(30, 40, 40, 60)])
    labels = open_labels(path, scene, CLASSES)
    expected = np.zeros((40, 60), np.uint8)
    expected[5:20, 10:30] = expected[30:40, 40:60] = 1
    assert np.array_equal(labels.read(WHOLE), expected)
    part = Window(7, 13, 30, 40)
    assert np.array_equal(labels.read(part), expected[part.slices])


def test_a_field_gives_the_class_by_name_or_id_and_later_polygons_lie_on_top(tmp_path, scene):
    shapes = [rectangle(0, 0, 20, 20), rectangle(10, 10, 30, 30)]
    for values in (["roof", "road"], [1, 2]):
        path = write_polygons(tmp_path / "l.geojson", shapes, kind=values)
        got = open_labels(path, scene, CLASSES, "kind").read(WHOLE)
        assert [got[5, 5], got[15, 15], got[25, 25], got[35, 35]] == [1, 2, 2, 0]


def test_unknown_classes_and_fields_are_named(tmp_path, scene):
    path = write_polygons(tmp_path / "l.geojson", [rectangle(0, 0, 9, 9)], kind=["river"])
    with pytest.raises(LabelError, match="class 'river': known are 0 ground, 1 roof, 2 road"):
        open_labels(path, scene, CLASSES, "kind")
    with pytest.raises(LabelError, match="no field 'type': its fields are kind"):
        open_labels(path, scene, CLASSES, "type")


def test_polygons_elsewhere_are_refused(tmp_path, scene):
    path = write_polygons(tmp_path / "l.geojson", [rectangle(5000, 5000, 5010, 5010)])
    with pytest.raises(LabelError, match="lies elsewhere"):
        open_labels(path, scene, CLASSES)


def test_polygons_need_a_georeferenced_scene(tmp_path):
    path = write_tiff(tmp_path / "plain.tif", noise(1, 40, 60), crs=None, transform=Affine.identity())
    polygons = write_polygons(tmp_path / "l.geojson", [rectangle(0, 0, 9, 9)])
    with pytest.raises(LabelError, match="no affine georeference"):
        open_labels(polygons, open_scene(SceneAddress(str(path))), CLASSES)


def test_a_class_raster_is_read_where_the_scene_is(tmp_path, scene):
    classes = np.random.default_rng(0).integers(0, 3, (1, 30, 50)).astype(np.uint8)
    path = write_tiff(tmp_path / "l.tif", classes, transform=UTM @ Affine.translation(5, 10))
    expected = np.full((40, 60), 255, np.uint8)
    expected[10:40, 5:55] = classes
    assert np.array_equal(open_labels(path, scene, CLASSES).read(WHOLE), expected)


def test_nodata_of_a_class_raster_is_no_label(tmp_path, scene):
    classes = np.zeros((1, 40, 60), np.uint8)
    classes[0, 0, :3] = 9, 255, 2
    path = write_tiff(tmp_path / "l.tif", classes, nodata=9)
    assert open_labels(path, scene, CLASSES).read(WHOLE)[0, :4].tolist() == [255, 255, 2, 0]


def test_an_unknown_class_of_a_raster_is_named(tmp_path, scene):
    path = write_tiff(tmp_path / "l.tif", np.full((1, 40, 60), 7, np.uint8))
    with pytest.raises(LabelError, match="class 7: allowed are 0 to 2"):
        open_labels(path, scene, CLASSES).read(WHOLE)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ({"transform": UTM @ Affine.translation(0.3, 0)}, "0.3 pixels off the grid"),
        ({"transform": UTM @ Affine.scale(2)}, "off the grid"),
        ({"transform": UTM @ Affine.translation(900, 0)}, "lies elsewhere"),
        ({"crs": "EPSG:32634"}, "another CRS"),
        ({"crs": None, "transform": Affine.identity()}, "only one of"),
    ],
)
def test_a_class_raster_of_another_grid_is_refused(tmp_path, scene, place, reason):
    path = write_tiff(tmp_path / "l.tif", np.zeros((1, 40, 60), np.uint8), **place)
    with pytest.raises(LabelError, match=reason):
        open_labels(path, scene, CLASSES)


def test_labels_are_found_by_the_name_of_the_image(tmp_path):
    images, folder = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    folder.mkdir()
    image = write_tiff(images / "a.tif", noise(1, 4, 4))
    with pytest.raises(LabelError, match=r"holds no labels of a\.tif: name them a-labels\.geojson"):
        find_labels(image, images)
    for name in ("a.tif", "a.geojson", "a-labels.tif", "a-labels.geojson"):
        (folder / name).touch()
        assert find_labels(image, folder) == folder / name
    assert find_labels(image, folder / "a.geojson") == folder / "a.geojson"


def test_label_rasters_are_not_images(tmp_path):
    for name in ("b.tif", "a.TIF", "b-labels.tif", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.TIF", "b.tif"]
    (tmp_path / "none").mkdir()
    with pytest.raises(SceneError, match="holds no"):
        list_images(tmp_path / "none")


def test_pictures_are_images_only_where_there_is_no_tiff(tmp_path):
    for name in ("b.png", "a.jpg", "b-labels.png"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.png"]
    assert find_labels(tmp_path / "b.png", tmp_path).name == "b-labels.png"
    (tmp_path / "b.tif").touch()
    assert [path.name for path in list_images(tmp_path)] == ["b.tif"]
    (tmp_path / "c.png").touch()
    with pytest.raises(LabelError, match=r"holds no labels of c\.tif"):
        find_labels(tmp_path / "c.tif", tmp_path)
