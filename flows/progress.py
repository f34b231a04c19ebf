"""How far a run is, for people: a bar on a terminal, or a log line now and then."""

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from models.engines.meter import Times
    from pipeline.schedule import Listener, Progress

INTERVAL = 10.0
"""Seconds between two log lines."""
WAITING = 0.02
"""Share of the engines' time from which on their waiting is told."""


@dataclass
class Pace:
    """Speed of this run's own work. What earlier runs had done does not count."""

    start: float = field(default_factory=time.monotonic)
    """When the work began that `base` does not hold."""
    base: int | None = None
    """Pixels that were done then."""

    def __call__(self, event: "Progress", now: float | None = None) -> tuple[float, float | None]:
        """Pixels a second so far, and the seconds left if that goes on; None while nobody can know."""
        now = time.monotonic() if now is None else now
        if self.base is None:
            self.base = event.resumed
            if event.done == event.resumed:  # the work starts only now: what went before was planning
                self.start = now
        speed = (event.done - self.base) / max(now - self.start, 1e-9)
        return speed, (event.total - event.done) / speed if speed > 0 else None


class LoggedProgress:
    """A listener that logs how far a run is, with its speed and the time left."""

    def __init__(self, logger: "logging.Logger | logging.LoggerAdapter[Any]", prefix: str = "") -> None:
        self.logger, self.prefix, self.pace = logger, prefix, Pace()
        self.last = self.pace.start

    def __call__(self, event: "Progress") -> None:
        """Log `event`, unless the last line is younger than `INTERVAL` and more will come."""
        now = time.monotonic()
        if event.phase != "segment" or (now - self.last < INTERVAL and event.done < event.total):
            return
        self.last = now
        speed, left = self.pace(event, now)
        facts = (event.done / 1e6, event.total / 1e6, speed / 1e6, clock(left), waiting(event.engine))
        self.logger.info("%s%.1f of %.1f Mpx, %.2f Mpx/s, %s left%s", self.prefix, *facts)


def waiting(engine: "Times") -> str:
    """What engines wait for, if it is worth a word: `, engine waits for input 12 %`."""
    if not engine.total:
        return ""
    shares = {"input": engine.input / engine.total, "output": engine.output / engine.total}
    told = (f"{what} {100 * share:.0f} %" for what, share in shares.items() if share >= WAITING)
    text = ", for ".join(told)
    return f", engine waits for {text}" if text else ""


def clock(seconds: float | None) -> str:
    """`75` as `1:15`."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextlib.contextmanager
def bar(name: str, console: Console, *, quiet: bool = False) -> "Iterator[Listener]":
    """A bar with megapixels a second and the time left, on a terminal; a listener that is silent elsewhere."""
    if quiet or not console.is_terminal:
        yield lambda _: None
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[state]}"))
    with Bar(*columns, console=console, transient=True) as shown:
        task, pace = shown.add_task(name, total=None, state="starting; a first run compiles the engine"), Pace()

        def listen(event: "Progress") -> None:
            state = event.phase
            if event.phase == "segment":
                speed, left = pace(event)
                state = f"{speed / 1e6:.2f} Mpx/s, {clock(left)} left{waiting(event.engine)}"
            shown.update(task, completed=event.done, total=event.total, state=state)

        yield listen
