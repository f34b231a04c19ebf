"""Scenes on stores that fsspec knows: in memory, and behind a web server on the loopback interface."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
import rasterio
from drawn_scenes import noise, write_tiff
from local_server import serve

from pipeline.errors import SceneError, UnreadableError
from pipeline.grid import Window
from pipeline.scene import SceneAddress, fingerprint, open_scene
from pipeline.sources.policy import SourcePolicy

ALL = Window(0, 0, 90, 120)
TILED = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}
WORLD = "2\n0\n0\n-3\n101\n198.5\n"


@pytest.fixture
def pixels():
    return noise(3, 90, 120)


@pytest.fixture
def memory(tmp_path, pixels, request):
    """A folder of the store in memory that holds `a.tif`."""
    store, folder = fsspec.filesystem("memory"), f"/{request.node.name}"
    path = write_tiff(tmp_path / "a.tif", pixels, **TILED, crs=None, transform=None)
    store.pipe(f"{folder}/a.tif", path.read_bytes())
    yield store, folder
    store.rm(folder, recursive=True)


def test_a_scene_in_a_store_is_read_by_window_from_many_threads(memory, pixels):
    windows = [Window(row, col, 30, 40) for row in range(0, 60, 10) for col in range(0, 80, 10)]
    with open_scene(SceneAddress(f"memory:/{memory[1]}/a.tif")) as scene, ThreadPoolExecutor(4) as pool:
        assert scene.remote
        for window, (got, valid) in zip(windows, pool.map(scene.read, windows), strict=True):
            assert np.array_equal(got, pixels[:, *window.slices])
            assert valid.all()


def test_closing_a_scene_in_one_thread_closes_what_others_opened(memory):
    scene = open_scene(SceneAddress(f"memory:/{memory[1]}/a.tif"))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(scene.read, ALL).result()
    handles = list(scene._grid._handles)
    scene.close()
    assert [handle.closed for handle in handles] == [True, True]
    with open_scene(scene.address) as again:
        assert again.read(ALL)[1].all()


def test_sidecars_in_a_store_are_honoured_and_reported(memory):
    store, folder = memory
    store.pipe(f"{folder}/a.tfw", WORLD.encode())
    store.pipe(
        f"{folder}/a.tif.aux.xml",
        b'<PAMDataset><SRS>EPSG:32633</SRS><PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand>'
        b"</PAMDataset>",
    )
    with open_scene(SceneAddress(f"memory:/{folder}/a.tif")) as scene:
        assert scene.nodata == (7, None, None)
        assert scene.georef.transform == (2, 0, 100, 0, -3, 200)
        assert scene.origin["sidecars"] == [
            {"file": "a.tif.aux.xml", "changes": ["crs", "nodata", "mask"]},
            {"file": "a.tfw", "changes": ["transform"]},
        ]
    with open_scene(SceneAddress(f"memory:/{folder}/a.tif", policy=SourcePolicy("untrusted"))) as scene:
        assert (scene.nodata, scene.georef.transform) == ((None,) * 3, None)
        assert scene.origin["ignored"] == ["a.tif.aux.xml", "a.tfw"]


def test_a_mask_beside_a_scene_in_a_store_counts(memory, tmp_path):
    store, folder = memory
    mask = np.ones((90, 120), bool)
    mask[20:, 30:] = False
    path = write_tiff(tmp_path / "b.tif", noise(3, 90, 120), **TILED)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
        file.write_mask(mask)
    store.pipe(f"{folder}/b.tif", path.read_bytes())
    store.pipe(f"{folder}/b.tif.msk", (tmp_path / "b.tif.msk").read_bytes())
    with open_scene(SceneAddress(f"memory:/{folder}/b.tif")) as scene:
        assert np.array_equal(scene.read(ALL)[1], mask)


def test_a_fingerprint_from_a_listing_is_that_of_the_file(memory):
    store, folder = memory
    address = SceneAddress(f"memory:/{folder}/a.tif")
    infos = {f"memory:/{path}": info for path, info in store.find(folder, detail=True).items()}
    assert fingerprint(address, infos) == fingerprint(address)
    store.pipe(f"{folder}/a.tfw", WORLD.encode())
    infos = {f"memory:/{path}": info for path, info in store.find(folder, detail=True).items()}
    assert (
        fingerprint(address, infos) == fingerprint(address) != fingerprint(address, {address.path: infos[address.path]})
    )


def test_a_listing_saves_all_requests(tmp_path, pixels):
    path = write_tiff(tmp_path / "a.tif", pixels)
    with serve(tmp_path) as (url, asked):
        address = SceneAddress(f"{url}/a.tif")
        first = fingerprint(address)
        info = fsspec.filesystem("http").info(address.path)
        asked.clear()
        assert fingerprint(address, {address.path: info}) == first
        assert asked == []
        path.write_bytes(path.read_bytes() + b"\0")
        assert fingerprint(address) != first


def test_a_scene_behind_a_web_server_is_read_by_ranges(tmp_path, pixels):
    write_tiff(tmp_path / "a.tif", pixels, **TILED)
    with serve(tmp_path) as (url, _), open_scene(SceneAddress(f"{url}/a.tif")) as scene:
        assert np.array_equal(scene.read(Window(10, 20, 30, 40))[0], pixels[:, 10:40, 20:60])
        with open_scene(SceneAddress(f"{url}/a.tif?token=1", policy=SourcePolicy("archive", (url,)))) as same:
            assert np.array_equal(same.read(ALL)[0], pixels)


def test_another_process_opens_the_address_by_itself(tmp_path, pixels):
    write_tiff(tmp_path / "a.tif", pixels, **TILED)
    code = (
        "import sys; from pipeline.scene import *; from pipeline.grid import Window\n"
        "with open_scene(SceneAddress(sys.argv[1])) as scene: print(int(scene.read(Window(0, 0, 90, 120))[0].sum()))"
    )
    with serve(tmp_path) as (url, _):
        done = subprocess.run(
            [sys.executable, "-c", code, f"{url}/a.tif"], capture_output=True, text=True, check=True, timeout=60
        )
    assert int(done.stdout) == int(pixels.sum())


def test_errors_of_stores_are_errors_of_scenes(tmp_path, pixels):
    with serve(tmp_path) as (url, _):
        (tmp_path / "cut.tif").write_bytes(write_tiff(tmp_path / "a.tif", pixels).read_bytes()[:20_000])
        for name, reason in {"none.tif": "no such file", "cut.tif": "is truncated or corrupt"}.items():
            with pytest.raises(UnreadableError, match=reason):
                open_scene(SceneAddress(f"{url}/{name}"))
    for address in (f"{url}/a.tif", "nope://a/b.tif", "gdrive://a/b.tif", "memory://none.tif", "memory://"):
        with pytest.raises(SceneError):
            open_scene(SceneAddress(address))


def test_a_server_that_fails_is_no_server_without_the_file(tmp_path, pixels):
    write_tiff(tmp_path / "a.tif", pixels, **TILED)
    with serve(tmp_path, trouble=lambda path, _: 503 * path.endswith(".msk")) as (url, _):
        for act in (open_scene, fingerprint):  # without its mask, the scene would be another
            with pytest.raises(UnreadableError, match=r"a.tif.msk cannot be opened: ClientResponseError: 503"):
                act(SceneAddress(f"{url}/a.tif"))
    unlisted = serve(tmp_path, trouble=lambda path, _: 403 * (not path.endswith(".tif")))  # as buckets answer
    with unlisted as (url, _), open_scene(SceneAddress(f"{url}/a.tif")) as scene:
        assert np.array_equal(scene.read(ALL)[0], pixels)
    with pytest.raises(UnreadableError, match="Cannot connect"):
        fingerprint(SceneAddress(f"{url}/a.tif"))


def test_a_request_that_fails_is_made_again_and_then_says_why(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("pipeline.sources.files._PAUSE", 0.0)
    path = write_tiff(tmp_path / "a.tif", noise(3, 700, 700))
    failures = []

    def fail(_, part):
        late = part and int(part[6:].split("-")[0]) > 400_000 and len(failures) < failures_wanted
        return failures.append(part) or 500 if late else None

    with serve(tmp_path, trouble=fail) as (url, _), open_scene(SceneAddress(f"{url}/a.tif")) as scene:
        whole, failures_wanted = Window(0, 0, 700, 700), 2
        with pytest.raises(UnreadableError, match="500, message='Internal Server Error'"):
            scene.read(whole)
        failures_wanted = 3
        with rasterio.open(path) as file:
            assert np.array_equal(scene.read(whole)[0], file.read())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("server", "says"), [({"ranges": False}, "sends whole files"), ({"sizes": False}, "does not tell its size")]
)
def test_a_server_that_is_too_simple_is_an_error_that_says_so(tmp_path, server, says):
    write_tiff(tmp_path / "a.tif", noise(3, 700, 700), **TILED)
    with serve(tmp_path, **server) as (url, _), pytest.raises(UnreadableError, match=f"{says}.*download it"):
        open_scene(SceneAddress(f"{url}/a.tif"))


def test_a_store_that_changes_while_it_is_read_is_an_error_and_never_zeros(memory, tmp_path):
    store, folder = memory
    store.pipe(f"{folder}/b.tif", write_tiff(tmp_path / "b.tif", noise(3, 700, 700)).read_bytes())
    with open_scene(SceneAddress(f"memory:/{folder}/b.tif")) as scene:
        store.pipe(f"{folder}/b.tif", b"II*\0")
        with pytest.raises(UnreadableError, match="cannot be read at rows 0-700"):
            scene.read(Window(0, 0, 700, 700))


def test_what_lies_above_a_remote_root_is_refused(memory):
    policy = SourcePolicy("archive", ("memory://archive/in",))
    for path in ("memory://archive/a.tif", "memory://archive/in/../a.tif", "memory://archive/in/%252e%252e/a.tif"):
        with pytest.raises(SceneError, match="leads outside"):
            open_scene(SceneAddress(path, policy=policy))
    with pytest.raises(SceneError, match="leads outside"):
        open_scene(SceneAddress("memory://archive/inside/a.tif", policy=policy))
