"""The flow under a real Prefect server on the loopback interface: what the server's own interface says about it."""

import json
import re
import subprocess
import sys
from base64 import b64decode

import pytest
from drawn_scenes import noise, write_tiff
from local_server import serve
from prefect_site import ROOT

pytestmark = pytest.mark.xdist_group("prefect")

RUNS = """
import json, sys
from flows.segment import segment_scene
for parameters in json.load(sys.stdin):
    segment_scene(**parameters, return_state=True)
"""


@pytest.fixture(scope="module")
def served(bundle, site, tmp_path_factory):
    """Four runs of the flow, one process: two good scenes, a bad one, a wrong parameter; what the server tells."""
    folder = tmp_path_factory.mktemp("served")
    good, bad = write_tiff(folder / "good.tif", noise(3, 900, 1000)), folder / "bad.tif"
    bad.write_bytes(b"no image")
    rest = {"bundle": str(bundle), "out": str(folder / "o")}
    quick, wrong = {"options": {"engine": "null"}}, {"options": {"workers": 0}}
    write_tiff(folder / "far.tif", noise(3, 300, 300))
    runs = [
        {"scene": str(good), **rest, **quick},
        {"scene": str(bad), **rest, **quick},
        {"scene": "wrong.tif", **rest, **wrong},
    ]
    command = [sys.executable, "-c", RUNS]
    with serve(folder) as (url, _):
        runs.append({"scene": f"{url}/far.tif", **rest, **quick})
        subprocess.run(command, input=json.dumps(runs), text=True, env=site.environment, check=True, cwd=ROOT)
    ours = {"flows": {"name": {"any_": ["segment-scene"]}}}
    told = {path: site.ask(f"{path}/filter", ours) for path in ("flow_runs", "task_runs")}
    return told | {"artifacts": site.ask("artifacts/filter"), "folder": folder}


def state(served, scene):
    return next(run["state"] for run in served["flow_runs"] if run["parameters"]["scene"].endswith(scene))


def test_a_good_scene_completes(served):
    assert state(served, "good.tif")["type"] == "COMPLETED"
    assert (served["folder"] / "o" / "good" / "mask.tif").exists()


def test_a_scene_may_be_an_address(served):
    assert state(served, "far.tif")["type"] == "COMPLETED"
    assert (served["folder"] / "o" / "far" / "mask.tif").exists()


def test_prefect_sees_phases_and_no_tiles(served):
    names = [re.sub("-[0-9a-f]{3}$", "", run["name"]) for run in served["task_runs"]]
    assert sorted(names) == ["plan", "plan", "plan", "segment", "segment"]


def test_a_run_is_named_after_its_scene(served):
    assert "segment good.tif" in {run["name"] for run in served["flow_runs"]}


def test_the_artifact_shows_the_result_in_a_small_picture(served):
    artifact = next(a for a in served["artifacts"] if a["description"] == "good.tif")
    assert "| c0 | 100.00% |" in artifact["data"]
    picture = re.search(r"!\[preview\]\(data:image/jpeg;base64,(.*)\)", artifact["data"])
    assert len(picture[0]) <= 200_000
    assert b64decode(picture[1]).startswith(b"\xff\xd8")


def test_a_bad_scene_fails_with_the_reason_and_is_not_tried_again(served):
    assert state(served, "bad.tif")["type"] == "FAILED"
    assert "is not an image of a known format" in state(served, "bad.tif")["message"]


def test_wrong_parameters_fail_before_anything_runs(served):
    assert state(served, "wrong.tif")["type"] == "FAILED"
    assert "workers" in state(served, "wrong.tif")["message"]
