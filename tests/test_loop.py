"""From new labels to a better champion, unattended: our `prefect.yaml` on a real server, with a real worker.

What needs trainings of its own (approvals, failures, cancelling) is left to `make test-slow`.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from drawn_archive import NAMES, draw_scene
from prefect_site import ROOT, Site

from flows.retrain import NAMES as STATES
from models.registry import open_registry
from pipeline.workshop import busy

pytestmark = [pytest.mark.xdist_group("loop"), pytest.mark.timeout(480)]

SMALL = {
    "width": 0.1,
    "decoder_channels": "8,8,8,8,8",
    "chip": 64,
    "crop": 64,
    "batch": 4,
    "rate": 0.005,
    "warmup": 5,
    "threads": 1,
}
CLASSES = ("ground=#3B4252", "square=#E4572E")
EDITS = {
    'training: {classes: ["background=#3B4252", "building=#E4572E"], steps: 2400, precision: bf16-mixed}': (
        f"training: {json.dumps({'classes': list(CLASSES), 'steps': 60, **SMALL})}"
    ),
    "promotion: approve}        # auto": "promotion: auto, shadow: 1}  # auto",
    "schedule_after: 300": "schedule_after: 1",
    "*learn, settle: 60": "*learn, settle: 0",
    "timezone: UTC, slug": "timezone: UTC, active: false, slug",
}
"""What a team would change, a network that learns within seconds, and no schedules that disturb other tests."""


@dataclass
class Team:
    site: Site
    folder: Path
    schedule: str = ""
    """Of the looks, as the server's interface names it."""

    @property
    def book(self):
        return open_registry(self.folder / "registry")

    def draw(self, *names, **how):
        for name in names:
            draw_scene(self.folder / "archive", self.folder / "labels", name, **how)

    def command(self, *arguments):
        code = "import sys; from flows.cli import main; sys.argv[0] = 'widefield'; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env=self.site.environment,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def rest(self):
        """No more looks."""
        self.site.ask(self.schedule, {"active": False}, "PATCH")

    def retrain(self, **options):
        return self.site.start("retrain/on-new-labels", options={"shadow": 0, **options})

    def state(self, run, *types):
        """The run, once its state is one of these."""

        def found():
            now = self.site.ask(f"flow_runs/{run}", method="GET")
            return now["state_type"] in types and now

        return self.site.until(found)

    def next(self, count):
        """The last of `count` retrainings that did something, once it has ended."""

        def ended():
            runs = sorted(self.site.runs("retrain"), key=lambda run: run["created"])
            done = [run for run in runs if run["state_name"] in {*STATES.values(), "Failed", "Crashed"}]
            return len(done) >= count and done[count - 1]

        return self.site.until(ended, seconds=200)


@pytest.fixture(scope="module")
def team(site, tmp_path_factory):
    """A folder with labelled scenes, and a champion that hardly saw any of them."""
    folder = tmp_path_factory.mktemp("learn")
    text = (ROOT / "prefect.yaml").read_text()
    for old, new in EDITS.items():
        assert old in text, old
        text = text.replace(old, new)
    (folder / "prefect.yaml").write_text(text)
    team = Team(site, folder)
    team.draw(*NAMES[1:])
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    classes = [f"--class={text}" for text in CLASSES]
    team.command("train", "--images=archive", "--labels=labels", "--out=first", "--steps=1", *classes, *options)
    team.command("registry", "add", "registry", "first")
    digest = json.loads((folder / "first" / "bundle.json").read_text())["digest"]
    team.command("registry", "promote", "registry", digest, "--why=the first")
    site.prefect("work-pool", "create", "widefield", "--type", "process", "--overwrite")
    site.prefect("deploy", "--all", cwd=folder)
    return team


@pytest.fixture(scope="module")
def watching(team):
    """A worker, and a schedule that looks every few seconds. From here on nobody calls anything."""
    site, start = team.site, datetime.now(UTC) + timedelta(seconds=2)
    place = f"deployments/{site.ask('deployments/name/watch-labels/every-10-minutes', method='GET')['id']}/schedules"
    rule = f"DTSTART:{start:%Y%m%dT%H%M%SZ}\nRRULE:FREQ=SECONDLY;INTERVAL=8"
    with site.worker():
        (made,) = site.ask(place, [{"schedule": {"rrule": rule, "timezone": "UTC"}, "active": True}])
        team.schedule = f"{place}/{made['id']}"
        yield team
        team.rest()


@pytest.fixture(scope="module")
def better(watching):
    """A label file is dropped."""
    before = watching.book.champion()
    watching.draw(NAMES[0])
    return before, watching.next(1)


def test_new_labels_make_a_better_champion_without_a_call(watching, better):
    before, run = better
    champion = watching.book.champion()
    assert run["state_name"] == "Promoted", run["state"]["message"]
    assert run["created_by"]["type"] == "AUTOMATION"
    assert champion.replaced == before.digest
    assert champion.by == "retrain"


def test_its_report_holds_the_numbers(watching, better):
    gate = watching.book.told(watching.book.champion().digest, "gate.json")
    assert gate["accepted"]
    (page,) = (each["data"] for each in watching.site.artifacts(better[1]).values() if each["type"] == "markdown")
    assert "accepted" in page
    assert page.count("data:image/") >= 2


@pytest.fixture(scope="module")
def worse(watching, better):
    """Labels that are off by 40 pixels take the place of the good ones."""
    good = watching.book.champion()
    watching.draw(*NAMES, shift=40)
    return good, watching.next(2)


def test_labels_that_make_it_worse_are_refused_with_the_reason(watching, worse):
    good, run = worse
    assert run["state_name"] == "Refused"
    assert "old ground" in run["state"]["message"]
    assert watching.book.champion() == good


def test_a_state_of_the_labels_is_answered_once(watching, worse):
    outcomes = watching.book.outcomes()
    assert sorted(each.state for each in outcomes) == ["promoted", "refused"]
    assert [len([a for a in each.attempts if a.state == "running"]) for each in outcomes] == [1, 1]


def test_rollback_brings_the_first_champion_back(watching, better, worse):
    watching.rest()
    watching.command("registry", "rollback", "registry", "--why=a test")
    assert watching.book.champion().digest == better[0].digest
    assert watching.book.history()[-1].kind == "rollback"


@pytest.fixture(scope="module")
def asked(watching, better, worse):
    """From here on people call. A challenger that has won waits for an approval, and no process waits with it."""
    watching.rest()
    if watching.book.champion() != better[0]:
        watching.command("registry", "rollback", "registry", "--why=to have something to beat")
    watching.draw(*NAMES, shift=1)
    run = watching.retrain(promotion="approve")
    return watching.state(run, "PAUSED", "FAILED", "COMPLETED")


@pytest.mark.slow
def test_a_challenger_waits_without_holding_a_worker(watching, asked):
    assert asked["state_type"] == "PAUSED"
    (waiting,) = watching.book.waiting()
    assert waiting.attempt.run == asked["id"]
    assert not busy(watching.folder / "training")


@pytest.mark.slow
def test_an_approval_by_hand_promotes_and_wakes_the_run_at_the_next_look(watching, asked):
    (waiting,) = watching.book.waiting()
    watching.command("registry", "approve", "registry", waiting.bundle, "--by=anna")
    assert (watching.book.champion().digest, watching.book.champion().by) == (waiting.bundle, "anna")
    watching.site.run("watch-labels/every-10-minutes")
    assert watching.state(asked["id"], "COMPLETED")["state_name"] == "Promoted"


@pytest.mark.slow
def test_a_verdict_in_prefect_decides_too(watching, asked):
    watching.command("registry", "rollback", "registry", "--why=to have something to beat")
    watching.draw(*NAMES[:2])
    champion = watching.book.champion()
    run = watching.retrain(promotion="approve")
    assert watching.state(run, "PAUSED", "COMPLETED", "FAILED")["state_type"] == "PAUSED"
    watching.site.ask(f"flow_runs/{run}/resume", {"run_input": {"verdict": "decline", "why": "not today"}})
    found = watching.state(run, "COMPLETED", "FAILED")
    assert found["state_name"] == "Refused"
    assert "not today" in found["state"]["message"]
    assert watching.book.champion() == champion


@pytest.mark.slow
def test_labels_that_fail_leave_the_champion_and_say_why(watching, asked):
    champion = watching.book.champion()
    file = watching.folder / "labels" / f"{NAMES[0]}-labels.tif"
    kept = file.read_bytes()
    draw_scene(watching.folder / "archive", watching.folder / "labels", NAMES[0], value=7)
    run = watching.site.end(watching.retrain())
    file.write_bytes(kept)
    assert run["state_type"] == "FAILED"
    assert "has the class 7" in run["state"]["message"]
    assert watching.book.champion() == champion


@pytest.mark.slow
def test_a_cancelled_training_leaves_a_checkpoint_and_can_be_tried_again(watching, asked):
    watching.draw(NAMES[1], shift=2)
    run = watching.site.start(
        "retrain/on-new-labels", training={"classes": list(CLASSES), "steps": 100_000, **SMALL}, options={"shadow": 0}
    )
    watching.site.until(lambda: list((watching.folder / "training").glob("*/training.ckpt")))
    watching.site.prefect("flow-run", "cancel", run)
    assert watching.site.end(run)["state_type"] == "CANCELLED"
    (outcome,) = (each for each in watching.book.outcomes() if each.run_waited(run) or each.state == "cancelled")
    assert not watching.book.settled(outcome.fingerprint)
    assert not busy(watching.folder / "training")
