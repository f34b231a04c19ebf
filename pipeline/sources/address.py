"""Where a scene is, and which part of it is meant: what a task carries instead of pixels."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from pipeline.grid import Window
from pipeline.sources.policy import SourcePolicy
from pipeline.sources.scenefile import is_scene_file, read_bands


@dataclass(frozen=True)
class SceneAddress:
    """What a task carries instead of pixels: where a scene is, and which part of it is meant."""

    path: str
    """A local path, an address for fsspec, a scene file, or (trusted as named) anything that GDAL opens."""
    bands: tuple[int, ...] | None = None
    """Bands of the file, counted from 1, in the order wanted; None: all, alpha aside."""
    nodata: float | None = None
    """Replaces what the file says about nodata; None: the file's."""
    window: Window | None = None
    """The part of the file that is the scene, in the file's pixels; None: all of it."""
    files: tuple[tuple[str, str], ...] = ()
    """(band, path) where each band has a file of its own, on the grid of the first; `path` then names the scene."""
    policy: SourcePolicy = field(default_factory=SourcePolicy)
    """What may be opened."""
    palette: bool = False
    """Whether a colour table is expanded: the bands are then 1 red, 2 green and 3 blue."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a plan or a record."""
        return asdict(self)

    def content(self) -> dict[str, Any]:
        """What of the address decides the scene's pixels, wherever they lie and whoever may open them."""
        facts = {key: value for key, value in self.to_json().items() if key not in {"path", "policy"}}
        return facts | {"files": [band for band, _ in self.files]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The address that `to_json` wrote."""
        bands, window = data.get("bands"), data.get("window")
        policy = dict(data.get("policy", {}))
        return cls(
            path=data["path"],
            bands=None if bands is None else tuple(bands),
            nodata=data.get("nodata"),
            window=None if window is None else Window(**window),
            files=tuple((band, path) for band, path in data.get("files", ())),
            policy=SourcePolicy(**policy | {"roots": tuple(policy.get("roots", ()))}),
            palette=data.get("palette", False),
        )


def read_scene_file(path: str, policy: SourcePolicy) -> SceneAddress:
    """The address of the scene that a scene file describes (see `scenefile`).

    Raises:
        RefusedError, UnreadableError: it, or a file that it names, may not or cannot be read.
    """
    return SceneAddress(path, files=read_bands(path, policy), policy=policy)


def expanded(address: SceneAddress) -> SceneAddress:
    """The address with the files that its scene file names, if its path is one."""
    if address.files or not is_scene_file(address.path):
        return address
    return replace(address, files=read_bands(address.path, address.policy))
