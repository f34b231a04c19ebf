"""What the flows that segment can be told: the options of `widefield segment`, as one validated value."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from flows.options import DeviceName, EngineName, PrecisionName, planes_of
from models.registry import resolve
from pipeline.grid import Window
from pipeline.plan import PlanOptions
from pipeline.scene import SceneAddress
from pipeline.segment import SegmentRequest

Count = Annotated[int, Field(ge=1)]
"""A whole number from 1."""


class Options(BaseModel):
    """How scenes are read, cut and computed. The defaults are good."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: Annotated[Count, Field(description="Worker processes on this machine.")] = 1
    threads: Annotated[Count | None, Field(description="Engine threads a worker.")] = None
    scheduler: Annotated[str | None, Field(description="Address of a Dask scheduler; its workers must see `out`.")] = (
        None
    )
    block: Annotated[Count | None, Field(description="Wanted block edge, in pixels.")] = None
    tile: Annotated[Count | None, Field(description="Largest tile allowed, in pixels: one of the bundle's.")] = None
    engine: Annotated[
        EngineName,
        Field(description="What runs the network; `auto`: the fastest that passes; `null`: the pipeline alone."),
    ] = "auto"
    precision: Annotated[PrecisionName, Field(description="Of the engine's arithmetic.")] = "auto"
    device: Annotated[DeviceName, Field(description="`auto`: a GPU where there is one.")] = "auto"
    streams: Annotated[
        int, Field(ge=0, description="Batches that an engine computes side by side; 0: as many as pay, measured once.")
    ] = 0
    batch: Annotated[Count, Field(description="Tiles that the engine computes at once.")] = 1
    tta: Annotated[bool, Field(description="See each tile in its eight orientations.")] = False
    probabilities: Annotated[
        str | None, Field(description="Also publish probabilities of these classes, with commas between; `all`: each.")
    ] = None
    stage: Annotated[Literal["always", "auto", "never"], Field(description="Tile scenes into zarr first.")] = "auto"
    bands: Annotated[
        list[Count] | None, Field(description="Bands of the file in the bundle's order, counted from 1.")
    ] = None
    nodata: Annotated[float | None, Field(description="Nodata of files that do not say, or say it wrongly.")] = None
    window: Annotated[
        tuple[int, int, Count, Count] | None, Field(description="A part of the scene: row, column, height, width.")
    ] = None
    any_resolution: Annotated[bool, Field(description="Do not insist on the bundle's range of pixel sizes.")] = False
    keep_staged: Annotated[bool, Field(description="Keep staged scenes for the next run.")] = False

    def request(self, scene: str, name: str, bundle: str, out: str) -> SegmentRequest:
        """The request to segment `scene` into `out / name`; paths become absolute on the machine that runs the flow.

        A registry stands for the bundle that is its champion now.
        """
        place = resolve(bundle).absolute()
        bands, part = tuple(self.bands) if self.bands else None, Window(*self.window) if self.window else None
        return SegmentRequest(
            scene=SceneAddress(scene, bands, self.nodata, part),
            bundle=place,
            out=Path(out).absolute(),
            name=name,
            options=PlanOptions(
                block=self.block,
                stage={"always": True, "never": False}.get(self.stage),
                any_resolution=self.any_resolution,
                workers=self.workers,
            ),
            backend=self.engine,
            precision=self.precision,
            target=self.device,
            streams=self.streams,
            batch=self.batch,
            tta=self.tta,
            planes=planes_of(place, self.probabilities),
            tile=self.tile,
            threads=self.threads,
            keep_staged=self.keep_staged,
        )


def address(archive: str) -> str:
    """An archive as everybody would name it: URLs as they are, folders absolute, on the machine that runs the flow."""
    return archive if "://" in archive else str(Path(archive).absolute())
