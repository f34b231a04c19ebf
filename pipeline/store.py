"""The zarr layout of what is stored: names, chunks, shards, checksums and attributes. Zarr v3 in local folders.

    image.zarr   pixels (C, H, W) in the scene's type      valid (H, W) uint8, absent where nothing can be invalid
    mask.zarr    one (H, W) uint8 array a plane, 255 = nodata; chunk = core, shard = block: one shard, one writer

Every chunk carries a checksum. A shard is encoded in memory, made durable under a name of its own and then renamed
into place: readers and a killed writer's successor find a whole shard or none, and rewriting one never reads the old.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from pipeline.errors import OutputError, UnreadableError, VerifyError
from pipeline.georef import Georef
from pipeline.grid import Window
from pipeline.scene import Pixels, Radiometry, Source, Valid, sampled
from pipeline.shards import (
    PARTIAL,
    layout_of,
    partial_name,
    place,
    read_array,
    shard_key,
    shard_windows,
    sync,
    write_shard,
    writing,
)

SCHEMA = 1
NODATA = 255
IMAGE_CHUNK = 256
"""Edge of a chunk of image.zarr, in pixels: a block of two cores with its rim touches 1.6 times its pixels in such
chunks, 2.3 times in chunks of 512."""
IMAGE_SHARD = 2048
"""Edge of a shard of image.zarr, in pixels."""

_MASK_CODEC = (ZstdCodec(level=3, checksum=True),)


def _image_codec(dtype: str) -> tuple[Any, ...]:
    # Half the core time of zstd-1 to read drone RGB, at 1.20 instead of 1.23 times smaller than raw; 16-bit satellite
    # bands get smaller too. Without a shuffle bytes would take half of that again, and hardly get smaller at all.
    size = np.dtype(dtype).itemsize
    return BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=size), Crc32cCodec()


def create_image(path: Path | str, source: Source, *, chunk: int = IMAGE_CHUNK, shard: int = IMAGE_SHARD) -> None:
    """An empty store for the pixels of `source`; `shard` and `chunk` in pixels.

    Raises:
        OutputError: something is there already, or the folder cannot be written.
    """
    facts = {
        "schema": SCHEMA,
        "kind": "image",
        "bands": list(source.bands),
        "scale": list(source.radiometry.scale),
        "offset": list(source.radiometry.offset),
        "all_valid": source.all_valid,
        "fingerprint": source.fingerprint,
    }
    attributes = source.georef.attributes(source.height, source.width) | {"widefield": facts}
    shape, bands = (source.height, source.width), len(source.bands)
    with _building(Path(path), attributes) as group:
        group.create_array(
            "pixels",
            shape=(bands, *shape),
            chunks=(bands, chunk, chunk),
            shards=(bands, shard, shard),
            dtype=source.dtype,
            fill_value=0,
            compressors=_image_codec(source.dtype),
            dimension_names=("band", "y", "x"),
        )
        if not source.all_valid:
            _create_plane(group, "valid", shape, chunk, shard, fill=0)


def create_mask(
    path: Path | str,
    *,
    height: int,
    width: int,
    core: int,
    block: int,
    planes: Sequence[str],
    georef: Georef,
    attributes: Mapping[str, Any],
) -> None:
    """An empty store for the planes of a result; `block` is a multiple of `core`, in pixels.

    Raises:
        OutputError: something is there already, or the folder cannot be written.
    """
    facts = {"schema": SCHEMA, "kind": "mask", "planes": list(planes), "core": core, "block": block, **attributes}
    with _building(Path(path), georef.attributes(height, width) | {"widefield": facts}) as group:
        for plane in planes:
            _create_plane(group, plane, (height, width), core, block, fill=NODATA)


def _create_plane(group: zarr.Group, name: str, shape: tuple[int, int], chunk: int, shard: int, *, fill: int) -> None:
    group.create_array(
        name,
        shape=shape,
        chunks=(chunk, chunk),
        shards=(shard, shard),
        dtype="uint8",
        fill_value=fill,
        compressors=_MASK_CODEC,
        dimension_names=("y", "x"),
    )


@contextlib.contextmanager
def _building(path: Path, attributes: Mapping[str, Any]) -> Iterator[zarr.Group]:
    """A group that appears under its name once it is whole and durable."""
    if path.exists():
        raise OutputError(f"{path} exists already: choose another output or remove it")
    partial = partial_name(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield zarr.create_group(store=LocalStore(partial), attributes=json.loads(json.dumps(attributes)))
        for file in [*partial.rglob("zarr.json"), partial]:
            sync(file)
        partial.rename(path)
        sync(path.parent)


def write_block(path: Path | str, window: Window, planes: Mapping[str, NDArray[np.uint8]]) -> str:
    """Writes one whole shard of each plane, (H, W) of `window`, replacing what is there; durable on return.

    Returns the sha256 of the shards' bytes, in the order of `planes`.
    """
    digest = hashlib.sha256()
    for plane, values in planes.items():
        digest.update(write_shard(Path(path) / plane, window, values))
    return digest.hexdigest()


def write_image(path: Path | str, window: Window, pixels: Pixels, valid: Valid) -> None:
    """Writes the shards that make up `window`: pixels (C, H, W) and valid (H, W); durable on return."""
    root = Path(path)
    shard = layout_of(root / "pixels").shard[-1]
    for part in shard_windows(window, shard):
        inside = part.relative_to(window).slices
        write_shard(root / "pixels", part, pixels[:, *inside])
        if (root / "valid").exists():
            write_shard(root / "valid", part, valid[inside].view(np.uint8))


def shard_digest(path: Path | str, window: Window, planes: Sequence[str]) -> str:
    """What `write_block` returned for these planes, computed from what is stored; "" where a shard cannot be read."""
    digest = hashlib.sha256()
    for plane in planes:
        array = Path(path) / plane
        try:
            digest.update((array / shard_key(layout_of(array), window)).read_bytes())
        except OSError:
            return ""
    return digest.hexdigest()


def read_plane(path: Path | str, plane: str, window: Window) -> NDArray[np.uint8]:
    """(H, W) of a plane; 255 where no block has been written.

    Raises:
        VerifyError: a stored chunk is corrupt; the message names the block.
    """
    try:
        return read_array(Path(path) / plane, window)
    except (ValueError, RuntimeError, OSError) as error:
        block = _corrupt_block(Path(path) / plane, window)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise VerifyError(f"{path}: {plane} of the block at {place(block)} are corrupt ({reason})") from error


def _corrupt_block(array: Path, window: Window) -> Window:
    """The first block in `window` that cannot be read."""
    for part in shard_windows(window, layout_of(array).shard[-1]):
        try:
            read_array(array, part)
        except (ValueError, RuntimeError, OSError):
            return part
    return window


class StagedImage:
    """What `create_image` laid out and staging filled: answers `read` as the scene itself does."""

    def __init__(self, path: Path) -> None:
        """Opens the store; pixels may still be on their way."""
        self.path = path
        try:
            attributes = dict(zarr.open_group(LocalStore(path, read_only=True), mode="r").attrs)
            facts: Any = attributes["widefield"]
            pixels = layout_of(path / "pixels")
        except (FileNotFoundError, KeyError, ValueError) as error:
            raise UnreadableError(f"{path} is not a staged image: {error}") from error
        if facts["schema"] != SCHEMA:
            raise UnreadableError(f"{path} has schema {facts['schema']}, allowed is {SCHEMA}: stage it again")
        self.all_valid: bool = facts["all_valid"]
        self._arrays = {"pixels": pixels}
        if not self.all_valid:
            self._arrays["valid"] = layout_of(path / "valid")
        _, self.height, self.width = pixels.shape
        self.dtype = str(np.dtype(pixels.dtype))
        self.bands: tuple[str, ...] = tuple(facts["bands"])
        self.radiometry = Radiometry(tuple(facts["scale"]), tuple(facts["offset"]))
        self.fingerprint: str = facts["fingerprint"]
        self.georef = Georef.from_attributes(attributes)
        self.shard: int = pixels.shard[-1]
        self.lattice = (pixels.chunk[-2], 0)

    def read(self, window: Window) -> tuple[Pixels, Valid]:
        """Pixels (C, H, W) and valid (H, W) of a window inside the scene, whose shards are staged.

        Raises:
            UnreadableError: a shard has not been staged, or is corrupt.
        """
        if not Window(0, 0, self.height, self.width).contains(window):
            raise ValueError(f"{window} leaves the scene of {self.height} x {self.width} pixels")
        self._require(window)
        try:
            pixels, *valid = (read_array(self.path / name, window) for name in self._arrays)
        except (ValueError, RuntimeError, OSError) as error:
            raise UnreadableError(f"{self.path}: corrupt at {place(window)}: remove it, to stage again") from error
        return pixels, valid[0].view(np.bool_) if valid else np.ones(pixels.shape[1:], np.bool_)

    def sample(self, window: Window, shape: tuple[int, int]) -> tuple[Pixels, Valid]:
        """`shape` (h, w) pixels evenly spaced over `window`: (C, h, w) and valid (h, w).

        Raises:
            UnreadableError: a shard has not been staged, or is corrupt.
        """
        return sampled(*self.read(window), shape)

    def _require(self, window: Window) -> None:
        """A missing shard reads as zeros without an error: look first."""
        for part in shard_windows(window, self.shard):
            for name, layout in self._arrays.items():
                if not (self.path / name / shard_key(layout, part)).exists():
                    raise UnreadableError(f"{self.path}: {name} at {place(part)} have not been staged")

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_image(path: Path | str) -> StagedImage:
    """The staged reader of a store.

    Raises:
        UnreadableError: there is no such store, or it has another schema.
    """
    return StagedImage(Path(path))


def sweep(path: Path | str) -> int:
    """Removes what killed writers left below `path`; returns the bytes freed. Only where nobody writes."""
    freed = 0
    for leftover in sorted(Path(path).rglob(f"*{PARTIAL}")):
        freed += folder_bytes(leftover)
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
    return freed


def folder_bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; what another process removes meanwhile does not count."""
    found = [path] if path.is_file() else [Path(at, name) for at, _, names in os.walk(path) for name in names]
    total = 0
    for file in found:
        with contextlib.suppress(FileNotFoundError):  # a living writer has just renamed it
            total += file.stat().st_size
    return total
