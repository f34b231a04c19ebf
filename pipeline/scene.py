"""One source image, opened lazily: any raster that a policy admits, in one file or one file a band.

A task carries a `SceneAddress`; whoever needs pixels opens it. `Scene` and the staged store answer the same `Source`,
so the rest of the pipeline does not know where pixels come from.
"""

import contextlib
import math
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from pipeline.errors import SceneError
from pipeline.georef import Georef
from pipeline.grid import Window, spread
from pipeline.sources.address import SceneAddress, expanded, read_scene_file
from pipeline.sources.fingerprint import fingerprint
from pipeline.sources.header import DTYPES, Mask, Pixels, Radiometry, Valid
from pipeline.sources.raster import Choice, Raster
from pipeline.sources.scenefile import factor

__all__ = [
    "DTYPES",
    "Pixels",
    "Radiometry",
    "Scene",
    "SceneAddress",
    "Source",
    "Valid",
    "fingerprint",
    "open_scene",
    "read_scene_file",
]


class Source(Protocol):
    """Anything that pixels can be read from by window."""

    @property
    def height(self) -> int:
        """Rows."""

    @property
    def width(self) -> int:
        """Columns."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands, in the order of `read`'s first axis."""

    @property
    def dtype(self) -> str:
        """One of `DTYPES`."""

    @property
    def radiometry(self) -> Radiometry:
        """What turns stored numbers into values."""

    @property
    def georef(self) -> Georef:
        """Where pixel (0, 0) and its neighbours lie."""

    @property
    def fingerprint(self) -> str:
        """Names the content without reading it (see `fingerprint`)."""

    @property
    def all_valid(self) -> bool:
        """Whether no pixel can be invalid, by what is known without reading: no mask, no alpha, no nodata, no NaN."""

    @property
    def lattice(self) -> tuple[int, int]:
        """Rows that are decoded together, and the source's first row among such rows."""

    def read(self, window: Window) -> tuple[Pixels, Valid]:
        """Pixels (C, H, W) in their own type and valid (H, W), True = valid. `window` lies inside; thread-safe."""

    def sample(self, window: Window, shape: tuple[int, int]) -> tuple[Pixels, Valid]:
        """Only `shape` (h, w) pixels, evenly spaced, of what `read` gives, or of overviews if there are some."""

    def close(self) -> None:
        """Releases every handle."""

    def __enter__(self) -> Self:
        """The source itself."""

    def __exit__(self, *_: object) -> None:
        """Closes."""


class Scene:
    """An opened scene. `read(window)` is thread-safe: one GDAL handle a thread and file.

    A pixel is invalid where a mask or alpha is 0, where all used bands are at their nodata, or where any used band is
    NaN or infinite.
    """

    def __init__(self, address: SceneAddress) -> None:
        """Opens the files and checks what can be checked without reading pixels."""
        self.address = expanded(address)
        self.fingerprint = fingerprint(self.address)
        self._grid, self._rasters = _open_all(self.address)
        try:
            self._describe()
        except BaseException:
            self.close()
            raise

    def _describe(self) -> None:
        first = self._grid
        whole = Window(0, 0, first.height, first.width)
        self._part = self.address.window or whole
        if not whole.contains(self._part):
            part = self._part
            raise SceneError(
                f"{self.address.path}: the window of {part.height} x {part.width} pixels at row {part.row}, column "
                f"{part.col} leaves the file's {whole.height} x {whole.width}"
            )
        self._scaled = [(other, factor(first, other)) for other in self._rasters]
        self.height, self.width = self._part.height, self._part.width
        self.dtype = first.dtype
        for other in self._rasters:
            if other.dtype != first.dtype:
                raise SceneError(f"{other.path} holds {other.dtype}, {first.path} {first.dtype}: convert one of them")
        self.indexes, self.bands = self._used()
        self.block_shape = first.block_shape
        """Rows and columns of the file's blocks, which lie on a lattice from the *file's* first pixel."""
        self.block_origin = (self._part.row, self._part.col)
        """The scene's first pixel on that lattice."""
        rows = math.lcm(*(raster.block_shape[0] * scale for raster, (scale, _) in self._scaled))
        self.lattice = (rows, self._part.row % rows)
        self.block_bytes = sum(raster.block_bytes for raster in self._rasters)
        """Decoded bytes that GDAL holds to give one pixel."""
        self.tiled = all(raster.block_shape[1] < raster.width for raster in self._rasters)
        """False: strips of the file's full width."""
        self.remote = any(raster.admitted.remote for raster in self._rasters)
        """Whether pixels come over a network."""
        self.slow = self.remote or not self.tiled or any(raster.driver.startswith("JP2") for raster in self._rasters)
        """Whether reading a window costs much more than its pixels: strips, a network, JPEG 2000."""
        self.colours = first.colours
        """Whether the file has a colour table."""
        self.compression = ", ".join(dict.fromkeys(raster.compression for raster in self._rasters))
        self.radiometry = Radiometry(
            tuple(scale for raster in self._rasters for scale in raster.radiometry.scale),
            tuple(offset for raster in self._rasters for offset in raster.radiometry.offset),
        )
        self.georef = first.georef.window(self._part)
        self.nodata = tuple(value for raster in self._rasters for value in raster.nodata)
        self.all_valid = all(raster.all_valid for raster in self._rasters)
        empty = [raster.mask.nodata for raster in self._rasters]
        known = [value for value in empty if value is not None]
        self._mask = Mask(None, masked=False, nodata=np.concatenate(known) if len(known) == len(empty) else None)

    def _used(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Numbers and names of the bands."""
        names = [name for name, _ in self.address.files]
        if not names:
            return self._rasters[0].indexes, self._rasters[0].bands
        chosen = self.address.bands or tuple(range(1, len(names) + 1))
        return chosen, tuple(names[index - 1] for index in chosen)

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Where the pixels come from, for `run.json`; sidecars with what each of them changed."""
        return {
            "driver": ", ".join(dict.fromkeys(raster.driver for raster in self._rasters)),
            "compression": self.compression,
            "trust": self.address.policy.trust,
            "sidecars": [fact for raster in self._rasters for fact in raster.changed_by_sidecars()],
            "ignored": [Path(name).name for raster in self._rasters for name in raster.admitted.ignored],
        }

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the files."""
        notes = []
        for raster in self._rasters:
            blocks, name = raster.blocks, Path(raster.path).name
            if blocks is not None and blocks.sparse:
                value = raster.nodata[0] if raster.nodata[0] is not None else 0
                notes.append(
                    f"{blocks.sparse} of {blocks.count} blocks of {name} are not stored: they read as {value:g}"
                )
            if raster.admitted.file is None:
                notes.append(f"{raster.path[:200]} is opened by GDAL alone: that its source changed may go unnoticed")
        changed = [fact for fact in self.origin["sidecars"] if fact["changes"]]
        notes += [f"{fact['file']} changes the scene's {', '.join(fact['changes'])}" for fact in changed]
        if not any("mask" in fact["changes"] for fact in changed):
            idle = [fact["file"] for fact in self.origin["sidecars"] if fact["file"].lower().endswith(".msk")]
            notes += [
                f"{name} masks nothing: it is damaged, of another size, or the scene has its own" for name in idle
            ]
        if self.origin["ignored"]:
            notes.append(f"ignored because the scene is not trusted: {', '.join(self.origin['ignored'])}")
        return tuple(notes)

    def read(self, window: Window) -> tuple[Pixels, Valid]:
        """Pixels (C, H, W) in the file's own type and valid (H, W) of a window inside the scene.

        Raises:
            UnreadableError: the file is truncated or corrupt there.
        """
        if not Window(0, 0, self.height, self.width).contains(window):
            raise ValueError(f"{window} leaves the scene of {self.height} x {self.width} pixels")
        at = window.shift(self._part.row, self._part.col)
        return self._judged([_read_scaled(raster, at, *scale) for raster, scale in self._scaled])

    def sample(self, window: Window, shape: tuple[int, int]) -> tuple[Pixels, Valid]:
        """About `shape` (h, w) pixels evenly spaced over `window`: (C, h, w) and valid (h, w), for pictures.

        They come from the files' overviews where these have some, and from every pixel decoded where they have none.

        Raises:
            UnreadableError: the file is truncated or corrupt there.
        """
        scaled = any(scale != (1, 1) for _, scale in self._scaled)
        if (
            scaled
            or shape == (window.height, window.width)
            or not all(raster.own_overviews for raster in self._rasters)
        ):
            return sampled(*self.read(window), shape)
        at = window.shift(self._part.row, self._part.col)
        return self._judged([raster.read(at, shape) for raster in self._rasters])

    def _judged(self, parts: list[tuple[Pixels, Any]]) -> tuple[Pixels, Valid]:
        """The bands of all files, and which pixels are valid in them."""
        pixels, outside = parts[0]
        if len(parts) > 1:
            masks = [mask for _, mask in parts if mask is not None]
            pixels = np.concatenate([band for band, _ in parts])
            outside = np.concatenate(masks) if masks else None
        return pixels, self._mask.valid(pixels, outside)

    def close(self) -> None:
        """Closes the handles of all threads; a later read opens anew."""
        for raster in (self._grid, *self._rasters):
            raster.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sampled(pixels: Pixels, valid: Valid, shape: tuple[int, int]) -> tuple[Pixels, Valid]:
    """Of (C, H, W) and (H, W), `shape` pixels evenly spaced."""
    if shape == valid.shape:
        return pixels, valid
    rows, cols = (spread(length, count) for length, count in zip(valid.shape, shape, strict=True))
    return pixels[:, rows[:, None], cols], valid[rows[:, None], cols]


def _read_scaled(raster: Raster, at: Window, rows: int, cols: int) -> tuple[Pixels, Any]:
    """What `Raster.read` gives, for a window of a grid whose pixels are `rows` x `cols` times smaller."""
    if (rows, cols) == (1, 1):
        return raster.read(at)
    top, left = at.row // rows, at.col // cols
    coarse = Window(top, left, -(-at.stop_row // rows) - top, -(-at.stop_col // cols) - left)
    row, col = at.row - top * rows, at.col - left * cols
    part = (..., slice(row, row + at.height), slice(col, col + at.width))
    pixels, mask = raster.read(coarse)
    fine = pixels.repeat(rows, -2).repeat(cols, -1)[part]
    return fine, None if mask is None else mask.repeat(rows, -2).repeat(cols, -1)[part]


def open_scene(address: SceneAddress) -> Scene:
    """Opens a scene; nothing is read but headers.

    Raises:
        RefusedError: the address's policy does not allow it.
        UnreadableError: missing, not an image, truncated, or of a type that is not supported.
        SceneError: band numbers or the window do not fit the file, or files do not fit each other.
    """
    return Scene(address)


def _open_all(address: SceneAddress) -> tuple[Raster, list[Raster]]:
    """The raster whose grid is the scene's, and one for each used band or, in one file, for all."""
    if not address.files:
        choice = Choice(address.bands, address.nodata, address.palette)
        raster = Raster(address.policy.admit(address.path), address.policy, choice)
        return raster, [raster]
    chosen = address.bands or tuple(range(1, len(address.files) + 1))
    if not set(chosen) <= set(range(1, len(address.files) + 1)):
        raise SceneError(f"{address.path}: bands {list(chosen)} are not all among its {len(address.files)} files")
    with contextlib.ExitStack() as opened:
        rasters = {}
        for index in sorted({1, *chosen}):
            rasters[index] = _open_band(address, index)
            opened.callback(rasters[index].close)
        opened.pop_all()
    return rasters[1], [rasters[index] for index in chosen]


def _open_band(address: SceneAddress, index: int) -> Raster:
    name, path = address.files[index - 1]
    raster = Raster(address.policy.admit(path), address.policy, Choice(nodata=address.nodata))
    if len(raster.bands) != 1:
        raster.close()
        raise SceneError(f"{path} has {len(raster.bands)} bands, the file of band '{name}' may hold one")
    return raster
