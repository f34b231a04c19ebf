"""One training on several devices: a process for each, started here, with its share of every batch."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric

from models.errors import WidefieldError
from models.journal import Report

Work = Callable[[Fabric, Any, Report], None]
"""What each process does: takes its Fabric, the configuration, and where the first one reports."""


def spread(fabric: Fabric, work: Work, config: Any, report: Report) -> None:
    """Run `work` in one process a device, until all have ended. What the first one reports is reported here.

    Raises:
        WidefieldError: as `work` does, or `report`.
    """
    lines = torch.multiprocessing.get_context("spawn").SimpleQueue()
    with _followed(lines, report):
        failure = fabric.launch(partial(_run, work=work, config=config, lines=lines))
    if failure is not None:
        raise failure


def _run(fabric: Fabric, work: Work, config: Any, lines: Any) -> WidefieldError | None:
    """Errors that users can mend travel as values: as exceptions they would arrive as somebody else's, with a trace."""
    try:
        work(fabric, config, lines.put)
    except WidefieldError as error:
        return error
    return None


@contextmanager
def _followed(lines: Any, report: Report) -> Iterator[None]:
    """Report what comes out of the queue, from a thread; what goes wrong in that is raised in the end."""
    failures: list[Exception] = []

    def follow() -> None:
        for line in iter(lines.get, None):
            try:
                report(line)
            except Exception as error:  # noqa: BLE001 - raised when the processes have ended
                failures.append(error)

    thread = threading.Thread(target=follow, name="training-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        lines.put(None)
        thread.join()
    if failures:
        raise failures[0]
