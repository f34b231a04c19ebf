"""Ending early, in order: on SIGTERM and Ctrl-C no new task starts, and what is running is finished and recorded.

    signal ──► asked: no new task; workers end between blocks ──grace──► overdue: the rest is cancelled ──► Stopped

Workers, those of a foreign cluster too, learn it from a marker file in the folder of the run. A handler that was there
before (Prefect's) is called once all is in order, so that the process ends in the state that its owner expects.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.errors import WidefieldError

MARKER = "stop"
"""Name of the marker in the folder of a run."""
GRACE = 6.0
"""Seconds that running blocks get."""
ALARM = 0.5
"""Seconds after the grace at which the main thread is interrupted, wherever it is."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(WidefieldError):  # noqa: N818 - it is no error that the user asked for it
    """A signal ended the run; what is recorded stays."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        self.exit_code = 128 + number
        super().__init__("interrupted: what is recorded stays; the same command goes on from there")

    def __reduce__(self) -> tuple[Any, ...]:
        return Stopped, (self.exit_code - 128,)


class Stop:
    """Whether and when this process was asked to end. Set by a signal handler, read by all threads."""

    def __init__(self, grace: float = GRACE) -> None:
        self.grace = grace
        self.number: int | None = None
        """Of the signal; None: nobody has asked."""
        self._deadline = float("inf")
        self._folders: dict[Path, None] = {}

    @property
    def asked(self) -> bool:
        """Whether no new task may start."""
        return self.number is not None

    @property
    def overdue(self) -> bool:
        """Whether what runs is to be cancelled."""
        return time.monotonic() >= self._deadline

    def ask(self, number: int) -> None:
        """From now on no new task starts; a second time, nothing is waited for."""
        again, self.number = self.asked, number
        self._deadline = time.monotonic() + (0 if again else self.grace)
        for folder in list(self._folders):
            _mark(folder)

    def check(self) -> None:
        """Go on, or not.

        Raises:
            Stopped: the process was asked to end.
        """
        if self.number is not None:
            raise Stopped(self.number)

    @contextlib.contextmanager
    def watch(self, folder: Path) -> Iterator[None]:
        """While this lasts, workers of the run in `folder` learn of a stop. What an earlier one left is removed."""
        self._folders[folder] = None
        (folder / MARKER).unlink(missing_ok=True)
        if self.asked:
            _mark(folder)
        try:
            yield
        finally:
            self._folders.pop(folder, None)
            (folder / MARKER).unlink(missing_ok=True)


def _mark(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / MARKER).touch()


def stopping(folder: Path) -> bool:
    """Whether the run in `folder` is to end: what a worker asks between blocks."""
    return (folder / MARKER).exists()


_stops: list[Stop] = [Stop()]
"""The first is never asked; `draining` puts its own on top. Signals are the process's, so this is too."""


def current() -> Stop:
    """The innermost `draining`."""
    return _stops[-1]


@contextlib.contextmanager
def draining(grace: float = GRACE) -> Iterator[Stop]:
    """SIGTERM and Ctrl-C end what runs below in order, at most `grace` seconds later, with `Stopped`.

    Outside the main thread, where Python allows no handlers, nothing changes. The handlers that were there are back
    afterwards, and the one of the signal that came is called, if it is a function.
    """
    stop = Stop(grace)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    alarm = signal.signal(signal.SIGALRM, _interrupt(stop))
    for number in _SIGNALS:
        signal.signal(number, _asked(stop))
    _stops.append(stop)
    try:
        yield stop
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _stops.remove(stop)
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGALRM, alarm)
        _chain(stop, before)


Handler = Callable[[int, FrameType | None], Any]


def _asked(stop: Stop) -> Handler:
    def handle(number: int, _: FrameType | None) -> None:
        stop.ask(number)
        left = ALARM if stop.overdue else stop.grace + ALARM
        signal.setitimer(signal.ITIMER_REAL, left)

    return handle


def _interrupt(stop: Stop) -> Handler:
    def handle(_: int, __: FrameType | None) -> None:
        stop.check()

    return handle


def _chain(stop: Stop, before: dict[signal.Signals, Any]) -> None:
    """Call the handler that the signal would have met: Prefect's raises what makes its run cancelled or crashed."""
    handler = None if stop.number is None else before[signal.Signals(stop.number)]
    if callable(handler) and handler is not signal.default_int_handler:
        handler(stop.number, None)
