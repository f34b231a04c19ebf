"""One source image, opened lazily: GeoTIFF and COG through rasterio.

A task carries a `SceneAddress`; whoever needs pixels opens it. `Scene` and the staged store answer the same `Source`,
so the rest of the pipeline does not know where pixels come from. Errors of rasterio are mapped here and nowhere else.
"""

import contextlib
import hashlib
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import rasterio
import rasterio.windows
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from pipeline import header
from pipeline.errors import SceneError, UnreadableError
from pipeline.georef import Georef
from pipeline.grid import Window
from pipeline.header import DTYPES, Pixels, Radiometry, Valid
from pipeline.placement import read_georef

__all__ = ["DTYPES", "Pixels", "Radiometry", "Scene", "SceneAddress", "Source", "Valid", "fingerprint", "open_scene"]

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEADER_BYTES = 1 << 16
_GDAL = {"GDAL_NUM_THREADS": 1, "GDAL_DISABLE_READDIR_ON_OPEN": False}


@dataclass(frozen=True)
class SceneAddress:
    """What a task carries instead of pixels: where a scene is, and which part of it is meant."""

    path: str
    bands: tuple[int, ...] | None = None
    """Bands of the file, counted from 1, in the order wanted; None: all, alpha aside."""
    nodata: float | None = None
    """Replaces what the file says about nodata; None: the file's."""
    window: Window | None = None
    """The part of the file that is the scene, in the file's pixels; None: all of it."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a plan or a record."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The address that `to_json` wrote."""
        bands, window = data.get("bands"), data.get("window")
        return cls(
            path=data["path"],
            bands=None if bands is None else tuple(bands),
            nodata=data.get("nodata"),
            window=None if window is None else Window(**window),
        )


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

    def read(self, window: Window) -> tuple[Pixels, Valid]:
        """Pixels (C, H, W) in their own type and valid (H, W), True = valid. `window` lies inside; thread-safe."""

    def close(self) -> None:
        """Releases every handle."""

    def __enter__(self) -> Self:
        """The source itself."""

    def __exit__(self, *_: object) -> None:
        """Closes."""


class Scene:
    """An opened scene. `read(window)` is thread-safe: one GDAL handle a thread.

    A pixel is invalid where the file's mask or alpha is 0, where all used bands are at their nodata, or where any
    used band is NaN or infinite.
    """

    def __init__(self, address: SceneAddress) -> None:
        """Opens the file and checks what can be checked without reading pixels."""
        self.address = address
        self._local = threading.local()
        self._handles: list[Any] = []
        self._lock = threading.Lock()
        path = _checked(address.path)
        with _mapped(address.path):
            self.fingerprint = fingerprint(path)
            self._describe(self._handle())

    def _describe(self, file: Any) -> None:
        self.dtype = header.pixel_type(file, self.address.path)
        whole = Window(0, 0, file.height, file.width)
        self._part = self.address.window or whole
        if not whole.contains(self._part):
            raise SceneError(
                f"{self.address.path}: {self._part} leaves the file's {whole.height} x {whole.width} pixels"
            )
        self.height, self.width = self._part.height, self._part.width
        self.indexes = header.used_bands(file, self.address.path, self.address.bands)
        self.bands = header.band_names(file, self.indexes)
        self.block_shape: tuple[int, int] = tuple(file.block_shapes[0])
        """Rows and columns of the file's blocks, which lie on a lattice from the *file's* first pixel."""
        self.block_origin = (self._part.row, self._part.col)
        """The scene's first pixel on that lattice."""
        self.tiled = self.block_shape[1] < file.width
        """False: strips of the file's full width."""
        self.compression = header.compression(file)
        self.radiometry = header.read_radiometry(file, self.indexes, self.address.path)
        self.georef = read_georef(file, self.address.path).window(self._part)
        self.nodata = header.read_nodata(file, self.indexes, self.address.nodata)
        self._mask = header.read_mask(file, self.indexes, self.address.nodata, self.dtype)
        mask = self._mask
        self.all_valid = mask.alpha is None and not mask.masked and mask.nodata is None and self.dtype != "float32"

    def read(self, window: Window) -> tuple[Pixels, Valid]:
        """Pixels (C, H, W) in the file's own type and valid (H, W) of a window inside the scene.

        Raises:
            UnreadableError: the file is truncated or corrupt there.
        """
        if not Window(0, 0, self.height, self.width).contains(window):
            raise ValueError(f"{window} leaves the scene of {self.height} x {self.width} pixels")
        at = window.shift(self._part.row, self._part.col)
        place = rasterio.windows.Window(at.col, at.row, at.width, at.height)
        mask, bands = self._mask, list(self.indexes)
        with _mapped(self.address.path, window):
            file = self._handle()
            # Alpha comes along in one call: the bands of a pixel-interleaved block are decoded together.
            stack = file.read(bands if mask.alpha is None else [*bands, mask.alpha], window=place)
            outside = file.read_masks(bands, window=place) if mask.masked else None
        pixels = stack[: len(bands)]
        if mask.alpha is not None:
            outside = stack[-1:]
        return pixels, mask.valid(pixels, outside)

    def _handle(self) -> Any:
        file = getattr(self._local, "file", None)
        if file is None or file.closed:
            with rasterio.Env(**_GDAL), warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                file = rasterio.open(self.address.path, driver="GTiff")
            self._local.file = file
            with self._lock:
                self._handles.append(file)
        return file

    def close(self) -> None:
        """Closes the handles of all threads; a later read opens anew."""
        with self._lock:
            handles, self._handles = self._handles, []
        for file in handles:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_scene(address: SceneAddress) -> Scene:
    """Opens a scene; nothing is read but the header.

    Raises:
        UnreadableError: missing, not a TIFF, truncated, or of a type that is not supported.
        SceneError: band numbers or the window do not fit the file.
    """
    return Scene(address)


def fingerprint(path: Path) -> str:
    """Size, modification time and a digest of the first 64 KiB of a file, and of each of its sidecars.

    A night without news costs no reading; a sidecar that comes, goes or changes makes another scene.
    """
    digest = hashlib.sha256()
    suffixes = (".aux.xml", ".msk", ".ovr")
    beside = [path.with_name(path.name + suffix) for suffix in suffixes]
    beside += [path.with_suffix(suffix) for suffix in (".tfw", ".tifw", ".wld", ".TFW")]
    for file in (path, *beside):
        if file == path or file.is_file():
            stat = file.stat()
            with file.open("rb") as stream:
                header = stream.read(_HEADER_BYTES)
            digest.update(f"{file.name[len(path.stem) :]} {stat.st_size} {stat.st_mtime_ns} ".encode())
            digest.update(hashlib.sha256(header).digest())
    return digest.hexdigest()


@contextlib.contextmanager
def _mapped(path: str, window: Window | None = None) -> Iterator[None]:
    """Turns what rasterio and the system raise into `UnreadableError`."""
    try:
        yield
    except (RasterioError, CPLE_BaseError, OSError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        if window is None:
            raise UnreadableError(f"{path} cannot be opened: {reason}") from error
        where = f"rows {window.row}-{window.stop_row}, columns {window.col}-{window.stop_col}"
        raise UnreadableError(f"{path} cannot be read at {where}: truncated or corrupt ({reason})") from error


def _checked(name: str) -> Path:
    """An existing, non-empty, regular file that starts like a TIFF."""
    path = Path(name)
    try:
        if not path.exists():
            raise UnreadableError(f"{name}: no such file")
        if not path.is_file():
            raise UnreadableError(f"{name} is not a file: give a GeoTIFF")
        with path.open("rb") as stream:
            magic = stream.read(4)
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{name} cannot be opened: {error}") from error
    if not magic:
        raise UnreadableError(f"{name} is empty (0 bytes)")
    if magic not in _TIFF_MAGIC:
        raise UnreadableError(f"{name} is not a TIFF (it starts with {magic!r}): convert it to GeoTIFF or COG")
    return path
