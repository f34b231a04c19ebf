"""One raster file, opened under a policy: its facts, and its pixels by window. GDAL meets sources here alone.

Errors of rasterio are mapped here and nowhere else.
"""

import contextlib
import contextvars
import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import rasterio
import rasterio.windows
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from pipeline.errors import SceneError, UnreadableError
from pipeline.grid import Window
from pipeline.sources import header
from pipeline.sources.claims import check_claims, early_claims
from pipeline.sources.files import Container, Facts
from pipeline.sources.formats import VRT
from pipeline.sources.header import Pixels, Radiometry
from pipeline.sources.placement import read_georef
from pipeline.sources.policy import Admitted, SourcePolicy
from pipeline.sources.sidecars import attributed, world_transform

Result = TypeVar("Result")
_STRICT = {"GDAL_ERROR_ON_LIBJPEG_WARNING": True}
"""Without it, a damaged JPEG reads as zeros."""
_QUIET = threading.Lock()
"""Held while warnings are off: that is the whole process's business."""
_NO_NETWORK = {"CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none"}


@dataclass(frozen=True)
class Choice:
    """What of a file is wanted."""

    bands: tuple[int, ...] | None = None
    nodata: float | None = None
    palette: bool = False


class Raster:
    """An opened file. `read` is thread-safe: one GDAL handle a thread."""

    def __init__(self, admitted: Admitted, policy: SourcePolicy, choice: Choice) -> None:
        """Opens the file and checks what can be checked without reading pixels.

        Raises:
            RefusedError: it claims more than the policy allows.
            UnreadableError: it is truncated, corrupt, or of a type that is not supported.
            SceneError: what is wanted is not in it.
        """
        self.admitted, self.path = admitted, admitted.name
        self._policy = policy
        self._local = threading.local()
        self._handles: list[_Handle] = []
        self._lock = threading.Lock()
        self.blocks = early_claims(admitted, policy)
        try:
            with mapped(self.path):
                self._handle().run(functools.partial(self._describe, choice=choice))
        except BaseException:
            self.close()
            raise

    def _describe(self, file: Any, choice: Choice) -> None:
        self.driver: str = file.driver
        self.height, self.width = file.height, file.width
        self.block_bytes = check_claims(file, self.admitted, self._policy)
        self.dtype = header.pixel_type(file, self.path)
        table = header.colour_table(file)
        self.colours = table is not None
        self._palette = _Palette(file, table, choice, self.path) if choice.palette else None
        self.indexes = self._palette.indexes if self._palette else header.used_bands(file, self.path, choice.bands)
        self.bands = self._palette.bands if self._palette else header.band_names(file, self.indexes)
        self._stored = (1,) if self._palette else self.indexes
        self.block_shape: tuple[int, int] = tuple(file.block_shapes[0])
        self.compression = header.compression(file)
        self.crs = file.crs
        self.georef = read_georef(file, self.path)
        world = _remote_world(self.admitted) if self.admitted.remote else None
        if world and self.georef.transform is None and not self.georef.gcps:
            self.georef = replace(self.georef, transform=world, pixel_size=None)
        self.mask = header.read_mask(file, self._stored, choice.nodata, self.dtype)
        if self._palette:
            self.nodata: tuple[float | None, ...] = (None,) * len(self.bands)
            self.radiometry = Radiometry.identity(len(self.bands))
            self._index_nodata, self.mask = self.mask.nodata, replace(self.mask, nodata=None)
            self.dtype = "uint8"
        else:
            self.nodata = header.read_nodata(file, self._stored, choice.nodata)
            self.radiometry = header.read_radiometry(file, self._stored, self.path)

    @property
    def all_valid(self) -> bool:
        """Whether no pixel can be invalid, by what is known without reading."""
        mask = self.mask
        known = mask.alpha is None and not mask.masked and mask.nodata is None and self.dtype != "float32"
        return known and self._palette is None

    @property
    def own_overviews(self) -> bool:
        """Whether looking for overviews opens nothing else: a VRT's source may name any file as its overviews."""
        return self._policy.trust == "named" or self.driver != VRT

    def read(self, at: Window, shape: tuple[int, int] | None = None) -> tuple[Pixels, NDArray[np.uint8] | None]:
        """Pixels (C, H, W) of a window of the file, and its masks (M, H, W), 0 = invalid; None: no mask.

        With a `shape` (h, w), that many pixels, evenly spaced, of overviews where the file has some.

        Raises:
            UnreadableError: the file is truncated or corrupt there.
        """
        strict = rasterio.Env(**_STRICT) if "jpeg" in self.compression else contextlib.nullcontext()
        with mapped(self.path, at), strict:
            stack, outside = self._handle().run(
                functools.partial(self._read, at=at, shape=shape or (at.height, at.width))
            )
        return (stack, outside) if self._palette is None else self._palette.expand(stack, outside, self._index_nodata)

    def _read(self, file: Any, at: Window, shape: tuple[int, int]) -> tuple[Pixels, NDArray[np.uint8] | None]:
        place = rasterio.windows.Window(at.col, at.row, at.width, at.height)
        mask, bands = self.mask, list(self._stored)
        stored = bands if mask.alpha is None else [*bands, mask.alpha]
        # Alpha comes along in one call: the bands of a pixel-interleaved block are decoded together.
        stack = file.read(stored, window=place, out_shape=(len(stored), *shape))
        if mask.alpha is not None:
            return stack[: len(bands)], stack[-1:]
        return stack, file.read_masks(bands, window=place, out_shape=(len(bands), *shape)) if mask.masked else None

    def changed_by_sidecars(self) -> list[dict[str, Any]]:
        """Each sidecar with what it changed, found by opening the file without them."""
        files = [file for file, _ in self.admitted.sidecars]
        if not files:
            return []
        with mapped(self.path):
            honoured = self._handle().run(_stated)
            bare = self._open(sidecars=False)
            alone = bare.run(_stated)
            bare.close()
        changed = [key for key, value in honoured.items() if value != alone[key]]
        if self.admitted.remote and self.georef.transform is not None and honoured["transform"] == alone["transform"]:
            changed += ["transform"] if _remote_world(self.admitted) == self.georef.transform else []
        return attributed(files, changed)

    def _handle(self) -> "_Handle":
        handle: _Handle | None = getattr(self._local, "handle", None)
        if handle is None or handle.closed:
            handle = self._open(sidecars=self._policy.trust != "untrusted")
            self._local.handle = handle
            with self._lock:
                self._handles.append(handle)
        return handle

    def _open(self, *, sidecars: bool) -> "_Handle":
        options: dict[str, Any] = {"GDAL_NUM_THREADS": 1, "GDAL_PAM_ENABLED": sidecars}
        # A folder of 10^5 files is not listed: GDAL asks for the neighbours that it knows by name.
        plain = self.admitted.driver is not None
        options["GDAL_DISABLE_READDIR_ON_OPEN"] = plain if sidecars else "EMPTY_DIR"
        if self._policy.trust != "named":
            options |= _NO_NETWORK
        store = _store(self.admitted)
        return _Handle(functools.partial(_gdal_open, self.admitted, options, store), store)

    def close(self) -> None:
        """Closes the handles of all threads; a later read opens anew."""
        with self._lock:
            handles, self._handles = self._handles, []
        for handle in handles:
            handle.close()


class _Handle:
    """A dataset with the context it lives in: rasterio keeps the Python files behind it in context variables."""

    def __init__(self, opened: Callable[[], Any], store: Container | None) -> None:
        self._context, self._store = contextvars.Context(), store
        self._file = self._checked(opened)

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def run(self, function: Callable[[Any], Result]) -> Result:
        return self._checked(functools.partial(function, self._file))

    def _checked(self, function: Callable[[], Result]) -> Result:
        try:
            return self._context.run(function)
        finally:
            if self._store is not None:  # what a store failed with comes before what GDAL makes of it
                self._store.check()

    def close(self) -> None:
        self._context.run(self._file.close)


def _store(admitted: Admitted) -> Container | None:
    """What a remote file and its neighbours are read through; None: GDAL opens the file by itself."""
    file = admitted.file
    if file is None or file.local:
        return None
    seen = {known.path: facts for known, facts in admitted.sidecars}
    return Container(seen | {file.path: admitted.facts or Facts(0, "")}, file.filesystem)


def _gdal_open(admitted: Admitted, options: dict[str, Any], store: Container | None) -> Any:
    with rasterio.Env(**options):
        with _QUIET, warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning):
            opened = _rasterio_open(admitted, store)
        _stated(opened)  # GDAL looks for masks and metadata when first asked: that must be under these options
    return opened


def _rasterio_open(admitted: Admitted, store: Container | None) -> Any:
    file = admitted.file
    if file is None:
        return rasterio.open(admitted.name)
    return rasterio.open(file.path, driver=admitted.driver, **{} if store is None else {"opener": store})


def _stated(file: Any) -> dict[str, str]:
    """What a sidecar can change, by the names used in reports."""
    return {
        "crs": str(file.crs),
        "transform": str(file.transform),
        "GCPs": str(file.gcps),
        "RPCs": str(file.tags(ns="RPC")),
        "nodata": str(file.nodatavals),
        "mask": str(file.mask_flag_enums),
        "scale and offset": str((file.scales, file.offsets)),
        "names": str(file.descriptions),
        "colours": str(file.colorinterp),
    }


class _Palette:
    """A colour table in the place of stored numbers."""

    def __init__(self, file: Any, table: NDArray[np.uint8] | None, choice: Choice, path: str) -> None:
        if table is None or len(header.used_bands(file, path, None)) != 1:
            raise SceneError(f"{path} has no colour table to take red, green and blue from: choose bands by number")
        self.indexes = (1, 2, 3) if choice.bands is None else choice.bands
        if not self.indexes or not set(self.indexes) <= {1, 2, 3}:
            raise SceneError(f"{path}: bands {list(self.indexes)} are not all among red, green, blue (1, 2, 3)")
        self.bands = tuple(("red", "green", "blue")[index - 1] for index in self.indexes)
        self._table = table

    def expand(
        self, stored: Pixels, outside: NDArray[np.uint8] | None, nodata: NDArray[Any] | None
    ) -> tuple[Pixels, NDArray[np.uint8]]:
        """Colours (C, H, W), and the masks with one more: 0 where the entry is transparent or the number nodata."""
        colours = self._table[stored[0]]
        seen = colours[..., 3:4].transpose(2, 0, 1)
        if nodata is not None:
            seen = np.where(stored == nodata, np.uint8(0), seen)
        pixels = np.ascontiguousarray(colours[..., [index - 1 for index in self.indexes]].transpose(2, 0, 1))
        return pixels, seen if outside is None else np.concatenate([outside, seen])


@contextlib.contextmanager
def mapped(path: str, window: Window | None = None) -> Iterator[None]:
    """Turns what rasterio and the system raise into `UnreadableError`."""
    try:
        yield
    except (RasterioError, CPLE_BaseError, OSError, MemoryError, ValueError) as error:
        reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
        if "not recognized as being in a supported file format" in reason:
            raise UnreadableError(f"{path} is not an image of a known format: convert it to GeoTIFF or COG") from error
        if window is None:
            raise UnreadableError(f"{path} cannot be opened: {reason}") from error
        where = f"rows {window.row}-{window.stop_row}, columns {window.col}-{window.stop_col}"
        raise UnreadableError(f"{path} cannot be read at {where}: truncated or corrupt ({reason})") from error


def _remote_world(admitted: Admitted) -> tuple[float, float, float, float, float, float] | None:
    transforms = (world_transform(file) for file, _ in admitted.sidecars)
    return next((transform for transform in transforms if transform is not None), None)
