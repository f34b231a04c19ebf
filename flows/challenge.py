"""A challenger: cut its chips, train it, judge it, and record what became of it. The steps of the flow `retrain`."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, Field

from flows.artifacts import escape, plain, slug, table
from flows.parameters import Options
from flows.training import TrainOptions, make_chips
from models.bundle import Bundle, open_bundle
from models.champions import Champion
from models.outcomes import Attempt, Outcome, State
from models.registry import Registry
from pipeline.errors import LabelError, WidefieldError
from pipeline.executors import make_executor
from pipeline.housekeeping import make_folder
from pipeline.labelset import LabelSet, survey
from pipeline.shadow import Shadow, shadow

if TYPE_CHECKING:
    from models.dataset import Chips
    from models.verdict import Gate, Rules

WHO = "retrain"
"""Who promotes, in the registry's history."""
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
        from models.verdict import Rules

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
    workers = pattern.options.workers
    with make_executor(workers, job.segmenting.scheduler, job.folder, target=pattern.target) as executor:
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
