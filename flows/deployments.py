"""What `prefect.yaml` may say: a strict reading of it.

Prefect ignores keys that it does not know. A trigger with `expct:` deploys without a word and then fires at every event
of its resource, so every key is known here, and every trigger names the events that it expects.
"""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flows.show import complain, say
from pipeline.errors import UsageError


class Strict(BaseModel):
    """A part of the file: frozen, and no key but those named."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Pool(Strict):
    """Where runs are put."""

    name: str
    work_queue_name: str | None = None
    job_variables: dict[str, Any] = {}


class Limit(Strict):
    """How many runs of a deployment may work at once, and what becomes of one more."""

    limit: Annotated[int, Field(ge=1)]
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"]


class Schedule(Strict):
    """When runs start by themselves: either `cron` or `interval` (seconds)."""

    slug: str
    timezone: str
    cron: str | None = None
    interval: Annotated[int, Field(ge=60)] | None = None
    anchor_date: str | None = None
    active: bool = True
    parameters: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.cron is None) == (self.interval is None):
            raise ValueError("give either cron or interval")
        return self


class Trigger(Strict):
    """The events that start a run. What is expected of which resource must be said: the default is anything."""

    type: Literal["event"]
    enabled: bool
    match: Annotated[dict[str, str], Field(min_length=1)]
    expect: Annotated[list[str], Field(min_length=1)]
    posture: Literal["Reactive"]
    threshold: Literal[1]
    within: Literal[0]
    schedule_after: Annotated[int, Field(ge=0)] = 0
    """Seconds between the event and its run: what comes meanwhile is done by that run, too."""
    parameters: dict[str, Any] = {}


class Deployment(Strict):
    """One flow with its parameters, and when it runs."""

    name: str
    description: str
    entrypoint: Annotated[str, Field(pattern=r"^flows\.\w+\.\w+$")]
    """A module path: it holds wherever the project is installed."""
    parameters: dict[str, Any]
    work_pool: Pool
    schedules: list[Schedule] = []
    triggers: list[Trigger] = []
    concurrency_limit: Limit | None = None


class Project(Strict):
    """The whole file. `definitions` hold what the rest refers to."""

    name: str
    definitions: dict[str, Any] = {}
    deployments: Annotated[list[Deployment], Field(min_length=1)]


def read_project(path: Path) -> Project:
    """`prefect.yaml`, every key of it known.

    Raises:
        UsageError: it says something that nobody would act upon, or cannot be read.
    """
    try:
        return Project.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise UsageError(f"{path}: {faults}") from None


def main() -> int:
    """Say what the `prefect.yaml` of the working directory would deploy."""
    try:
        project = read_project(Path("prefect.yaml"))
    except UsageError as error:
        complain(error)
        return error.exit_code
    for each in project.deployments:
        when = [f"{plan.cron or f'every {plan.interval} s'}" for plan in each.schedules]
        when += [f"on {', '.join(trigger.expect)}" for trigger in each.triggers]
        say(f"{each.entrypoint}  {each.name}  {', '.join(when) or 'when asked'}  {each.parameters}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
