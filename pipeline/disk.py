"""The free disk, shared by the scenes that are in flight together: each waits until it fits beside the others."""

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline import stop
from pipeline.errors import SpaceError
from pipeline.plan import Plan


class Disk:
    """What scenes in flight may still write."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._promised: list[int] = []

    def plan(self, make: Callable[[], Plan]) -> Plan:
        """What `make` returns; tried again after others have ended, as long as the disk is too full beside them.

        Raises:
            SpaceError: it is too full even with nothing else in flight.
            Stopped: this process was asked to end meanwhile.
        """
        while True:
            before = list(self._promised)
            try:
                return make()
            except SpaceError:
                if not before:
                    raise
            with self._changed:
                while self._promised == before:
                    stop.current().check()
                    self._changed.wait(0.5)

    @contextlib.contextmanager
    def share(self, needed: int, out: Path) -> Iterator[None]:
        """Hold `needed` bytes of the disk that `out` is on; waits for others to end where all together do not fit.

        A scene that has the disk to itself is not held up: its plan has looked already.

        Raises:
            Stopped: this process was asked to end meanwhile.
        """
        with self._changed:
            while self._promised and sum(self._promised) + needed > shutil.disk_usage(out).free:
                stop.current().check()
                self._changed.wait(0.5)
            self._promised.append(needed)
        try:
            yield
        finally:
            with self._changed:
                self._promised.remove(needed)
                self._changed.notify_all()
