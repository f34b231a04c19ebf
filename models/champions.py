"""Who is champion, and who ever was: pointer and history are one file, which only one of several writers replaces."""

from dataclasses import asdict, dataclass, replace
from typing import Literal

from models.errors import ConflictError, RegistryError
from models.registry_json import SCHEMA, now, read_json, short, to_json
from models.shelf import Shelf

POINTER = "champion.json"

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
class Champions:
    """The reigns of a shelf's bundles. Each is one write that fails where somebody else was faster."""

    shelf: Shelf

    def history(self) -> list[Champion]:
        """Everybody who was champion, newest last."""
        return self._history()[0]

    def present(self) -> Champion | None:
        """Who is champion; None before the first promotion."""
        history = self.history()
        return history[-1] if history else None

    def crown(
        self, digest: str, *, by: str, why: str, expected: str | None, labels: str | None, sealed: str | None
    ) -> Champion:
        """Begin a reign in the place of `expected`; who reigns already keeps the reign that began earlier.

        Raises:
            ConflictError: somebody else is champion by now.
            RegistryError: the sealed chips are not here.
        """
        if sealed is not None and not self.shelf.holds_sealed(sealed):
            raise RegistryError(f"{self.shelf.place} holds no sealed chips {sealed[:12]}")
        history, version = self._history()
        present = history[-1] if history else None
        if present and present.digest == digest:
            return present
        if (found := present.digest if present else None) != expected:
            raise ConflictError(
                f"{self.shelf.place}: the champion is {short(found)} by now, not {short(expected)}: "
                "compare with that one"
            )
        back = len(history) - 1 if history else None
        ground = sealed or (present.sealed if present else None)
        champion = Champion(digest, now(), by, why, found, labels, ground, "promote", back)
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
            raise RegistryError(f"{self.shelf.place}: the champion has replaced nobody that it could give way to")
        present, former = history[-1], history[history[-1].back]
        if not self.shelf.holds(former.digest):
            raise RegistryError(
                f"{self.shelf.place} does not hold {former.digest[:12]} any more: add it, or promote another"
            )
        sealed = former.sealed or present.sealed
        champion = replace(former, since=now(), by=by, why=why, replaced=present.digest, sealed=sealed, kind="rollback")
        self._append(history, champion, version)
        return champion

    def _history(self) -> tuple[list[Champion], str | None]:
        content, version = read_json(self.shelf.store, POINTER)
        if content is None:
            return [], None
        try:
            return [Champion(**reign) for reign in content["history"]], version
        except (KeyError, TypeError) as error:
            raise RegistryError(f"{self.shelf.place}: {POINTER} is damaged ({error}): restore it") from error

    def _append(self, history: list[Champion], champion: Champion, version: str | None) -> None:
        reigns = [asdict(reign) for reign in (*history, champion)]
        self.shelf.store.write(
            POINTER, to_json({"schema": SCHEMA, "champion": champion.digest, "history": reigns}), version
        )
