"""Scene to image.zarr, a window of whole shards at a time, and the cache of what has been staged.

Windows are independent: whoever wants parallelism calls `stage_window` for different ones. A window is marked as
done, beside the store, only when its shards are durable; staging it again writes the same bytes.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import UnreadableError
from pipeline.grid import Window, round_up
from pipeline.scene import Scene, SceneAddress, open_scene
from pipeline.shards import PARTIAL, partial_name, sync
from pipeline.store import IMAGE_SHARD, create_image, folder_bytes, open_image, sweep, write_image

STAGE_BYTES = 256 << 20
"""Most decoded bytes that one window may hold."""
QUOTA = 100 << 30
"""Bytes that staged scenes may take together, by default."""

_IMAGE = "image.zarr"


def stage_windows(scene: Scene, shard: int = IMAGE_SHARD) -> list[Window]:
    """The units of staging: whole shards of image.zarr that partition the scene, row by row.

    Full-width bands where the source is strips, and never less than a source block, so that each block is decoded
    about once; smaller only where that would hold more than `STAGE_BYTES`.
    """
    rows, cols = _unit(scene, shard)
    whole = Window(0, 0, scene.height, scene.width)
    corners = ((row, col) for row in range(0, scene.height, rows) for col in range(0, scene.width, cols))
    parts = (Window(row, col, rows, cols).intersect(whole) for row, col in corners)
    return [part for part in parts if part is not None]


def _unit(scene: Scene, shard: int) -> tuple[int, int]:
    """Rows and columns of a window, whole shards each."""
    lengths = zip(scene.block_shape, (scene.height, scene.width), strict=True)
    rows, cols = (round_up(min(block, length), shard) for block, length in lengths)
    row_bytes = _pixel_bytes(scene) * min(cols, scene.width)
    if row_bytes * min(rows, scene.height) > STAGE_BYTES:
        rows = shard
    if row_bytes * min(rows, scene.height) > STAGE_BYTES:
        cols = max(STAGE_BYTES // (_pixel_bytes(scene) * shard * shard), 1) * shard
    return rows, cols


def _pixel_bytes(scene: Scene) -> int:
    """Decoded bytes of a pixel: its bands and whether it is valid."""
    return len(scene.bands) * np.dtype(scene.dtype).itemsize + 1


def staged_bytes(scene: Scene) -> int:
    """Upper bound of the bytes of image.zarr."""
    return scene.height * scene.width * _pixel_bytes(scene)


def stage_window(address: SceneAddress, path: Path | str, window: Window) -> None:
    """Copies one of `stage_windows` into the store at `path`; does nothing if that is done already.

    Raises:
        UnreadableError: the source cannot be read there, or has changed since the store was made.
    """
    root = Path(path)
    if _mark(root, window).exists():
        return
    with open_scene(address) as scene, open_image(root) as staged:
        if scene.fingerprint != staged.fingerprint:
            raise UnreadableError(f"{address.path} has changed while it was being staged: run it again")
        pixels, valid = scene.read(window)
    write_image(root, window, pixels, valid)
    _set_mark(_mark(root, window))


def staged_windows(path: Path | str) -> set[Window]:
    """The windows whose shards are durable."""
    folder = _marks(Path(path))
    if not folder.is_dir():
        return set()
    return {Window(*(int(number) for number in mark.name.split("-"))) for mark in folder.iterdir()}


def _marks(path: Path) -> Path:
    return path.with_suffix(".staged")


def _mark(path: Path, window: Window) -> Path:
    return _marks(path) / f"{window.row}-{window.col}-{window.height}-{window.width}"


def _set_mark(mark: Path) -> None:
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
    sync(mark)
    sync(mark.parent)
    sync(mark.parent.parent)


class StageCache:
    """Staged scenes in one folder, at most `quota_bytes` together: the least recently used goes first.

    A scene that some living process holds never goes. Locks are the kernel's (`flock`): they die with their owner.
    """

    def __init__(self, folder: Path | str, quota_bytes: int = QUOTA) -> None:
        """A cache in `folder`, which need not exist yet."""
        self.folder = Path(folder)
        self.quota_bytes = quota_bytes

    @contextlib.contextmanager
    def hold(self, scene: Scene, *, keep: bool = True) -> Iterator[Path]:
        """The path of the scene's image.zarr, empty or filled by earlier runs, safe from eviction meanwhile.

        With `keep` false it is removed afterwards, unless an error came by: then a rerun finds what was staged.
        """
        entry = self._entry(scene)
        with contextlib.ExitStack() as held:
            with self._guard():
                for leftover in self.folder.glob(f"*{PARTIAL}"):  # a removal was killed
                    shutil.rmtree(leftover)
                entry.mkdir(exist_ok=True)
                if _free(entry):
                    sweep(entry)
                held.enter_context(_lock(entry, fcntl.LOCK_SH))
                os.utime(entry)
                self._evict(self.quota_bytes - staged_bytes(scene), but=entry)
                _ensure(entry / _IMAGE, scene)
            yield entry / _IMAGE
        if not keep:
            with self._guard():
                _remove(entry)

    def sizes(self) -> dict[Path, int]:
        """Bytes of each staged scene, least recently used first."""
        if not self.folder.is_dir():
            return {}
        entries = sorted(self.folder.iterdir(), key=lambda entry: (entry.stat().st_mtime_ns, entry.name))
        return {entry: folder_bytes(entry) for entry in entries}

    def idle_bytes(self) -> int:
        """Bytes of the staged scenes that nobody holds."""
        if not self.folder.is_dir():
            return 0
        with self._guard():
            return sum(size for entry, size in self.sizes().items() if _free(entry))

    def clear(self) -> int:
        """Removes every staged scene that nobody holds; returns the bytes freed."""
        if not self.folder.is_dir():
            return 0
        with self._guard():
            return sum(size for entry, size in self.sizes().items() if _remove(entry))

    def _entry(self, scene: Scene) -> Path:
        """The folder of a scene's content and of the part of it that the address names."""
        file = scene.address.policy.locate(scene.address.path)
        where = str(Path(file.path).resolve()) if file is not None and file.local else scene.address.path
        address = scene.address.content() | {"path": where}
        key = hashlib.sha256(json.dumps([scene.fingerprint, address], sort_keys=True).encode()).hexdigest()
        return self.folder / key[:32]

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """One process at a time makes or removes entries."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _lock(self.folder, fcntl.LOCK_EX):
            yield

    def _evict(self, limit: int, but: Path) -> None:
        """Removes scenes that nobody holds until the others take at most `limit` bytes."""
        sizes = {entry: size for entry, size in self.sizes().items() if entry != but}
        total = sum(sizes.values())
        for entry, size in sizes.items():
            if total > limit and _remove(entry):
                total -= size


def _ensure(path: Path, scene: Scene) -> None:
    """An image.zarr for `scene` at `path`; one of another schema, or damaged, is replaced."""
    try:
        open_image(path).close()
    except UnreadableError:
        shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(_marks(path), ignore_errors=True)
        create_image(path, scene)


@contextlib.contextmanager
def _lock(folder: Path, kind: int) -> Iterator[None]:
    """A lock on a folder, for as long as the context lasts or the process lives."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


def _free(entry: Path) -> bool:
    """Whether nobody holds an entry; only under the guard, so that it stays true."""
    with contextlib.suppress(BlockingIOError), _lock(entry, fcntl.LOCK_EX | fcntl.LOCK_NB):
        return True
    return False


def _remove(entry: Path) -> bool:
    """Removes an entry that nobody holds; says whether it did. Killed meanwhile, it leaves no entry half there."""
    if not _free(entry):
        return False
    leftover = partial_name(entry)
    entry.rename(leftover)
    shutil.rmtree(leftover)
    return True
