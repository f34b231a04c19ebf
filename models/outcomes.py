"""What became of labels: one attempt after the other, by the labels' fingerprint."""

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from models.errors import ConflictError, RegistryError
from models.registry_json import SCHEMA, now, read_json, to_json
from models.registry_store import Store

PATIENCE = 20
"""Times that an attempt is recorded again, because another process recorded one meanwhile."""

_FINGERPRINT = re.compile("[0-9a-f]{8,128}")

State = Literal["running", "promoted", "refused", "failed", "waiting", "cancelled", "retry"]


@dataclass(frozen=True)
class Attempt:
    """A retraining, or a step of it, on labels of one fingerprint."""

    state: State
    reason: str = ""
    bundle: str | None = None
    """Digest of the challenger, where there is one."""
    champion: str | None = None
    """Digest of the champion that it was compared with."""
    sealed: str | None = None
    """Digest of the sealed chips that it is to be champion with."""
    at: str = ""
    """When it was recorded, ISO 8601, UTC."""
    run: str | None = None
    """What the caller calls the run that made it."""


@dataclass(frozen=True)
class Outcome:
    """What became of the labels of one fingerprint."""

    fingerprint: str
    attempts: tuple[Attempt, ...]

    @property
    def state(self) -> State:
        """Of the last attempt."""
        return self.attempts[-1].state

    @property
    def failures(self) -> int:
        """Attempts that failed since somebody last wanted another try."""
        states = [attempt.state for attempt in self.attempts]
        since = len(states) - states[::-1].index("retry") if "retry" in states else 0
        return states[since:].count("failed")

    def run_waited(self, run: str) -> bool:
        """Whether `run` has left a challenger to somebody's approval, decided or not."""
        return any(attempt.run == run and attempt.state == "waiting" for attempt in self.attempts)


@dataclass(frozen=True)
class Outcomes:
    """The outcomes that a registry keeps. Nothing that was recorded is ever lost, whoever records at the same time."""

    store: Store

    def of(self, fingerprint: str) -> Outcome | None:
        """What became of the labels of this fingerprint; None if nothing yet."""
        return self._read(fingerprint)[0]

    def record(self, fingerprint: str, attempt: Attempt, *, after: State | None = None) -> Outcome:
        """Append an attempt, dated now; what others record at the same time is kept too.

        Args:
            fingerprint: of the labels.
            attempt: what became of them.
            after: append only if this is the state of the last attempt by then; whatever it is if None.

        Raises:
            ConflictError: it is another, or others write all the time.
        """
        for _ in range(PATIENCE):
            outcome, version = self._read(fingerprint)
            found = outcome.state if outcome else None
            if after is not None and found != after:
                raise ConflictError(
                    f"{self.store.place}: the outcome of {fingerprint[:12]} is {found or 'none'} by now, not {after}: "
                    "`widefield registry show` tells what became of it"
                )
            attempts = (*(outcome.attempts if outcome else ()), replace(attempt, at=now()))
            content = {"schema": SCHEMA, "state": attempt.state, "attempts": [asdict(one) for one in attempts]}
            try:
                self.store.write(_of_labels(fingerprint), to_json(content), version)
            except ConflictError:
                continue
            return Outcome(fingerprint, attempts)
        raise ConflictError(
            f"{self.store.place}: others write the outcome of {fingerprint[:12]} all the time: try again"
        )

    def attempts(self, fingerprint: str) -> tuple[Attempt, ...]:
        """All that was tried with the labels of this fingerprint, oldest first."""
        outcome = self.of(fingerprint)
        return outcome.attempts if outcome else ()

    def of_run(self, run: str) -> Outcome | None:
        """The outcome of the labels whose challenger `run` left to somebody's approval, decided or not."""
        return next((outcome for outcome in self.all() if outcome.run_waited(run)), None)

    def all(self) -> list[Outcome]:
        """All outcomes, by fingerprint."""
        names = [Path(name).stem for name in self.store.list("outcomes") if name.endswith(".json")]
        return [found for name in names if _FINGERPRINT.fullmatch(name) and (found := self.of(name))]

    def retry(self, prefix: str, *, by: str, why: str = "") -> Outcome:
        """Have the labels whose fingerprint begins with `prefix` learnt from again, whatever became of them.

        Failures before count no more, and a challenger of theirs waits no longer.

        Raises:
            RegistryError: no outcome is of such labels, or several are.
        """
        outcome = self.find(prefix)
        reason = f"another try wanted by {by}: {why}".rstrip(": ")
        return self.record(outcome.fingerprint, Attempt("retry", reason), after=outcome.state)

    def find(self, prefix: str) -> Outcome:
        """The outcome of the labels whose fingerprint begins with `prefix`.

        Raises:
            RegistryError: there is none, or there are several.
        """
        fitting = [outcome for outcome in self.all() if outcome.fingerprint.startswith(prefix)]
        if not prefix or not fitting:
            raise RegistryError(
                f"{self.store.place} has no outcome of labels {prefix!r}: `widefield registry show` lists all"
            )
        if len(fitting) > 1:
            raise RegistryError(f"{len(fitting)} outcomes begin with {prefix}: give more digits of the fingerprint")
        return fitting[0]

    def _read(self, fingerprint: str) -> tuple[Outcome | None, str | None]:
        content, version = read_json(self.store, name := _of_labels(fingerprint))
        if content is None:
            return None, None
        try:
            attempts = tuple(Attempt(**attempt) for attempt in content["attempts"])
            return Outcome(fingerprint, attempts) if attempts else None, version
        except (KeyError, TypeError) as error:
            raise RegistryError(f"{self.store.place}: {name} is damaged ({error}): restore it, or delete it") from error


def _of_labels(fingerprint: str) -> str:
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise RegistryError(f"{fingerprint!r} is no fingerprint: it needs 8 to 128 hexadecimal digits")
    return f"outcomes/{fingerprint}.json"
