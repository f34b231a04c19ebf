"""The registry: bundles by digest, and who is champion. Importing it loads no torch.

REGISTRY/                     a folder, or an address such as s3://bucket/models
registry.json                 schema number; written first
champion.json                 everybody who was ever champion, newest last: pointer and history are one file
bundles/<digest>/             the bundle's files, bundle.json last, and what is told of it:
    item.json  gate.json  labels.json  report.html ...
ground.json                   how ground is split, for good
sealed/<sha256>.zip           sealed chips that a champion was accepted on
outcomes/<fingerprint>.json   what became of the labels of this fingerprint: one attempt after the other

Laws. The champion is replaced by one write that fails where somebody else was faster: of several promotions at once
one wins, and the history has no gap. A bundle is there when its bundle.json is. A challenger that waits is claimed in
its outcome before it is crowned: of an approval and a refusal at once one wins. A process that is killed between two
writes leaves a valid registry: who was claimed and never crowned still waits.
"""

from dataclasses import dataclass
from pathlib import Path

from models.approvals import Approvals, Waiting
from models.champions import Champion, Champions
from models.errors import ConflictError, RegistryError
from models.outcomes import Attempt, Outcome, Outcomes, State
from models.registry_json import SCHEMA, now, read_json, to_json
from models.registry_store import SCHEMES, Store, open_store
from models.shelf import INDEX, Shelf

MARK = "registry.json"


@dataclass(frozen=True)
class Entry:
    """A bundle of the registry, as lists show it."""

    digest: str
    name: str
    """Of the model, from its spec."""
    created: str | None
    """When its item was made, ISO 8601."""
    derived_from: str | None
    """Digest of the bundle that it was made from."""
    accepted: bool | None
    """What the gate said; None if it was never asked."""
    champion: bool


@dataclass(frozen=True)
class Registry(Shelf):
    """An open registry: a shelf of bundles of which one is champion, and what became of labels."""

    def bundles(self) -> list[Entry]:
        """What there is, oldest first."""
        champion = self.champion()
        entries = [self._entry(digest, champion) for digest in self.digests()]
        return sorted(entries, key=lambda entry: (entry.created or "", entry.digest))

    def _entry(self, digest: str, champion: Champion | None) -> Entry:
        spec, item, gate = (self.told(digest, name) or {} for name in ("spec.json", "item.json", "gate.json"))
        return Entry(
            digest=digest,
            name=spec.get("name", ""),
            created=item.get("properties", {}).get("created"),
            derived_from=spec.get("derived_from"),
            accepted=gate.get("accepted"),
            champion=champion is not None and champion.digest == digest,
        )

    # the champion

    @property
    def _champions(self) -> Champions:
        return Champions(self)

    def history(self) -> list[Champion]:
        """Everybody who was champion, newest last."""
        return self._champions.history()

    def champion(self) -> Champion | None:
        """Who is champion; None before the first promotion."""
        return self._champions.present()

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
        """Make a bundle champion in the place of `expected`: `Approvals.promote`."""
        return self._approvals.promote(digest, by=by, why=why, expected=expected, labels=labels, sealed=sealed)

    def rollback(self, *, by: str, why: str) -> Champion:
        """Undo the last promotion that is not undone yet: `Champions.rollback`."""
        return self._champions.rollback(by=by, why=why)

    # what became of labels

    @property
    def _outcomes(self) -> Outcomes:
        return Outcomes(self.store)

    def outcome(self, fingerprint: str) -> Outcome | None:
        """What became of the labels of this fingerprint; None if nothing yet."""
        return self._outcomes.of(fingerprint)

    def outcomes(self) -> list[Outcome]:
        """All outcomes, by fingerprint."""
        return self._outcomes.all()

    def attempts(self, fingerprint: str) -> tuple[Attempt, ...]:
        """All that was tried with the labels of this fingerprint, oldest first."""
        return self._outcomes.attempts(fingerprint)

    def of_run(self, run: str) -> Outcome | None:
        """The outcome of the labels whose challenger `run` left to somebody's approval, decided or not."""
        return self._outcomes.of_run(run)

    def record(self, fingerprint: str, attempt: Attempt, *, after: State | None = None) -> Outcome:
        """Append an attempt, where the state is `after` by then: `Outcomes.record`."""
        return self._outcomes.record(fingerprint, attempt, after=after)

    def retry(self, prefix: str, *, by: str, why: str = "") -> Outcome:
        """Have labels learnt from again, whatever became of them: `Outcomes.retry`."""
        return self._outcomes.retry(prefix, by=by, why=why)

    # who waits for approval

    @property
    def _approvals(self) -> Approvals:
        return Approvals(self)

    def settled(self, fingerprint: str) -> bool:
        """Whether these labels need no further training: `Approvals.settled`."""
        return self._approvals.settled(fingerprint)

    def waiting(self) -> list[Waiting]:
        """Challengers that wait for approval, longest first."""
        return self._approvals.waiting()

    def approve(self, prefix: str, *, by: str, why: str = "") -> Champion:
        """Make a waiting challenger champion: `Approvals.approve`."""
        return self._approvals.approve(prefix, by=by, why=why)

    def decline(self, prefix: str, *, by: str, why: str) -> None:
        """Settle the labels of a waiting challenger as refused: `Approvals.decline`."""
        self._approvals.decline(prefix, by=by, why=why)


def open_registry(place: Path | str | Store, *, create: bool = False, cache: Path | None = None) -> Registry:
    """The registry at a folder or an address.

    Args:
        place: the folder, an address, or a store.
        create: make it where there is none.
        cache: where bundles from an object store are kept; the user's cache if None.

    Raises:
        RegistryError: there is none, it is of another schema, or its store cannot replace a file on condition.
    """
    store = open_store(place) if isinstance(place, Path | str) else place
    content, _ = read_json(store, MARK)
    if content is None and create:
        _create(store)
    elif content is None:
        raise RegistryError(f"{store.place} is no registry: {MARK} is missing; `widefield registry add` makes one")
    return Registry(store, cache)


def _create(store: Store) -> None:
    if store.read(INDEX) is not None:
        raise RegistryError(f"{store.place} is a bundle: a registry needs a folder of its own")
    mark = {"schema": SCHEMA, "created": now()}
    try:
        store.begin(MARK, to_json({"schema": SCHEMA}), to_json(mark))
    except ConflictError:
        read_json(store, MARK)


def resolve(place: Path | str) -> Path:
    """The folder of a bundle: a registry stands for its champion, anything else for itself.

    Raises:
        RegistryError: the registry has no champion.
    """
    if not str(place).startswith(SCHEMES):
        folder = Path(place)
        if not (folder / MARK).is_file() or (folder / INDEX).is_file():
            return folder
    registry = open_registry(place)
    champion = registry.champion()
    if champion is None:
        raise RegistryError(f"{registry.place} has no champion yet: `widefield registry promote` makes one")
    return registry.folder(champion.digest)
