"""Challengers that the gate has accepted, and that somebody approves or declines: of both at once, one wins.

A challenger is claimed in its outcome before it is crowned. Who was claimed and never crowned, because the process was
killed in between, still waits.
"""

import contextlib
from dataclasses import dataclass, replace

from models.champions import Champion, Champions
from models.errors import ConflictError, RegistryError
from models.outcomes import Attempt, Outcome, Outcomes
from models.registry_json import short
from models.shelf import Shelf

TRIES = 3
"""After so many failures, labels are left alone until they change, or somebody wants another try."""


@dataclass(frozen=True)
class Waiting:
    """A challenger that the gate has accepted, and that somebody must approve."""

    fingerprint: str
    """Of the labels."""
    attempt: Attempt

    @property
    def bundle(self) -> str:
        """The challenger's digest."""
        return self.attempt.bundle or ""

    @property
    def run(self) -> str | None:
        """What left it waiting."""
        return self.attempt.run


@dataclass(frozen=True)
class Approvals:
    """Where outcomes and champions meet."""

    shelf: Shelf

    @property
    def champions(self) -> Champions:
        """Who reigns, and did."""
        return Champions(self.shelf)

    @property
    def outcomes(self) -> Outcomes:
        """What became of labels."""
        return Outcomes(self.shelf.store)

    def settled(self, fingerprint: str) -> bool:
        """Whether these labels need no further training: promoted, refused, waiting, or failed `TRIES` times.

        A challenger waits only as long as the champion is the one that it was compared with.
        """
        outcome = self.outcomes.of(fingerprint)
        if outcome is None:
            return False
        history = self.champions.history()
        if _waits(outcome, history):
            return not _superseded(outcome.attempts[-1], history)
        return outcome.state in {"promoted", "refused"} or outcome.failures >= TRIES

    def waiting(self) -> list[Waiting]:
        """Challengers that wait for approval, longest first; not those that another champion has superseded."""
        history = self.champions.history()
        return [each for each in self._undecided() if not _superseded(each.attempt, history)]

    def _undecided(self) -> list[Waiting]:
        """All challengers that were left to somebody's approval, longest first."""
        history = self.champions.history()
        found = [Waiting(each.fingerprint, each.attempts[-1]) for each in self.outcomes.all() if _waits(each, history)]
        return sorted(found, key=lambda one: one.attempt.at)

    def promote(
        self,
        digest: str,
        *,
        by: str,
        why: str,
        expected: str | None,
        labels: str | None = None,
        sealed: str | None = None,
    ) -> Champion:
        """Make a bundle champion in the place of `expected`, the digest that the caller saw there (None: nobody).

        The one who is champion already stays so: the reign that is returned is then the one that began earlier, whoever
        began it. A challenger that waited for approval waits no longer, and brings the labels and sealed chips that it
        waited with; without any, the sealed chips of the champion before stay in force.

        Raises:
            ConflictError: somebody else is champion by now, or the challenger was declined meanwhile.
            RegistryError: the bundle or the sealed chips are not here.
        """
        if not self.shelf.holds(digest):
            raise RegistryError(f"{self.shelf.place} holds no bundle {digest[:12]}: `widefield registry add` it first")
        waiting = [each for each in self._undecided() if each.bundle == digest]
        for each in waiting:
            labels, sealed = labels or each.fingerprint, sealed or each.attempt.sealed
        with contextlib.ExitStack() as claimed:
            for each in waiting:
                self._claim(each, f"promoted by {by}: {why}", claimed)
            champion = self.champions.crown(digest, by=by, why=why, expected=expected, labels=labels, sealed=sealed)
            claimed.pop_all()
        return champion

    def _claim(self, waiting: Waiting, reason: str, claimed: contextlib.ExitStack) -> None:
        """Settle the labels as promoted; given back when `claimed` is closed."""
        left, fingerprint = waiting.attempt, waiting.fingerprint
        self.outcomes.record(fingerprint, replace(left, state="promoted", reason=reason), after=left.state)

        def give_back() -> None:
            with contextlib.suppress(ConflictError):
                self.outcomes.record(fingerprint, replace(left, state="waiting"), after="promoted")

        claimed.callback(give_back)

    def approve(self, prefix: str, *, by: str, why: str = "") -> Champion:
        """Make a waiting challenger champion, and settle its labels as promoted.

        Raises:
            RegistryError: it does not wait.
            ConflictError: the champion is another than the one that the gate compared it with, or somebody declined it
                meanwhile.
        """
        waiting = self._waiting(prefix)
        if _superseded(waiting.attempt, history := self.champions.history()):
            raise ConflictError(
                f"{waiting.bundle[:12]} was compared with {short(waiting.attempt.champion)}, but the champion is "
                f"{short(_reigning(history))} by now: the next look at its labels trains anew against that one"
            )
        reason = why or f"approved: {waiting.attempt.reason}".rstrip(": ")
        return self.promote(waiting.bundle, by=by, why=reason, expected=waiting.attempt.champion)

    def decline(self, prefix: str, *, by: str, why: str) -> None:
        """Settle the labels of a waiting challenger as refused; of a superseded one too.

        Raises:
            RegistryError: it does not wait.
            ConflictError: somebody approves it at this moment.
        """
        waiting = self._waiting(prefix)
        reason = f"declined by {by}: {why}".rstrip(": ")
        refused = replace(waiting.attempt, state="refused", reason=reason)
        self.outcomes.record(waiting.fingerprint, refused, after="waiting")

    def _waiting(self, prefix: str) -> Waiting:
        digest = self.shelf.find(prefix)
        fitting = [waiting for waiting in self._undecided() if waiting.bundle == digest]
        if not fitting:
            raise RegistryError(f"{digest[:12]} does not wait for approval: `widefield registry list` says what does")
        return fitting[-1]


def _waits(outcome: Outcome, history: list[Champion]) -> bool:
    """Whether a challenger was left to somebody's approval, or was claimed for it and never crowned."""
    last, before = outcome.attempts[-1], {attempt.state for attempt in outcome.attempts[-2:-1]}
    claimed = last.state == "promoted" and bool(before & {"waiting", "promoted"})
    return last.state == "waiting" or (claimed and all(reign.digest != last.bundle for reign in history))


def _superseded(left: Attempt, history: list[Champion]) -> bool:
    """Whether the champion is neither the one that a challenger was compared with, nor the challenger itself."""
    return _reigning(history) not in {left.champion, left.bundle}


def _reigning(history: list[Champion]) -> str | None:
    return history[-1].digest if history else None
