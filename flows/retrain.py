"""`retrain`: labels in, a better champion out. Nothing is taken on trust: the challenger has to win on sealed ground.

What decides is the registry's record for the fingerprint of the labels, never the event that started the run: a run
finds its labels answered and ends as covered, or trains, and records what became of it. One training at a time.
"""

import hashlib
import json
import re
import shutil
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import TerminationSignal
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from flows.artifacts import escape, plain, slug, table
from flows.parameters import Options
from flows.training import TrainOptions, make_chips
from models.bundle import Bundle, open_bundle
from models.registry import Attempt, Champion, Outcome, Registry, State, open_registry
from pipeline.errors import LabelError, UsageError, WidefieldError
from pipeline.executors import make_executor
from pipeline.housekeeping import make_folder
from pipeline.labelset import LabelSet, survey
from pipeline.shadow import Shadow, shadow
from pipeline.workshop import alone

if TYPE_CHECKING:
    from models.dataset import Chips
    from models.promotion import Gate, Rules

PATIENCE = 30 * 24 * 3600
"""Seconds for which a challenger waits to be approved."""
TRAINING = re.compile("[0-9a-f]{16}")
"""Names of the folders of trainings."""
WHO = "retrain"
"""Who promotes, in the registry's history."""
STOPPED = "stopped by a signal: the checkpoint stays, and the next run goes on from there"
NAMES = {"promoted": "Promoted", "refused": "Refused", "waiting": "Waiting"}
"""Of the final state, by what became of the challenger."""


class Verdict(RunInput):
    """What somebody decides about a challenger that waits."""

    verdict: Literal["promote", "decline"]
    why: str = ""
    by: str = ""


class Retraining(BaseModel):
    """How challengers are made and judged. The defaults are good."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    promotion: Annotated[
        Literal["approve", "auto"],
        Field(description="`approve`: somebody decides about a challenger that has won; `auto`: it takes over."),
    ] = "approve"
    start: Annotated[
        Literal["champion", "scratch"], Field(description="Go on from the champion's weights, or from random ones.")
    ] = "champion"
    sealed: Annotated[float, Field(gt=0, lt=0.5, description="Share of the ground that only the gate reads.")] = 0.15
    shadow: Annotated[int, Field(ge=0, description="Unlabelled scenes for which changes of areas are told.")] = 2
    margin: Annotated[float, Field(ge=0, description="Mean IoU by which a challenger must be better.")] = 0.0
    old_tolerance: Annotated[float, Field(ge=0, description="Mean IoU that may be lost on the old ground.")] = 0.01
    class_bound: Annotated[float, Field(ge=0, description="IoU that any class may lose.")] = 0.02

    def rules(self) -> "Rules":
        """What the gate asks for."""
        from models.promotion import Rules

        return Rules(margin=self.margin, old_tolerance=self.old_tolerance, class_bound=self.class_bound)


@dataclass(frozen=True)
class Job:
    """One retraining, from the labels to the outcome."""

    book: Registry
    images: Path
    labels: Path
    work: Path
    """Folder of the chips; each set of labels trains in a folder of its own below it."""
    found: LabelSet
    training: TrainOptions
    options: Retraining
    segmenting: Options
    """How the shadow run segments."""
    champion: Champion | None
    """Who is to be beaten."""

    @property
    def start(self) -> Path | None:
        """The bundle to go on from."""
        champion = self.champion if self.options.start == "champion" else None
        return self.book.folder(champion.digest) if champion else None

    @property
    def folder(self) -> Path:
        """Where this training keeps its checkpoint and its bundle: of these labels, these settings and that start."""
        settings = json.dumps(asdict(self.training), default=str, sort_keys=True)
        key = hashlib.sha256(f"{self.found.fingerprint}\0{settings}\0{self.start}".encode())
        return self.work / key.hexdigest()[:16]

    @property
    def chips(self) -> Path:
        """All chips, kept from one training to the next: only those of changed scenes are made anew."""
        return self.work / "chips.zarr"


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


@task(name="chips")
def make_samples(job: Job) -> None:
    """Chips of all labelled scenes; those of scenes that have not changed are kept.

    Raises:
        LabelError: labels do not fit, sealed ground would be trained on, or labels changed meanwhile: the outcome
            would be that of others.
        RegistryError: the chips split ground otherwise than the registry does.
    """
    from models.dataset import open_chips
    from models.sealed import leaked
    from pipeline.chips import recorded_ground
    from pipeline.split import Ground

    options, logger, kept = replace(job.training, sealed=job.options.sealed), get_run_logger(), job.book.ground()
    make_chips(
        job.images,
        job.labels,
        job.work,
        options,
        logger.info,
        logger.warning,
        skip_unlabelled=True,
        ground=Ground.from_json(kept) if kept else None,
    )
    if (ground := recorded_ground(job.chips)) is not None:
        job.book.keep_ground(ground.to_json())
    if learnt := leaked(open_chips(job.chips), old_ground(job)):
        raise LabelError(f"sealed ground would be trained on ({learnt[0]}): the split of scenes must not change")
    if survey(job.images, job.labels).fingerprint != job.found.fingerprint:
        raise LabelError(f"{job.labels} changed while it was read: the next run learns from what is there then")


def old_ground(job: Job) -> "Chips | None":
    """The sealed chips that the champion was accepted on."""
    from models.sealed import open_sealed

    sealed = job.champion.sealed if job.champion else None
    return open_sealed(job.book.sealed(sealed)) if sealed else None


@task(name="train")
def train_challenger(job: Job) -> Bundle:
    """A training that was stopped before goes on from its checkpoint; one that has ended is not repeated."""
    from models.train import train

    if (job.folder / "bundle.json").exists():
        return open_bundle(job.folder)
    make_folder(job.folder)
    _, colors, codes = job.training.legend()
    config = going_on(job.training, job.start).config(job.work, card="", colors=colors, codes=codes)
    return train(replace(config, chips=job.chips, out=job.folder), get_run_logger().info)


SHAPE = (
    "encoder",
    "variant",
    "width",
    "decoder",
    "decoder_channels",
    "output_stride",
    "init",
    "encoder_from",
    "freeze",
)
"""Options of the network itself: a challenger that goes on from the champion has the champion's."""


def going_on(training: TrainOptions, start: Path | None) -> TrainOptions:
    """The training, from the weights of a bundle if one is given."""
    if start is None:
        return training
    fresh = {field.name: getattr(TrainOptions(), field.name) for field in fields(training) if field.name in SHAPE}
    return replace(training, start=start, **fresh)


@task(name="judge")
def judge(job: Job, challenger: Bundle) -> Outcome:
    """Compare with the champion on sealed ground, keep everything in the registry, promote if nobody is to be asked."""
    from models.dataset import open_chips
    from models.mlm import item
    from models.promotion import compare

    chips, champion, old = open_chips(job.chips), job.champion, old_ground(job)
    rival = job.book.bundle(champion.digest) if champion else None
    stranger = champion is not None and champion.labels is None
    changes, troubles = look_ahead(job, challenger)
    gate = compare(challenger, rival, old, chips, job.options.rules(), stranger=stranger).with_shadow(changes)
    page, report = make_report(job, challenger, gate, troubles)
    files = {"report.html": report, "labels.json": json.dumps(job.found.digests).encode()}
    job.book.add(challenger, item=item(challenger), gate=gate.to_json(), files=files)
    outcome = settle(job, gate, keep(job, chips, old) if gate.accepted else None)
    create_markdown_artifact(key=slug(str(job.labels)), markdown=page, description=f"challenger: {outcome.state}")
    return outcome


def keep(job: Job, chips: "Chips", old: "Chips | None") -> str | None:
    """Digest of the sealed chips that this challenger was accepted on, now in the registry."""
    from models.sealed import seal

    file = job.work / "sealed.zip"
    try:
        return job.book.seal(file) if seal(chips, old, file) else None
    finally:
        file.unlink(missing_ok=True)


def look_ahead(job: Job, challenger: Bundle) -> tuple[list[Shadow], list[str]]:
    """What the challenger would change on the youngest unlabelled scenes, and which of them cannot be segmented.

    Nothing where nobody is champion. A scene that fails decides nothing: it may not be complete yet.
    """
    by_age = sorted(job.found.unlabelled, key=lambda scene: scene.stat().st_mtime, reverse=True)
    if job.champion is None or not job.options.shadow:
        return [], []
    found, troubles = [], []
    pattern = job.segmenting.request("", "", str(challenger.path), str(job.folder))
    with make_executor(pattern.options.workers, job.segmenting.scheduler, job.folder) as executor:
        for scene in by_age[: job.options.shadow]:
            try:
                found += shadow([scene], challenger.path, job.book.folder(job.champion.digest), pattern, executor)
            except WidefieldError as error:
                troubles.append(f"{scene.name} was left out of the shadow run: {error}")
    return found, troubles


def make_report(job: Job, challenger: Bundle, gate: "Gate", troubles: list[str]) -> tuple[str, bytes]:
    """This run's page, Markdown, with what the gate found; and the report of the training, HTML."""
    from flows.report import REPORT, collect, to_markdown
    from pipeline.publish.training_report import write_report

    said = [*gate.lines(), *troubles]
    lines = [f"# Challenger {challenger.digest[:12]}: {'accepted' if gate.accepted else 'refused'}", ""]
    lines += [*(f"- {escape(line)}" for line in said), ""]
    for scene in gate.shadow:
        lines += [f"## {escape(scene['scene'])}: {scene['changed']:.2%} of the pixels would change", ""]
        rows = [(name, *(f"{value:,.0f} {scene['unit']}" for value in pair)) for name, pair in scene["areas"].items()]
        lines += [*table(("class", "champion", "challenger"), rows), ""]
    facts = collect(challenger, job.chips)
    write_report(job.folder / REPORT, facts)
    return "\n".join([*lines, to_markdown(facts)]), (job.folder / REPORT).read_bytes()


def settle(job: Job, gate: "Gate", sealed: str | None) -> Outcome:
    """Promote, refuse, or leave it to somebody; in the registry first, so that nothing depends on this run."""
    why = "; ".join([reason for reason in gate.reasons if reason.startswith("failed")] or gate.reasons)
    facts = {"bundle": gate.challenger, "champion": gate.champion, "sealed": sealed}
    if not gate.accepted:
        return note(job, "refused", why, **facts)
    if job.options.promotion == "approve":
        return note(job, "waiting", why, **facts)
    job.book.promote(
        gate.challenger, by=WHO, why=why, expected=gate.champion, labels=job.found.fingerprint, sealed=sealed
    )
    return note(job, "promoted", why, **facts)


def note(job: Job, state: State, reason: str = "", **facts: Any) -> Outcome:
    """Record what became of these labels, and log it."""
    get_run_logger().info("%s %s", state, plain(reason))
    return job.book.record(job.found.fingerprint, Attempt(state, reason, run=str(flow_run.id), **facts))


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
