"""Encoder, decoder and head put together: the network of a bundle, without its normalisation."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from models.decoder import DECODERS, FPN, UNet
from models.inception import create_encoder
from models.inception.blocks import Padding
from models.inception.encoder import Encoder


class Segmenter(nn.Module):
    """Normalised (N, C, H, W) -> logits (N, K, H, W), same H and W at every size.

    Local: a logit depends on the pixels within the receptive field only, never on the whole image.
    """

    def __init__(self, encoder: Encoder, decoder: UNet | FPN, classes: int, output_stride: int = 1) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = nn.Conv2d(decoder.channels, classes, 1)
        self.output_stride = output_stride
        """Pixels between two logits before they are enlarged."""

    def forward(self, x: Tensor) -> Tensor:
        """Encode, decode, classify each cell of the output stride, enlarge to the input's size."""
        rows, cols = x.shape[-2], x.shape[-1]
        logits: Tensor = self.head(self.decoder(self.encoder(x), (rows, cols)))
        if self.output_stride > 1:  # by a whole factor, then cropped: enlarging to an odd size would stretch
            logits = functional.interpolate(logits, scale_factor=self.output_stride, mode="bilinear")
        return logits[..., :rows, :cols]


def create_segmenter(
    encoder: str,
    classes: int,
    *,
    decoder: str = "unet",
    bands: int = 3,
    width: float = 1.0,
    padding: Padding = "same",
    decoder_channels: Sequence[int] | None = None,
    output_stride: int = 2,
    **variant: Any,
) -> Segmenter:
    """A network with the default initialisation of its layers: see `models.init` for training from scratch.

    Args:
        encoder: one of `models.inception.ENCODERS`.
        classes: K.
        decoder: `unet`, or the lighter `fpn`.
        bands: channels of the input, which is normalised.
        width: multiplier of the encoder's channels.
        padding: of the encoder: only `same` aligns features with pixels.
        decoder_channels: as the decoder's class takes them; its `WIDTHS` if None.
        output_stride: 2 or 4 for logits on a coarser grid, which are enlarged bilinearly; 1 for one at each pixel.
        variant: options of the encoder.

    Raises:
        ValueError: no such encoder or decoder, channels that do not match, or features that are not aligned.
    """
    if decoder not in DECODERS:
        raise ValueError(f"no decoder is called {decoder!r}: choose one of {', '.join(DECODERS)}")
    if padding != "same":
        raise ValueError(f"padding {padding!r} moves features off the pixels: a segmenter needs 'same'")
    features = create_encoder(encoder, bands=bands, width=width, padding=padding, **variant)
    kind = DECODERS[decoder]
    parts = kind(features.channels, features.strides, decoder_channels or kind.WIDTHS, output_stride)
    return Segmenter(features, parts, classes, output_stride)
