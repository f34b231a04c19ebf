"""What may be opened, decided before GDAL opens anything.

    named       a path that a user typed: trusted as named. VRT, /vsi paths, subdatasets, any driver, sidecars
    archive     found below a root: plain rasters whose name and content agree, with their sidecars, and VRTs
                whose sources are such rasters; all of it below the roots after links are followed
    untrusted   plain rasters by their content alone; sidecars are ignored, VRTs refused

Apart from the names that only GDAL understands, GDAL is given one driver by name.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from pipeline.errors import RefusedError, UnreadableError
from pipeline.sources.files import Facts, File, is_address, local_path, locate
from pipeline.sources.formats import FORMATS, HEAD_BYTES, VRT, Format, sniff, suffix_of
from pipeline.sources.sidecars import is_raster, sidecars
from pipeline.sources.vrt import plain_sources

NAME_LIMIT = 4096
"""Most characters of a path or an address."""
DEPTH_LIMIT = 4
"""Most VRTs inside each other."""
_SUBDATASET = re.compile(r"[A-Za-z][A-Za-z0-9_]*:")


@dataclass(frozen=True)
class Admitted:
    """What may be opened, and how."""

    name: str
    """As the address has it."""
    file: File | None
    """None: a name that only GDAL understands."""
    facts: Facts | None
    driver: str | None
    """GDAL's name of the one driver that may open it; None: GDAL chooses."""
    sidecars: tuple[tuple[File, Facts], ...] = ()
    ignored: tuple[str, ...] = ()
    """Sidecars that are there and are not used."""
    sources: "tuple[Admitted, ...]" = ()
    """The files that a VRT of an archive draws on."""

    @property
    def remote(self) -> bool:
        """Whether bytes come over a network."""
        return self.name.startswith(_NETWORK) if self.file is None else not self.file.local


_NETWORK = tuple(f"/vsi{kind}" for kind in ("curl", "s3", "gs", "az", "adls", "oss", "swift", "hdfs", "webhdfs"))


@dataclass(frozen=True)
class SourcePolicy:
    """Which sources may be opened. Part of a scene's address; of no influence on what its pixels are."""

    trust: Literal["named", "archive", "untrusted"] = "named"
    roots: tuple[str, ...] = ()
    """Local folders or addresses below which everything must lie; empty: no such limit (not for archives)."""
    max_pixels: int = 10**12
    """Most pixels of a scene, rows times columns."""
    max_block_bytes: int = 1 << 30
    """Most decoded bytes of one block of a source: GDAL decodes it as a whole."""

    def __post_init__(self) -> None:
        if self.trust == "archive" and not self.roots:
            raise ValueError("an archive needs at least one root")
        if self.trust not in {"named", "archive", "untrusted"} or min(self.max_pixels, self.max_block_bytes) < 1:
            raise ValueError(f"{self} is no policy")

    def locate(self, name: str) -> File | None:
        """The file that a name means, if it may lie there; None: a name that only GDAL understands. Opens nothing.

        Raises:
            RefusedError: it lies outside the roots, or is no plain file name.
        """
        shown = name if len(name) <= 200 else f"{name[:100]}... ({len(name)} characters)"
        if len(name) > NAME_LIMIT or "\0" in name:
            raise RefusedError(f"{shown!r} is no usable path: at most {NAME_LIMIT} characters, none of them NUL")
        if not is_address(name) and _only_for_gdal(name):
            if self.trust != "named":
                raise RefusedError(
                    f"{shown} is not a plain file: {self._allowed()}; name it by itself, without --untrusted, "
                    "if you trust it"
                )
            return None
        if self.trust != "named" and is_address(name) and ("::" in name or "://" not in name):
            raise RefusedError(f"{shown} chains filesystems: {self._allowed()}")
        self._check_below_roots(name, shown)
        return locate(name)

    def admit(self, name: str, infos: Mapping[str, Mapping[str, Any]] | None = None) -> Admitted:
        """What `name` is and how it may be opened.

        Raises:
            RefusedError: the policy does not allow it.
            UnreadableError: it is missing, empty, or nothing that is known.
        """
        file = self.locate(name)
        if file is None:
            return Admitted(name, None, None, None)
        facts, known = self._recognise(name, file)
        driver = None if known is None else known.driver
        if self.trust == "archive" and known is not None:
            _check_suffix(name, known)
        sources = self._check_vrt(name, file) if known is not None and known.driver == VRT else ()
        beside = sidecars(file, infos)
        if self.trust == "untrusted":
            return Admitted(name, file, facts, driver, (), tuple(f.path for f, _ in beside))
        for neighbour, _ in beside:
            self._check_sidecar(neighbour)
        return Admitted(name, file, facts, driver, tuple(beside), (), sources)

    def _check_sidecar(self, file: File) -> None:
        if file.local:
            self._check_below_roots(file.path, file.path)
        if self.trust == "archive" and is_raster(file):
            known = sniff(file.read(0, HEAD_BYTES))
            if known is None or known.driver != "GTiff":
                raise RefusedError(f"{file.path} is no TIFF as a mask or overview should be: remove it")

    def _recognise(self, name: str, file: File) -> tuple[Facts, Format | None]:
        facts = file.facts()
        if facts is None:
            raise UnreadableError(f"{name}: no such file")
        head = file.read(0, HEAD_BYTES)
        if not head:
            raise UnreadableError(f"{name} is empty (0 bytes)")
        known = sniff(head)
        if known is None and self.trust != "named":
            raise RefusedError(
                f"{name} is no raster of a known format (it starts with {head[:8]!r}): {self._allowed()}; "
                "convert it to a COG"
            )
        return facts, known

    def _check_vrt(self, name: str, file: File) -> tuple[Admitted, ...]:
        if suffix_of(file.path) != ".vrt":
            raise RefusedError(f"{name} is a VRT and its name does not say so: rename it to .vrt if you trust it")
        if self.trust == "untrusted":
            raise RefusedError(f"{name} is a VRT: {self._allowed()}; leave --untrusted out if you trust it")
        if self.trust == "archive":
            if not file.local:
                raise RefusedError(f"{name} is a VRT on a remote store: name it by itself, or convert it to a COG")
            seen: dict[str, Admitted] = {}
            self._check_sources(Path(file.path), seen, depth=1)
            return tuple(seen.values())
        return ()

    def _check_sources(self, vrt: Path, seen: dict[str, Admitted], *, depth: int) -> None:
        if depth > DEPTH_LIMIT:
            raise RefusedError(f"{vrt} is the {depth}th VRT inside another, at most {DEPTH_LIMIT} are allowed")
        for source in plain_sources(vrt):
            path = os.path.realpath(source)
            if path in seen:
                continue
            self._check_below_roots(str(source), f"{source} (a source of {vrt})")
            file = locate(str(source))
            facts, known = self._recognise(str(source), file)
            seen[path] = Admitted(str(source), file, facts, None if known is None else known.driver)
            for neighbour, _ in sidecars(file):
                self._check_sidecar(neighbour)
            if known is not None:
                _check_suffix(str(source), known)
                if known.driver == VRT:
                    self._check_sources(source, seen, depth=depth + 1)

    def _check_below_roots(self, name: str, shown: str) -> None:
        if self.roots and not any(_below(name, root) for root in self.roots):
            raise RefusedError(f"{shown} leads outside {', '.join(self.roots)}: {self._allowed()}")

    def _allowed(self) -> str:
        kinds = ", ".join(known.driver for known in FORMATS if known.driver != VRT)
        where = f" below {', '.join(self.roots)}" if self.roots else ""
        return f"allowed are plain rasters ({kinds}){where}"


def _only_for_gdal(name: str) -> bool:
    """Whether a name is a path of GDAL's own, a document, or a part of a file, and no file."""
    if name.startswith("/vsi") or name.lstrip().startswith("<"):
        return True
    return _SUBDATASET.match(name) is not None and "://" not in name[:32] and not os.path.lexists(name)


def _check_suffix(name: str, known: Format) -> None:
    if suffix_of(name) not in known.suffixes:
        raise RefusedError(
            f"{name} is a {known.driver} file and its name does not say so (allowed: {', '.join(known.suffixes)}): "
            "rename it, or name it by itself"
        )


def _below(name: str, root: str) -> bool:
    """Whether a path lies at or below a root once all links are followed; addresses are compared part by part."""
    if is_address(name) or is_address(root):
        parts, start = name.split("?", 1)[0].split("/"), root.rstrip("/").split("/")
        return parts[: len(start)] == start and not any(_leads_up(part) for part in parts[len(start) :])
    path, top = os.path.realpath(local_path(name)), os.path.realpath(local_path(root))
    return path == top or path.startswith(top.rstrip("/") + "/")


def _leads_up(part: str) -> bool:
    """Whether a part of an address is a way up, however often it was escaped."""
    while part != (part := unquote(part)):
        pass
    return part in {".", ".."} or "/" in part or "\\" in part
