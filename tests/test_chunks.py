"""Shards made directly, against zarr's own."""

import json

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from pipeline.chunks import Layout, decode, encode

CHUNK = 32
ZSTD = (ZstdCodec(level=3, checksum=True),)


def blosc(dtype):
    return BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=np.dtype(dtype).itemsize), Crc32cCodec()


def stored(path, count, *, bands=(), dtype="uint8", codecs=ZSTD):
    """An array written by zarr, with a rim in both directions: its values, its layout, and (corner, file) a shard."""
    edge = count * CHUNK
    shape = (*bands, int(1.7 * edge), int(2.3 * edge))
    values = np.random.default_rng(0).integers(0, 60, shape).astype(dtype)
    values[..., :CHUNK, :CHUNK] = 0
    array = zarr.create_array(
        str(path),
        shape=shape,
        chunks=(*bands, CHUNK, CHUNK),
        shards=(*bands, edge, edge),
        dtype=dtype,
        fill_value=7,
        compressors=codecs,
    )
    array.with_config({"write_empty_chunks": True})[...] = values
    layout = Layout.from_json(json.loads((path / "zarr.json").read_bytes()))
    lead = "0/" * len(bands)
    return values, layout, [((r * edge, c * edge), path / f"c/{lead}{r}/{c}") for r in range(2) for c in range(3)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_shard_of_a_plane_is_byte_for_byte_what_zarr_writes(tmp_path, count):
    values, layout, shards = stored(tmp_path / "a", count)
    for (row, col), file in shards:
        part = values[row : row + layout.shard[0], col : col + layout.shard[1]]
        assert encode(layout, part) == file.read_bytes()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_a_shard_of_pixels_is_byte_for_byte_what_zarr_writes(tmp_path, dtype):
    values, layout, shards = stored(tmp_path / "a", 4, bands=(3,), dtype=dtype, codecs=blosc(dtype))
    for (row, col), file in shards:
        part = values[:, row : row + layout.shard[1], col : col + layout.shard[2]]
        assert encode(layout, part) == file.read_bytes()


def test_any_window_of_a_shard_reads_as_zarr_reads_it(tmp_path):
    values, layout, shards = stored(tmp_path / "a", 4, bands=(2,), dtype="int16", codecs=blosc("int16"))
    random = np.random.default_rng(1)
    for _ in range(30):
        (row, col), file = shards[random.integers(len(shards))]
        part = values[:, row : row + layout.shard[1], col : col + layout.shard[2]]
        (top, bottom), (left, right) = (np.sort(random.choice(n + 1, 2, replace=False)) for n in part.shape[1:])
        window = (slice(int(top), int(bottom)), slice(int(left), int(right)))
        out = np.empty((2, bottom - top, right - left), np.int16)
        decode(layout, file, window, out)
        np.testing.assert_array_equal(out, part[:, *window])


def test_chunks_that_zarr_left_out_read_as_the_fill_value(tmp_path):
    values, layout, [(_, file), *_] = stored(tmp_path / "a", 2)
    zarr.open_array(str(tmp_path / "a"))[:CHUNK, :CHUNK] = 7
    out = np.zeros(layout.shard, np.uint8)
    decode(layout, file, (slice(0, 2 * CHUNK), slice(0, 2 * CHUNK)), out)
    assert (out[:CHUNK, :CHUNK] == 7).all()
    np.testing.assert_array_equal(out[CHUNK:], values[CHUNK : 2 * CHUNK, : 2 * CHUNK])


@pytest.mark.parametrize("codecs", [ZSTD, blosc("uint8")])
def test_every_flipped_bit_and_every_cut_is_found(tmp_path, codecs):
    _, layout, [(_, file), *_] = stored(tmp_path / "a", 2, codecs=codecs)
    whole, out = file.read_bytes(), np.empty(layout.shard, np.uint8)
    random, damaged = np.random.default_rng(2), []
    for at in random.integers(0, len(whole), 60):
        damaged.append(whole[:at] + bytes([whole[at] ^ 1 << random.integers(8)]) + whole[at + 1 :])
        damaged.append(whole[:at])
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises((ValueError, RuntimeError)):
            decode(layout, file, (slice(0, 2 * CHUNK), slice(0, 2 * CHUNK)), out)


def test_another_layout_is_refused(tmp_path):
    unsure = [(), (GzipCodec(),), (ZstdCodec(level=3, checksum=False),), blosc("uint8")[:1]]
    for number, codecs in enumerate(unsure):
        with pytest.raises(ValueError, match="of ours"):
            stored(tmp_path / str(number), 2, codecs=codecs)
