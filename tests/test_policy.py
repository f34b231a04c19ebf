import os

import numpy as np
import pytest
import rasterio
from drawn_scenes import noise, write_tiff
from local_server import serve

from pipeline.errors import RefusedError, SceneError
from pipeline.grid import Window
from pipeline.scene import SceneAddress, fingerprint, open_scene
from pipeline.sources.policy import SourcePolicy

ALL = Window(0, 0, 40, 50)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    write_tiff(folder / "a.tif", noise(3, 40, 50))
    write_tiff(tmp_path / "outside.tif", noise(3, 40, 50))
    return folder


def archive(root, path, **limits):
    return SceneAddress(str(path), policy=SourcePolicy("archive", (str(root),), **limits))


def untrusted(path, *roots):
    return SceneAddress(str(path), policy=SourcePolicy("untrusted", tuple(map(str, roots))))


def mosaic(path, *sources, relative=1, extra="", band="", wrap="SimpleSource"):
    """A VRT of 40 x 50 pixels that shows the first band of each source."""
    inside = "".join(
        f'<{wrap}><SourceFilename relativeToVRT="{relative}">{source}</SourceFilename>'
        f"<SourceBand>1</SourceBand></{wrap}>"
        for source in sources
    )
    path.write_text(
        f'<VRTDataset rasterXSize="50" rasterYSize="40">{extra}'
        f'<VRTRasterBand dataType="Byte" band="1"{band}>{inside}</VRTRasterBand></VRTDataset>'
    )
    return path


def refused(address, match):
    with pytest.raises(RefusedError, match=match):
        open_scene(address)


def test_what_lies_below_the_root_opens(root):
    with open_scene(archive(root, root / "a.tif")) as scene:
        assert scene.read(ALL)[1].all()
        assert (scene.origin["driver"], scene.origin["trust"]) == ("GTiff", "archive")


@pytest.mark.parametrize("make", [lambda root: root / "../outside.tif", lambda root: root.parent / "outside.tif"])
def test_what_leads_out_of_the_root_is_refused(root, make):
    refused(archive(root, make(root)), r"leads outside .*archive: allowed are plain rasters")
    refused(untrusted(make(root), root), "leads outside")


def test_links_are_followed_before_they_are_judged(root):
    (root / "out.tif").symlink_to(root.parent / "outside.tif")
    (root / "in.tif").symlink_to(root / "a.tif")
    refused(archive(root, root / "out.tif"), "leads outside")
    open_scene(archive(root, root / "in.tif")).close()
    (root / "folder").symlink_to(root.parent)
    refused(archive(root, root / "folder/outside.tif"), "leads outside")


def test_a_sidecar_that_leads_out_is_refused(root):
    (root.parent / "world").write_text("1\n0\n0\n-1\n0\n0\n")
    (root / "a.tfw").symlink_to(root.parent / "world")
    refused(archive(root, root / "a.tif"), "a.tfw leads outside")


def test_pipes_and_devices_are_no_scenes(root):
    os.mkfifo(root / "pipe.tif")
    for path in (root / "pipe.tif", "/dev/zero", root):
        with pytest.raises(SceneError, match=r"not a file|leads outside"):
            open_scene(archive(root, path))
    with pytest.raises(SceneError, match="not a file"):
        open_scene(SceneAddress("/dev/zero"))


@pytest.mark.parametrize(
    "name",
    [
        "/vsicurl/{url}/a.tif",
        "/vsizip/x.zip/a.tif",
        "WMTS:{url}/wmts.xml",
        'ZARR:"/vsicurl/{url}/z.zarr"',
        "GTIFF_DIR:1:a.tif",
        "<VRTDataset><VRTRasterBand/></VRTDataset>",
        "<GDAL_WMS><Service><ServerUrl>{url}</ServerUrl></Service></GDAL_WMS>",
        "{url}/a.tif",
        "zip://a.tif::{url}/a.zip",
        "simplecache::{url}/a.tif",
    ],
)
def test_names_that_only_gdal_or_a_network_understands_are_refused_unasked(root, name):
    with serve(root) as (url, asked):
        for address in (archive(root, name.format(url=url)), untrusted(name.format(url=url), root)):
            refused(address, "not a plain file|leads outside|chains filesystems")
            with pytest.raises(RefusedError):
                fingerprint(address)
        assert asked == []


def test_a_file_must_be_what_its_name_says(root):
    (root / "b.png").write_bytes((root / "a.tif").read_bytes())
    mosaic(root / "v.tif", "a.tif")
    refused(archive(root, root / "b.png"), "is a GTiff file and its name does not say so")
    refused(archive(root, root / "v.tif"), "VRT file and its name does not say so")
    refused(SceneAddress(str(root / "v.tif")), r"rename it to \.vrt")
    open_scene(SceneAddress(str(root / "b.png"))).close()
    open_scene(untrusted(root / "b.png")).close()


def test_a_vrt_of_files_below_the_root_is_read(root):
    inner = mosaic(root / "inner.vrt", "a.tif")
    outer = mosaic(root / "outer.vrt", "inner.vrt", wrap="ComplexSource")
    with rasterio.open(root / "a.tif") as file:
        expected = file.read(1)
    for path in (inner, outer):
        with open_scene(archive(root, path)) as scene:
            assert np.array_equal(scene.read(ALL)[0][0], expected)
    refused(untrusted(outer), "is a VRT")


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("../outside.tif", {}),
        ("/etc/passwd", {"relative": 0}),
        ("a.tif", {"relative": 0}),
        ("/vsicurl/{url}/a.tif", {"relative": 0}),
        ("{url}/a.tif", {}),
        ('NETCDF:"a.tif":x', {}),
        ("missing.tif", {}),
        ("a.tif", {"wrap": "RawSource"}),
        ("a.tif", {"band": ' subClass="VRTDerivedRasterBand"'}),
        ("a.tif", {"extra": '<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/x</MDI></Metadata>'}),
        ("a.tif", {"extra": "<SRS>{url}/srs</SRS>"}),
        ("a.tif", {"extra": "<OpenOptions/>"}),
        ("a.tif", {"extra": "<!-- x -->"}),
        ("a.tif", {"extra": "<![CDATA[x]]>"}),
        ("a.<!-- -->tif", {}),
        ("loop.vrt", {}),
    ],
)
def test_a_vrt_that_is_more_than_a_mosaic_is_refused_unasked(root, source, options):
    mosaic(root / "loop.vrt", "loop2.vrt")
    mosaic(root / "loop2.vrt", "loop3.vrt")
    mosaic(root / "loop3.vrt", "loop4.vrt")
    mosaic(root / "loop4.vrt", "loop5.vrt")
    with serve(root) as (url, asked):
        options = {key: value.replace("{url}", url) if key == "extra" else value for key, value in options.items()}
        mosaic(root / "v.vrt", source.format(url=url), **options)
        with pytest.raises(SceneError):
            open_scene(archive(root, root / "v.vrt"))
        assert asked == []


def test_raw_bands_and_entities_are_refused(root):
    (root / "raw.vrt").write_text(
        '<VRTDataset rasterXSize="5" rasterYSize="4">'
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">'
        "<SourceFilename>/etc/passwd</SourceFilename></VRTRasterBand></VRTDataset>"
    )
    (root / "entity.vrt").write_text(
        '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><VRTDataset><SRS>&e;</SRS></VRTDataset>'
    )
    refused(archive(root, root / "raw.vrt"), "VRTRawRasterBand")
    refused(archive(root, root / "entity.vrt"), "document type")


def test_what_is_no_known_raster_is_refused_before_gdal_sees_it(root):
    (root / "b.tif").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99))
    refused(archive(root, root / "b.tif"), "no raster of a known format .*convert it to a COG")
    refused(untrusted(root / "b.tif"), "no raster of a known format")


def test_untrusted_scenes_ignore_their_sidecars_and_say_so(root):
    (root / "a.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    address = untrusted(root / "a.tif")
    with open_scene(address) as scene:
        assert scene.nodata == (None,) * 3
        assert scene.origin["ignored"] == ["a.tif.aux.xml"]
        assert scene.notes == ("ignored because the scene is not trusted: a.tif.aux.xml",)
    before = fingerprint(address), fingerprint(archive(root, root / "a.tif"))
    (root / "a.tif.aux.xml").write_text("<PAMDataset/>")
    assert fingerprint(address) == before[0]
    assert fingerprint(archive(root, root / "a.tif")) != before[1]


def test_an_overview_file_named_inside_a_raster_is_never_fetched(root):
    with serve(root) as (url, asked):
        with rasterio.open(root / "a.tif", "r+") as file:
            file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/{url}/x.tif")
        asked.clear()
        for address in (archive(root, root / "a.tif"), untrusted(root / "a.tif")):
            refused(address, "takes its overviews from another file")
        with open_scene(SceneAddress(str(root / "a.tif"))) as scene:
            scene.read(ALL)
            assert scene.origin["sidecars"] == []
        with open_scene(archive(root, mosaic(root / "v.vrt", "a.tif"))) as scene:
            assert np.array_equal(scene.sample(ALL, (10, 10))[1], np.ones((10, 10), bool))
        assert asked == []


@pytest.mark.parametrize("suffix", [".msk", ".ovr", ".OVR"])
def test_a_mask_or_overview_that_is_no_tiff_is_refused(root, suffix):
    mosaic(root / f"a.tif{suffix}", "/etc/passwd", relative=0)
    refused(archive(root, root / "a.tif"), "is no TIFF as a mask or overview should be")
    with open_scene(untrusted(root / "a.tif")) as scene:
        assert scene.read(ALL)[1].all()


def test_limits_are_checked_with_their_numbers(root):
    refused(archive(root, root / "a.tif", max_pixels=1999), r"40 x 50 = 2e\+03 pixels.*raise --max-pixels")
    refused(archive(root, root / "a.tif", max_block_bytes=1000), "blocks of .* GiB.*rewrite it as a COG")
    open_scene(archive(root, root / "a.tif", max_pixels=2000)).close()


@pytest.mark.parametrize(
    "name", ["a\nb.tif", "-a.tif", "ü €.tif", "a?b#c%20!d.tif", "a:b.tif", " .tif", "x" * 240 + ".tif"]
)
def test_odd_names_are_just_names(root, name):
    (root / "a.tif").rename(root / name)
    for address in (archive(root, root / name), SceneAddress(str(root / name)), untrusted(root / name)):
        with open_scene(address) as scene:
            assert scene.read(ALL)[1].all()


@pytest.mark.parametrize("name", ["x" * 10_000 + ".tif", "x" * 300 + ".tif", "a\0b.tif", "", "nope://x/a.tif", "s3://"])
def test_impossible_names_are_errors_of_one_kind(root, name):
    with pytest.raises(SceneError) as caught:
        open_scene(SceneAddress(name))
    assert len(str(caught.value)) < 1000


def test_a_policy_is_valid_from_birth():
    for wrong in ({"trust": "archive"}, {"trust": "any"}, {"max_pixels": 0}):
        with pytest.raises(ValueError):
            SourcePolicy(**wrong)
