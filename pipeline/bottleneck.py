"""What held a run up, and what would help: from what its workers and their engines did with their time."""

from dataclasses import dataclass
from typing import Any, Literal

from models.engines.meter import Times

Limit = Literal["engine", "input", "output", "start", "publish"]

LOSS = 0.1
"""Share of a run's time below which a loss is not worth a word: then the engine itself is the limit."""


@dataclass(frozen=True)
class Spent:
    """Where the time of a run went, in seconds; those of workers add up.

    A scene is published once it is segmented, and so are small scenes that went through an engine together. An archive
    publishes some scenes while it segments others: all of its time is `segment`.
    """

    segment: float
    """Wall time until the last block was written; of an archive, from its listing to the end of its last scene."""
    publish: float
    """Wall time from then to the last file; of an archive none."""
    workers: int
    """Processes that segmented side by side: each has an engine."""
    engine: Times
    """What their engines did."""
    start: float
    """They loaded engines; for small scenes of an archive they prepare them too, which takes minutes the first time."""
    staging: float
    """They copied the scene into image.zarr."""
    read: float
    """Their threads read blocks, beside the engine."""
    write: float
    """Their threads wrote blocks, beside the engine."""
    pixels: int
    """Scene pixels that were segmented."""
    readers: int
    """Most threads of a worker that read."""
    writers: int
    """Most threads of a worker that wrote."""
    staged: bool
    """Whether blocks were read from image.zarr; of an archive, whether some were."""
    opening: float = 0.0
    """They opened small scenes: header, plan, folder. What is large is opened beside them."""
    publishing: float = 0.0
    """They published scenes of an archive, beside the segmenting of others."""
    together: int = 1
    """Scenes whose times these are."""

    @property
    def wall(self) -> float:
        """All of the run's time."""
        return self.segment + self.publish

    @property
    def idle(self) -> float:
        """Workers waited for a task, or for the slowest of them; of an archive, also for its listing and its plans."""
        return max(self.workers * self.segment - self._told, 0.0)

    @property
    def engine_share(self) -> float:
        """Share of the workers' time, until the last block was written, in which an engine computed."""
        return self.engine.busy / self._worked

    @property
    def losses(self) -> dict[Limit, float]:
        """Shares of the run's wall time in which no engine computed, by what it waited for.

        They are means over the workers: one of two that idles all the time is a loss of a half. While a scene is
        published no worker segments, so that it counts for all of them; while an archive publishes the others go on.
        """
        lost: dict[Limit, float] = {
            "input": self.engine.input + self.staging + self.opening,
            "output": self.engine.output + self.engine.handling,
            "start": self.start + self.idle,
            "publish": self.publishing,
        }
        shares = {limit: seconds / self._worked * self.segment / self.wall for limit, seconds in lost.items()}
        return {**shares, "publish": shares["publish"] + self.publish / self.wall}

    @property
    def limit(self) -> Limit:
        """What to look at first: the largest loss if it is worth it, else the engine."""
        limit, share = max(self.losses.items(), key=lambda loss: loss[1])
        return limit if share >= LOSS else "engine"

    @property
    def advice(self) -> str:
        """One sentence: the figure, and what would help."""
        share = self.losses.get(self.limit, 0.0)
        match self.limit:
            case "engine":
                busy = f"the engine was busy {100 * self.engine_share:.0f} % of the time"
                return f"{busy}: only a faster engine or more workers help"
            case "input":
                return f"the engine waited {100 * share:.0f} % of the time for input{self._input_advice()}"
            case "output":
                threads = "one thread" if self.writers == 1 else f"up to {self.writers} threads"
                waited = f"the engine waited {100 * share:.0f} % of the time for its output to be written by {threads}"
                return f"{waited}: put --out on a faster disk"
            case "start":
                waited = f"loading the engine and waiting for work took {100 * share:.0f} % of the time"
                return f"{waited}: {self._start_advice()} make it count less"
            case "publish":
                return f"publishing took {100 * share:.0f} % of the time: more workers write more files at once"

    def to_json(self) -> dict[str, Any]:
        """For `run.json` and `archive.json`; `together` is 1 for a scene by itself."""
        seconds = {
            "start": self.start,
            "open": self.opening,
            "stage": self.staging,
            "read": self.read,
            "engine": self.engine.busy,
            "waiting_for_input": self.engine.input,
            "waiting_for_output": self.engine.output,
            "handling": self.engine.handling,
            "write": self.write,
            "idle": self.idle,
            "publish": self.publish + self.publishing,
        }
        return {
            "together": self.together,
            "limit": self.limit,
            "advice": self.advice,
            "engine_share": round(self.engine_share, 4),
            "losses": {limit: round(share, 4) for limit, share in self.losses.items()},
            "wall": round(self.wall, 3),
            "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
            "megapixels_per_second": round(self.pixels / 1e6 / self.segment, 3),
            "workers": self.workers,
            "readers": self.readers,
            "writers": self.writers,
        }

    @property
    def _worked(self) -> float:
        """Seconds of all workers together: more than the wall time allows where their clocks overlap its edges."""
        return max(self.workers * self.segment, self._told)

    @property
    def _told(self) -> float:
        """Seconds of workers of which it is known what they did."""
        return self.start + self.staging + self.opening + self.publishing + self.engine.total

    def _start_advice(self) -> str:
        ways = ["larger scenes", "many scenes in one run"] if self.together == 1 else ["more scenes in one run"]
        ways += ["fewer workers"] * (self.workers > 1)
        return f"{', '.join(ways[:-1])}, or {ways[-1]}" if len(ways) > 2 else " or ".join(ways)

    def _input_advice(self) -> str:
        if self.opening > max(self.staging, self.engine.input):
            return ", most of it for small scenes to be opened: more workers open more at once"
        if self.staging > self.engine.input:
            return ", most of it to be copied into image.zarr: a tiled source (a COG) is read where it lies"
        threads = "one thread reading" if self.readers == 1 else f"up to {self.readers} threads reading"
        fewer = ", or use fewer workers" if self.workers > 1 else ""
        if self.together > 1:
            return f", with {threads}: put the scenes{' and --out' * self.staged} on a faster disk{fewer}"
        if self.staged:
            return f", with {threads}: put --out on a faster disk{fewer}"
        return f", with {threads}: stage the scene (--stage always), or put it on a faster disk"
