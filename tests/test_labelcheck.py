import json

import numpy as np
import pytest
from affine import Affine
from drawn_scenes import UTM, noise, write_tiff
from PIL import Image
from test_labels import rectangle, write_polygons
from typer.testing import CliRunner

from flows.cli import app
from pipeline.errors import LabelError, SceneError
from pipeline.labelcheck import check_labels

CLASSES = ("ground", "roof", "road")


def draw(folder, name, labels=None, bands=3, **place):
    """A scene of 40 x 60 pixels, and its class raster if one is given."""
    folder.mkdir(exist_ok=True)
    image = write_tiff(folder / f"{name}.tif", noise(bands, 40, 60), photometric="minisblack")
    if labels is not None:
        write_tiff(folder / f"{name}-labels.tif", np.asarray(labels, np.uint8)[None], **place)
    return image


def stripes():
    return np.repeat(np.arange(4) % 3, 15)[None].repeat(40, 0)


def bow_tie():
    shape = rectangle(0, 0, 20, 20)
    ring = shape["coordinates"][0]
    ring[1], ring[2] = ring[2], ring[1]
    return shape


def polygons(folder, name, *shapes, **fields):
    draw(folder, name)
    return write_polygons(folder / f"{name}-labels.geojson", list(shapes), **fields)


def told(report):
    return {(problem.level, problem.scene) for problem in report.problems}, " | ".join(report.lines())


def test_classes_have_pixels_areas_objects_and_scenes(tmp_path):
    draw(tmp_path, "a", stripes())
    polygons(tmp_path, "b", rectangle(0, 0, 10, 20), rectangle(20, 0, 30, 20), **{"class": ["roof", "roof"]})
    report = check_labels(tmp_path, tmp_path, classes=CLASSES)
    ground, roof, road = report.classes
    assert (ground.pixels, roof.pixels, road.pixels) == (1200 + 2000, 600 + 400, 600)
    assert road.area_m2 == pytest.approx(600 * 0.25, rel=2e-3)  # the scale of UTM is 0.9996 here
    assert (ground.objects, roof.objects, road.objects) == (None, 2, 0)
    assert (roof.scenes, road.scenes) == (("a", "b"), ("a",))
    assert (report.problems, report.scenes[0].origin) == ((), "drawn")
    assert json.loads(json.dumps(report.to_json()))["ok"]


def test_a_boundary_is_counted_in_pixels_and_parts_no_object(tmp_path):
    polygons(tmp_path, "a", rectangle(0, 0, 10, 20), rectangle(10, 0, 20, 20))
    report = check_labels(tmp_path, tmp_path, classes=CLASSES, boundary="road")
    _, roof, road = report.classes
    assert (roof.pixels, road.pixels, roof.objects, road.objects) == (320, 80, 2, 0)


def unlabelled(folder):
    draw(folder, "x")
    return "error", "holds no labels of x.tif"


def outside(folder):
    polygons(folder, "x", rectangle(5000, 0, 5010, 10))
    return "error", "lies elsewhere"


def raster_elsewhere(folder):
    draw(folder, "x", stripes(), transform=UTM @ Affine.translation(900, 0))
    return "error", "lies elsewhere"


def without_a_crs(folder):
    draw(folder, "x", stripes(), crs=None)
    return "error", "has no CRS"


def off_the_grid(folder):
    draw(folder, "x", stripes(), transform=UTM @ Affine.translation(0.3, 0))
    return "warning", "lies 0.3 pixels off the grid"


def of_another_crs(folder):
    draw(folder, "x", stripes(), crs="EPSG:25833")
    return "warning", "has another CRS than the grid of the scene"


def empty(folder):
    polygons(folder, "x")
    return "warning", "is empty: it has no polygon"


def no_pixel(folder):
    draw(folder, "x", np.full((40, 60), 255))
    return "warning", "labels no pixel of the scene"


def one_class(folder):
    draw(folder, "x", np.ones((40, 60)))
    return "warning", "is all of one class: roof"


def without_a_class(folder):
    polygons(folder, "x", rectangle(0, 0, 9, 9), rectangle(20, 0, 29, 9), **{"class": ["roof", None]})
    return "error", "1 polygon without a class in the field 'class', the first is feature 2"


def without_a_field(folder):
    polygons(folder, "x", rectangle(0, 0, 9, 9), kind=["roof"])
    return "error", "no field 'class' that tells roof, road apart, its fields are kind: name it with --attribute"


def unknown_class(folder):
    polygons(folder, "x", rectangle(0, 0, 9, 9), **{"class": ["river"]})
    return "error", "has the class 'river': known are 0 ground, 1 roof, 2 road"


def not_in_the_table(folder):
    draw(folder, "x", stripes() + 5)
    return "error", "has the classes 5, 6, 7: allowed are 0 to 2"


def invalid(folder):
    polygons(folder, "x", rectangle(30, 30, 35, 35), bow_tie(), **{"class": ["roof", "roof"]})
    return "warning", "cross or touch themselves, 1 in all: feature 2"


def no_polygons(folder):
    shapes = [{"type": "Point", "coordinates": [15, 41.5]}, rectangle(0, 0, 9, 9), None]
    polygons(folder, "x", *shapes, **{"class": ["roof"] * 3})
    return "warning", "x-labels.geojson: 2 features are no polygons, and left out: feature 1, 3"


def partly_outside(folder):
    shapes = [rectangle(-900, 0, -890, 10), rectangle(0, 0, 9, 9), *[rectangle(900, 0, 910, 10)] * 3]
    polygons(folder, "x", *shapes, **{"class": ["roof"] * 5})
    return "warning", "x-labels.geojson: 4 polygons lie outside the scene: feature 1, 3, 4 and 1 more"


def other_bands(folder):
    draw(folder, "x", stripes(), bands=2)
    return "error", "x.tif has 2 bands"


def not_readable(folder):
    draw(folder, "x")
    (folder / "x-labels.geojson").write_text("{")
    return "error", "cannot be read as polygons"


def bad_origin(folder):
    polygons(folder, "x", rectangle(0, 0, 9, 9), **{"class": ["roof"], "origin": ["guessed"]})
    return "error", "'guessed': allowed are drawn, corrected, model"


def nobodys(folder):
    draw(folder, "x", stripes())
    (folder / "x.tif").unlink()
    return "warning", "x-labels.tif has no image of that name"


BAD = [
    *(unlabelled, outside, raster_elsewhere, without_a_crs, off_the_grid, of_another_crs, empty, no_pixel, one_class),
    *(
        without_a_class,
        without_a_field,
        unknown_class,
        not_in_the_table,
        invalid,
        other_bands,
        not_readable,
        bad_origin,
        nobodys,
    ),
]


@pytest.mark.parametrize("bad", BAD)
def test_each_problem_is_named_with_its_scene_and_does_not_stop_the_others(tmp_path, bad):
    draw(tmp_path, "a", stripes())
    draw(tmp_path, "z", stripes())
    level, says = bad(tmp_path)
    places, lines = told(check_labels(tmp_path, tmp_path, classes=CLASSES))
    assert places == {(level, "x")}
    assert says in lines


def test_of_one_file_for_all_scenes_only_what_lies_outside_of_all_is_told(tmp_path):
    draw(tmp_path, "a")
    write_tiff(
        tmp_path / "b.tif", noise(3, 40, 60), photometric="minisblack", transform=UTM @ Affine.translation(90, 0)
    )
    shapes = [rectangle(0, 0, 9, 9), rectangle(0, 100, 9, 109), rectangle(60, 60, 70, 70), rectangle(-9, 0, -5, 9)]
    path = write_polygons(tmp_path / "all.geojson", [*shapes, None], **{"class": ["roof"] * 5})
    report = check_labels(tmp_path, path, classes=("ground", "roof"))
    assert [problem.line() for problem in report.problems] == [
        f"warning: {path}: 1 feature is no polygon, and left out: feature 5",
        f"warning: {path}: 2 polygons lie outside all scenes: feature 3, 4",
    ]


def test_several_problems_of_one_file_are_all_named(tmp_path):
    shapes = [rectangle(5000 + 20 * i, 0, 5010 + 20 * i, 10) for i in range(3)]
    polygons(tmp_path, "x", *shapes, **{"class": ["river", None, "lake"]})
    errors = [problem.what for problem in check_labels(tmp_path, tmp_path, classes=CLASSES).errors]
    assert [("without" in e, "lake" in e, "river" in e, "elsewhere" in e).index(True) for e in errors] == [0, 1, 2, 3]


def test_a_class_that_never_occurs_and_labels_that_say_nothing_at_all(tmp_path):
    draw(tmp_path, "a", stripes() % 2)
    assert told(check_labels(tmp_path, tmp_path, classes=CLASSES))[1] == "warning: the class road never occurs"
    draw(tmp_path, "a", np.full((40, 60), 255))
    assert "error: no scene has a labelled pixel" in told(check_labels(tmp_path, tmp_path, classes=CLASSES))[1]


def test_scenes_without_labels_may_be_left_out(tmp_path):
    draw(tmp_path, "a", stripes())
    draw(tmp_path, "b")
    assert not check_labels(tmp_path, tmp_path, classes=CLASSES, unlabelled=True).problems


def test_nothing_to_look_at_is_an_error_of_its_own(tmp_path):
    with pytest.raises(SceneError, match="holds no image"):
        check_labels(tmp_path, tmp_path, classes=CLASSES)
    with pytest.raises(LabelError, match="no such file or folder of labels"):
        check_labels(tmp_path, tmp_path / "none", classes=CLASSES)
    for more, says in (
        ({"boundary": "rim"}, "'rim' is no class of objects or of their boundary: known are roof, road"),
        ({"boundary": "road", "objects": ("road",)}, "road cannot be a class of objects and part them"),
        ({"classes": ("a", "b", "c", "rim"), "boundary": "rim"}, "here are b, c: name one with --object"),
        ({"classes": ("a", "land cover")}, "'land cover' is no name of a class"),
        ({"classes": ("a", "a")}, "two classes have one name, a"),
    ):
        with pytest.raises(LabelError, match=says):
            check_labels(tmp_path, tmp_path, **{"classes": CLASSES, **more})


def command(*arguments):
    return CliRunner().invoke(app, ["labels", "check", *map(str, arguments), "--class", "ground", "--class", "cell"])


def test_the_command_shows_classes_and_problems_and_its_status_says_whether_training_would_start(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    (tmp_path / "a-objects").mkdir()
    Image.new("L", (10, 20), 255).save(tmp_path / "a-objects/1.png")
    done = command("--images", tmp_path, "--labels", tmp_path)
    assert done.exit_code == 1
    mask = Image.new("L", (30, 20))
    mask.paste(255, (3, 3, 8, 8))
    mask.save(tmp_path / "a-objects/1.png")
    done = command("--images", tmp_path, "--labels", tmp_path, "--json")
    facts = json.loads(done.stdout)
    assert (done.exit_code, facts["ok"], facts["problems"]) == (0, True, [])
    assert facts["classes"][1] == {
        "id": 1,
        "name": "cell",
        "pixels": 25,
        "area_m2": None,
        "objects": 1,
        "scenes": ["a"],
    }
