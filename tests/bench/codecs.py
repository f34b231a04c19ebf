"""Codec, chunk and shard of image.zarr: core time to write and to read a scene, and how small it gets.

What is read is a row of a default run's blocks, amid the scene, as a worker reads it: the larger a chunk is, the more
of it is decoded for a rim's sake.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from pipeline.grid import TileGrid, Window
from pipeline.shards import read_array, shard_windows, write_shard
from pipeline.store import IMAGE_CHUNK, IMAGE_SHARD, folder_bytes
from tests.bench.common import data_folder, mosaic, record, spread, table

EDGE, BLOCK = 6144, 2048
GRID = TileGrid(EDGE, EDGE, tile=1152, halo=64)
ROW = [GRID.source(Window(BLOCK, col, BLOCK, BLOCK)) for col in range(0, EDGE, BLOCK)]
ROUNDS = 3
CHUNKS, SHARDS = (256, 512, 1024, 2048), (2048, 4096)
READERS = ("ours", "zarr-python", "zarrs")
PIPELINES = {"zarr-python": "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs": "zarrs.ZarrsCodecPipeline"}


@dataclass(frozen=True)
class Case:
    """One way to store a scene, and who reads it."""

    codec: str
    chunk: int = IMAGE_CHUNK
    shard: int = IMAGE_SHARD
    reader: str = "ours"


def codecs(name, size):
    """The codecs of a name, for items of `size` bytes; all with a checksum."""
    family, *rest = name.split()
    if family == "zstd":
        return (ZstdCodec(level=int(rest[0]), checksum=True),)
    level, shuffle = rest
    return BloscCodec(cname=family, clevel=int(level), shuffle=shuffle, typesize=size), Crc32cCodec()


DEFAULT = "lz4 5 bitshuffle"
CODECS = ("zstd 1", "zstd 3", "lz4 1 shuffle", "lz4 1 bitshuffle", DEFAULT, "zstd 1 shuffle", "zstd 1 bitshuffle")
CASES = [
    *(Case(codec) for codec in CODECS),
    *(
        Case(DEFAULT, chunk, shard)
        for shard in SHARDS
        for chunk in CHUNKS
        if (chunk, shard) != (IMAGE_CHUNK, IMAGE_SHARD)
    ),
    *(Case(DEFAULT, chunk, reader=reader) for reader in READERS[1:] for chunk in CHUNKS),
]


def run(rounds=ROUNDS):
    """Markdown: core-milliseconds a megapixel of the scene, on one thread."""
    cases = [case for case in CASES if case.reader != "zarrs" or _has_zarrs()]
    with tempfile.TemporaryDirectory(prefix="widefield-bench-") as scratch:
        scenes = {"RGB drone, uint8": _drone(Path(scratch)), "4 bands of satellites, uint16": _satellite()}
        facts = []
        for name, pixels in scenes.items():
            facts += [{"scene": name, **vars(case), **_measured(case, pixels, scratch, int(rounds))} for case in cases]
    record("codecs", facts)
    head = ["scene", "codec", "chunk", "shard", "by", "write ms/Mpx", "read ms/Mpx", "raw size / stored"]
    return table(head, map(_row, facts))


def _has_zarrs():
    try:
        import zarrs  # noqa: F401
    except ImportError:
        return False
    return True


def _drone(scratch):
    with rasterio.open(mosaic(scratch)) as scene:
        pixels = scene.read()
    return np.tile(pixels, (1, 2, 2))[:, :EDGE, :EDGE]  # chunks are compressed one by one: none sees both copies


def _satellite():
    """(4, H, W): what real bands there are, laid side by side, each time at a gain of its own.

    Repeated as they are, a codec would find them again.
    """
    folder, random = data_folder() / "satellite", np.random.default_rng(0)
    with rasterio.open(folder / "ftw/inference-img.tif") as scene:
        bands = scene.read().astype(np.float32)
    _, rows, cols = bands.shape
    pixels = np.empty((4, EDGE, EDGE), np.uint16)
    for number, (row, col) in enumerate((r, c) for r in range(0, EDGE, rows) for c in range(0, EDGE, cols)):
        part = bands[4 * (number % 2) :][:4, : EDGE - row, : EDGE - col]
        pixels[:, row : row + rows, col : col + cols] = part * random.uniform(0.8, 1.2) + random.uniform(0, 100)
    return pixels


def _measured(case, pixels, scratch, rounds):
    write, read = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            path = Path(folder) / "pixels"
            array = _create(case, path, pixels)
            write.append(_core_milliseconds(_write, case, path, array, pixels) / (EDGE * EDGE / 1e6))
            read.append(_core_milliseconds(_read, case, path) / (BLOCK * EDGE / 1e6))
            stored = folder_bytes(path)
    return {"write": write, "read": read, "ratio": pixels.nbytes / stored}


def _core_milliseconds(work, *arguments):
    """Of all threads together."""
    start = time.process_time()
    work(*arguments)
    return 1e3 * (time.process_time() - start)


def _create(case, path, pixels):
    pipeline = {"codec_pipeline.path": PIPELINES.get(case.reader, PIPELINES["zarr-python"])}
    with zarr.config.set(pipeline | {"threading.max_workers": 1, "async.concurrency": 1}):
        return zarr.create_array(
            str(path),
            shape=pixels.shape,
            chunks=(len(pixels), case.chunk, case.chunk),
            shards=(len(pixels), case.shard, case.shard),
            dtype=pixels.dtype,
            fill_value=0,
            compressors=codecs(case.codec, pixels.itemsize),
        )


def _write(case, path, array, pixels):
    for window in shard_windows(Window(0, 0, EDGE, EDGE), case.shard):
        if case.reader == "ours":
            write_shard(path, window, pixels[:, *window.slices])
        else:
            array[:, *window.slices] = pixels[:, *window.slices]


def _read(case, path):
    if case.reader == "ours":
        for window in ROW:
            read_array(path, window)
        return
    with zarr.config.set({"codec_pipeline.path": PIPELINES[case.reader], "threading.max_workers": 1}):
        array = zarr.open_array(str(path), mode="r")
        for window in ROW:
            array[:, *window.slices]


def _row(fact):
    way = [fact[key] for key in ("scene", "codec", "chunk", "shard", "reader")]
    return [*way, spread(fact["write"], 2), spread(fact["read"], 2), f"{fact['ratio']:.2f}"]
