import numpy as np
import pytest
import rasterio
from drawn_scenes import noise, write_tiff

from pipeline.grid import Window
from pipeline.scene import SceneAddress, fingerprint, open_scene

WORLD = "2\n0\n0\n-3\n101\n198.5\n"
ALL = Window(0, 0, 40, 50)


@pytest.mark.parametrize(
    ("name", "driver", "sidecar"),
    [
        ("a.tif", "GTiff", "a.tfw"),
        ("a.tif", "GTiff", "a.TFW"),
        ("a.tif", "GTiff", "a.tifw"),
        ("a.tif", "GTiff", "a.wld"),
        ("a.png", "PNG", "a.pgw"),
        ("a.png", "PNG", "a.pngw"),
        ("a.jpg", "JPEG", "a.jgw"),
        ("a.jpg", "JPEG", "a.JPGW"),
        ("a.jp2", "JP2OpenJPEG", "a.j2w"),
    ],
)
def test_a_world_file_places_the_scene_as_gdal_says(tmp_path, name, driver, sidecar):
    path = write_tiff(tmp_path / name, noise(3, 40, 50), driver=driver, crs=None, transform=None)
    (tmp_path / f"{name}.aux.xml").unlink(missing_ok=True)
    address = SceneAddress(str(path))
    before = fingerprint(address)
    (tmp_path / sidecar).write_text(WORLD)
    assert fingerprint(address) != before
    with open_scene(address) as scene, rasterio.open(path) as file:
        assert scene.georef.transform == tuple(file.transform)[:6] == (2, 0, 100, 0, -3, 200)
        assert scene.origin["sidecars"] == [{"file": sidecar, "changes": ["transform"]}]
        assert scene.notes == (f"{sidecar} changes the scene's transform",)


def test_what_a_sidecar_says_counts_and_what_it_only_repeats_is_no_change(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(2, 40, 50))
    (tmp_path / "a.tif.aux.xml").write_text(
        "<PAMDataset><SRS>EPSG:32632</SRS><GeoTransform>5, 1, 0, 6, 0, -1</GeoTransform>"
        '<PAMRasterBand band="2"><NoDataValue>7</NoDataValue><Scale>0.5</Scale><Offset>1</Offset></PAMRasterBand>'
        "</PAMDataset>"
    )
    (tmp_path / "a.tfw").write_text(WORLD)
    with open_scene(SceneAddress(str(path))) as scene:
        assert scene.georef.transform == (1, 0, 5, 0, -1, 6)
        assert 'ID["EPSG",32632]' in scene.georef.crs
        assert (scene.nodata, scene.radiometry.scale) == ((None, 7), (1, 0.5))
        changes = {fact["file"]: fact["changes"] for fact in scene.origin["sidecars"]}
        assert changes["a.tif.aux.xml"] == ["crs", "transform", "nodata", "mask", "scale and offset"]


def test_a_mask_beside_the_file_that_is_none_is_told(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(3, 40, 50))
    (tmp_path / "a.tif.msk").write_bytes(b"<html>not found</html>")
    with open_scene(SceneAddress(str(path))) as scene:
        assert scene.read(ALL)[1].all()
        assert scene.notes == ("a.tif.msk masks nothing: it is damaged, of another size, or the scene has its own",)


def test_a_mask_beside_the_file_is_reported(tmp_path):
    path, mask = write_tiff(tmp_path / "a.tif", noise(3, 40, 50)), np.ones((40, 50), bool)
    mask[20:, 30:] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
        file.write_mask(mask)
    with open_scene(SceneAddress(str(path))) as scene:
        assert scene.origin["sidecars"] == [{"file": "a.tif.msk", "changes": ["mask"]}]
        assert np.array_equal(scene.read(ALL)[1], mask)


def test_control_points_and_rpcs_beside_a_file_are_reported(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(1, 40, 50), crs=None, transform=None)
    keys = ("LINE_OFF", "SAMP_OFF", "LAT_OFF", "LONG_OFF", "HEIGHT_OFF")
    keys += ("LINE_SCALE", "SAMP_SCALE", "LAT_SCALE", "LONG_SCALE", "HEIGHT_SCALE")
    lines = [f"{key}: 1" for key in keys]
    for kind in ("LINE_NUM", "LINE_DEN", "SAMP_NUM", "SAMP_DEN"):
        lines += [f"{kind}_COEFF_{number}: {1 if number in {1, 2} else 0}" for number in range(1, 21)]
    (tmp_path / "a_RPC.TXT").write_text("\n".join(lines))
    with open_scene(SceneAddress(str(path))) as scene:
        assert scene.georef.rpcs
        assert scene.origin["sidecars"] == [{"file": "a_RPC.TXT", "changes": ["RPCs"]}]


def test_statistics_beside_a_file_change_nothing_that_is_reported(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(1, 40, 50))
    (tmp_path / "a.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><Metadata><MDI key="STATISTICS_MEAN">3</MDI></Metadata>'
        "</PAMRasterBand></PAMDataset>"
    )
    with open_scene(SceneAddress(str(path))) as scene:
        assert scene.origin["sidecars"] == [{"file": "a.tif.aux.xml", "changes": []}]
        assert scene.notes == ()
