"""`retrain`: labels in, a better champion out. Nothing is taken on trust: the challenger has to win on sealed ground.

What decides is the registry's record for the fingerprint of the labels, never the event that started the run: a run
finds its labels answered and ends as covered, or trains, and records what became of it. One training at a time.
"""

import re
import shutil
from pathlib import Path
from typing import Any, Literal

from prefect import flow, get_run_logger
from prefect.exceptions import TerminationSignal
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Completed, Failed

from flows.artifacts import plain
from flows.challenge import WHO, Job, Retraining, judge, make_samples, note, train_challenger
from flows.parameters import Options
from flows.training import TrainOptions
from models.outcomes import Outcome
from models.registry import Registry, open_registry
from pipeline.errors import LabelError, UsageError, WidefieldError
from pipeline.housekeeping import make_folder
from pipeline.labelset import LabelSet, survey
from pipeline.workshop import alone

PATIENCE = 30 * 24 * 3600
"""Seconds for which a challenger waits to be approved."""
TRAINING = re.compile("[0-9a-f]{16}")
"""Names of the folders of trainings."""
STOPPED = "stopped by a signal: the checkpoint stays, and the next run goes on from there"
NAMES = {"promoted": "Promoted", "refused": "Refused", "waiting": "Waiting"}
"""Of the final state, by what became of the challenger."""


class Verdict(RunInput):
    """What somebody decides about a challenger that waits."""

    verdict: Literal["promote", "decline"]
    why: str = ""
    by: str = ""


@flow(name="retrain", flow_run_name=lambda: f"retrain from {plain(flow_run.parameters['labels'])}")
def retrain(
    images: str,
    labels: str,
    registry: str,
    work: str,
    *,
    training: TrainOptions = TrainOptions(),  # noqa: B008 - frozen
    options: Retraining = Retraining(),  # noqa: B008 - frozen
    segmenting: Options = Options(),  # noqa: B008 - frozen
) -> Any:
    """Train a challenger on all labels, compare it with the champion on sealed ground, promote it if it is better.

    Ends as Promoted, Refused, Waiting (for an approval), or Covered where the registry holds an outcome for these
    labels already; as Failed where labels or training did, with the reason. Whatever happens, the champion stays until
    a better one takes its place in one step. Paths are those of the machine that runs the flow.

    Args:
        images: Folder of scenes.
        labels: Folder of their labels, drawn by people; scenes without any serve the shadow run.
        registry: Folder of the registry, or its address.
        work: Folder for chips and checkpoints.
        training: As for `widefield train`; a network that goes on from the champion keeps the champion's shape.
        options: How challengers are judged.
        segmenting: How the shadow run segments.
    """
    check(training)
    book = open_registry(registry, create=True)
    if (woken := book.of_run(str(flow_run.id))) is not None:
        return decide(book, woken)
    make_folder(Path(work))
    with alone(Path(work), lambda: get_run_logger().info("waiting for another training in %s", work)):
        found = survey(Path(images), Path(labels))
        if not found.pairs:
            raise LabelError(f"{labels} holds no labels of the scenes in {images}: nothing to learn from")
        job = Job(book, Path(images), Path(labels), Path(work), found, training, options, segmenting, book.champion())
        tidy(job)
        if book.settled(found.fingerprint):
            return Completed(name="Covered", message=covered(book, found))
        outcome = attempt(job)
    return decide(book, outcome) if outcome.state == "waiting" else ending(outcome)


def check(training: TrainOptions) -> None:
    """Refuse settings that no labels could help, before an attempt at them is counted.

    Raises:
        UsageError: a setting is not as it should be, or there are no classes, or images are to be classified.
    """
    if training.task != "segment" or not training.classes:
        raise UsageError("retrain trains segmenters: name the classes under `training`, 0 first, and no other task")
    training.config(Path())


def tidy(job: Job) -> None:
    """Complete what a run that was killed could not record; we hold the lock, so it is not alive."""
    attempts = job.book.attempts(job.found.fingerprint)
    if not attempts or attempts[-1].state != "running":
        return
    if (champion := job.champion) is not None and champion.labels == job.found.fingerprint:
        note(job, "promoted", champion.why, bundle=champion.digest, champion=champion.replaced, sealed=champion.sealed)
    else:
        note(job, "failed", "its process was killed")


def covered(book: Registry, found: LabelSet) -> str:
    """Why nothing is to be done."""
    outcome = book.outcome(found.fingerprint)
    told = f"{outcome.state}: {outcome.attempts[-1].reason}" if outcome else "nothing"
    return f"these labels have an outcome: {told}"


def attempt(job: Job) -> Outcome:
    """Train and judge once; the registry knows of it before it begins, and what became of it afterwards."""
    note(job, "running")
    try:
        sweep(job.work, keep=job.folder)
        make_samples(job)
        outcome = judge(job, train_challenger(job))
    except TerminationSignal:
        return decided(job) or note(job, "cancelled", STOPPED)
    except Exception as error:  # noqa: BLE001 - whatever it was, it is recorded, and the champion stays
        reason = plain(error if isinstance(error, WidefieldError) else repr(error))
        return decided(job) or note(job, "failed", reason)
    sweep(job.work)
    return outcome


def decided(job: Job) -> Outcome | None:
    """The outcome, if this run has recorded one before it was stopped."""
    outcome = job.book.outcome(job.found.fingerprint)
    last = outcome.attempts[-1] if outcome else None
    return outcome if last and last.run == str(flow_run.id) and last.state in NAMES else None


def sweep(work: Path, keep: Path | None = None) -> None:
    """Remove the folders of trainings, but one: the registry has what they made, or their labels are gone."""
    for folder in work.iterdir():
        if TRAINING.fullmatch(folder.name) and folder != keep:
            shutil.rmtree(folder)


def decide(book: Registry, outcome: Outcome) -> Any:
    """Wait for somebody's verdict without holding a worker; the registry may hold it already.

    A run that Prefect can start again is suspended; another one ends, and leaves it to `widefield registry approve`.
    """
    challenger = outcome.attempts[-1].bundle or ""
    if outcome.state == "waiting" and deployment.id:
        said = suspend_flow_run(wait_for_input=Verdict, timeout=PATIENCE, key=challenger[:16])
        if said.verdict == "promote":
            book.approve(challenger, by=said.by or WHO, why=said.why)
        else:
            book.decline(challenger, by=said.by or WHO, why=said.why or "not promoted")
    return ending(book.outcome(outcome.fingerprint) or outcome)


def ending(outcome: Outcome) -> Any:
    """The final state of the run."""
    last = outcome.attempts[-1]
    message = f"challenger {(last.bundle or '')[:12]}: {plain(last.reason)}" if last.bundle else plain(last.reason)
    if last.state == "failed":
        return Failed(message=message)
    if last.state == "cancelled":
        return Cancelled(message=message)
    return Completed(name=NAMES.get(last.state, "Superseded"), message=message)
