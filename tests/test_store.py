import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from drawn_scenes import noise, write_tiff

from pipeline import store
from pipeline.errors import OutputError, UnreadableError, VerifyError
from pipeline.georef import Georef
from pipeline.grid import Window
from pipeline.scene import SceneAddress, open_scene

HEIGHT, WIDTH, CORE, BLOCK = 200, 300, 32, 128
PLANES = ("labels", "confidence")
GEOREF = Georef(None, (0.5, 0, 100, 0, -0.5, 200))


@pytest.fixture
def mask(tmp_path):
    path = tmp_path / "mask.zarr"
    shape = {"height": HEIGHT, "width": WIDTH, "core": CORE, "block": BLOCK}
    store.create_mask(path, **shape, planes=PLANES, georef=GEOREF, attributes={"run": "r1"})
    return path


def blocks():
    return [
        Window(row, col, min(BLOCK, HEIGHT - row), min(BLOCK, WIDTH - col))
        for row in range(0, HEIGHT, BLOCK)
        for col in range(0, WIDTH, BLOCK)
    ]


def planes(window, seed=0):
    return {plane: noise(window.height, window.width, seed=seed + i) for i, plane in enumerate(PLANES)}


def shard_files(path):
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json")


def test_what_is_written_is_read(mask):
    whole = np.full((HEIGHT, WIDTH), 255, np.uint8)
    for seed, window in enumerate(blocks()[:-1]):
        store.write_block(mask, window, planes(window, seed))
        whole[window.slices] = planes(window, seed)["labels"]
    part = Window(100, 120, 90, 170)
    assert np.array_equal(store.read_plane(mask, "labels", part), whole[part.slices])
    assert np.array_equal(zarr.open_group(mask, mode="r")["labels"][:], whole)


def test_one_block_is_one_shard_of_each_plane(mask):
    window = blocks()[4]
    store.write_block(mask, window, planes(window))
    assert [str(f.relative_to(mask)) for f in shard_files(mask)] == ["confidence/c/1/1", "labels/c/1/1"]


@pytest.mark.parametrize("window", [Window(32, 0, 128, 128), Window(0, 0, 256, 128), Window(0, 0, 64, 128)])
def test_only_whole_shards_are_written(mask, window):
    with pytest.raises(ValueError, match="not one shard"):
        store.write_block(mask, window, planes(window))


def test_a_block_of_nothing_but_nodata_is_stored_too(mask):
    window = blocks()[0]
    empty = {plane: np.full((128, 128), 255, np.uint8) for plane in PLANES}
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(lambda w: store.write_block(mask, w, empty), [window] * 8))
    assert len(set(digests)) == 1
    assert digests[0] == store.shard_digest(mask, window, PLANES)
    assert len(shard_files(mask)) == 2


def test_another_process_writes_the_same_bytes(mask, tmp_path):
    window = blocks()[0]
    here = store.write_block(mask, window, dict.fromkeys(PLANES, np.full((128, 128), 255, np.uint8)))
    code = f"""
import numpy as np
from pipeline import store
from pipeline.grid import Window
values = dict.fromkeys({PLANES!r}, np.full((128, 128), 255, np.uint8))
print(store.write_block({str(mask)!r}, Window(0, 0, 128, 128), values))
"""
    root = Path(__file__).parents[1]
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert there.stdout.strip() == here


def test_a_rewritten_block_holds_nothing_of_the_old_one(mask):
    window = blocks()[-1]
    first = store.write_block(mask, window, planes(window, 5))
    for file in shard_files(mask):
        file.write_bytes(b"rubbish")
    assert store.write_block(mask, window, planes(window, 6)) != first
    assert store.write_block(mask, window, planes(window, 5)) == first
    assert np.array_equal(store.read_plane(mask, "labels", window), planes(window, 5)["labels"])


def test_the_digest_follows_plane_order_and_a_missing_shard_has_none(mask):
    window = blocks()[1]
    digest = store.write_block(mask, window, planes(window))
    assert store.shard_digest(mask, window, PLANES) == digest
    assert store.shard_digest(mask, window, PLANES[::-1]) != digest
    assert store.shard_digest(mask, blocks()[2], PLANES) == ""


def test_every_flipped_byte_changes_the_digest_and_none_is_read_as_other_classes(mask):
    window, rng = blocks()[0], np.random.default_rng(0)
    digest = store.write_block(mask, window, planes(window))
    file = mask / "labels/c/0/0"
    good = file.read_bytes()
    for position in rng.integers(0, len(good), 60):
        bad = bytearray(good)
        bad[position] ^= 1 << rng.integers(8)
        file.write_bytes(bad)
        assert store.shard_digest(mask, window, PLANES) != digest
        try:
            assert np.array_equal(store.read_plane(mask, "labels", window), planes(window)["labels"])
        except VerifyError as error:
            assert "row 0, column 0" in str(error)  # noqa: PT017 - either outcome is right, silence is not


def test_a_corrupt_block_is_named_among_its_neighbours(mask):
    for window in blocks():
        store.write_block(mask, window, planes(window))
    file = mask / "labels/c/1/1"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(VerifyError, match="labels of the block at row 128, column 128 are corrupt"):
        store.read_plane(mask, "labels", Window(0, 0, HEIGHT, WIDTH))


def test_attributes_tell_place_and_layout(mask):
    attributes = dict(zarr.open_group(mask, mode="r").attrs)
    assert attributes["widefield"]["planes"] == list(PLANES)
    assert attributes["widefield"]["run"] == "r1"
    assert Georef.from_attributes(attributes) == GEOREF
    labels = zarr.open_group(mask, mode="r")["labels"]
    assert (labels.chunks, labels.shards, labels.fill_value) == ((CORE, CORE), (BLOCK, BLOCK), 255)


def test_a_store_made_anew_at_the_same_path_is_not_mistaken_for_the_old(tmp_path):
    path = tmp_path / "mask.zarr"
    for edge in (64, 96):
        store.create_mask(
            path, height=edge, width=edge, core=32, block=edge, planes=("a",), georef=GEOREF, attributes={}
        )
        store.write_block(path, Window(0, 0, edge, edge), {"a": noise(edge, edge)})
        assert store.read_plane(path, "a", Window(0, 0, edge, edge)).shape == (edge, edge)
        path.rename(tmp_path / f"old{edge}")


def test_nothing_that_exists_is_overwritten(mask):
    with pytest.raises(OutputError, match="exists already"):
        store.create_mask(mask, height=1, width=1, core=1, block=1, planes=("a",), georef=GEOREF, attributes={})


def test_leftovers_of_killed_writers_are_swept(mask):
    store.write_block(mask, blocks()[0], planes(blocks()[0]))
    (mask / "labels/c/0/0.abc.partial").write_bytes(b"12345")
    (mask / "x.partial").mkdir()
    (mask / "x.partial/file").write_bytes(b"123")
    assert store.sweep(mask) == 8
    assert store.sweep(mask) == 0
    assert len(shard_files(mask)) == 2


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_an_image_reads_as_its_scene(tmp_path, dtype):
    pixels = noise(3, 70, 90, dtype=dtype)
    pixels[:, 5:9, 3:40] = 0
    tiff = write_tiff(tmp_path / "a.tif", pixels, nodata=0, descriptions=("b", "g", "r"))
    with open_scene(SceneAddress(str(tiff))) as scene:
        store.create_image(tmp_path / "image.zarr", scene, chunk=16, shard=32)
        whole = Window(0, 0, 70, 90)
        store.write_image(tmp_path / "image.zarr", whole, *scene.read(whole))
        with store.open_image(tmp_path / "image.zarr") as staged:
            for name in ("height", "width", "bands", "dtype", "radiometry", "georef", "fingerprint", "all_valid"):
                assert getattr(staged, name) == getattr(scene, name)
            for window in (whole, Window(3, 20, 33, 50)):
                for got, expected in zip(staged.read(window), scene.read(window), strict=True):
                    assert got.dtype == expected.dtype
                    assert np.array_equal(got, expected)


def test_a_scene_without_invalid_pixels_stores_no_mask(tmp_path):
    tiff = write_tiff(tmp_path / "a.tif", noise(1, 40, 40))
    with open_scene(SceneAddress(str(tiff))) as scene:
        store.create_image(tmp_path / "image.zarr", scene, chunk=16, shard=32)
    assert not (tmp_path / "image.zarr/valid").exists()
    with pytest.raises(UnreadableError, match="pixels at row 0, column 0 have not been staged"):
        store.open_image(tmp_path / "image.zarr").read(Window(0, 0, 8, 8))


def test_a_changed_byte_of_an_image_is_not_read(tmp_path):
    tiff = write_tiff(tmp_path / "a.tif", noise(1, 32, 32))
    with open_scene(SceneAddress(str(tiff))) as scene:
        store.create_image(tmp_path / "image.zarr", scene, chunk=32, shard=32)
        store.write_image(tmp_path / "image.zarr", Window(0, 0, 32, 32), *scene.read(Window(0, 0, 32, 32)))
    file = tmp_path / "image.zarr/pixels/c/0/0/0"
    good = file.read_bytes()
    for position in np.random.default_rng(1).integers(0, len(good), 60):
        file.write_bytes(good[:position] + bytes([good[position] ^ 16]) + good[position + 1 :])
        with pytest.raises(UnreadableError, match="corrupt"):
            store.open_image(tmp_path / "image.zarr").read(Window(0, 0, 32, 32))


def test_what_is_no_image_store_is_refused(tmp_path, mask):
    for path in (tmp_path / "none.zarr", mask):
        with pytest.raises(UnreadableError, match="not a staged image"):
            store.open_image(path)


def test_folders_that_vanish_while_they_are_counted_do_not_count(tmp_path):
    def come_and_go():
        for _ in range(20):
            (tmp_path / "cache/a/b/c").mkdir(parents=True)
            (tmp_path / "cache/a/b/c/file").write_bytes(b"12345")
            shutil.rmtree(tmp_path / "cache/a")

    with ThreadPoolExecutor() as pool:
        work, sizes = pool.submit(come_and_go), set()
        while not work.done():
            sizes.add(store.folder_bytes(tmp_path))
    work.result()
    assert sizes <= {0, 5}
