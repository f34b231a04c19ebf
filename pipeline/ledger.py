"""What is done: a record for each block whose shard is durable, kept beside the output store.

Every process appends to a file of its own, so there is one writer a file and no lock; the ledger is their union. A
line that a killed writer left unfinished is not a record. A record says what was stored, so that a rerun can trust
it and `verify` can prove it.
"""

import json
import marshal
import os
import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from operator import attrgetter
from pathlib import Path

from pipeline.grid import Window
from pipeline.shards import sync

SCHEMA = 1


@dataclass(frozen=True)
class BlockRecord:
    """The facts about one finished block."""

    row: int
    """First scene row of the block."""
    col: int
    """First scene column of the block."""
    height: int
    """Rows of the block."""
    width: int
    """Columns of the block."""
    digest: str
    """SHA-256 over the block's shards, in plane order."""
    valid: int
    """Valid pixels of the scene in this block."""
    counts: dict[int, int]
    """Pixels by class; classes that do not occur are left out."""
    areas: dict[int, float]
    """Square metres by class, on the ellipsoid or on a slide; empty where a pixel's size is not known."""
    confidence: tuple[int, ...]
    """Valid pixels by confidence, in 16 bins of equal width over 0..1."""
    tiles: int
    """Tiles that the engine ran for this block."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage: `read`, `wait` (for the engine), `write`."""

    @property
    def window(self) -> Window:
        """The block, in scene pixels."""
        return Window(self.row, self.col, self.height, self.width)

    @property
    def classified(self) -> int:
        """Pixels that carry a class."""
        return sum(self.counts.values())

    def to_line(self) -> str:
        """One line of JSON, without the newline."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_line(cls, line: str) -> "BlockRecord":
        """The inverse of `to_line`.

        Raises:
            ValueError: the line is torn, or of a schema that is not known.
        """
        facts = json.loads(line)
        if not isinstance(facts, dict) or facts.pop("schema", None) != SCHEMA:
            raise ValueError("not a block record of schema 1")
        facts["counts"] = {int(key): value for key, value in facts["counts"].items()}
        facts["areas"] = {int(key): value for key, value in facts["areas"].items()}
        facts["confidence"] = tuple(facts["confidence"])
        return cls(**facts)


_VALUES = attrgetter(*(field.name for field in fields(BlockRecord)))


class Packed(MutableMapping[tuple[int, int], BlockRecord]):
    """Records by their block's first (row, col), in a fifth of the memory: a run over 1e5 blocks holds them all."""

    def __init__(self, records: Mapping[tuple[int, int], BlockRecord] | None = None) -> None:
        """Of `records`, to begin with."""
        self._packed: dict[int, bytes] = {}
        self.update(records or {})

    def __setitem__(self, place: tuple[int, int], record: BlockRecord) -> None:
        self._packed[_number(place)] = marshal.dumps(_VALUES(record))

    def __getitem__(self, place: tuple[int, int]) -> BlockRecord:
        return BlockRecord(*marshal.loads(self._packed[_number(place)]))  # noqa: S302 - of this process's own making

    def __delitem__(self, place: tuple[int, int]) -> None:
        del self._packed[_number(place)]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return (divmod(number, _ROW) for number in self._packed)

    def __len__(self) -> int:
        return len(self._packed)


_ROW = 2**31
"""More columns than a scene has."""


def _number(place: tuple[int, int]) -> int:
    """A place in one number: a pair would take four times as much memory."""
    return place[0] * _ROW + place[1]


@dataclass(frozen=True)
class Ledger:
    """The records of one output store: a folder of append-only files, one for each process that ever wrote."""

    folder: Path

    def append(self, record: BlockRecord) -> None:
        """Add `record` durably. Call it only after the block's shards are durable."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{_process_name(os.getpid())}.jsonl"
        created = not path.exists()
        with path.open("a", encoding="utf-8") as file:
            file.write(record.to_line() + "\n")
            file.flush()
            os.fsync(file.fileno())
        if created:
            sync(self.folder)

    def records(self) -> dict[tuple[int, int], BlockRecord]:
        """All records by the block's first (row, col). Of two records for one block the later file wins."""
        return {(record.row, record.col): record for record in self._read()}

    def _read(self) -> Iterator[BlockRecord]:
        for path in sorted(self.folder.glob("*.jsonl")):
            yield from _records(path.read_bytes())

    def compact(self, records: Iterable[BlockRecord]) -> None:
        """Replace the folder's files by one that holds `records`: call it when no writer is left."""
        old = list(self.folder.glob("*.jsonl"))
        merged = self.folder / "merged.jsonl"
        partial = merged.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(record.to_line() + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(merged)
        for path in old:
            if path != merged:
                path.unlink()
        sync(self.folder)


def _records(lines: bytes) -> Iterator[BlockRecord]:
    """The records of a file's lines; a torn line is none."""
    for line in lines.decode(errors="replace").splitlines():
        try:
            yield BlockRecord.from_line(line)
        except (ValueError, KeyError, TypeError):
            continue


class Tail:
    """A ledger that is looked at again and again: all looks together read it once."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._read: dict[Path, int] = {}
        """Bytes of whole lines that have been taken in, by file."""
        self._records: dict[tuple[int, int], BlockRecord] = {}

    def records(self) -> dict[tuple[int, int], BlockRecord]:
        """All records so far by the block's first (row, col)."""
        for path in sorted(self._ledger.folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole = file.read().rpartition(b"\n")[0]
            self._read[path] = self._read.get(path, 0) + (len(whole) + 1 if whole else 0)
            self._records |= {(record.row, record.col): record for record in _records(whole)}
        return self._records


@lru_cache(maxsize=4)
def _process_name(pid: int) -> str:
    return f"{socket.gethostname()}-{pid}-{uuid.uuid4().hex[:8]}"
