"""An archive on the command line: a bar or lines while it runs, what failed, and how many of each at the end."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.show import bottleneck, complain, err, out, rows
from pipeline.nightly import SceneResult
from pipeline.outputs import RUN
from pipeline.schedule import Progress


@dataclass
class SceneLines:
    """A listener that prints what becomes of each scene: a line of JSON, or what failed."""

    out: Path
    as_json: bool
    results: list[SceneResult] = field(default_factory=list)

    def __call__(self, event: Progress | SceneResult) -> None:
        """Take in an event; progress inside a scene is not shown."""
        if not isinstance(event, SceneResult):
            return
        self.results.append(event)
        if event.error is not None:
            complain(f"{event.name}: {event.error}")
        if self.as_json:
            print(json.dumps(self._facts(event)))

    def _facts(self, event: SceneResult) -> dict[str, Any]:
        """What a scene's `run.json` says; of one that failed, why."""
        if event.error is not None:
            return {"scene": {"name": event.name, "path": event.path}, "error": event.error}
        facts: dict[str, Any] = json.loads((self.out / event.name / RUN).read_bytes())
        return facts | ({"unchanged": True} if event.status == "unchanged" else {})

    @property
    def failed(self) -> int:
        """Scenes that failed so far."""
        return sum(result.status == "failed" for result in self.results)

    def close(self) -> None:
        """The counts, on standard error."""
        done, unchanged = (sum(each.status == status for each in self.results) for status in ("done", "unchanged"))
        total = len(self.results)
        text = f"{total} scenes: {done} done, {unchanged} unchanged, {self.failed} failed"
        err.print(text, highlight=False)


@contextlib.contextmanager
def scene_bar(lines: SceneLines, name: str) -> "Iterator[Any]":
    """`lines`, with a bar over all scenes where standard error is a terminal."""
    if lines.as_json or not err.is_terminal:
        yield lines
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, TextColumn("{task.fields[now]}"), console=err, transient=True) as shown:
        task = shown.add_task(name, total=None, now="")

        def listen(event: Progress | SceneResult) -> None:
            lines(event)
            if isinstance(event, Progress) and event.phase == "archive":
                shown.update(task, completed=event.done, total=event.total)
            elif isinstance(event, Progress):
                shown.update(task, now=f"{event.scene} {event.done / max(event.total, 1):.0%}")

        yield listen


def scene_table(results: list[SceneResult]) -> Any:
    """What was done, scene by scene, and how fast; unchanged ones are only counted."""
    from rich.table import Table

    table = Table("scene", "state", "Mpx", "seconds", "Mpx/s")
    for each in results:
        if each.status == "done":
            speed = f"{each.megapixels / each.seconds:.2f}" if each.seconds else ""
            table.add_row(each.name, each.status, f"{each.megapixels:.2f}", f"{each.seconds:.1f}", speed)
        elif each.status == "failed":
            table.add_row(each.name, "failed")
    return table


def show_results(lines: SceneLines, found: dict[str, Any] | None) -> None:
    """The final table and what held the run up, for people."""
    if not lines.as_json and any(result.status != "unchanged" for result in lines.results):
        out.print(scene_table(lines.results))
    if not lines.as_json and found:
        out.print(rows(bottleneck(found)))
    lines.close()
