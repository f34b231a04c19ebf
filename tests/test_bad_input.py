"""Bad scenes, bad names and bad output folders through the real command: one line each, and nothing done is lost."""

import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from drawn_bundle import draw_bundle
from drawn_scenes import noise, write_tiff

from flows.cli import main
from pipeline.verify import verify

pytestmark = pytest.mark.xdist_group("bad-input")  # the folder is segmented once
TILED = {"tiled": True, "blockxsize": 128, "blockysize": 128}


def run(*arguments, **how):
    """(exit status, standard output, standard error) of `widefield ARGUMENTS` in a process of its own."""
    command = [sys.executable, "-c", "from flows.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **how)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def not_an_image(path):
    path.write_text("hello")


def zero_size(path):
    path.touch()


def cut(share):
    def draw(path):
        whole = write_tiff(path, noise(3, 300, 300), **TILED)
        whole.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])

    return draw


def header(width, height, rows_per_strip):
    """A TIFF of one strip's worth of bytes whose header claims `width` x `height` pixels."""

    def draw(path):
        offsets = 8 + 2 + 12 * 10 + 4
        strips = -(-height // rows_per_strip)
        tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
        tags += [(273, 4, strips, offsets), (277, 3, 1, 1), (278, 4, 1, rows_per_strip), (279, 4, strips, offsets)]
        tags += [(339, 3, 1, 1)]
        fields = b"".join(struct.pack("<HHII", *tag) for tag in tags)
        path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + fields + bytes(4) + b"\1" * 4096)

    return draw


def complex_numbers(path):
    write_tiff(path, np.ones((3, 60, 70), np.complex64))


def five_bands(path):
    write_tiff(path, noise(5, 60, 70), photometric="minisblack")


def sixteen_bits(path):
    write_tiff(path, noise(3, 60, 70, dtype="uint16"))


def coarse(path):
    write_tiff(path, noise(3, 60, 70), transform=(30, 0, 500000, 0, -30, 4600000))


def a_folder(path):
    path.mkdir()


BAD = {
    "not-an-image": (not_an_image, "is no raster of a known format"),
    "zero-size": (zero_size, "is empty"),
    "cut-in-the-middle": (cut(0.6), "truncated"),
    "cut-in-the-header": (cut(0.0002), "cannot be opened"),
    "ten-gigapixels": (header(100_000, 100_000, 1000), ""),
    "most-pixels": (header(2**31 - 1, 2**31 - 1, 2**31 - 1), ""),
    "complex-numbers": (complex_numbers, "complex64"),
    "five-bands": (five_bands, "has 5 bands"),
    "sixteen-bits": (sixteen_bits, "holds uint16"),
    "coarse": (coarse, "has pixels of 30 m"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_folder):
    """A bundle for 0.3 to 0.7 m, and a folder of two good scenes with all the bad ones between them."""
    folder = tmp_path_factory.mktemp("bad")
    draw_bundle(folder / "bundle", halo=32, tiles=(128, 256), resolution=(0.3, 0.7))
    (folder / "scenes").mkdir()
    for name, (draw, _) in BAD.items():
        draw(folder / "scenes" / f"{name}.tif")
    for name in ("a-good", "z-good"):
        write_tiff(folder / "scenes" / f"{name}.tif", noise(3, 150, 200), **TILED)
    return folder


def segment(place, scene, out, *more, **how):
    return run("segment", scene, "--bundle", place / "bundle", "--out", out, "--engine", "null", *more, **how)


@pytest.fixture(scope="module")
def night(place):
    """What the command says of that folder."""
    code, out, err = segment(place, place / "scenes", place / "masks", "--json")
    return code, {(line := json.loads(text))["scene"]["path"].split("/")[-1]: line for text in out.splitlines()}, err


@pytest.mark.parametrize("name", BAD)
def test_each_bad_scene_is_one_line_that_says_why(night, name):
    _, _, err = night
    (line,) = [line for line in err.splitlines() if line.startswith(f"widefield: {name}: ")]
    assert BAD[name][1] in line


def test_the_good_scenes_among_them_are_segmented_and_the_exit_status_tells(night, place):
    code, _, err = night
    assert code == 1
    assert len(err.splitlines()) == len(BAD) + 1
    for name in ("a-good", "z-good"):
        assert verify(place / "masks" / name).problems == ()


@pytest.fixture
def good(place):
    return place / "scenes" / "a-good.tif"


def kept(place, out):
    """What was done before is still there, whole."""
    assert verify(out / "a-good").problems == ()


def refused(done, code, says):
    got, out, err = done
    assert (got, out) == (code, "")
    assert err.startswith("widefield: ")
    assert err.count("\n") == 1
    assert says in err


def test_a_full_output_folder_fails_the_scene_and_keeps_what_was_done(place, good, tmp_path):
    assert segment(place, good, tmp_path / "o")[0] == 0
    other = write_tiff(tmp_path / "other.tif", noise(3, 300, 400), **TILED)
    # As where a quota or the disk ends: no file may grow beyond 64 KiB.
    full = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))}
    refused(segment(place, other, tmp_path / "o", "--stage", "always", **full), 1, "cannot be written: File too large")
    kept(place, tmp_path / "o")
    assert segment(place, other, tmp_path / "o", "--stage", "always")[0] == 0


def test_a_scene_that_the_disk_has_no_room_for_is_refused_before_it_starts(place, tmp_path):
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    large = write_tiff(place / "large.tif", noise(3, 1500, 1500))
    call = [sys.executable, "-c", "from flows.cli import main; main()", "segment", large, "--engine", "null"]
    call += ["--bundle", place / "bundle", "--out", tmp_path / "o"]
    shell = f'{mount} && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell, "sh", *call], capture_output=True, text=True, check=False
    )
    refused((done.returncode, done.stdout, done.stderr), 1, "free")


def test_an_output_folder_that_cannot_be_written_stops_everything(widefield, place, good, tmp_path):
    (tmp_path / "file").touch()
    folders = [tmp_path / "file", Path("/proc/widefield")]
    if os.geteuid():
        folders.append(tmp_path / "locked")
        folders[-1].mkdir(mode=0o500)
    for out in folders:
        refused(widefield("segment", good, "--bundle", place / "bundle", "--out", out), 2, "choose another --out")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none.tif", "no such file"),
        ("x" * 300 + ".tif", "no such file"),
        ("../../../../../../../../none/none.tif", "no such file"),
        ("two\nlines.tif", "no such file"),
        ("木ü.tif", "no such file"),
        ("-x.tif", "No such option"),
    ],
)
def test_a_name_of_nothing_is_one_line(widefield, place, tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    refused(widefield("segment", name, "--bundle", place / "bundle", "--out", tmp_path / "o"), 2, says)
    assert not (tmp_path / "o").exists()


def test_hostile_names_are_segmented_or_refused_and_stay_below_the_output(place, tmp_path):
    folder, names = tmp_path / "scenes", ("-dash", "a..b", "木 ü", "$(touch x)`touch x`", "[red]", "..hidden", "'\"")
    folder.mkdir()
    for name in (*names, "two\nlines", "\x1b[2J"):
        write_tiff(folder / f"{name}.tif".replace("[", "("), noise(3, 30, 30))
    code, _, err = segment(place, folder, tmp_path / "o", cwd=tmp_path)
    assert code == 1
    assert "\x1b" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"scenes", "o"}


def scene_with(folder, labels=None, bands=3, name="a"):
    """A scene of 64 x 64 pixels, and its class raster if one is given."""
    folder.mkdir(exist_ok=True)
    write_tiff(folder / f"{name}.tif", noise(bands, 64, 64), photometric="minisblack")
    if labels is not None:
        write_tiff(folder / f"{name}-labels.tif", labels[None].astype(np.uint8))


def polygon_with(folder, place, **properties):
    scene_with(folder)
    ring = [[place + x, 4599990 + y] for x, y in ((0, 0), (5, 0), (5, 5), (0, 0))]
    feature = {"type": "Feature", "properties": properties, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    collection = {"type": "FeatureCollection", "crs": crs, "features": [feature]}
    (folder / "a-labels.geojson").write_text(json.dumps(collection))


def no_scenes(folder):
    folder.mkdir()


def labels_elsewhere(folder):
    polygon_with(folder, 700000)


def unknown_class(folder):
    polygon_with(folder, 500005, **{"class": "river"})


def no_class(folder):
    polygon_with(folder, 500005, **{"class": None})


def not_in_the_table(folder):
    scene_with(folder, np.full((64, 64), 7))


def mixed_bands(folder):
    for name, bands in (("a", 3), ("b", 2)):
        scene_with(folder, np.eye(64), bands, name)


def no_labels(folder):
    scene_with(folder)


BAD_LABELS = {
    no_scenes: "holds no image",
    labels_elsewhere: "a-labels.geojson lies elsewhere than",
    unknown_class: "has the class 'river': known are 0 ground, 1 roof",
    no_class: "has 1 polygon without a class in the field 'class', the first is feature 1",
    not_in_the_table: "has the class 7: allowed are 0 to 1, and 255 for no label",
    mixed_bands: "b.tif has 2 bands, ",
    no_labels: "holds no labels of a.tif: name them a-labels.geojson",
}


@pytest.mark.parametrize("draw", BAD_LABELS, ids=lambda draw: draw.__name__)
def test_labels_that_cannot_be_trained_on_are_one_line_before_the_first_step(tmp_path, draw, monkeypatch, capsys):
    draw(tmp_path / "in")
    place = ("--images", tmp_path / "in", "--labels", tmp_path / "in", "--class", "ground", "--class", "roof")

    def here(*arguments):
        """As `run`, in this process."""
        monkeypatch.setattr(sys, "argv", ["widefield", *map(str, arguments)])
        with pytest.raises(SystemExit) as status:
            main()
        return status.value.code, *capsys.readouterr()

    code, out, err = here("train", *place, "--out", tmp_path / "out", "--steps", 1)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert BAD_LABELS[draw] in err
    assert not (tmp_path / "out" / "chips.zarr").exists()
    code, out, err = here("labels", "check", *place)
    assert code == 1
    assert BAD_LABELS[draw] in out + err
