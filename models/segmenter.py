"""Encoder, decoder and head put together: the network of a bundle, without its normalisation."""

from collections.abc import Sequence

from torch import Tensor, nn

from models.decoder import UNet
from models.inception import create_encoder
from models.spec import ModelSpec


class Segmenter(nn.Module):
    """Normalised (N, C, H, W) -> logits (N, K, H, W), same H and W at every size.

    Local: a logit depends on the pixels within the receptive field only, never on the whole image.
    """

    def __init__(self, encoder: nn.Module, decoder: UNet, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = nn.Conv2d(decoder.channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Encode, decode to the input's size, classify each pixel."""
        return self.head(self.decoder(self.encoder(x), x.shape[-2:]))  # type: ignore[no-any-return] # torch


def create_segmenter(
    encoder: str,
    classes: int,
    *,
    bands: int = 3,
    width: float = 1.0,
    decoder: str = "unet",
    decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
) -> Segmenter:
    """A network with the default initialisation of its layers: see `models.init` for training from scratch.

    Raises:
        ValueError: no such encoder or decoder, or channels that do not match.
    """
    if decoder != "unet":
        raise ValueError(f"no decoder is called {decoder!r}: choose 'unet'")
    features = create_encoder(encoder, bands=bands, width=width)
    return Segmenter(features, UNet(features.channels, features.strides, decoder_channels), classes)


def segmenter_from_spec(spec: ModelSpec) -> Segmenter:
    """The network that `spec` describes."""
    plan = spec.architecture
    return create_segmenter(
        plan.encoder,
        len(spec.classes),
        bands=len(spec.bands),
        width=plan.width,
        decoder=plan.decoder,
        decoder_channels=plan.decoder_channels,
    )
