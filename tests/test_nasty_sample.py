"""Characteristic files of the nasty archive, in one go; `make test-nasty` takes all of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nasty.table import cause

pytestmark = pytest.mark.xdist_group("nasty")  # the files are judged once
GDAL = "gdal_autotest/autotest/gcore/data"
FUZZ = "image_tiff/fuzz_images"
SEGMENTED = (
    f"{GDAL}/1bit_2bands.tif",
    f"{GDAL}/int12.tif",
    f"{GDAL}/rgba.tif",
    f"{GDAL}/test_with_mask_1bit.tif",
    f"{GDAL}/test_nodatavalues.tif",
    f"{GDAL}/rgbsmall.tif",
    f"{GDAL}/nan32_nodata.tif",
    f"{GDAL}/bigtiff_four_strip_be_short.tif",
    f"{GDAL}/gtiff/int16_big_endian.tif",
    f"{GDAL}/gtiff/rgbsmall_LERC_ZSTD_tiled_separate.tif",
    f"{GDAL}/gtiff/webp_lossless_rgba_alpha_fully_opaque.tif",
    "image_tiff/images/palette-1c-4b.tiff",
    "image_tiff/images/seq/seq-1c-1b-fax3-lsb-71f6a21a.tiff",
    "rasterio/float_nan.tif",
    "rasterio/rotated.tif",
)
REFUSED = {
    f"{GDAL}/cint16.tif": "pixel type not supported",
    f"{GDAL}/byte_truncated.tif": "shorter than its blocks claim",
    f"{GDAL}/byte_zstd_corrupted.tif": "pixels truncated or corrupt",
    f"{GDAL}/excessive-memory-TIFFFillStrip2.tif": "shorter than its blocks claim",
    f"{GDAL}/scanline_more_than_2GB.tif": "a block larger than memory allows",
    f"{GDAL}/toomanyblocks.tif": "more pixels or blocks than GDAL or the policy allows",
    f"{GDAL}/gtiff/unsupported_codec_unknown.tif": "codec that this build of GDAL lacks",
    f"{FUZZ}/divide_by_zero/id=000000,sig=06,src=000036,op=havoc,rep=4": "header truncated or corrupt",
    f"{FUZZ}/inf_loop/id=000029,src=000556+000125,op=splice,rep=64": "shorter than its blocks claim",
    f"{FUZZ}/oom_crash/id=000000,sig=06,src=000000,op=havoc,rep=2": "pixels truncated or corrupt",
    "rasterio/corrupt.tif": "shorter than its blocks claim",
}


@pytest.fixture(scope="module")
def outcomes(data):
    """{path: what became of it}; in processes of their own, forked from one that has no threads."""
    assert (data / "nasty").is_dir()
    command = [sys.executable, "-m", "tests.nasty", "--json", *SEGMENTED, *REFUSED]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {outcome["path"]: outcome for outcome in lines}


def test_each_file_is_segmented_as_rasterio_reads_it(outcomes):
    found = {path: (outcomes[path]["status"], outcomes[path]["reason"]) for path in SEGMENTED}
    assert found == dict.fromkeys(SEGMENTED, ("segmented", ""))


def test_or_is_refused_for_a_cause_that_is_named(outcomes):
    found = {path: (outcomes[path]["status"], cause(outcomes[path]["reason"])) for path in REFUSED}
    assert found == {path: ("refused", name) for path, name in REFUSED.items()}


def test_and_none_takes_long_or_much(outcomes):
    assert max(outcome["seconds"] for outcome in outcomes.values()) < 20
    assert max(outcome["peak"] for outcome in outcomes.values()) < 1 << 30
