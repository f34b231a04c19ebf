"""Tile classification over whole scenes: one class a square, published as a coarse raster of the same ground."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pystac
import pytest
import rasterio
import torch
from affine import Affine
from drawn_classifier import CELL, draw_classifier, in_squares, normalised, squares
from drawn_scenes import RPCS, UTM, write_tiff
from jsonschema import Draft7Validator
from pystac.validation.local_validator import get_local_schema_cache
from rasterio.crs import CRS
from referencing import Registry, Resource
from rio_cogeo import cog_validate

from models.bundle import load_module, open_bundle
from models.spec import Class
from pipeline.errors import UnreadableError
from pipeline.executors import SerialExecutor
from pipeline.georef import Georef
from pipeline.grid import TileGrid, Window
from pipeline.ground import ControlPoint
from pipeline.plan import PlanOptions
from pipeline.publish.cells import PublishedPlane
from pipeline.publish.collection import write_collection
from pipeline.publish.compare import first_difference
from pipeline.scene import SceneAddress, open_scene
from pipeline.segment import SegmentRequest, plan_request, segment_scene
from pipeline.sources.placement import differences
from pipeline.store import create_mask, read_plane, write_block
from pipeline.verify import verify

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

SHAPE = (301, 437)
CELLS = (10, 14)
SIZES = [(1, 1), (5, 70), (33, 33), (64, 128), (129, 31), (200, 300)]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return draw_classifier(tmp_path_factory.mktemp("bundles") / "classifier").path


def drawn(*shape):
    rows, cols = (-(-length // CELL) for length in shape)
    return squares(rows, cols, seed=7)[:, : shape[0], : shape[1]].copy()


def holed():
    """Whole squares and parts of squares are nodata, one square is but for one pixel."""
    pixels = drawn(*SHAPE)
    pixels[:, 64:128, 96:200] = 0
    pixels[:, 192:224, 256:288] = 0
    pixels[:, 210, 260] = 77
    pixels[:, 290:, 430:] = 0
    return pixels


def request(scene, bundle, out, **changes):
    options = {key: changes.pop(key) for key in ("block", "stage") if key in changes}
    settings = {"backend": "torch", "precision": "fp32", "threads": 1, **changes}
    plan = PlanOptions(**{"stage": False, **options})
    return SegmentRequest(SceneAddress(str(scene)), bundle, out, scene.stem, plan, **settings)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_tiff(tmp_path_factory.mktemp("scenes") / "scene.tif", holed(), nodata=0)


@pytest.fixture(scope="module")
def made(scene, classifier, tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    return out / "scene", segment_scene(request(scene, classifier, out), SerialExecutor())


@pytest.fixture
def result(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "result")


def expected(pixels, bundle):
    """Independent oracle: labels and probabilities of the squares of the whole scene, by eager PyTorch."""
    valid = pixels.any(0)
    down, across = (-(-length // CELL) for length in valid.shape)
    rim = [(0, edge * CELL - length) for edge, length in zip((down, across), valid.shape, strict=True)]
    values = normalised(pixels, bundle.spec) * torch.from_numpy(valid)
    filled = in_squares(np.pad(values.numpy(), [(0, 0), *rim], "reflect"))
    with torch.inference_mode():
        best, labels = torch.softmax(load_module(bundle)(torch.from_numpy(filled)), 1).max(1)
    some = in_squares(np.pad(valid, rim)[None]).any((1, 2, 3))
    return np.where(some, labels, 255).reshape(down, across), np.where(some, best * 254, 255).reshape(down, across)


def test_each_pixel_of_the_mask_is_what_eager_pytorch_says_of_its_square(made, classifier):
    labels, confidence = expected(holed(), open_bundle(classifier))
    with rasterio.open(made[0] / "mask.tif") as mask, rasterio.open(made[0] / "confidence.tif") as sure:
        assert (mask.shape, mask.nodata) == (CELLS, 255)
        np.testing.assert_array_equal(mask.read(1), labels)
        np.testing.assert_allclose(sure.read(1), confidence, atol=1)
        assert set(np.unique(labels)) == {0, 1, 2, 255}
        assert len(np.unique(sure.read(1))) > 20


def test_a_square_is_nodata_only_where_all_of_it_is(made):
    with rasterio.open(made[0] / "mask.tif") as mask, rasterio.open(made[0] / "confidence.tif") as sure:
        nodata = np.argwhere(mask.read(1) == 255).tolist()
        np.testing.assert_array_equal(mask.read(1) == 255, sure.read(1) == 255)
    assert nodata == [[row, col] for row in (2, 3) for col in (3, 4, 5)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tile", [64, 128])
def test_squares_are_never_cut_by_cores_or_moved_tiles(size, tile):
    grid, owners = TileGrid(*size, tile, 0, CELL), np.zeros(size, int)
    for core in grid.cores(grid.scene):
        owners[core.owned.slices] += 1
        corner = (core.tile.row, core.tile.col, core.owned.row, core.owned.col)
        assert all(edge % CELL == 0 for edge in corner)
        assert core.tile.contains(core.owned)
    assert (owners == 1).all()


@pytest.mark.parametrize("size", SIZES)
def test_all_valid_pixels_of_a_square_have_one_class_and_one_confidence(size, classifier, tmp_path):
    scene = write_tiff(tmp_path / "scene.tif", drawn(*size))
    segment_scene(request(scene, classifier, tmp_path, tile=64), SerialExecutor())
    for plane, name in (("labels", "mask.tif"), ("confidence", "confidence.tif")):
        stored = read_plane(tmp_path / "scene/mask.zarr", plane, Window(0, 0, *size))
        with rasterio.open(tmp_path / "scene" / name) as file:
            spread = file.read(1).repeat(CELL, 0).repeat(CELL, 1)[: size[0], : size[1]]
        np.testing.assert_array_equal(stored, spread)
    labels, _ = expected(drawn(*size), open_bundle(classifier))
    with rasterio.open(tmp_path / "scene/mask.tif") as file:
        np.testing.assert_array_equal(file.read(1), labels)


@pytest.mark.parametrize("changes", [{"block": 128}, {"block": 384, "stage": True}, {"stage": True}])
def test_the_rasters_depend_neither_on_the_block_nor_on_staging(made, scene, classifier, tmp_path, changes):
    segment_scene(request(scene, classifier, tmp_path, **changes), SerialExecutor())
    for name in ("mask.tif", "confidence.tif"):
        again, before = ((folder / name).read_bytes() for folder in (tmp_path / "scene", made[0]))
        assert hashlib.sha256(again).digest() == hashlib.sha256(before).digest()


def test_the_rasters_are_cogs_on_the_ground_of_the_scene(made, scene):
    assert cog_validate(made[0] / "mask.tif", strict=True) == (True, [], [])
    with rasterio.open(scene) as source, rasterio.open(made[0] / "mask.tif") as mask:
        assert (mask.crs, mask.transform) == (source.crs, source.transform @ Affine.scale(CELL))
        assert mask.bounds.left == source.bounds.left
        assert mask.bounds.top == source.bounds.top
        assert 0 <= mask.bounds.right - source.bounds.right < CELL * 0.5
        assert 0 <= source.bounds.bottom - mask.bounds.bottom < CELL * 0.5
        assert mask.descriptions == ("labels: class of each square of 32 x 32 pixels of the scene",)


def test_the_report_counts_pixels_of_the_scene_and_says_so(made):
    folder, facts = made
    stored = read_plane(folder / "mask.zarr", "labels", Window(0, 0, *SHAPE))
    assert [entry["pixels"] for entry in facts["classes"]] == [int((stored == value).sum()) for value in range(3)]
    assert facts["coverage"]["valid"] == facts["coverage"]["classified"] == int(holed().any(0).sum())
    assert sum(entry["area_m2"] for entry in facts["classes"]) == pytest.approx(holed().any(0).sum() / 4, rel=1e-2)
    assert (facts["grid"]["cell"], facts["grid"]["halo"]) == (CELL, 0)
    assert facts["notes"][-1].startswith("pixels, shares and areas of classes count the scene's valid pixels")


def test_the_plan_says_what_comes_out(scene, classifier, tmp_path):
    plan = plan_request(request(scene, classifier, tmp_path))
    assert dict(plan.describe())["mask"] == "one class a square of 32 px: 10 x 14 px"
    published = 2 * 140 * 2
    assert plan.costs.written_bytes == 2 * SHAPE[0] * SHAPE[1] + published


def test_the_item_is_valid_and_speaks_of_the_coarse_rasters(made):
    item = json.loads((made[0] / "item.json").read_text(encoding="utf-8"))
    schemas = {name: Resource.from_contents(schema) for name, schema in get_local_schema_cache().items()}
    core = schemas["https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"].contents
    Draft7Validator(core, registry=Registry().with_resources(schemas.items())).validate(item)
    properties, mask = item["properties"], item["assets"]["mask"]
    assert pystac.Item.from_dict(item).properties["proj:shape"] == list(CELLS)
    assert properties["proj:transform"] == [16.0, 0.0, 500000.0, 0.0, -16.0, 4600000.0]
    assert properties["proj:bbox"] == [500000.0, 4600000.0 - 160, 500000.0 + 224, 4600000.0]
    assert properties["widefield:cell"] == CELL
    assert mask["title"] == "Class of each square of 32 x 32 pixels of the scene"
    assert mask["raster:spatial_resolution"] == pytest.approx(16, rel=1e-2)
    assert mask["file:checksum"] == "1220" + hashlib.sha256((made[0] / "mask.tif").read_bytes()).hexdigest()


def test_the_outline_of_the_item_is_that_of_the_scene(made, scene):
    with open_scene(SceneAddress(str(scene))) as opened:
        lon, lat = zip(*opened.georef.footprint(*SHAPE), strict=True)
    box = json.loads((made[0] / "item.json").read_text(encoding="utf-8"))["bbox"]
    assert box == pytest.approx([min(lon), min(lat), max(lon), max(lat)], abs=1e-7)


def test_a_collection_tells_which_scenes_have_one_class_a_square(result, tmp_path):
    write_collection(tmp_path, [result], id="archive", description="Masks.")
    collection = json.loads((tmp_path / "collection.json").read_text(encoding="utf-8"))
    assert collection["description"] == "Masks.\n\n1 of 1 scenes have one class a square of 32 x 32 pixels."
    assert collection["summaries"]["widefield:cell"] == [CELL]


def test_a_result_as_it_was_made_is_well(made):
    assert verify(made[0]).problems == ()


def as_if_published(result, name):
    """Let the item hold the checksum that a file has now."""
    item = json.loads((result / "item.json").read_text(encoding="utf-8"))
    asset = next(asset for asset in item["assets"].values() if asset["href"] == f"./{name}")
    asset["file:checksum"] = "1220" + hashlib.sha256((result / name).read_bytes()).hexdigest()
    (result / "item.json").write_text(json.dumps(item), encoding="utf-8")


def test_a_changed_pixel_is_found_by_its_square(result):
    with rasterio.open(result / "mask.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as mask:
        labels = mask.read(1)
        was, labels[4, 9] = int(labels[4, 9]), (labels[4, 9] + 1) % 3
        mask.write(labels, 1)
    as_if_published(result, "mask.tif")
    (problem,) = verify(result).problems
    assert problem.startswith(f"mask.tif: {(was + 1) % 3} at row 4, column 9, where mask.zarr has {was}")


def test_a_mask_with_the_georeference_of_its_scene_is_found(result):
    with rasterio.open(result / "mask.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as mask:
        mask.transform = UTM
    as_if_published(result, "mask.tif")
    (problem,) = verify(result).problems
    assert problem.startswith("mask.tif has transform (0.5, ")
    assert problem.endswith("(in squares of 32 px)")


def test_a_raster_of_every_pixel_is_not_taken_for_one_of_squares(result, scene):
    with pytest.raises(UnreadableError, match=r"scene\.tif has 301 x 437 pixels, not 10 x 14"):
        first_difference(scene, PublishedPlane(result / "mask.zarr", "labels", CELL), None)


def test_classes_are_published_in_the_codes_of_a_legend(scene, tmp_path):
    classes = tuple(Class(id=i, name=f"c{i}", color=f"#00000{i}", code=111 * (i + 1)) for i in range(3))
    bundle = draw_classifier(tmp_path / "bundle", classes=classes)
    segment_scene(request(scene, bundle.path, tmp_path), SerialExecutor())
    labels, _ = expected(holed(), bundle)
    with rasterio.open(tmp_path / "scene/mask.tif") as mask:
        assert (mask.dtypes, mask.nodata) == (("uint16",), 65535)
        np.testing.assert_array_equal(mask.read(1), np.array([111, 222, 333] + [65535] * 253)[labels])
    assert verify(tmp_path / "scene").problems == ()


TURNED = UTM @ Affine.rotation(30)
PLACES = {
    "rotated": {"transform": TURNED},
    "south-up": {"transform": Affine(0.3, 0, 500000.1, 0, 0.3, 4600000.7)},
    "points": {"transform": Affine(0.3, 0, 500000.1, 0, -0.3, 4600000.7), "AREA_OR_POINT": "Point"},
    "a slide": {"crs": None, "transform": None, "TIFFTAG_XRESOLUTION": "40000", "TIFFTAG_YRESOLUTION": "20000"},
    "nowhere": {"crs": None, "transform": None},
}


def placed_scene(path, crs="EPSG:32633", transform=UTM, **tags):
    """The tags of `PLACES` on a scene of 70 x 100 pixels."""
    write_tiff(path, drawn(70, 100), crs=crs, transform=transform)
    unit = {"TIFFTAG_RESOLUTIONUNIT": "3"} if "TIFFTAG_XRESOLUTION" in tags else {}
    with rasterio.open(path, "r+") as file:
        file.update_tags(**tags, **unit)
    return path


@pytest.mark.parametrize("name", PLACES)
def test_a_mask_lies_where_its_scene_lies_however_that_is(name, classifier, tmp_path):
    scene = placed_scene(tmp_path / "scene.tif", **PLACES[name])
    segment_scene(request(scene, classifier, tmp_path, backend="null"), SerialExecutor())
    assert verify(tmp_path / "scene").problems == ()
    with open_scene(SceneAddress(str(scene))) as one, rasterio.open(tmp_path / "scene/mask.tif") as mask:
        georef, place = one.georef, mask.transform
        assert (mask.tags().get("AREA_OR_POINT") == "Point") == (name == "points")
        assert mask.tags().get("TIFFTAG_XRESOLUTION") == ("1250" if name == "a slide" else None)
    if georef.transform is not None:
        for row, col in ((0, 0), (2, 3)):
            assert place @ (col, row) == pytest.approx(georef.coordinates(row * CELL, col * CELL), abs=1e-8)


WGS84 = CRS.from_epsg(4326).to_wkt(version="WKT2_2019")
POINTS = tuple(
    ControlPoint(r, c, 10 + 1e-3 * c, 50 - 2e-3 * r + 2e-7 * c * c) for r in (0, 40, 80) for c in (0, 50, 99)
)
COARSENED = {
    "affine": Georef(WGS84, (0.01, 0.002, 10, 0.001, -0.01, 50)),
    "control points": Georef(WGS84, None, gcps=POINTS),
    "RPCs": Georef(None, None, rpcs=RPCS),
}


@pytest.mark.parametrize("name", COARSENED)
def test_a_coarser_georeference_keeps_every_place(name):
    georef = COARSENED[name]
    rows, cols = np.array([0.0, 33, 80]), np.array([0.0, 50, 7.5])
    found = georef.coarser(8).on_ground(rows / 8, cols / 8)
    np.testing.assert_allclose(found, georef.on_ground(rows, cols), rtol=0, atol=1e-9)
    assert georef.coarser(1) == georef
    assert georef.coarser(4).coarser(2).on_ground(2, 3) == pytest.approx(georef.coarser(8).on_ground(2, 3), abs=1e-9)


def test_the_corner_of_a_point_file_is_known_to_its_last_digits():
    north_up = Georef(WGS84, (0.32, 0.0, 10.1, 0.0, -0.32, 50.7), pixel_is_point=True)
    near, off = (replace(north_up, transform=(0.32, 0.0, x, 0.0, -0.32, 50.7)) for x in (10.1 + 1e-13, 10.1 + 1e-6))
    assert list(differences(near, north_up)) == []
    assert len(list(differences(off, north_up))) == 1
    as_area = (replace(georef, pixel_is_point=False) for georef in (near, north_up))
    assert len(list(differences(*as_area))) == 1


def test_a_coarser_slide_has_larger_pixels():
    slide = Georef(None, None, pixel_size=(5e-7, 2.5e-7), pixel_is_point=True)
    assert slide.coarser(64) == replace(slide, pixel_size=(3.2e-5, 1.6e-5))


@pytest.mark.parametrize("window", [Window(0, 0, 10, 14), Window(1, 3, 7, 2), Window(9, 13, 1, 1), Window(3, 0, 2, 14)])
def test_a_window_of_squares_is_the_smallest_of_each(window, tmp_path):
    labels = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    create_mask(
        tmp_path / "m",
        height=SHAPE[0],
        width=SHAPE[1],
        core=64,
        block=512,
        planes=("labels",),
        georef=Georef(None, None),
        attributes={},
    )
    write_block(tmp_path / "m", Window(0, 0, *SHAPE), {"labels": labels})
    rim = [(0, edge * CELL - length) for edge, length in zip(CELLS, SHAPE, strict=True)]
    whole = np.pad(labels, rim, constant_values=255).reshape(10, CELL, 14, CELL).min((1, 3))
    plane = PublishedPlane(tmp_path / "m", "labels", CELL)
    assert (plane.shape, plane.chunk) == (CELLS, 2)
    np.testing.assert_array_equal(plane.read(window), whole[window.slices])
