"""What a raster file says about itself, read from its header alone: type, bands, radiometry, place, validity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags

from pipeline.errors import SceneError, UnreadableError

Pixels = NDArray[Any]
Valid = NDArray[np.bool_]

DTYPES = ("uint8", "uint16", "int16", "float32")
BAND_LIMIT = 1024
"""Most bands of a file; asking GDAL about more takes minutes."""
_COLOURS = {
    ColorInterp.red: "red",
    ColorInterp.green: "green",
    ColorInterp.blue: "blue",
    ColorInterp.nir: "nir",
    ColorInterp.rededge: "rededge",
    ColorInterp.coastal: "coastal",
    ColorInterp.swir: "swir",
    ColorInterp.pan: "pan",
}


@dataclass(frozen=True)
class Radiometry:
    """`value = stored * scale + offset`, one pair for each used band."""

    scale: tuple[float, ...]
    offset: tuple[float, ...]

    @classmethod
    def identity(cls, bands: int) -> Self:
        """Stored numbers are the values."""
        return cls((1.0,) * bands, (0.0,) * bands)


@dataclass(frozen=True)
class Mask:
    """How to tell valid pixels (law 5), decided once when the scene is opened."""

    alpha: int | None
    """Number of the alpha band."""
    masked: bool
    """Whether the file carries a mask of its own, internal or beside it."""
    nodata: NDArray[Any] | None
    """(C, 1, 1) nodata of each used band in the file's type; None: some band cannot be at nodata."""

    def valid(self, pixels: Pixels, outside: NDArray[np.uint8] | None) -> Valid:
        """(H, W) from `pixels` (C, H, W) and the file's masks (M, H, W), 0 = invalid."""
        if self.nodata is None:
            valid = np.ones(pixels.shape[1:], np.bool_)
        else:  # band by band: no temporary of all bands
            valid = pixels[0] != self.nodata[0]
            for band, nodata in zip(pixels[1:], self.nodata[1:], strict=True):
                valid |= band != nodata
        if outside is not None:
            for mask in outside:
                valid &= mask != 0
        if pixels.dtype.kind == "f":
            for band in pixels:
                valid &= np.isfinite(band)
        return valid


def pixel_type(file: Any, path: str) -> str:
    """The one type of all bands, if it and their number are among those supported."""
    if not 0 < file.count <= BAND_LIMIT:
        raise UnreadableError(
            f"{path} has {file.count} bands, 1 to {BAND_LIMIT} are allowed: take out those that matter"
        )
    types = sorted(set(file.dtypes))
    if len(types) != 1 or types[0] not in DTYPES:
        raise UnreadableError(
            f"{path} has pixels of {', '.join(types)}; allowed are {', '.join(DTYPES)}: "
            "convert it, say with gdal_translate -ot Float32"
        )
    return str(types[0])


def block_bytes(file: Any) -> int:
    """Decoded bytes of the block that GDAL holds to give a pixel: all bands where they are compressed together."""
    rows, cols = file.block_shapes[0]
    jpeg2000 = file.driver.startswith("JP2")
    together = file.count if jpeg2000 or _tag(file.interleaving) == "pixel" else 1
    # JPEG 2000 is decoded to 32 bits a sample.
    return int(rows * cols * together * (4 if jpeg2000 else np.dtype(file.dtypes[0]).itemsize))


def colour_table(file: Any) -> NDArray[np.uint8] | None:
    """(N, 4) red, green, blue, alpha of each stored number of a file with one band; None: it has no such table."""
    if file.colorinterp[0] != ColorInterp.palette or file.dtypes[0] not in {"uint8", "uint16"}:
        return None
    table = np.zeros((np.iinfo(file.dtypes[0]).max + 1, 4), np.uint8)
    for number, colour in file.colormap(1).items():
        if number < len(table):
            table[number] = colour
    return table


def compression(file: Any) -> str:
    """Its name in lower case, `none` for none."""
    return _tag(file.compression) or "none"


def _tag(value: Any) -> str:
    # rasterio answers an enum, None, or a plain string for what its enum does not know
    return "" if value is None else str(getattr(value, "value", value)).lower()


def alpha_band(file: Any) -> int | None:
    """Number of the alpha band, counted from 1."""
    return next((i for i, c in zip(file.indexes, file.colorinterp, strict=True) if c == ColorInterp.alpha), None)


def used_bands(file: Any, path: str, bands: tuple[int, ...] | None) -> tuple[int, ...]:
    """The bands to read; alpha is never one."""
    alpha = alpha_band(file)
    usable = tuple(index for index in file.indexes if index != alpha)
    chosen = usable if bands is None else bands
    if not chosen or not set(chosen) <= set(usable):
        note = f" (band {alpha} is alpha)" if alpha else ""
        raise SceneError(f"{path}: bands {list(chosen)} are not all among its bands {list(usable)}{note}")
    return chosen


def band_names(file: Any, indexes: Sequence[int]) -> tuple[str, ...]:
    """Descriptions, else colours, else numbers: the first that names each band differently from the others."""
    descriptions, colours = file.descriptions, file.colorinterp
    described = tuple((descriptions[i - 1] or "").strip() for i in indexes)
    coloured = tuple(_COLOURS.get(colours[i - 1], "") for i in indexes)
    for names in (described, coloured):
        if all(names) and len(set(names)) == len(names):
            return names
    mixed = tuple(d or c or str(i) for d, c, i in zip(described, coloured, indexes, strict=True))
    return mixed if len(set(mixed)) == len(mixed) else tuple(str(i) for i in indexes)


def read_radiometry(file: Any, indexes: Sequence[int], path: str) -> Radiometry:
    """The scale and offset of each used band; 1 and 0 where the file has none."""
    scales, offsets = file.scales, file.offsets
    scale, offset = (tuple(float(values[i - 1]) for i in indexes) for values in (scales, offsets))
    if not all(math.isfinite(value) for value in (*scale, *offset)) or 0 in scale:
        raise SceneError(f"{path}: scales {scale} and offsets {offset} are not usable: mend them with gdal_edit")
    return Radiometry(scale, offset)


def read_nodata(file: Any, indexes: Sequence[int], nodata: float | None) -> tuple[float | None, ...]:
    """The nodata of each used band: the one given, else the file's."""
    values = file.nodatavals
    return tuple(values[i - 1] if nodata is None else nodata for i in indexes)


def read_mask(file: Any, indexes: Sequence[int], nodata: float | None, dtype: str) -> Mask:
    """How valid pixels are told; `nodata` replaces the file's."""
    values = read_nodata(file, indexes, nodata)
    flags = file.mask_flag_enums
    sets = [set(flags[i - 1]) for i in indexes]
    # An own mask: neither alpha, nor derived from nodata (which is ours to judge), nor absent.
    masked = any(not s & {MaskFlags.all_valid, MaskFlags.alpha, MaskFlags.nodata} for s in sets)
    by_all_bands = nodata is None and any({MaskFlags.per_dataset, MaskFlags.nodata} <= s for s in sets)
    stored = [_stored(value, np.dtype(dtype)) for value in values]
    at_nodata = None if any(s is None for s in stored) else np.array(stored, dtype).reshape(-1, 1, 1)
    return Mask(alpha_band(file), masked or by_all_bands, at_nodata)


def _stored(value: float | None, dtype: np.dtype[Any]) -> Any:
    """`value` as the file's type holds it; None where no pixel can be equal to it."""
    if value is None or math.isnan(value) or (math.isinf(value) and dtype.kind != "f"):
        return None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            held = dtype.type(value)  # a decimal of float32's lowest number lies beyond it, and is meant
        return held if math.isinf(value) or np.isfinite(held) else None
    limits = np.iinfo(dtype)
    return dtype.type(value) if value == int(value) and limits.min <= value <= limits.max else None
