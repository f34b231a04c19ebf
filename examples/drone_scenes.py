"""Mosaic the labelled drone tiles into scenes: one GeoTIFF and one GeoJSON of building outlines a block of ground.

Usage:
    python examples/drone_scenes.py DATA OUT [--only 1-A 4-A ...]

DATA holds `oam_buildings_z21.zip` and `oam_buildings_z21_split.csv`: web-mercator tiles of zoom 21, 256 x 256 pixels,
georeferenced by name alone. OUT gets `<area>-<block>-<train|val>.tif` (RGB, tiled, with an internal mask where tiles
are missing, so that a hole is invalid instead of black ground) and `<area>-<block>-<train|val>-labels.geojson`.

Imagery: OpenAerialMap, CC-BY 4.0, contributors of Open Imagery Network. Labels: OpenStreetMap contributors, ODbL 1.0.
"""

import argparse
import csv
import io
import itertools
import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from PIL import Image

EDGE = 256
"""Pixels along a tile."""
HALF_WORLD = 20037508.342789244
"""Half the width of the web-mercator square, in metres of EPSG:3857."""
PIXEL = 2 * HALF_WORLD / 2**21 / EDGE
"""Edge of a pixel at zoom 21, in metres of EPSG:3857."""


@dataclass(frozen=True)
class Tile:
    """One line of the table of tiles."""

    path: str
    """Member of the archive; a JPEG or PNG, whatever its name says."""
    scene: str
    """`<area>-<block>-<split>`: the scene that the tile is a part of."""
    area: str
    row: int
    """Tiles from the top of the web-mercator square."""
    col: int
    """Tiles from its left edge."""


def read_tiles(table: Path) -> list[Tile]:
    """The tiles, ordered by scene."""
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    tiles = [
        Tile(r["path"], f"{r['area']}-{r['block']}-{r['split']}", r["area"], int(r["tile_y"]), int(r["tile_x"]))
        for r in rows
    ]
    return sorted(tiles, key=lambda tile: (tile.scene, tile.row, tile.col))


def mosaic(archive: zipfile.ZipFile, tiles: Iterable[Tile]) -> tuple[NDArray[np.uint8], Affine]:
    """RGBA pixels (4, H, W) of the tiles' bounding box, alpha 0 where there is no tile, and the affine transform."""
    tiles = list(tiles)
    top, left = min(tile.row for tile in tiles), min(tile.col for tile in tiles)
    bottom, right = max(tile.row for tile in tiles) + 1, max(tile.col for tile in tiles) + 1
    image = np.zeros(((bottom - top) * EDGE, (right - left) * EDGE, 4), np.uint8)
    for tile in tiles:
        row, col = (tile.row - top) * EDGE, (tile.col - left) * EDGE
        with Image.open(io.BytesIO(archive.read(tile.path))) as picture:
            image[row : row + EDGE, col : col + EDGE] = np.asarray(picture.convert("RGBA"))
    step = EDGE * PIXEL
    transform = Affine(PIXEL, 0, -HALF_WORLD + left * step, 0, -PIXEL, HALF_WORLD - top * step)
    return image.transpose(2, 0, 1), transform


def write_scene(path: Path, image: NDArray[np.uint8], transform: Affine) -> None:
    """A tiled GeoTIFF of RGB from RGBA pixels (4, H, W), with an internal mask if any pixel is invalid."""
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": 3,
        "height": image.shape[1],
        "width": image.shape[2],
        "dtype": "uint8",
        "crs": "EPSG:3857",
        "transform": transform,
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "predictor": 2,
        "interleave": "pixel",
        "photometric": "rgb",
    }
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as file:
        file.write(image[:3])
        if (image[3] == 0).any():
            file.write_mask(image[3] != 0)


def write_labels(path: Path, archive: zipfile.ZipFile, area: str) -> None:
    """The building outlines of an area, each with `class: building`."""
    features = json.loads(archive.read(f"data/{area}/labels.geojson"))["features"]
    collection = {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "properties": {"class": "building"}, "geometry": f["geometry"]} for f in features
        ],
    }
    path.write_text(json.dumps(collection))


def build(data: Path, out: Path, only: set[str] | None = None) -> Iterator[str]:
    """Writes the scenes whose `<area>-<block>` is in `only` (None: all), and tells of each."""
    out.mkdir(parents=True, exist_ok=True)
    tiles = read_tiles(data / "oam_buildings_z21_split.csv")
    with zipfile.ZipFile(data / "oam_buildings_z21.zip") as archive:
        for scene, group in itertools.groupby(tiles, key=lambda tile: tile.scene):
            if only is not None and scene.rsplit("-", 1)[0] not in only:
                continue
            members = list(group)
            image, transform = mosaic(archive, members)
            write_scene(out / f"{scene}.tif", image, transform)
            write_labels(out / f"{scene}-labels.geojson", archive, members[0].area)
            valid = float((image[3] != 0).mean())
            yield f"{scene}: {image.shape[2]} x {image.shape[1]} pixels, {len(members)} tiles, {valid:.1%} valid"


def main() -> None:
    """Parses the arguments and writes the scenes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the archive and its table")
    parser.add_argument("out", type=Path, help="folder for the scenes")
    parser.add_argument("--only", nargs="+", metavar="AREA-BLOCK", help="e.g. 1-A 4-A; default: all")
    arguments = parser.parse_args()
    for line in build(arguments.data, arguments.out, set(arguments.only) if arguments.only else None):
        print(line)


if __name__ == "__main__":
    main()
