"""`watch-labels`: looks whether labels wait to be learnt from, and tells by an event; `retrain/on-new-labels` listens.

An event can be lost, so it decides nothing: the registry holds an outcome for every state of the labels that was
answered. As long as it holds none, and no training of theirs is planned or under way, this flow tells. Each attempt
has its own identifier, which Prefect takes once within half an hour; a run that comes twice ends as covered.
"""

import uuid
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events import emit_event
from prefect.exceptions import PrefectException
from prefect.flow_runs import resume_flow_run
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from flows.artifacts import plain, slug
from models.registry import Registry, open_registry
from pipeline.labelset import Changes, LabelSet, survey
from pipeline.workshop import busy

CHANGED = "widefield.labels.changed"
"""Name of the event; its resource is `widefield.labels.<slug>`."""
NAMES = 20
"""Most scenes of a kind that the event names."""
AHEAD = (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING)
"""States of runs that will look at the labels as they are now, or do so."""
RETRAIN = "retrain"
"""Name of the flow that answers."""


@flow(name="watch-labels", flow_run_name=lambda: f"watch {plain(flow_run.parameters['labels'])}")
def watch_labels(
    images: str, labels: str, registry: str, work: str, *, settle: Annotated[float, Field(ge=0)] = 60.0
) -> Any:
    """Emit `widefield.labels.changed` if labels have no outcome yet, are complete, and no training runs.

    A file that was written to in the last `settle` seconds may still grow: all labels are left for the next look.
    Runs that wait for an approval which has been given by `widefield registry approve` meanwhile are woken.

    Args:
        images: Folder of scenes.
        labels: Folder of their labels.
        registry: Folder of the registry, or its address.
        work: Folder in which trainings work.
        settle: Seconds for which no file must have grown.
    """
    book = open_registry(registry, create=True)
    message = _look(book, images, labels, Path(work), settle)
    get_run_logger().info("%s: %s", plain(labels), message)
    wake(book)
    return Completed(message=message)


def _look(book: Registry, images: str, labels: str, work: Path, settle: float) -> str:
    """What this look found; the event is emitted on the way."""
    if not Path(labels).is_dir():
        return "no such folder yet, so nothing to learn from"
    found = survey(Path(images), Path(labels))
    if not found.pairs:
        return "no scene has labels"
    if book.settled(found.fingerprint):
        return f"nothing new in the labels of {len(found.pairs)} scenes"
    if found.age < settle:
        return "files may still grow: left for the next look"
    if busy(work) or any(run.parameters.get("labels") == labels for run in runs(*AHEAD)):
        return "new labels, and a training planned or under way: left for the next look"
    changes = found.since(known(book))
    tell(labels, found, changes, attempt=len(book.attempts(found.fingerprint)))
    return f"{len(changes.added)} scenes added, {len(changes.changed)} changed, {len(changes.removed)} removed"


def known(book: Registry) -> dict[str, str]:
    """Digests of the labels that the champion learnt from, by scene."""
    champion = book.champion()
    return {} if champion is None else book.labels(champion.digest)


def tell(labels: str, found: LabelSet, changes: Changes, attempt: int) -> None:
    """Emit the event; its identifier follows from the labels and the attempts that were made at them."""
    emit_event(
        event=CHANGED,
        resource={"prefect.resource.id": f"widefield.labels.{slug(labels)}"},
        payload={
            "fingerprint": found.fingerprint,
            "attempt": attempt,
            "added": [plain(name) for name in changes.added[:NAMES]],
            "changed": [plain(name) for name in changes.changed[:NAMES]],
            "removed": [plain(name) for name in changes.removed[:NAMES]],
        },
        id=uuid.uuid5(uuid.NAMESPACE_URL, f"{found.fingerprint}/{attempt}"),
    )


def runs(*states: StateType) -> list[FlowRun]:
    """Retrainings in one of these states."""
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states))))
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[RETRAIN])), flow_run_filter=wanted
        )


def wake(book: Registry) -> None:
    """Resume the retrainings that wait for a verdict although the registry holds one."""
    for run in runs(StateType.PAUSED):
        left = book.of_run(str(run.id))
        if left is None or left.state == "waiting":
            continue
        try:
            resume_flow_run(run.id, run_input={"verdict": "decline"})  # not read: the registry's counts
        except (PrefectException, RuntimeError) as error:
            get_run_logger().warning("%s cannot be resumed: %s", run.name, error)
