"""The data contract that chips and a configuration imply."""

from typing import Any

from models.config import TrainConfig
from models.dataset import Chips
from models.decoder import DECODERS
from models.spec import Architecture, Band, Class, ModelSpec

PALETTE = ("#3B4252", "#E4572E", "#17BEBB", "#FFC914", "#76B041", "#8E6C8A", "#2E86AB", "#F18F01")
"""Colours of classes that the configuration gives none."""

LARGEST_PATCHES = 1152
"""Largest tile of several patches that a classifier is served with, in pixels."""


def make_spec(config: TrainConfig, chips: Chips, bands: tuple[Band, ...]) -> ModelSpec:
    """The spec of the network that a settled configuration trains on these chips."""
    classes = chips.header.classes
    colors = (config.colors + PALETTE * len(classes))[: len(classes)]
    codes = (config.codes + (None,) * len(classes))[: len(classes)]
    return ModelSpec(
        name=config.name,
        architecture=_architecture(config),
        bands=bands,
        dtypes=(chips.header.dtype,),
        resolution=chips.header.resolution,
        classes=tuple(
            Class(id=c.id, name=c.name, color=color, code=code)
            for c, color, code in zip(classes, colors, codes, strict=True)
        ),
        objects=chips.header.objects,
        boundary=chips.header.boundary,
        licence=config.licence,
        attribution=config.attribution,
        **_sizes(config),
    )


def _architecture(config: TrainConfig) -> Architecture:
    encoder: dict[str, Any] = {"encoder": config.encoder, "width": config.width, "variant": dict(config.variant)}
    if config.task == "classify":
        return Architecture(**encoder, decoder=None, decoder_channels=())
    channels = config.decoder_channels or DECODERS[config.decoder].WIDTHS
    return Architecture(
        **encoder, decoder=config.decoder, decoder_channels=channels, output_stride=config.output_stride
    )


def _sizes(config: TrainConfig) -> dict[str, Any]:
    """Tiles and halo of a segmenter; a classifier's follow from its patch."""
    if config.task == "segment":
        return {"halo": config.halo, "tiles": config.tiles}
    tiles = tuple(config.crop * count for count in (2, 4, 8) if count == 2 or config.crop * count <= LARGEST_PATCHES)
    return {"halo": 0, "tiles": tiles, "stride": config.crop, "cell": config.crop}
