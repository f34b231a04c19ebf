"""What a retraining records when something goes wrong. The steps are faked, the registry and the labels are real."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from drawn_archive import NAMES, draw_scene
from drawn_bundle import draw_bundle
from prefect.exceptions import TerminationSignal
from prefect.logging import disable_run_logger

from flows import challenge
from flows import retrain as module
from flows.challenge import Job, Retraining, going_on
from flows.parameters import Options
from flows.retrain import attempt, check, tidy
from flows.training import TrainOptions
from models.dataset import open_chips
from models.errors import RegistryError
from models.outcomes import Attempt
from models.registry import open_registry
from models.sealed import seal
from pipeline.errors import LabelError, UsageError
from pipeline.labelset import survey

TRAINING = TrainOptions(classes=["ground", "square"])


@pytest.fixture(autouse=True)
def _silent():
    with disable_run_logger():
        yield


@pytest.fixture
def book(tmp_path):
    return open_registry(tmp_path / "registry", create=True)


@pytest.fixture
def job(tmp_path, book):
    images, labels = tmp_path / "images", tmp_path / "labels"
    draw_scene(images, labels, NAMES[0])
    (tmp_path / "work").mkdir()
    found = survey(images, labels)
    return Job(book, images, labels, tmp_path / "work", found, TRAINING, Retraining(), Options(), book.champion())


@pytest.fixture
def steps(monkeypatch):
    """Steps that do nothing; a test replaces one."""

    def put(**steps):
        for name, step in steps.items():
            monkeypatch.setattr(module, name, step)

    put(make_samples=lambda _: None, train_challenger=lambda _: None, judge=lambda *_: None)
    return put


def crowned(book, tmp_path, **facts):
    bundle = draw_bundle(tmp_path / "crowned")
    book.add(bundle)
    return book.promote(bundle.digest, by="me", why="good", expected=None, **facts)


def states(job):
    return [each.state for each in job.book.attempts(job.found.fingerprint)]


def raising(error):
    def step(*_):
        raise error

    return step


def test_a_failed_step_is_recorded_with_its_reason(job, steps):
    steps(make_samples=raising(LabelError("a-labels.tif went away")))
    outcome = attempt(job)
    assert states(job) == ["running", "failed"]
    assert outcome.attempts[-1].reason == "a-labels.tif went away"
    assert not job.book.settled(outcome.fingerprint)


def test_a_stopped_training_is_no_failure_and_keeps_its_folder(job, steps):
    def train(_):
        job.folder.mkdir()
        raise TerminationSignal(15)

    steps(train_challenger=train)
    assert attempt(job).state == "cancelled"
    assert job.book.outcome(job.found.fingerprint).failures == 0
    assert job.folder.exists()


def test_other_settings_train_in_another_folder_and_the_old_one_goes(job, steps):
    job.folder.mkdir()
    other = replace(job, training=TrainOptions(classes=["ground", "square"], steps=7))
    assert other.folder != job.folder
    steps(judge=raising(LabelError("x")))
    attempt(other)
    assert not job.folder.exists()


def test_what_was_decided_stays_decided_whatever_fails_afterwards(job, steps):
    def judge(*_):
        job.book.record(job.found.fingerprint, Attempt("refused", "worse", run=str(challenge.flow_run.id)))
        raise RuntimeError("the server is away")

    steps(judge=judge)
    assert attempt(job).state == "refused"
    assert states(job) == ["running", "refused"]


def test_a_run_that_was_killed_counts_as_failed(job):
    job.book.record(job.found.fingerprint, Attempt("running"))
    tidy(job)
    assert states(job) == ["running", "failed"]
    tidy(job)
    assert states(job) == ["running", "failed"]


def test_a_run_that_was_killed_after_its_promotion_has_promoted(job, tmp_path):
    job.book.record(job.found.fingerprint, Attempt("running"))
    crowned(job.book, tmp_path, labels=job.found.fingerprint)
    tidy(replace(job, champion=job.book.champion()))
    assert job.book.settled(job.found.fingerprint)
    assert states(job) == ["running", "promoted"]


SMALL = TrainOptions(classes=["ground", "square"], chip=64)


def test_labels_that_change_while_chips_are_cut_are_left_to_the_next_run(job, monkeypatch):
    real = challenge.make_chips

    def cut(*arguments, **how):
        real(*arguments, **how)
        draw_scene(job.images, job.labels, NAMES[0], shift=3)

    monkeypatch.setattr(challenge, "make_chips", cut)
    with pytest.raises(LabelError, match="changed while it was read"):
        challenge.make_samples.fn(replace(job, training=SMALL))


def test_ground_stays_split_as_it_was_when_chips_are_cut_anew(job):
    job = replace(job, training=SMALL)
    challenge.make_samples.fn(job)
    kept = job.book.ground()
    assert kept["sealed"] == 0.15
    shutil.rmtree(job.chips)
    challenge.make_samples.fn(job)
    assert job.book.ground() == kept
    shutil.rmtree(job.chips)
    with pytest.raises(RegistryError, match="keeps the split"):
        challenge.make_samples.fn(replace(job, options=Retraining(sealed=0.3)))


def test_sealed_ground_is_never_trained_on(job, tmp_path):
    draw_scene(job.images, job.labels, NAMES[3])
    job = replace(job, training=SMALL, found=survey(job.images, job.labels))
    challenge.make_samples.fn(job)
    file = tmp_path / "sealed.zip"
    seal(open_chips(job.chips), None, file)
    champion = crowned(job.book, tmp_path, sealed=job.book.seal(file))
    split = tmp_path / "split.csv"
    split.write_text(f"scene,split\n{NAMES[3]},train\n")
    moved = replace(job, champion=champion, training=replace(SMALL, split=split))
    with pytest.raises(LabelError, match="sealed ground would be trained on"):
        challenge.make_samples.fn(moved)


def test_a_scene_that_cannot_be_segmented_decides_nothing(job, tmp_path, bundle):
    (job.images / "new.tif").write_bytes(b"half of a scene")
    champion = crowned(job.book, tmp_path)
    found = survey(job.images, job.labels)
    changes, troubles = challenge.look_ahead(replace(job, found=found, champion=champion), SimpleNamespace(path=bundle))
    assert changes == []
    assert len(troubles) == 1
    assert troubles[0].startswith("new.tif was left out of the shadow run: ")


def test_going_on_keeps_the_champions_shape_and_everything_else_that_was_asked(tmp_path):
    asked = TrainOptions(classes=["a", "b"], width=0.5, decoder="fpn", steps=7, rate=0.1)
    found = going_on(asked, tmp_path)
    assert (found.start, found.width, found.decoder) == (tmp_path, 1.0, "unet")
    assert (found.steps, found.rate, found.classes) == (7, 0.1, ["a", "b"])
    assert going_on(asked, None) == asked


@pytest.mark.parametrize(
    "wrong", [{"classes": []}, {"task": "classify"}, {"encoder": "resnet"}, {"steps": -1}, {"loss": "nonsense"}]
)
def test_settings_that_no_labels_could_help_are_no_attempt(wrong):
    from models.errors import TrainingError

    with pytest.raises((UsageError, TrainingError)):
        check(replace(TRAINING, **wrong))
