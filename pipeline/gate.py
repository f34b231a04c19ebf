"""Who may be in flight together: any number of ordinary tasks, or one that must be alone, over all runs."""

import threading
from collections.abc import Callable


class Gate:
    """Shared by the client threads that use one executor."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False
        self._claims = 0
        """Threads that wait for all others to leave."""

    def enter(self, *, alone: bool) -> bool:
        """Count a task in, if it may run beside what is in flight; says whether it may."""
        with self._changed:
            return self._enter(alone=alone)

    def wait(self, *, alone: bool, given_up: Callable[[], bool]) -> bool:
        """Count a task in as soon as it may run; False if `given_up` says so first. Only with nothing else inside."""
        with self._changed:
            self._claims += alone
            try:
                while not self._enter(alone=alone, claimed=alone):
                    if given_up():
                        return False
                    self._changed.wait(0.2)
            finally:
                self._claims -= alone
        return True

    def _enter(self, *, alone: bool, claimed: bool = False) -> bool:
        if self._alone or (self._inside if alone else self._claims and not claimed):
            return False
        self._inside += 1
        self._alone = alone
        return True

    def leave(self) -> None:
        """A task is no longer in flight."""
        with self._changed:
            self._inside -= 1
            self._alone = False
            self._changed.notify_all()
