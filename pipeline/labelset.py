"""The label archive as a whole: which scenes have labels, and one fingerprint over all of it.

The fingerprint is what a retraining answers to: the registry holds an outcome for it, or somebody has to train.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import LabelError
from pipeline.labels import Labelled, label_files, label_fingerprint, labelled, origin_of
from pipeline.scene import SceneAddress, fingerprint


@dataclass(frozen=True)
class Changes:
    """Scenes by name, against what was known before."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True)
class LabelSet:
    """A label archive, as one look found it."""

    pairs: tuple[Labelled, ...]
    """Scenes with labels, by name."""
    unlabelled: tuple[Path, ...]
    """Scenes without, by name."""
    digests: dict[str, str]
    """Of each labelled scene: its labels' content."""
    fingerprint: str
    """Names all of it: every labelled scene and its labels."""
    age: float
    """Seconds since the youngest of its files was written to."""

    def since(self, before: Mapping[str, str]) -> Changes:
        """What differs from `before`, the digests of another look."""
        now = self.digests
        return Changes(
            added=tuple(sorted(now.keys() - before.keys())),
            changed=tuple(sorted(name for name in now.keys() & before.keys() if now[name] != before[name])),
            removed=tuple(sorted(before.keys() - now.keys())),
        )


def survey(images: Path, labels: Path) -> LabelSet:
    """Look at every labelled scene and at all labels; no pixel of a scene is read.

    Raises:
        LabelError, SceneError: a folder is missing or holds no image, or a file went away meanwhile.
    """
    pairs, unlabelled = labelled(images, labels)
    digests = {pair.name: label_fingerprint(pair.labels, pair.name) for pair in pairs}
    content = hashlib.sha256()
    for pair in pairs:
        scene = fingerprint(SceneAddress(str(pair.image.absolute())))
        content.update(f"{pair.name}\0{scene}\0{digests[pair.name]}\0{_origin(pair)}\n".encode())
    return LabelSet(tuple(pairs), tuple(unlabelled), digests, content.hexdigest(), _age(pairs))


def _age(pairs: Sequence[Labelled]) -> float:
    try:
        files = {file for pair in pairs for file in (pair.image, *label_files(pair.labels, pair.name))}
        return min((abs(time.time() - file.stat().st_mtime) for file in files), default=float("inf"))
    except OSError as error:
        raise LabelError(f"{error.filename} cannot be read: {error.strerror}") from error


def _origin(pair: Labelled) -> str:
    """Who made the labels; what keeps that from being known is for the training to tell."""
    try:
        return origin_of(pair.labels, pair.name)
    except LabelError:
        return ""
