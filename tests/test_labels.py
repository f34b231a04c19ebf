import json

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import pytest
import rasterio
import rasterio.warp
import shapely
from affine import Affine
from drawn_scenes import UTM, noise, write_tiff
from PIL import Image

from models.spec import Class
from pipeline.errors import LabelError, SceneError
from pipeline.georef import Georef
from pipeline.grid import Window
from pipeline.labelforms.polygons import bent
from pipeline.labels import (
    find_labels,
    label_files,
    label_fingerprint,
    labelled,
    list_images,
    open_labels,
    origin_of,
)
from pipeline.publish.cog import write_cog
from pipeline.scene import SceneAddress, open_scene
from pipeline.store import create_mask, write_block

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
    labels = open_labels(path, scene, ("ground", "roof"))
    expected = np.zeros((40, 60), np.uint8)
    expected[5:20, 10:30] = expected[30:40, 40:60] = 1
    assert np.array_equal(labels.read(WHOLE), expected)
    part = Window(7, 13, 30, 40)
    assert np.array_equal(labels.read(part), expected[part.slices])


def sparse_scene(path, edge, transform):
    """A scene that is large and holds nothing."""
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "tiled": True, "SPARSE_OK": True}
    with rasterio.open(path, "w", height=edge, width=edge, crs="EPSG:32633", transform=transform, **profile):
        pass
    return open_scene(SceneAddress(str(path)))


@pytest.mark.parametrize(("west", "east"), [(15.2, 16.1), (9, 30)])
def test_long_edges_of_another_crs_are_as_bent_as_they_are_on_the_ground(tmp_path, west, east):
    """A box of four corners in degrees over a whole Sentinel-2 tile, and one from country to country."""
    transform = Affine(10, 0, 500000, 0, -10, 5300040)
    scene = sparse_scene(tmp_path / "large.tif", 10980, transform)
    box = {"type": "Polygon", "coordinates": [[[west, 47], [east, 47], [east, 47.7], [west, 47.7], [west, 47]]]}
    labels = open_labels(write_polygons(tmp_path / "l.geojson", [box]), scene, ("ground", "roof"))
    to_degrees = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    for col in (1600, 4000, 6000, 8000):
        got = labels.read(Window(0, col, 10980, 1))[:, 0]
        x, y = transform @ (np.full(10980, col + 0.5), np.arange(10980) + 0.5)
        lon, lat = to_degrees.transform(x, y)
        expected = (lon > west) & (lon < east) & (lat > 47) & (lat < 47.7)
        assert 7000 < expected.sum() < 8000
        assert (got != expected).sum() <= 2


def test_shapes_are_cut_no_finer_than_they_must_be():
    shapes = np.array([shapely.box(15, 47, 16, 48), shapely.box(15, 47, 15.001, 47.001), shapely.box(0, 0, 0, 0)])
    to_scene = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32633", always_xy=True)
    assert shapely.get_num_coordinates(bent(shapes, to_scene, 1.0)).tolist() == [49, 5, 5]
    assert shapely.get_num_coordinates(bent(shapes, to_scene, 1e-9))[0] <= 100_010
    same = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:32633", always_xy=True)
    assert shapely.equals_identical(bent(shapes, same, 1e-9), shapes).all()


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
        ({"transform": UTM @ Affine.translation(900, 0)}, "lies elsewhere"),
        ({"crs": "EPSG:32634"}, "lies elsewhere"),
        ({"crs": None}, r"l\.tif has no CRS, .*a\.tif has one"),
        ({"crs": None, "transform": Affine.identity()}, "has no affine georeference"),
    ],
)
def test_a_class_raster_of_another_place_is_refused(tmp_path, scene, place, reason):
    path = write_tiff(tmp_path / "l.tif", np.zeros((1, 40, 60), np.uint8), **place)
    with pytest.raises(LabelError, match=reason):
        open_labels(path, scene, CLASSES)


def test_a_class_raster_of_another_resolution_gives_each_pixel_the_class_that_holds_its_centre(tmp_path, scene):
    classes = np.random.default_rng(0).integers(0, 3, (1, 10, 15)).astype(np.uint8)
    path = write_tiff(tmp_path / "l.tif", classes, transform=UTM @ Affine.translation(0.3, -0.2) @ Affine.scale(4))
    rows, cols = np.indices((40, 60))
    row, col = np.floor((rows + 0.7) / 4).astype(int), np.floor((cols + 0.2) / 4).astype(int)
    inside = (row < 10) & (col >= 0)
    expected = np.where(inside, classes[0, np.minimum(row, 9), np.maximum(col, 0)], 255)
    assert np.array_equal(open_labels(path, scene, CLASSES).read(WHOLE), expected)


def test_a_finer_class_raster_is_read_in_pieces_and_gives_the_same(tmp_path, scene, monkeypatch):
    classes = np.random.default_rng(0).integers(0, 3, (1, 400, 600)).astype(np.uint8)
    path = write_tiff(tmp_path / "l.tif", classes, transform=UTM @ Affine.scale(0.1))
    labels = open_labels(path, scene, CLASSES)
    assert np.array_equal(labels.read(WHOLE), classes[0, 5::10, 5::10])
    read, sizes = type(labels.raster).read, []

    def counted(raster, window):
        sizes.append(window.height * window.width)
        return read(raster, window)

    monkeypatch.setattr("pipeline.labelforms.rasters.MOST_PIXELS", 1000)
    monkeypatch.setattr(type(labels.raster), "read", counted)
    assert np.array_equal(labels.read(WHOLE), classes[0, 5::10, 5::10])
    assert len(sizes) > 100
    assert max(sizes) <= 1000
    monkeypatch.setattr("pipeline.labelforms.rasters.MOST_PIXELS", 0)
    assert np.array_equal(labels.read(WHOLE), classes[0, 5::10, 5::10])


@pytest.mark.parametrize("kind", ["int8", "int32", "uint32", "int64", "float32", "float64"])
def test_a_class_raster_of_another_type_is_refused_with_advice_that_helps(tmp_path, scene, kind):
    path = write_tiff(tmp_path / "l.tif", np.zeros((1, 40, 60), kind))
    with pytest.raises(LabelError, match=f"pixels of {kind}, for classes uint8, uint16, int16 are allowed: .*gdalwarp"):
        open_labels(path, scene, CLASSES)


def test_a_class_raster_of_another_crs_is_warped_as_gdal_warps_it(tmp_path, scene):
    classes = np.random.default_rng(0).integers(0, 3, (1, 60, 70)).astype(np.uint8)
    x, y = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:3857", always_xy=True).transform(*(UTM @ (-3, -4)))
    place = {"crs": "EPSG:3857", "transform": Affine(0.8, 0, x, 0, -0.7, y)}
    labels = open_labels(write_tiff(tmp_path / "l.tif", classes, **place), scene, CLASSES)
    warped = np.full((40, 60), 255, np.uint8)
    rasterio.warp.reproject(
        np.where(classes[0] == 0, 0, classes[0]),
        warped,
        src_transform=place["transform"],
        src_crs="EPSG:3857",
        dst_transform=UTM,
        dst_crs="EPSG:32633",
        dst_nodata=255,
        tolerance=0,
    )
    assert np.mean(labels.read(WHOLE) != warped) < 1e-3
    part = Window(11, 7, 20, 33)
    assert np.array_equal(labels.read(part), labels.read(WHOLE)[part.slices])


def test_a_polygon_without_a_class_is_named_and_ignore_is_no_label(tmp_path, scene):
    shapes = [rectangle(0, 0, 20, 20), rectangle(5, 5, 10, 10), rectangle(30, 0, 40, 9)]
    path = write_polygons(tmp_path / "l.geojson", shapes, kind=["roof", None, None])
    with pytest.raises(LabelError, match="has 2 polygons without a class in the field 'kind', the first is feature 2"):
        open_labels(path, scene, CLASSES, "kind")
    for ignore in ("ignore", 255):
        path = write_polygons(tmp_path / f"{ignore}.geojson", shapes, kind=["roof", str(ignore), "road"])
        labels = open_labels(path, scene, CLASSES, "kind")
        assert [labels.read(WHOLE)[place] for place in ((1, 1), (7, 7), (35, 5))] == [1, 255, 2]
        assert [labels.objects(WHOLE)[place] for place in ((1, 1), (7, 7), (35, 5), (39, 59))] == [1, 0, 3, 0]


def test_a_field_of_the_name_class_needs_no_mention(tmp_path, scene):
    path = write_polygons(tmp_path / "l.geojson", [rectangle(0, 0, 20, 20)], **{"class": ["road"]})
    assert open_labels(path, scene, CLASSES).read(WHOLE)[0, 0] == 2


def test_holes_are_no_part_of_a_polygon(tmp_path, scene):
    outer, inner = rectangle(0, 0, 20, 20), rectangle(5, 5, 10, 10)
    shape = {"type": "Polygon", "coordinates": [*outer["coordinates"], *inner["coordinates"]]}
    labels = open_labels(write_polygons(tmp_path / "l.geojson", [shape]), scene, ("ground", "roof")).read(WHOLE)
    expected = np.zeros((40, 60), np.uint8)
    expected[:20, :20], expected[5:10, 5:10] = 1, 0
    assert np.array_equal(labels, expected)


FORMATS = {".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".shp": "ESRI Shapefile", ".geojson": "GeoJSON"}


def write_frame(path, shapes, **fields):
    frame = geopandas.GeoDataFrame(fields, geometry=[shapely.geometry.shape(s) for s in shapes], crs="EPSG:4326")
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path, driver=FORMATS[path.suffix], engine="pyogrio")
    return path


@pytest.mark.parametrize("suffix", [*FORMATS, ".parquet"])
def test_every_vector_format_gives_the_same_labels(tmp_path, scene, suffix):
    shapes = [rectangle(5, 10, 20, 30), rectangle(30, 40, 40, 60)]
    path = write_frame(tmp_path / f"l{suffix}", shapes, kind=["roof", "road"], origin=["drawn", "corrected"])
    labels = open_labels(path, scene, CLASSES, "kind").read(WHOLE)
    expected = np.zeros((40, 60), np.uint8)
    expected[5:20, 10:30], expected[30:40, 40:60] = 1, 2
    # FlatGeobuf keeps no order, and these do not overlap
    assert np.array_equal(labels, expected)
    assert origin_of(path) == "corrected"
    write_frame(tmp_path / f"none{suffix}", shapes, kind=["roof", None])
    with pytest.raises(LabelError, match="1 polygon without a class"):
        open_labels(tmp_path / f"none{suffix}", scene, CLASSES, "kind")


def test_a_table_without_shapes_is_no_layer_of_polygons(tmp_path, scene):
    path, table = tmp_path / "l.gpkg", pd.DataFrame({"a": [1, 2]})
    pyogrio.write_dataframe(table, path, layer="notes", driver="GPKG")
    with pytest.raises(LabelError, match=r"l\.gpkg has no layer of polygons"):
        open_labels(path, scene, ("ground", "roof"))
    write_frame(tmp_path / "both.gpkg", [rectangle(5, 10, 20, 30)])
    pyogrio.write_dataframe(table, path := tmp_path / "both.gpkg", layer="labels", driver="GPKG", append=True)
    assert open_labels(path, scene, ("ground", "roof")).read(WHOLE).sum() == 300


def test_outside_the_area_of_interest_nothing_is_known(tmp_path, scene):
    roof, area = rectangle(5, 10, 20, 30), rectangle(0, 0, 15, 60)
    expected = np.full((40, 60), 255, np.uint8)
    expected[:15] = 0
    expected[5:15, 10:30] = 1
    beside = write_polygons(tmp_path / "a-labels.geojson", [roof])
    before = label_fingerprint(beside)
    write_polygons(tmp_path / "a-aoi.geojson", [area])
    layered = write_frame(tmp_path / "b.gpkg", [roof], kind=["roof"])
    geopandas.GeoDataFrame(geometry=[shapely.geometry.shape(area)], crs="EPSG:4326").to_file(layered, layer="aoi")
    for path in (beside, layered):
        labels = open_labels(path, scene, ("ground", "roof"))
        assert np.array_equal(labels.read(WHOLE), expected)
        assert np.array_equal(labels.objects(WHOLE) > 0, expected == 1)
    assert label_fingerprint(beside) != before
    assert {file.name for file in label_files(beside)} == {"a-labels.geojson", "a-aoi.geojson"}


def write_masks(folder, *masks):
    folder.mkdir(parents=True)
    for number, mask in enumerate(masks):
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{number:03}.png")
    return folder


def blobs(count, shape, seed=0):
    """Squares that touch and overlap each other."""
    rng = np.random.default_rng(seed)
    for row, col in zip(rng.integers(0, shape[0] - 4, count), rng.integers(0, shape[1] - 4, count), strict=True):
        mask = np.zeros(shape, bool)
        mask[row : row + rng.integers(3, 15), col : col + rng.integers(3, 15)] = True
        yield mask


def test_one_mask_an_object(tmp_path, scene):
    one, two = np.zeros((2, 40, 60), bool)
    one[3:9, 3:9], two[7:12, 7:12] = True, True
    labels = open_labels(write_masks(tmp_path / "a-objects", one, two), scene, CLASSES)
    assert np.array_equal(labels.read(WHOLE), one | two)
    assert np.array_equal(labels.objects(WHOLE), np.where(two, 2, one))
    part = Window(5, 6, 20, 30)
    assert np.array_equal(labels.objects(part), labels.objects(WHOLE)[part.slices])


def test_a_mask_of_another_size_and_one_that_is_no_picture_are_named(tmp_path, scene):
    folder = write_masks(tmp_path / "a-objects", np.ones((40, 50)))
    with pytest.raises(LabelError, match=r"000\.png has 40 x 50 pixels, .*a\.tif 40 x 60"):
        open_labels(folder, scene, CLASSES)
    (folder / "000.png").write_text("no picture")
    with pytest.raises(LabelError, match=r"000\.png cannot be read"):
        open_labels(folder, scene, CLASSES)


def near_another(objects, row, col):
    around = objects[max(row - 2, 0) : row + 3, max(col - 2, 0) : col + 3]
    return objects[row, col] != 0 and bool(((around != 0) & (around != objects[row, col])).any())


def test_the_boundary_is_what_lies_within_two_pixels_of_another_object(tmp_path, scene):
    folder = write_masks(tmp_path / "a-objects", *blobs(25, (40, 60)))
    plain, parted = open_labels(folder, scene, CLASSES), open_labels(folder, scene, CLASSES, boundary=2)
    objects, labels = plain.objects(WHOLE), parted.read(WHOLE)
    expected = [[near_another(objects, row, col) for col in range(60)] for row in range(40)]
    assert np.array_equal(labels == 2, expected)
    assert np.array_equal(labels > 0, plain.read(WHOLE) > 0)
    assert 50 < (labels == 2).sum() < (labels > 0).sum()


@pytest.mark.parametrize("form", ["masks", "polygons"])
def test_labels_of_windows_put_together_are_those_of_the_whole(tmp_path, scene, form):
    if form == "masks":
        path = write_masks(tmp_path / "a-objects", *blobs(25, (40, 60)))
    else:
        rng = np.random.default_rng(1)
        corners = rng.integers(0, 30, (25, 2))
        path = write_polygons(tmp_path / "l.geojson", [rectangle(r, c, r + 7, c + 9) for r, c in corners.tolist()])
    labels = open_labels(path, scene, CLASSES, boundary=2)
    whole, objects = labels.read(WHOLE), labels.objects(WHOLE)
    for row in range(0, 40, 7):
        for col in range(0, 60, 11):
            part = Window(row, col, 7, 11).intersect(WHOLE)
            assert np.array_equal(labels.read(part), whole[part.slices])
            assert np.array_equal(labels.objects(part), objects[part.slices])
    assert (whole == 2).any()


def test_only_classes_of_objects_are_parted_and_part_others(tmp_path, scene):
    """Two roofs that touch, two roads that touch, and a road beside a roof."""
    shapes = [rectangle(0, 0, 10, 20), rectangle(0, 20, 10, 40), rectangle(10, 0, 20, 20), rectangle(20, 0, 30, 20)]
    path = write_polygons(tmp_path / "l.geojson", shapes, kind=["roof", "roof", "road", "road"])
    classes = (*CLASSES, "rim")
    plain = open_labels(path, scene, classes, "kind").read(WHOLE)
    parted = open_labels(path, scene, classes, "kind", boundary=3, objects=(1,)).read(WHOLE)
    expected = plain.copy()
    expected[:10, 18:22] = 3
    assert np.array_equal(parted, expected)
    assert (open_labels(path, scene, classes, "kind", boundary=3).read(WHOLE)[18:22, :20] == 3).all()


def test_without_a_field_of_the_class_there_is_one_that_polygons_can_have(tmp_path, scene):
    path = write_polygons(tmp_path / "l.geojson", [rectangle(0, 0, 9, 9)], height=[3], use=["x"])
    with pytest.raises(LabelError, match=r"that tells roof, road apart, its fields are height, use: .* --attribute"):
        open_labels(path, scene, CLASSES)
    assert open_labels(path, scene, CLASSES, boundary=1).read(WHOLE)[0, 0] == 2
    assert open_labels(path, scene, CLASSES, boundary=2).read(WHOLE)[0, 0] == 1


def test_class_rasters_have_no_objects_to_part(tmp_path, scene):
    path = write_tiff(tmp_path / "l.tif", np.full((1, 40, 60), 2, np.uint8))
    labels = open_labels(path, scene, CLASSES, boundary=2)
    assert labels.objects(WHOLE) is None
    assert (labels.read(WHOLE) == 2).all()


def test_the_archive_of_the_data_science_bowl_is_read_as_it_is(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name / "images").mkdir(parents=True)
        write_masks(tmp_path / name / "masks", np.ones((4, 4)))
        Image.new("RGB", (4, 4)).save(tmp_path / name / "images" / f"{name}.png")
    assert [image.name for image in list_images(tmp_path)] == ["a.png", "b.png"]
    assert find_labels(list_images(tmp_path)[0], tmp_path) == tmp_path / "a/masks"
    pairs, bare = labelled(tmp_path, tmp_path)
    assert ([pair.name for pair in pairs], bare) == (["a", "b"], [])
    assert label_files(pairs[0].labels) == [tmp_path / "a/masks/000.png"]
    (tmp_path / "origins.csv").write_text("scene,origin\na,corrected\n")
    assert [origin_of(pair.labels, pair.name) for pair in pairs] == ["corrected", "drawn"]


def test_images_with_and_without_labels_are_told_apart(tmp_path):
    for name in ("c.tif", "a.tif", "b.tif", "a-labels.geojson", "c-labels.tif"):
        (tmp_path / name).touch()
    pairs, bare = labelled(tmp_path, tmp_path)
    assert [(pair.name, pair.labels.name) for pair in pairs] == [("a", "a-labels.geojson"), ("c", "c-labels.tif")]
    assert bare == [tmp_path / "b.tif"]
    with pytest.raises(LabelError, match="no such file or folder of labels"):
        labelled(tmp_path, tmp_path / "none")


def test_the_origin_of_labels_is_what_the_table_the_file_or_its_maker_says(tmp_path):
    shapes = [rectangle(0, 0, 9, 9)] * 3
    path = write_polygons(tmp_path / "a-labels.geojson", shapes, origin=["drawn", "model", "corrected"])
    assert origin_of(path) == "model"
    plain = write_tiff(tmp_path / "b-labels.tif", np.zeros((1, 4, 4), np.uint8))
    assert origin_of(plain) == "drawn"
    with rasterio.open(plain, "r+") as file:
        file.update_tags(ORIGIN="corrected")
    assert origin_of(plain) == "corrected"
    write_tiff(tmp_path / "c-labels.tif", np.zeros((1, 4, 4), np.uint8), descriptions=["labels: class of each pixel"])
    assert origin_of(tmp_path / "c-labels.tif") == "model"
    (tmp_path / "origins.csv").write_text("scene,origin\na,drawn\nc,guessed\n")
    with pytest.raises(LabelError, match="'guessed': allowed are drawn, corrected, model"):
        origin_of(path)
    (tmp_path / "origins.csv").write_text("scene,origin\na,drawn\n")
    assert (origin_of(path), origin_of(tmp_path / "c-labels.tif")) == ("drawn", "model")


def test_a_mask_that_this_project_published_is_known_as_a_models(tmp_path):
    classes = (Class(id=0, name="ground", color="#000000"), Class(id=1, name="roof", color="#FF0000"))
    georef = Georef(pyproj.CRS.from_epsg(32633).to_wkt(), UTM[:6])
    place = {"height": 64, "width": 64, "core": 64, "block": 64}
    create_mask(tmp_path / "mask.zarr", planes=("labels",), georef=georef, attributes={}, **place)
    write_block(tmp_path / "mask.zarr", Window(0, 0, 64, 64), {"labels": np.eye(64, dtype=np.uint8)})
    write_cog(
        tmp_path / "mask.zarr", "labels", tmp_path / "m.tif", georef=georef, classes=classes, attribution="somebody"
    )
    assert origin_of(tmp_path / "m.tif") == "model"


def test_the_fingerprint_of_labels_is_their_content(tmp_path):
    folder = write_masks(tmp_path / "a-objects", np.ones((4, 4)))
    one = label_fingerprint(folder)
    Image.new("L", (4, 4)).save(folder / "001.png")
    assert label_fingerprint(folder) != one
    (folder / "001.png").unlink()
    assert label_fingerprint(folder) == one
    with pytest.raises(LabelError, match=r"gone\.geojson cannot be read: No such file"):
        label_fingerprint(tmp_path / "gone.geojson")


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
