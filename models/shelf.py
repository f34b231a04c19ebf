"""What lies in a registry and never changes under its name: bundles, sealed chips, and how ground is split."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.bundle import FILES, NETWORK, Bundle, files_of, open_bundle
from models.engines.cache import Cache
from models.errors import BundleError, RegistryError
from models.registry_json import SCHEMA, read_json, to_json
from models.registry_store import Store

INDEX, GROUND = "bundle.json", "ground.json"

_DIGEST = re.compile("[0-9a-f]{64}")
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Shelf:
    """Bundles and sealed chips by digest. It holds no state of its own: every answer is what the store says then."""

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
        extra = {name: to_json(value) for name, value in told.items() if value is not None} | dict(files or {})
        for name in extra:
            if not _FILE.fullmatch(name) or name in {*FILES, NETWORK, INDEX}:
                raise RegistryError(f"{name!r} cannot lie beside a bundle's files: give it another name")
        for name, content in extra.items():
            self.store.put(_of(bundle.digest, name), content)
        if not self._is_whole(bundle.digest):
            for name in (*bundle.files, INDEX):
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

    def told(self, digest: str, name: str) -> dict[str, Any] | None:
        """The JSON file `name` beside a bundle, or None."""
        return read_json(self.store, _of(digest, name))[0]

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
            self.store.copy(_of(digest, INDEX), target / INDEX)
            for name in files_of(target):
                self.store.copy(_of(digest, name), target / name)
            open_bundle(target)

        return Cache(self.cache).make("bundles", {"digest": digest}, download).path

    # sealed chips

    def seal(self, file: Path) -> str:
        """Keep a file of sealed chips; the digest that names it from now on."""
        digest = _sha256(file)
        self.store.put(_sealed(digest), file)
        return digest

    def holds_sealed(self, digest: str) -> bool:
        """Whether the sealed chips of this digest are there."""
        return _sealed(digest) in self.store.list("sealed")

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

    # ground

    def ground(self) -> dict[str, Any] | None:
        """How ground is split into what is trained on and what is sealed, as `keep_ground` took it."""
        facts = read_json(self.store, GROUND)[0]
        return None if facts is None else dict(facts["ground"])

    def keep_ground(self, ground: Mapping[str, Any]) -> None:
        """Keep the split of the ground for good: chips may be cut anew elsewhere, and ground must not move.

        Raises:
            RegistryError: another split is kept already.
        """
        kept = self.ground()
        if kept is None:
            self.store.write(GROUND, to_json({"schema": SCHEMA, "ground": dict(ground)}), None)
        elif kept != dict(ground):
            raise RegistryError(f"{self.place} keeps the split {kept}, the chips have {dict(ground)}: cut them anew")


def _of(digest: str, name: str = "") -> str:
    if not _DIGEST.fullmatch(digest):
        raise RegistryError(f"{digest!r} is no digest: it needs 64 hexadecimal digits")
    return f"bundles/{digest}/{name}".rstrip("/")


def _sealed(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise RegistryError(f"{digest!r} is no digest of sealed chips: it needs 64 hexadecimal digits")
    return f"sealed/{digest}.zip"


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
