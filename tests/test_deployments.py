"""What a team runs every night: our `prefect.yaml` on a real server, with a real worker."""

import configparser
import json
import shlex
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from drawn_scenes import noise, write_tiff
from prefect_site import ROOT, Site

from flows.deployments import read_project
from pipeline.ledger import Ledger
from pipeline.verify import verify

pytestmark = pytest.mark.xdist_group("prefect")

GOOD, BROKEN = ("north/one", "two"), "broken <b>_x_"
EDITS = {
    "bundle: examples/bundles/buildings ": "bundle: {bundle} ",
    "options: {workers: 1}": "options: {engine: 'null'}",
    "timezone: UTC, slug": "timezone: UTC, active: false, slug",
}
"""What a team would change, and schedules that do not disturb tests."""


@dataclass
class Team:
    site: Site
    folder: Path
    worker: int

    def mask(self, name):
        return self.folder / "masks" / name / "mask.tif"

    def table(self, run):
        (table,) = (each for each in self.site.artifacts(run).values() if each["type"] == "table")
        return {row["scene"]: row["result"] for row in json.loads(table["data"])}


@pytest.fixture(scope="module")
def team(site, bundle, tmp_path_factory):
    """A folder with an archive and an edited `prefect.yaml`, deployed, and a worker that waits."""
    folder = tmp_path_factory.mktemp("team")
    text = (ROOT / "prefect.yaml").read_text()
    for old, new in EDITS.items():
        assert old in text
        text = text.replace(old, new.replace("{bundle}", str(bundle)))
    (folder / "prefect.yaml").write_text(text)
    (folder / "archive" / "north").mkdir(parents=True)
    for seed, name in enumerate(GOOD):
        write_tiff(folder / "archive" / f"{name}.tif", noise(3, 200, 300, seed=seed))
    (folder / "archive" / f"{BROKEN}.tif").write_bytes(b"no image")
    site.prefect("work-pool", "create", "widefield", "--type", "process")
    site.prefect("deploy", "--all", cwd=folder)
    with site.worker() as worker:
        yield Team(site, folder, worker.pid)


@pytest.fixture(scope="module")
def night(team):
    """The first night."""
    team.site.prefect("deployment", "run", "segment-archive/nightly")
    return team.site.end(team.site.runs("segment-archive")[0]["id"])


def test_good_scenes_are_segmented_and_the_broken_one_is_reported(team, night):
    assert all(team.mask(name).exists() for name in GOOD)
    assert team.table(night) == {r"broken &lt;b&gt;\_x\_": "failed", "north/one": "done", "two": "done"}


def test_the_run_fails_and_says_why(night):
    assert night["state"]["type"] == "FAILED"
    assert night["state"]["message"].startswith(f"1 of 3 scenes failed: {BROKEN}: ")
    assert f"{BROKEN}: is no" in night["state"]["message"]


def test_prefect_sees_one_task_for_all_scenes(team, night):
    tasks = team.site.ask("task_runs/filter", {"flow_runs": {"id": {"any_": [night["id"]]}}})
    assert [task["name"].partition("-")[0] for task in tasks] == ["segment"]


def test_the_page_shows_counts_reasons_and_pictures(team, night):
    (page,) = (each["data"] for each in team.site.artifacts(night).values() if each["type"] == "markdown")
    assert "**3 scenes: 1 failed, 2 done, 0 unchanged**" in page
    assert r"- **broken &lt;b&gt;\_x\_**: " in page
    assert page.count("![preview](data:image/jpeg;base64,") == len(GOOD)


def test_progress_ends_at_the_end(team, night):
    (progress,) = (each["data"] for each in team.site.artifacts(night).values() if each["type"] == "progress")
    assert progress == 100


@pytest.fixture(scope="module")
def missed(team, night):
    """Two ticks that the schedule planned while no worker could take them, and what became of them afterwards."""
    made = [team.mask(name).stat().st_mtime_ns for name in GOOD]
    site, start = team.site, datetime.now(UTC) + timedelta(seconds=4)
    place = f"deployments/{site.ask('deployments/name/segment-archive/nightly', method='GET')['id']}"
    rule = f"DTSTART:{start:%Y%m%dT%H%M%SZ}\nRRULE:FREQ=SECONDLY;COUNT=2"
    site.ask("work_pools/widefield", {"is_paused": True}, "PATCH")
    site.ask(f"{place}/schedules", [{"schedule": {"rrule": rule, "timezone": "UTC"}, "active": True}])
    ticks = site.until(
        lambda: len(found := [run for run in site.runs("segment-archive") if run["auto_scheduled"]]) == 2 and found
    )
    site.until(lambda: datetime.now(UTC) > start + timedelta(seconds=2))
    site.ask("work_pools/widefield", {"is_paused": False}, "PATCH")
    ended = sorted((site.end(tick["id"]) for tick in ticks), key=lambda run: run["start_time"])
    return ended, made


def test_a_rerun_does_nothing_for_what_is_done(team, missed):
    (first, _), made = missed
    assert [team.mask(name).stat().st_mtime_ns for name in GOOD] == made
    assert team.table(first) == {r"broken &lt;b&gt;\_x\_": "failed", "north/one": "unchanged", "two": "unchanged"}


def test_missed_ticks_make_one_effective_run(missed):
    (first, second), _ = missed
    assert first["state"]["name"] == "Failed"
    assert second["state"]["name"] == "Skipped"
    assert second["state"]["type"] == "COMPLETED"
    assert "has finished since" in second["state"]["message"]


@pytest.fixture(scope="module")
def arrival(team, missed):
    """A new scene, the look that saw it, a second look, and the run that the event started."""
    write_tiff(team.folder / "archive" / "new.tif", noise(3, 200, 300, seed=9))
    site = team.site
    look = site.run("watch-archive/every-10-minutes", settle=0)
    again = site.run("watch-archive/every-10-minutes", settle=0)
    by_event = {"deployments": {"name": {"any_": ["on-new-scenes"]}}}
    (started,) = site.until(lambda: site.ask("flow_runs/filter", by_event))
    run = site.end(started["id"])
    return look, again, run, site.ask("flow_runs/filter", by_event)


def test_a_new_scene_is_segmented_through_the_event(team, arrival):
    _, _, run, _ = arrival
    assert team.mask("new").exists()
    assert team.table(run)["new"] == "done"
    assert run["created_by"]["type"] == "AUTOMATION"


def test_the_same_news_start_one_run(arrival):
    look, _, _, runs = arrival
    assert look["state"]["message"] == "2 scenes wait"
    assert len(runs) == 1


@pytest.fixture(scope="module")
def cancelled(team, arrival, tmp_path_factory):
    """A run over one larger scene, cancelled after its first blocks; what was on record then."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "in").mkdir()
    write_tiff(folder / "in" / "large.tif", noise(3, 1800, 1800))
    asked = {
        "archive": str(folder / "in"),
        "out": str(folder / "out"),
        "options": {"engine": "torch", "threads": 1, "block": 192},
    }
    site = team.site
    started = site.start("segment-archive/nightly", **asked)
    ledgers = [Ledger(path) for path in site.until(lambda: list((folder / "out").rglob("ledger")))]
    site.until(ledgers[0].records)
    site.ask(f"flow_runs/{started}/set_state", {"state": {"type": "CANCELLING"}})  # `prefect flow-run cancel`
    run = site.end(started)
    return asked, run, ledgers[0].records()


def test_a_cancelled_run_ends_as_cancelled_in_ten_seconds(team, cancelled):
    _, run, _ = cancelled
    states = team.site.ask(f"flow_run_states/?flow_run_id={run['id']}", method="GET")
    when = {state["type"]: datetime.fromisoformat(state["timestamp"]) for state in states}
    assert run["state"]["type"] == "CANCELLED"
    assert "what is recorded stays" in run["state"]["message"]
    assert when["CANCELLED"] - when["CANCELLING"] < timedelta(seconds=10)


@pytest.fixture(scope="module")
def drained(team, cancelled):
    """The same run once more, stopped by what the unit of the worker does first when it is stopped."""
    asked, _, records = cancelled
    unit = configparser.ConfigParser(strict=False)
    unit.read(ROOT / "infra" / "prefect-worker.service")
    script = shlex.split(unit["Service"]["ExecStop"])
    started, site = team.site.start("segment-archive/nightly", **asked), team.site
    (ledger,) = [Ledger(path) for path in (Path(asked["out"])).rglob("ledger")]
    site.until(lambda: len(ledger.records()) > len(records))
    subprocess.run(script, env={**site.environment, "MAINPID": str(team.worker)}, check=True, timeout=30)
    return site.end(started), ledger.records()


def test_a_worker_that_is_stopped_ends_its_runs_in_order(drained):
    run, _ = drained
    assert run["state"]["type"] == "CANCELLED"
    assert "what is recorded stays" in run["state"]["message"]


def test_a_rerun_keeps_what_was_on_record(team, cancelled, drained):
    asked, _, _ = cancelled
    run = team.site.run("segment-archive/nightly", **asked)
    facts = json.loads((Path(asked["out"]) / "large" / "run.json").read_text())
    assert run["state"]["type"] == "COMPLETED"
    assert facts["blocks"]["resumed"] == len(drained[1]) < facts["blocks"]["total"]
    assert verify(Path(asked["out"]) / "large").problems == ()


def test_the_server_holds_the_automations_that_the_file_says(team):
    held = {each["name"].partition("__")[0]: each for each in team.site.ask("automations/filter")}
    project = read_project(ROOT / "prefect.yaml")
    written = {each.name: trigger for each in project.deployments for trigger in each.triggers}
    assert held.keys() == written.keys() == {"on-new-scenes", "on-new-labels"}
    for name, trigger in written.items():
        assert held[name]["enabled"]
        assert held[name]["trigger"]["expect"] == trigger.expect
        assert held[name]["trigger"]["match"] == trigger.match
        assert (held[name]["actions"][0]["parameters"] or {}) == trigger.parameters


def test_no_action_of_the_automation_failed(team, arrival):
    failed = {"filter": {"event": {"name": ["prefect.automation.action.failed"]}}}
    assert team.site.ask("events/filter", failed)["events"] == []
