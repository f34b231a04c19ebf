"""The networks by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from models.inception import resnet_v1, resnet_v2, v1, v2, v2_factorized, v3, v4
from models.inception.blocks import Padding
from models.inception.encoder import Encoder, Network, style_of

NETWORKS: dict[str, Callable[..., Network]] = {
    "inception_v1": v1.network,
    "inception_v2": v2.network,
    "inception_v2_factorized": v2_factorized.network,
    "inception_v3": v3.network,
    "inception_v4": v4.network,
    "inception_resnet_v1": resnet_v1.network,
    "inception_resnet_v2": resnet_v2.network,
}
ENCODERS = tuple(NETWORKS)
"""Names that `create_encoder` and `create_classifier` know."""


def find_network(name: str, **variant: Any) -> Network:
    """The network called `name` in the variant that its keyword arguments choose.

    Raises:
        ValueError: there is no such network, or it has no such variant.
    """
    if name not in NETWORKS:
        raise ValueError(f"no encoder is called {name!r}: choose one of {', '.join(ENCODERS)}")
    known = list(inspect.signature(NETWORKS[name]).parameters)
    strange = sorted(set(variant) - set(known))
    if strange:
        raise ValueError(f"{name} has no option {strange[0]!r}: it has {', '.join(known) or 'none'}")
    return NETWORKS[name](**variant)


def check_variant(name: str, variant: Mapping[str, Any]) -> Network:
    """The network called `name`, if `variant` holds nothing but options that choose among its kinds.

    Raises:
        ValueError: there is no such network, option or value.
    """
    style_of(
        network := find_network(name, **{key: v for key, v in variant.items() if key != "count_include_pad"}),
        count_include_pad=variant.get("count_include_pad"),
    )
    return network


def create_encoder(
    name: str,
    *,
    bands: int = 3,
    padding: Padding = "same",
    width: float = 1.0,
    count_include_pad: bool | None = None,
    **variant: Any,
) -> Encoder:
    """The encoder called `name`: declares `channels` and `strides`, maps (N, bands, H, W) to five maps, finest first.

    Args:
        name: one of `ENCODERS`.
        bands: channels of the input, which is normalised.
        padding: `same`: features aligned with the pixels at every size; `valid`: as in the published classifiers.
        width: multiplier of the channels, rounded to multiples of 8.
        count_include_pad: whether averages count the padding; as the network's public weights want it if None.
        variant: options of that network: `kernel5`, `bn` (v1), `variant` (Inception-ResNets).

    Raises:
        ValueError: there is no such encoder, option or padding.
    """
    network = find_network(name, **variant)
    return Encoder(network, bands, style_of(network, padding, width, count_include_pad))
