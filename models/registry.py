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

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from models.bundle import FILES, Bundle, open_bundle
from models.engines.cache import Cache
from models.errors import BundleError, ConflictError, RegistryError
from models.registry_store import SCHEMES, Store, open_store

SCHEMA = 1
MARK, POINTER, INDEX, GROUND = "registry.json", "champion.json", "bundle.json", "ground.json"
TRIES = 3
"""After so many failures, labels are left alone until they change, or somebody wants another try."""
PATIENCE = 20
"""Times that an attempt is recorded again, because another process recorded one meanwhile."""

_DIGEST = re.compile("[0-9a-f]{64}")
_FINGERPRINT = re.compile("[0-9a-f]{8,128}")
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")

State = Literal["running", "promoted", "refused", "failed", "waiting", "cancelled", "retry"]
Kind = Literal["promote", "rollback"]


@dataclass(frozen=True)
class Champion:
    """A reign: one line of the history."""

    digest: str
    """The bundle."""
    since: str
    """When it became champion, ISO 8601, UTC."""
    by: str
    """Who made it champion."""
    why: str
    replaced: str | None
    """Digest of the champion before; None for the first."""
    labels: str | None = None
    """Fingerprint of the labels that it was trained on."""
    sealed: str | None = None
    """Digest of the sealed chips that it was accepted on."""
    kind: Kind = "promote"
    back: int | None = None
    """Place in the history (0 is the oldest) of the reign that a rollback returns to."""


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
class Attempt:
    """A retraining, or a step of it, on labels of one fingerprint."""

    state: State
    reason: str = ""
    bundle: str | None = None
    """Digest of the challenger, where there is one."""
    champion: str | None = None
    """Digest of the champion that it was compared with."""
    sealed: str | None = None
    """Digest of the sealed chips that it is to be champion with."""
    at: str = ""
    """When it was recorded, ISO 8601, UTC."""
    run: str | None = None
    """What the caller calls the run that made it."""


@dataclass(frozen=True)
class Outcome:
    """What became of the labels of one fingerprint."""

    fingerprint: str
    attempts: tuple[Attempt, ...]

    @property
    def state(self) -> State:
        """Of the last attempt."""
        return self.attempts[-1].state

    @property
    def failures(self) -> int:
        """Attempts that failed since somebody last wanted another try."""
        states = [attempt.state for attempt in self.attempts]
        since = len(states) - states[::-1].index("retry") if "retry" in states else 0
        return states[since:].count("failed")

    def run_waited(self, run: str) -> bool:
        """Whether `run` has left a challenger to somebody's approval, decided or not."""
        return any(attempt.run == run and attempt.state == "waiting" for attempt in self.attempts)


@dataclass(frozen=True)
class Waiting:
    """A challenger that the gate has accepted, and that somebody must approve."""

    fingerprint: str
    """Of the labels."""
    attempt: Attempt

    @property
    def bundle(self) -> str:
        """The challenger's digest."""
        return self.attempt.bundle or ""

    @property
    def run(self) -> str | None:
        """What left it waiting."""
        return self.attempt.run


@dataclass(frozen=True)
class Registry:
    """An open registry. It holds no state of its own: every answer is what the store says at that moment."""

    store: Store
    cache: Path | None = field(default=None, repr=False)
    """Where bundles from an object store are kept; the user's cache if None."""

    @property
    def place(self) -> str:
        """The folder or address."""
        return self.store.place

    # bundles

    def add(
        self,
        bundle: Bundle,
        *,
        item: Mapping[str, Any] | None = None,
        gate: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Take a bundle in, under its digest; what is there already and whole is not copied again.

        `item` and `gate` become item.json and gate.json, `files` lie beside them; they replace earlier ones.

        Raises:
            RegistryError: one of `files` has no plain name, or that of a file of the bundle.
        """
        told = {"item.json": item, "gate.json": gate}
        extra = {name: _to_json(value) for name, value in told.items() if value is not None} | dict(files or {})
        for name in extra:
            if not _FILE.fullmatch(name) or name in {*FILES, INDEX}:
                raise RegistryError(f"{name!r} cannot lie beside a bundle's files: give it another name")
        for name, content in extra.items():
            self.store.put(_of(bundle.digest, name), content)
        if not self._is_whole(bundle.digest):
            for name in (*FILES, INDEX):
                self.store.put(_of(bundle.digest, name), bundle.path / name)

    def _is_whole(self, digest: str) -> bool:
        """Whether the bundle is there; in a folder, whether every byte is as it was."""
        folder = self.store.path(_of(digest))
        if folder is None:
            return self.holds(digest)
        try:
            return open_bundle(folder).digest == digest
        except BundleError:
            return False

    def holds(self, digest: str) -> bool:
        """Whether the bundle of this whole digest is there."""
        return self.store.read(_of(digest, INDEX)) is not None

    def digests(self) -> list[str]:
        """Digests of all bundles that are complete."""
        names = [name.split("/") for name in self.store.list("bundles")]
        return [parts[1] for parts in names if len(parts) == 3 and parts[2] == INDEX and _DIGEST.fullmatch(parts[1])]

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

    def told(self, digest: str, name: str) -> dict[str, Any] | None:
        """The JSON file `name` beside a bundle, or None."""
        return _read_json(self.store, _of(digest, name))[0]

    def labels(self, digest: str) -> dict[str, str]:
        """Digests of the labels that a bundle learnt from, by scene, where labels.json beside it tells them."""
        return self.told(digest, "labels.json") or {}

    def find(self, prefix: str) -> str:
        """The digest that begins with `prefix`; a whole digest, or as much of it as fits one bundle alone.

        Raises:
            RegistryError: no bundle begins so, or several do.
        """
        if not re.fullmatch("[0-9a-f]{1,64}", prefix):
            raise RegistryError(f"{prefix!r} is no digest: give its first hexadecimal digits")
        fitting = [digest for digest in self.digests() if digest.startswith(prefix)]
        if not fitting:
            raise RegistryError(f"{self.place} holds no bundle {prefix}: `widefield registry list` names all")
        if len(fitting) > 1:
            raise RegistryError(f"{len(fitting)} bundles begin with {prefix}: give more digits of the digest")
        return fitting[0]

    def bundle(self, prefix: str) -> Bundle:
        """The bundle of a digest or a unique prefix, verified; from an object store by way of a private cache.

        Raises:
            RegistryError: there is none, or several.
            BundleError: a byte of it has changed.
        """
        digest = self.find(prefix)
        bundle = open_bundle(self.folder(digest))
        if bundle.digest != digest:
            raise BundleError(f"{bundle.path} holds another bundle, {bundle.digest[:12]}: add the right one again")
        return bundle

    def folder(self, digest: str) -> Path:
        """Where the files of a bundle lie on this machine."""
        folder = self.store.path(_of(digest))
        if folder is not None:
            return folder

        def download(target: Path) -> None:
            for name in (*FILES, INDEX):
                self.store.copy(_of(digest, name), target / name)
            open_bundle(target)

        return Cache(self.cache).make("bundles", {"digest": digest}, download).path

    # sealed chips

    def seal(self, file: Path) -> str:
        """Keep a file of sealed chips; the digest that names it from now on."""
        digest = _sha256(file)
        self.store.put(_sealed(digest), file)
        return digest

    def sealed(self, digest: str) -> Path:
        """The file of sealed chips, verified.

        Raises:
            RegistryError: it is missing, or a byte has changed.
        """
        path = self.store.path(_sealed(digest))
        if path is None:

            def download(target: Path) -> None:
                self.store.copy(_sealed(digest), target / "chips.zip")

            path = Cache(self.cache).make("sealed", {"digest": digest}, download).path / "chips.zip"
        try:
            found = _sha256(path)
        except OSError as error:
            raise RegistryError(f"{path} cannot be read ({error.strerror}): restore it") from error
        if found != digest:
            raise RegistryError(f"{path} has changed since it was sealed: restore it")
        return path

    def ground(self) -> dict[str, Any] | None:
        """How ground is split into what is trained on and what is sealed, as `keep_ground` took it."""
        facts = _read_json(self.store, GROUND)[0]
        return None if facts is None else dict(facts["ground"])

    def keep_ground(self, ground: Mapping[str, Any]) -> None:
        """Keep the split of the ground for good: chips may be cut anew elsewhere, and ground must not move.

        Raises:
            RegistryError: another split is kept already.
        """
        kept = self.ground()
        if kept is None:
            self.store.write(GROUND, _to_json({"schema": SCHEMA, "ground": dict(ground)}), None)
        elif kept != dict(ground):
            raise RegistryError(f"{self.place} keeps the split {kept}, the chips have {dict(ground)}: cut them anew")

    # the champion

    def history(self) -> list[Champion]:
        """Everybody who was champion, newest last."""
        return self._history()[0]

    def champion(self) -> Champion | None:
        """Who is champion; None before the first promotion."""
        history = self.history()
        return history[-1] if history else None

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
        """Make a bundle champion in the place of `expected`, the digest that the caller saw there (None: nobody).

        The one who is champion already stays so: the reign that is returned is then the one that began earlier, whoever
        began it. A challenger that waited for approval waits no longer, and brings the labels and sealed chips that it
        waited with; without any, the sealed chips of the champion before stay in force.

        Raises:
            ConflictError: somebody else is champion by now, or the challenger was declined meanwhile.
            RegistryError: the bundle or the sealed chips are not here.
        """
        if not self.holds(digest):
            raise RegistryError(f"{self.place} holds no bundle {digest[:12]}: `widefield registry add` it first")
        waiting = [each for each in self._undecided() if each.bundle == digest]
        for each in waiting:
            labels, sealed = labels or each.fingerprint, sealed or each.attempt.sealed
        with contextlib.ExitStack() as claimed:
            for each in waiting:
                self._claim(each, f"promoted by {by}: {why}", claimed)
            champion = self._crown(digest, by=by, why=why, expected=expected, labels=labels, sealed=sealed)
            claimed.pop_all()
        return champion

    def _claim(self, waiting: Waiting, reason: str, claimed: contextlib.ExitStack) -> None:
        """Settle the labels as promoted; given back when `claimed` is closed."""
        left, fingerprint = waiting.attempt, waiting.fingerprint
        self.record(fingerprint, replace(left, state="promoted", reason=reason), after=left.state)

        def give_back() -> None:
            with contextlib.suppress(ConflictError):
                self.record(fingerprint, replace(left, state="waiting"), after="promoted")

        claimed.callback(give_back)

    def _crown(
        self, digest: str, *, by: str, why: str, expected: str | None, labels: str | None, sealed: str | None
    ) -> Champion:
        if sealed is not None and _sealed(sealed) not in self.store.list("sealed"):
            raise RegistryError(f"{self.place} holds no sealed chips {sealed[:12]}")
        history, version = self._history()
        present = history[-1] if history else None
        if present and present.digest == digest:
            return present
        if (found := present.digest if present else None) != expected:
            raise ConflictError(
                f"{self.place}: the champion is {_short(found)} by now, not {_short(expected)}: compare with that one"
            )
        back = len(history) - 1 if history else None
        ground = sealed or (present.sealed if present else None)
        champion = Champion(digest, _now(), by, why, found, labels, ground, "promote", back)
        self._append(history, champion, version)
        return champion

    def rollback(self, *, by: str, why: str) -> Champion:
        """Undo the last promotion that is not undone yet; again: the one before it.

        Ground that is sealed stays so: where the former champion was accepted on none, that of the present one stays.

        Raises:
            RegistryError: the champion has replaced nobody.
            ConflictError: somebody else has changed the champion meanwhile.
        """
        history, version = self._history()
        if not history or history[-1].back is None:
            raise RegistryError(f"{self.place}: the champion has replaced nobody that it could give way to")
        present, former = history[-1], history[history[-1].back]
        if not self.holds(former.digest):
            raise RegistryError(f"{self.place} does not hold {former.digest[:12]} any more: add it, or promote another")
        sealed = former.sealed or present.sealed
        champion = replace(
            former, since=_now(), by=by, why=why, replaced=present.digest, sealed=sealed, kind="rollback"
        )
        self._append(history, champion, version)
        return champion

    def _history(self) -> tuple[list[Champion], str | None]:
        content, version = _read_json(self.store, POINTER)
        if content is None:
            return [], None
        try:
            return [Champion(**reign) for reign in content["history"]], version
        except (KeyError, TypeError) as error:
            raise RegistryError(f"{self.place}: {POINTER} is damaged ({error}): restore it") from error

    def _append(self, history: list[Champion], champion: Champion, version: str | None) -> None:
        reigns = [asdict(reign) for reign in (*history, champion)]
        self.store.write(POINTER, _to_json({"schema": SCHEMA, "champion": champion.digest, "history": reigns}), version)

    # outcomes

    def outcome(self, fingerprint: str) -> Outcome | None:
        """What became of the labels of this fingerprint; None if nothing yet."""
        return self._outcome(fingerprint)[0]

    def settled(self, fingerprint: str) -> bool:
        """Whether these labels need no further training: promoted, refused, waiting, or failed `TRIES` times.

        A challenger waits only as long as the champion is the one that it was compared with.
        """
        outcome = self.outcome(fingerprint)
        if outcome is None:
            return False
        history = self.history()
        if _waits(outcome, history):
            return not _superseded(outcome.attempts[-1], history)
        return outcome.state in {"promoted", "refused"} or outcome.failures >= TRIES

    def record(self, fingerprint: str, attempt: Attempt, *, after: State | None = None) -> Outcome:
        """Append an attempt, dated now; what others record at the same time is kept too.

        Args:
            fingerprint: of the labels.
            attempt: what became of them.
            after: append only if this is the state of the last attempt by then; whatever it is if None.

        Raises:
            ConflictError: it is another, or others write all the time.
        """
        for _ in range(PATIENCE):
            outcome, version = self._outcome(fingerprint)
            found = outcome.state if outcome else None
            if after is not None and found != after:
                raise ConflictError(
                    f"{self.place}: the outcome of {fingerprint[:12]} is {found or 'none'} by now, not {after}: "
                    "`widefield registry show` tells what became of it"
                )
            attempts = (*(outcome.attempts if outcome else ()), replace(attempt, at=_now()))
            content = {"schema": SCHEMA, "state": attempt.state, "attempts": [asdict(one) for one in attempts]}
            try:
                self.store.write(_of_labels(fingerprint), _to_json(content), version)
            except ConflictError:
                continue
            return Outcome(fingerprint, attempts)
        raise ConflictError(f"{self.place}: others write the outcome of {fingerprint[:12]} all the time: try again")

    def attempts(self, fingerprint: str) -> tuple[Attempt, ...]:
        """All that was tried with the labels of this fingerprint, oldest first."""
        outcome = self.outcome(fingerprint)
        return outcome.attempts if outcome else ()

    def of_run(self, run: str) -> Outcome | None:
        """The outcome of the labels whose challenger `run` left to somebody's approval, decided or not."""
        return next((outcome for outcome in self.outcomes() if outcome.run_waited(run)), None)

    def outcomes(self) -> list[Outcome]:
        """All outcomes, by fingerprint."""
        names = [Path(name).stem for name in self.store.list("outcomes") if name.endswith(".json")]
        return [found for name in names if _FINGERPRINT.fullmatch(name) and (found := self.outcome(name))]

    def retry(self, prefix: str, *, by: str, why: str = "") -> Outcome:
        """Have the labels whose fingerprint begins with `prefix` learnt from again, whatever became of them.

        Failures before count no more, and a challenger of theirs waits no longer.

        Raises:
            RegistryError: no outcome is of such labels, or several are.
        """
        outcome = self.find_outcome(prefix)
        reason = f"another try wanted by {by}: {why}".rstrip(": ")
        return self.record(outcome.fingerprint, Attempt("retry", reason), after=outcome.state)

    def find_outcome(self, prefix: str) -> Outcome:
        """The outcome of the labels whose fingerprint begins with `prefix`.

        Raises:
            RegistryError: there is none, or there are several.
        """
        fitting = [outcome for outcome in self.outcomes() if outcome.fingerprint.startswith(prefix)]
        if not prefix or not fitting:
            raise RegistryError(
                f"{self.place} has no outcome of labels {prefix!r}: `widefield registry show` lists all"
            )
        if len(fitting) > 1:
            raise RegistryError(f"{len(fitting)} outcomes begin with {prefix}: give more digits of the fingerprint")
        return fitting[0]

    def waiting(self) -> list[Waiting]:
        """Challengers that wait for approval, longest first; not those that another champion has superseded."""
        history = self.history()
        return [each for each in self._undecided() if not _superseded(each.attempt, history)]

    def _undecided(self) -> list[Waiting]:
        """All challengers that were left to somebody's approval, longest first."""
        history = self.history()
        found = [Waiting(each.fingerprint, each.attempts[-1]) for each in self.outcomes() if _waits(each, history)]
        return sorted(found, key=lambda one: one.attempt.at)

    def approve(self, prefix: str, *, by: str, why: str = "") -> Champion:
        """Make a waiting challenger champion, and settle its labels as promoted.

        Raises:
            RegistryError: it does not wait.
            ConflictError: the champion is another than the one that the gate compared it with, or somebody declined it
                meanwhile.
        """
        waiting = self._waiting(prefix)
        if _superseded(waiting.attempt, history := self.history()):
            raise ConflictError(
                f"{waiting.bundle[:12]} was compared with {_short(waiting.attempt.champion)}, but the champion is "
                f"{_short(_reigning(history))} by now: the next look at its labels trains anew against that one"
            )
        reason = why or f"approved: {waiting.attempt.reason}".rstrip(": ")
        return self.promote(waiting.bundle, by=by, why=reason, expected=waiting.attempt.champion)

    def decline(self, prefix: str, *, by: str, why: str) -> None:
        """Settle the labels of a waiting challenger as refused; of a superseded one too.

        Raises:
            RegistryError: it does not wait.
            ConflictError: somebody approves it at this moment.
        """
        waiting = self._waiting(prefix)
        reason = f"declined by {by}: {why}".rstrip(": ")
        refused = replace(waiting.attempt, state="refused", reason=reason)
        self.record(waiting.fingerprint, refused, after="waiting")

    def _waiting(self, prefix: str) -> Waiting:
        digest = self.find(prefix)
        fitting = [waiting for waiting in self._undecided() if waiting.bundle == digest]
        if not fitting:
            raise RegistryError(f"{digest[:12]} does not wait for approval: `widefield registry list` says what does")
        return fitting[-1]

    def _outcome(self, fingerprint: str) -> tuple[Outcome | None, str | None]:
        content, version = _read_json(self.store, name := _of_labels(fingerprint))
        if content is None:
            return None, None
        try:
            attempts = tuple(Attempt(**attempt) for attempt in content["attempts"])
            return Outcome(fingerprint, attempts) if attempts else None, version
        except (KeyError, TypeError) as error:
            raise RegistryError(f"{self.place}: {name} is damaged ({error}): restore it, or delete it") from error


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
    content, _ = _read_json(store, MARK)
    if content is None and create:
        _create(store)
    elif content is None:
        raise RegistryError(f"{store.place} is no registry: {MARK} is missing; `widefield registry add` makes one")
    return Registry(store, cache)


def _create(store: Store) -> None:
    if store.read(INDEX) is not None:
        raise RegistryError(f"{store.place} is a bundle: a registry needs a folder of its own")
    mark = {"schema": SCHEMA, "created": _now()}
    try:
        store.begin(MARK, _to_json({"schema": SCHEMA}), _to_json(mark))
    except ConflictError:
        _read_json(store, MARK)


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


def _waits(outcome: Outcome, history: list[Champion]) -> bool:
    """Whether a challenger was left to somebody's approval, or was claimed for it and never crowned."""
    last, before = outcome.attempts[-1], {attempt.state for attempt in outcome.attempts[-2:-1]}
    claimed = last.state == "promoted" and bool(before & {"waiting", "promoted"})
    return last.state == "waiting" or (claimed and all(reign.digest != last.bundle for reign in history))


def _superseded(left: Attempt, history: list[Champion]) -> bool:
    """Whether the champion is neither the one that a challenger was compared with, nor the challenger itself."""
    return _reigning(history) not in {left.champion, left.bundle}


def _reigning(history: list[Champion]) -> str | None:
    return history[-1].digest if history else None


def _of(digest: str, name: str = "") -> str:
    if not _DIGEST.fullmatch(digest):
        raise RegistryError(f"{digest!r} is no digest: it needs 64 hexadecimal digits")
    return f"bundles/{digest}/{name}".rstrip("/")


def _sealed(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise RegistryError(f"{digest!r} is no digest of sealed chips: it needs 64 hexadecimal digits")
    return f"sealed/{digest}.zip"


def _of_labels(fingerprint: str) -> str:
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise RegistryError(f"{fingerprint!r} is no fingerprint: it needs 8 to 128 hexadecimal digits")
    return f"outcomes/{fingerprint}.json"


def _read_json(store: Store, name: str) -> tuple[dict[str, Any] | None, str | None]:
    """A JSON object and its version; ours carry a schema number, which must be one that this version reads."""
    stored = store.read(name)
    if stored is None:
        return None, None
    try:
        content = json.loads(stored.content)
    except ValueError as error:
        raise RegistryError(f"{store.place}: {name} is damaged: it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise RegistryError(f"{store.place}: {name} is damaged: it is no JSON object")
    if not name.startswith("bundles/") and content.get("schema") != SCHEMA:
        got = content.get("schema")
        raise RegistryError(f"{store.place}: {name} has schema {got}: this version reads schema {SCHEMA}")
    return content, stored.version


def _to_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "nobody"
