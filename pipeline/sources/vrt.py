"""Which files a VRT draws on, and whether it does nothing else: read without GDAL, entities and document types refused.

GDAL's own parser is laxer than this one: it overlooks case, for instance. So for files that are not trusted everything
is compared with a list of what a plain mosaic needs, and what is not on it is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from pipeline.errors import RefusedError

SIZE_LIMIT = 16 << 20
"""Most bytes of a VRT file."""
_FREE = {"SRS", "GeoTransform", "Description", "UnitType", "CategoryNames", "Category", "ColorTable", "Entry"}
_ELEMENTS = (
    _FREE
    | {"VRTDataset", "VRTRasterBand", "GCPList", "GCP", "Metadata", "MDI", "MaskBand", "BlockXSize", "BlockYSize"}
    | {"NoDataValue", "HideNoDataValue", "ColorInterp", "Offset", "Scale"}
    | {"SimpleSource", "ComplexSource", "AveragedSource", "SourceFilename", "SourceBand", "SourceProperties"}
    | {"SrcRect", "DstRect", "NODATA", "ScaleOffset", "ScaleRatio", "LUT", "ColorTableComponent", "UseMaskBand"}
)
_DOMAINS = {"", "IMAGE_STRUCTURE", "RPC"}
"""Metadata domains that GDAL takes no file name from."""


@dataclass(frozen=True)
class Source:
    """A file that a VRT names."""

    name: str
    relative: bool
    """To the VRT's folder."""

    def path(self, vrt: Path) -> Path:
        """Where it is."""
        return vrt.parent / self.name if self.relative else Path(self.name)


@dataclass
class _Reading:
    """What has been seen of a VRT so far."""

    path: str
    plain: bool
    """Whether everything that is not on the lists is refused."""
    sources: list[Source] = field(default_factory=list)
    stack: list[tuple[str, dict[str, str], list[str]]] = field(default_factory=list)

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if self.plain:
            self.check(name, attributes)
        self.stack.append((name, attributes, []))

    def check(self, name: str, attributes: dict[str, str]) -> None:
        domain = attributes.get("domain", "") if name == "Metadata" else ""
        inside = self.stack[-1][0] if self.stack else ""
        if name not in _ELEMENTS or domain not in _DOMAINS or inside == "SourceFilename":
            raise _refused(self.path, f"<{name}{f' domain={domain!r}' if domain else ''}>")
        for attribute, value in attributes.items():
            if attribute.lower() == "subclass" or "://" in value or "/vsi" in value:
                raise _refused(self.path, f"<{name} {attribute}={value[:200]!r}>")

    def end(self, _: str) -> None:
        name, attributes, text = self.stack.pop()
        if name in {"SourceFilename", "SourceDataset"}:
            relative = next((value for key, value in attributes.items() if key.lower() == "relativetovrt"), "0")
            self.sources.append(Source("".join(text), relative.strip() == "1"))
        elif self.plain and ("://" in "".join(text) or "/vsi" in "".join(text)):
            raise _refused(self.path, f"<{name}>{''.join(text)[:200]!r}")

    def text(self, data: str) -> None:
        if self.stack:
            self.stack[-1][2].append(data)

    def refuse(self, *_: object) -> None:
        raise _refused(self.path, "a document type, a comment, a CDATA section or an instruction")


def _refused(path: str, what: str) -> RefusedError:
    return RefusedError(
        f"{path} has {what}; allowed in a VRT of an archive are plain mosaics of its own files: "
        "make it with gdalbuildvrt, or name it by itself if you trust it"
    )


def read_sources(path: Path, *, plain: bool) -> list[Source]:
    """The files that a VRT names, in their order.

    With `plain`, anything that a mosaic does not need is refused: raw and derived bands, open options, domains.

    Raises:
        RefusedError: it is too large, no well-formed XML, has a document type, or is not plain.
    """
    if path.stat().st_size > SIZE_LIMIT:
        raise RefusedError(f"{path} is larger than the {SIZE_LIMIT >> 20} MiB allowed for a VRT: split it")
    reading = _Reading(str(path), plain)
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = reading.start, reading.end
    parser.CharacterDataHandler = reading.text
    parser.StartDoctypeDeclHandler = reading.refuse
    if plain:  # GDAL splits text at these, expat does not
        parser.StartCdataSectionHandler = parser.CommentHandler = parser.ProcessingInstructionHandler = reading.refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except (expat.ExpatError, ValueError) as error:
        raise RefusedError(f"{path} is not a well-formed VRT: {error}") from error
    return reading.sources


def plain_sources(path: Path) -> Iterator[Path]:
    """The files that a plain VRT names; of each the name can only mean that file.

    Raises:
        RefusedError: see `read_sources`; or a name means something else than a file.
    """
    for source in read_sources(path, plain=True):
        name = source.name
        absolute = name.startswith("/")
        if name != name.strip() or not name or ":" in name or "\\" in name or name.startswith(("/vsi", "<")):
            raise _refused(str(path), f"the source {name[:200]!r}")
        if absolute == source.relative:
            raise _refused(str(path), f"the source {name[:200]!r}, relative to an unknown folder")
        yield source.path(path)
