import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from drawn_scenes import noise, write_tiff
from filelock import FileLock

from pipeline.plan import Plan
from pipeline.workshop import alone

COMMANDS = ("plan", "segment", "train", "evaluate", "verify", "clean", "weights")
TILED = {"tiled": True, "blockxsize": 128, "blockysize": 128}


@pytest.fixture
def segment(widefield, bundle, tmp_path):
    """Run `widefield segment` on a scene into `tmp_path / "o"`, without a network."""
    return lambda scene, *more: widefield(
        "segment", scene, "--bundle", bundle, "--out", tmp_path / "o", "--engine", "null", *more
    )


@pytest.fixture
def scene(tmp_path):
    return write_tiff(tmp_path / "scene.tif", noise(3, 150, 200), **TILED)


def one_line(err):
    assert err.startswith("widefield: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(widefield, command):
    code, out, _ = widefield(command, "--help")
    assert code == 0
    assert f"widefield {command}" in out.split("Example", 1)[1]


def test_a_plan_can_be_printed_and_nothing_is_done(widefield, scene, bundle, tmp_path):
    code, out, err = widefield(
        "plan", scene, "--bundle", bundle, "--engine", "null", "--out", tmp_path / "o", "--block", 128
    )
    assert (code, err) == (0, "")
    assert "150 x 200 px, 3 x uint8" in out
    assert not (tmp_path / "o").exists()


def test_a_plan_in_json_is_a_plan(widefield, scene, bundle):
    code, out, _ = widefield("plan", scene, "--bundle", bundle, "--engine", "null", "--block", 128, "--json")
    assert code == 0
    assert Plan.from_json(json.loads(out)).block == 192  # the nearest whole number of cores


def test_segment_writes_every_output_and_says_what_it_did(segment, scene, tmp_path):
    code, out, err = segment(scene)
    assert (code, err) == (0, "")
    assert "30,000 = 30,000 of 30,000 px" in out
    names = {path.name for path in (tmp_path / "o" / "scene").iterdir()}
    assert {"mask.tif", "mask.tif.aux.xml", "confidence.tif"} <= names
    assert {"item.json", "preview.png", "mask.qml", "run.json"} <= names


def test_a_scene_file_gives_its_result_the_name_that_it_has_in_an_archive(segment, tmp_path):
    for band in "rgb":
        write_tiff(tmp_path / f"{band}.tif", noise(1, 150, 200), **TILED)
    bands = {"red": "r.tif", "green": "g.tif", "blue": "b.tif"}
    (tmp_path / "north.scene.json").write_text(json.dumps({"schema": 1, "bands": bands}))
    assert segment(tmp_path / "north.scene.json")[0] == 0
    assert (tmp_path / "o" / "north" / "mask.tif").exists()


def test_the_same_command_again_changes_nothing(segment, scene):
    first = json.loads(segment(scene, "--json")[1])
    second = json.loads(segment(scene, "--json")[1])
    assert second == {**first, "unchanged": True}


def test_in_a_folder_the_bad_scenes_are_reported_and_the_others_go_on(segment, tmp_path):
    folder = tmp_path / "scenes"
    (folder / "deep").mkdir(parents=True)
    write_tiff(folder / "a.tif", noise(3, 60, 70))
    (folder / "b.tif").write_bytes(b"no image at all")
    write_tiff(folder / "deep" / "c.tif", noise(3, 60, 70))
    code, out, err = segment(folder, "--json")
    assert code == 1
    assert "widefield: b: " in err
    assert "3 scenes: 2 done, 0 unchanged, 1 failed" in err
    assert sorted("error" in json.loads(line) for line in out.splitlines()) == [False, False, True]
    assert (tmp_path / "o" / "deep" / "c" / "mask.tif").exists()


def test_of_an_archive_only_what_is_new_and_fits_is_planned_and_segmented(segment, widefield, bundle, tmp_path):
    folder = tmp_path / "scenes"
    (folder / "north").mkdir(parents=True)
    for name in ("north/a", "north/b", "c"):
        write_tiff(folder / f"{name}.tif", noise(3, 60, 70))
    _, out, err = segment(folder, "--match", "north/a*")
    assert err == "1 scenes: 1 done, 0 unchanged, 0 failed\n"
    assert re.search(r"engine's time +busy \d+ % of the workers' time.*\n.*\n limit: \w+ ", out)
    plan = ["plan", folder, "--bundle", bundle, "--engine", "null", "--out", tmp_path / "o", "--json"]
    code, out, err = widefield(*plan)
    assert (code, err) == (0, "2 to segment, 1 unchanged, 0 failed\n")
    assert [Plan.from_json(json.loads(line)).scene.path for line in out.splitlines()] == [
        str(folder / name) for name in ("c.tif", "north/b.tif")
    ]
    (folder / "bad.tif").write_bytes(b"no image at all")
    code, _, err = widefield(*plan)
    assert (code, err.splitlines()[-1]) == (1, "2 to segment, 1 unchanged, 1 failed")
    (folder / "bad.tif").unlink()
    code, _, err = segment(folder, "--untrusted", "--max-pixels", "4000")
    assert (code, err.splitlines()[-1]) == (1, "3 scenes: 0 done, 0 unchanged, 3 failed")


def test_a_run_over_an_archive_waits_for_another_one_with_the_same_output(segment, tmp_path):
    folder, begun = tmp_path / "scenes", threading.Event()
    folder.mkdir()
    write_tiff(folder / "a.tif", noise(3, 60, 70))

    def other():
        with alone(tmp_path / "o"):
            begun.set()
            time.sleep(0.7)

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait()
    code, _, err = segment(folder)
    thread.join()
    assert (code, err.count("\n")) == (0, 2)
    assert err.startswith("widefield: waiting for another run over an archive that writes into")


@pytest.mark.parametrize("more", [[], ["--match", "nothing*"]])
def test_an_archive_without_a_scene_is_refused(segment, tmp_path, more):
    (tmp_path / "empty").mkdir()
    code, _, err = segment(tmp_path / "empty", *more)
    assert code == 2
    assert "holds no scene: looked for .tif" in one_line(err)


def test_an_output_that_a_living_run_holds_fails_alone(segment, tmp_path):
    folder, workshop = tmp_path / "scenes", tmp_path / "o" / ".widefield" / "runs" / "a"
    folder.mkdir()
    workshop.mkdir(parents=True)
    for name in "ab":
        write_tiff(folder / f"{name}.tif", noise(3, 60, 70))
    with FileLock(workshop / "lock"):
        single, archive = segment(folder / "a.tif"), segment(folder)
    assert (single[0], archive[0]) == (2, 1)
    assert "another run holds" in one_line(single[2])
    assert "2 scenes: 1 done, 0 unchanged, 1 failed" in archive[2]


def missing(path):
    return path / "none.tif"


def not_an_image(path):
    (path / "bad.tif").write_text("hello")
    return path / "bad.tif"


def empty(path):
    (path / "bad.tif").touch()
    return path / "bad.tif"


def truncated(path):
    whole = write_tiff(path / "bad.tif", noise(3, 200, 200), **TILED)
    whole.write_bytes(whole.read_bytes()[:60_000])
    return whole


def five_bands(path):
    return write_tiff(path / "bad.tif", noise(5, 60, 70), photometric="minisblack")


def complex_numbers(path):
    return write_tiff(path / "bad.tif", np.ones((3, 60, 70), np.complex64))


def sixteen_bits(path):
    return write_tiff(path / "bad.tif", noise(3, 60, 70, dtype="uint16"))


@pytest.mark.parametrize(
    ("draw", "code", "says"),
    [
        (missing, 2, "no such file or folder"),
        (not_an_image, 1, "is not an image"),
        (empty, 1, "is empty"),
        (truncated, 1, "truncated"),
        (five_bands, 1, "has 5 bands"),
        (complex_numbers, 1, "complex64"),
        (sixteen_bits, 1, "holds uint16"),
    ],
)
def test_a_bad_scene_is_one_line(segment, tmp_path, draw, code, says):
    got, out, err = segment(draw(tmp_path))
    assert (got, out) == (code, "")
    assert says in one_line(err)


def test_what_was_done_before_an_error_stays(segment, widefield, scene, tmp_path):
    segment(scene)
    for draw in (missing, not_an_image, truncated):
        assert segment(draw(tmp_path))[0] > 0
    assert segment(scene, "--tile", "300")[0] == 2
    assert widefield("verify", tmp_path / "o")[0] == 0


def test_an_output_folder_that_cannot_be_written_is_refused_before_anything_starts(widefield, scene, bundle, tmp_path):
    (tmp_path / "file").touch()  # a file in the way: permissions do not stop root
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/widefield")):
        code, _, err = widefield("segment", scene, "--bundle", bundle, "--out", out)
        assert code == 2
        assert "choose another --out" in one_line(err)


def test_a_bundle_with_a_changed_byte_is_refused_before_anything_starts(widefield, scene, bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    weights = copy / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    code, _, err = widefield("segment", scene, "--bundle", copy, "--out", tmp_path / "o")
    assert code == 2
    assert "weights.safetensors has changed since the bundle was made" in one_line(err)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--window", "1,2,3"], "got 3 numbers, 4 are needed"),
        (["--window", "0,0,0,9"], "is empty"),
        (["--bands", "r,g,b"], "give whole numbers"),
        (["--bands", "0,1,2"], "the least number allowed is 1"),
        (["--tile", "300"], "has tiles 128, 256"),
        (["--engine", "magic"], "is not one of 'auto', 'torch'"),
        (["--workers", "0"], "should be greater than or equal to 1: see widefield segment --help"),
        (["--frobnicate"], "No such option: --frobnicate"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_2(segment, scene, arguments, says):
    code, _, err = segment(scene, *arguments)
    assert code == 2
    assert says in one_line(err)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--class", "a", "--images", "/none", "--labels", "."], "--images /none: no such file"),
        (["--class", "a", "--labels", "/none"], "--labels /none: no such file"),
        (["--class", "a=red", "--class", "b=#00FF00"], "give every class a colour"),
        (["--class", "a=#FF0000:111", "--class", "b=#00FF00"], "give every class a code"),
        (["--class", "a", "--decoder-channels", "1,2"], "got 2 numbers, 5 are needed"),
        (["--class", "a", "--split", "/none.csv"], "cannot be read"),
        (["--class", "a", "--card", "/none.md"], "cannot be read"),
    ],
)
def test_a_wrong_argument_of_training_is_one_line_and_exit_2(widefield, scene, tmp_path, arguments, says):
    code, _, err = widefield("train", "--images", scene, "--labels", tmp_path, "--out", tmp_path / "o", *arguments)
    assert code == 2
    assert says in one_line(err)


def test_verify_tells_damage_by_its_exit_status(segment, widefield, scene, tmp_path):
    segment(scene)
    assert widefield("verify", tmp_path / "o")[:2] == (0, f"ok {tmp_path / 'o' / 'scene'}: 1 blocks\n")
    (tmp_path / "o" / "scene" / "preview.png").unlink()
    code, out, _ = widefield("verify", tmp_path / "o", "--json")
    assert code == 1
    assert json.loads(out)["problems"] == ["preview.png: missing"]


def test_a_fault_of_the_program_is_one_line_too(segment, scene, monkeypatch):
    monkeypatch.setattr("pipeline.segment.open_bundle", lambda _: 1 / 0)
    code, _, err = segment(scene)
    assert code == 1
    assert "ZeroDivisionError" in one_line(err)


def test_an_interrupted_run_says_so_and_goes_on_when_it_is_told_again(bundle, tmp_path):
    scene = write_tiff(tmp_path / "large.tif", noise(3, 800, 800), **TILED)
    command = [sys.executable, "-c", "from flows.cli import main; main()", "segment", scene, "--out", tmp_path / "o"]
    command += ["--bundle", bundle, "--engine", "null", "--tile", "128", "--block", "128", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        while not list(tmp_path.glob("o/.widefield/runs/large/*/ledger/*.jsonl")):
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert "interrupted: what is recorded stays" in one_line(err)
    facts = json.loads(subprocess.run(command, check=True, **pipes).stdout)
    assert facts["blocks"]["resumed"] > 0
    assert facts["coverage"]["written"] == 800 * 800


def test_plan_loads_neither_torch_nor_prefect(scene, bundle):
    code = (
        "import sys\nfrom flows.cli import app\n"
        "app(['plan', *sys.argv[1:]], standalone_mode=False)\n"
        "print(sorted({'torch', 'prefect', 'openvino', 'lightning_fabric', 'distributed'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, scene, "--bundle", bundle, "--engine", "null"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", ["two\nlines.tif", "\x1b[31mred.tif", "[bold]x[link=y].tif"])
def test_a_name_that_a_user_gives_may_hold_anything_and_the_terminal_obeys_none_of_it(segment, tmp_path, name):
    code, out, _ = segment(write_tiff(tmp_path / name, noise(3, 30, 30)))
    assert code == 0
    assert "\x1b" not in out
    assert name.removesuffix(".tif").encode("unicode_escape").decode() in out
