"""What somebody else put into an archive: refused in one line each, the good scene is segmented, nobody is called."""

import json
import os
import re
import struct
import subprocess
import sys

import pytest
from drawn_scenes import noise, write_tiff

from pipeline.verify import verify

pytestmark = pytest.mark.xdist_group("hostile")  # the archive is segmented once

SERVER = """
import http.server, sys
tiff = open(sys.argv[1], "rb").read()
class Listener(http.server.BaseHTTPRequestHandler):
    def setup(self):
        open(sys.argv[2], "a").write("connected\\n")
        super().setup()
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(tiff)))
        self.end_headers()
        self.wfile.write(tiff if self.command != "HEAD" else b"")
    do_HEAD = do_POST = do_GET
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
print(server.server_port, flush=True)
server.serve_forever()
"""


class Trap:
    """A server that serves a good TIFF under every name, and counts who connects."""

    def __init__(self, folder):
        tiff = write_tiff(folder / "served.tif", noise(1, 20, 20))
        self.log = folder / "log"
        command = [sys.executable, "-c", SERVER, tiff, self.log]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.host = f"127.0.0.1:{self.process.stdout.readline().strip()}"
        self.url = f"http://{self.host}"

    def connections(self):
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture(scope="module")
def trap(tmp_path_factory):
    trap = Trap(tmp_path_factory.mktemp("trap"))
    yield trap
    trap.process.kill()
    trap.process.communicate()


def vrt(source, relative=0, band="", inside="", root=""):
    """A VRT of one 20 x 20 band drawn from `source`."""
    return (
        f'<VRTDataset rasterXSize="20" rasterYSize="20"{root}><VRTRasterBand dataType="Byte" band="1"{band}>{inside}'
        f'<SimpleSource><SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )


def raw(source):
    """A VRT that shows the bytes of any file as pixels."""
    return (
        '<VRTDataset rasterXSize="20" rasterYSize="20"><VRTRasterBand dataType="Byte" band="1" '
        f'subClass="VRTRawRasterBand"><SourceFilename relativetoVRT="0">{source}</SourceFilename>'
        "<ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset><LineOffset>20</LineOffset>"
        "</VRTRasterBand></VRTDataset>"
    )


def service(url):
    """GDAL's description of a map service; this kind calls it as soon as it is opened."""
    return f'<GDAL_WMS><Service name="TiledWMS"><ServerUrl>{url}/w?</ServerUrl></Service></GDAL_WMS>'


def tms(url):
    return (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service><DataWindow>'
        "<SizeX>20</SizeX><SizeY>20</SizeY><TileLevel>0</TileLevel></DataWindow><BandsCount>1</BandsCount></GDAL_WMS>"
    )


def bomb(width, height, tile):
    """A TIFF of 300 bytes that claims `width` x `height` x 3; with `tile`, in tiles of that edge."""
    block = [(322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, 200), (325, 4, 1, 90)]
    block = block if tile else [(273, 4, 1, 200), (278, 4, 1, height), (279, 4, 1, 90)]
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 2), (277, 3, 1, 3)]
    fields = [struct.pack("<HHII", *tag) for tag in sorted(tags + block)]
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + b"".join(fields)).ljust(300, b"\0")


BESIDE = {"masked": "masked.tif.msk", "shown": "shown.tif.msk", "smaller": "smaller.tif.ovr"}
BESIDE["placed"] = "placed.tif.aux.xml"
"""Good scenes that only what lies beside them makes bad."""
ENTITIES = '<!DOCTYPE v [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;">]>'


def texts(url, outside):
    """{name below the archive: (text, what is said of it)}."""
    return {
        "passwd.tif": (raw("/etc/passwd"), "its name does not say so"),
        "called.tif": (vrt(f"/vsicurl/{url}/a.tif"), "its name does not say so"),
        "raw.vrt": (raw("/etc/passwd"), "allowed in a VRT of an archive are plain mosaics"),
        "curl.vrt": (vrt(f"/vsicurl/{url}/a.tif"), "allowed in a VRT of an archive"),
        "http.vrt": (vrt(f"{url}/a.tif"), "allowed in a VRT of an archive"),
        "relative.vrt": (vrt(f"/vsicurl/{url}/a.tif", relative=1), "allowed in a VRT of an archive"),
        "document.vrt": (vrt(service(url).replace("<", "&lt;")), "allowed in a VRT of an archive"),
        "subdataset.vrt": (vrt(f"GTIFF_DIR:1:{outside}"), "allowed in a VRT of an archive"),
        "outside.vrt": (vrt(outside), "leads outside"),
        "up.vrt": (vrt("../secret.tif", relative=1), "leads outside"),
        "outer.vrt": (vrt("inner.vrt", relative=1), "leads outside"),
        "inner.vrt": (vrt(outside), "leads outside"),
        "linked.vrt": (vrt("link.tif", relative=1), "leads outside"),
        "pixels.vrt": (
            vrt("good.tif", 1, ' subClass="VRTDerivedRasterBand"', "<PixelFunctionType>f</PixelFunctionType>"),
            "allowed in a VRT of an archive",
        ),
        "overview.vrt": (
            vrt("good.tif", 1, inside=f"<Overview><SourceFilename>/vsicurl/{url}/o.tif</SourceFilename></Overview>"),
            "allowed in a VRT of an archive",
        ),
        "warped.vrt": (vrt("good.tif", 1, root=' subClass="VRTWarpedDataset"'), "allowed in a VRT of an archive"),
        "case.vrt": (
            vrt("good.tif", 1, inside=f"<simplesource><sourcefilename>{outside}</sourcefilename></simplesource>"),
            "allowed in a VRT of an archive",
        ),
        "split.vrt": (vrt(f"good.tif<![CDATA[{outside}]]>", 1), "allowed in a VRT of an archive"),
        "entities.vrt": (ENTITIES + vrt("&c;", 1), "document type"),
        "external.vrt": (f'<!DOCTYPE v SYSTEM "{url}/v.dtd" [<!ENTITY x SYSTEM "{url}/x">]>' + vrt("&x;"), "document"),
        "service.tif": (service(url), "is no raster of a known format"),
        "tiles.png": (tms(url), "is no raster of a known format"),
        "masked.tif.msk": (service(url), "is no TIFF"),
        "shown.tif.msk": (raw("/etc/passwd"), "is no TIFF"),
        "smaller.tif.ovr": (vrt(f"/vsicurl/{url}/o.tif"), "is no TIFF"),
        "placed.tif.aux.xml": (f"<PAMDataset><SRS>{url}/crs</SRS></PAMDataset>", "cannot be opened"),
        "square.tif": (bomb(2**31 - 1, 2**31 - 1, 0), "raise --max-pixels"),
        "wide.tif": (bomb(65535, 65535, 0), "has blocks of"),
        "tile.tif": (bomb(30000, 30000, 30000), "has blocks of"),
        "mosaic.vrt": (vrt("tile.tif", relative=1), "tile.tif has blocks of"),
    }


LINKS = {"link.tif": "../secret.tif", "device.tif": "/dev/zero", "passwords.tif": "/etc/passwd"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory, trap):
    """A folder of one good scene, and of everything else above."""
    folder = tmp_path_factory.mktemp("hostile")
    secret = write_tiff(folder / "secret.tif", noise(1, 20, 20))
    below = folder / "archive"
    below.mkdir()
    for name in ("good", "masked", "shown", "smaller", "placed"):
        write_tiff(below / f"{name}.tif", noise(3, 60, 70))
    for name, (content, _) in texts(trap.url, secret).items():
        (below / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, target in LINKS.items():
        (below / name).symlink_to(target)
    os.mkfifo(below / "fifo.tif")
    return below


# libcurl is not seen by this; the trap is there for it.
HOOKED = """
import sys
def hook(event, arguments):
    if event in {"socket.connect", "socket.getaddrinfo"}:
        sys.stderr.write(f"{event} {arguments}\\n")
sys.addaudithook(hook)
from flows.cli import main
main()
"""


def run(*arguments):
    """(exit status, standard output, standard error) of `widefield ARGUMENTS`, sockets of Python told on the latter."""
    command = [sys.executable, "-c", HOOKED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module", params=["archive", "untrusted"])
def night(request, archive, bundle, trap):
    """What is said of each scene, and the folder of results."""
    out = archive.parent / f"masks-{request.param}"
    more = ["--untrusted"] if request.param == "untrusted" else []
    code, _, err = run("segment", archive, "--bundle", bundle, "--out", out, "--engine", "null", *more)
    assert code == 1
    said = dict(re.findall(r"^widefield: ([^:]*): (.*)$", err, re.MULTILINE))
    assert len(err.splitlines()) == len(said) + 1
    return request.param, said, out


def test_nobody_was_called(night, trap):
    assert trap.connections() == 0


def test_the_good_scene_is_segmented(night):
    _, said, out = night
    assert "good" not in said
    assert verify(out / "good").problems == ()


def test_each_other_is_refused_in_one_line_that_says_why(night, archive):
    trust, said, _ = night
    expected = {name.partition(".")[0]: why for name, (_, why) in texts("", "").items()}
    expected |= {name.partition(".")[0]: "leads outside" for name in LINKS}
    if trust == "untrusted":
        expected = {name: why for name, why in expected.items() if name not in BESIDE}
        expected |= {path.stem: "is a VRT" for path in archive.glob("*.vrt")}
    assert {name: why for name, why in expected.items() if why not in said.get(name, "")} == {}
    assert set(said) == set(expected)


def test_without_trust_sidecars_are_ignored_and_that_is_told(night):
    trust, _, out = night
    if trust == "untrusted":
        for name, file in BESIDE.items():
            facts = json.loads((out / name / "run.json").read_text())
            assert facts["scene"]["origin"]["ignored"] == [file]


NAMES = (
    "/vsicurl/{url}/a.tif",
    "/vsicurl?url={url}/a.tif",
    "/vsicurl_streaming/{url}/a.tif",
    "/vsizip//vsicurl/{url}/a.zip/a.tif",
    "/vsis3/bucket/a.tif",
    "WMTS:{url}/a",
    'ZARR:"/vsicurl/{url}/a"',
    'NETCDF:"/vsicurl/{url}/a.nc":a',
    'STACIT:"{url}/a.json"',
    "GTI:/vsicurl/{url}/a",
    "vrt:///vsicurl/{url}/a.tif",
    "GTIFF_DIR:1:/etc/passwd",
    "{service}",
    "{vrt}",
    " {vrt}",
    "simplecache::{url}/a.tif",
    "zip://a::{url}/a.tif",
    "file:///etc/passwd",
    "file:///vsicurl/{url}/a.tif",
    "./vsicurl/{url}/a.tif",
    "/./vsicurl/{url}/a.tif",
    "/dev/zero",
    "/proc/self/mem",
    "/etc/passwd",
    "../../../../../../../../../../etc/passwd",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_plain_file_is_refused_without_trust(widefield, trap, bundle, tmp_path, name):
    named = name.format(url=trap.url, service=service(trap.url), vrt=vrt(f"/vsicurl/{trap.url}/a.tif"))
    code, out, err = widefield("segment", named, "--bundle", bundle, "--out", tmp_path / "o", "--untrusted")
    assert (code in {1, 2}, out) == (True, "")
    assert err.startswith("widefield: ")
    assert err.count("\n") == 1
    assert trap.connections() == 0


def test_a_scene_file_without_trust_names_its_own_folder_only(widefield, trap, bundle, tmp_path):
    write_tiff(tmp_path / "secret.tif", noise(1, 20, 20))
    (tmp_path / "below").mkdir()
    for path in ("../secret.tif", f"{trap.url}/a.tif", f"/vsicurl/{trap.url}/a.tif", str(tmp_path / "secret.tif")):
        scene = tmp_path / "below" / "a.scene.json"
        scene.write_text(json.dumps({"schema": 1, "bands": {"r": path, "g": path, "b": path}}))
        code, _, err = widefield("segment", scene, "--bundle", bundle, "--out", tmp_path / "o", "--untrusted")
        assert code == 1
        assert err.count("\n") == 1
    assert trap.connections() == 0


def test_the_trap_would_tell(trap, tmp_path):
    before = trap.connections()
    (tmp_path / "a.vrt").write_text(vrt(f"/vsicurl/{trap.url}/a.tif"))
    command = [sys.executable, "-c", "import rasterio, sys; rasterio.open(sys.argv[1]).read()", tmp_path / "a.vrt"]
    subprocess.run(command, check=True, capture_output=True)
    assert trap.connections() > before
