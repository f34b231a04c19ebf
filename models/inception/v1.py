"""Inception v1, GoogLeNet (Szegedy et al., "Going deeper with convolutions"), with batch normalisation for its LRN."""

from torch import Tensor, nn

from models.inception.blocks import ConvBN, Halve, Inception, scaled

ENCODERS = ("inception_v1",)
"""Names that `create_encoder` knows."""

#      1x1  3x3r  3x3  5x5r  5x5  proj
TABLE = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
"""The paper's table 1: channels of each Inception module."""


class InceptionV1(nn.Module):
    """(N, bands, H, W) normalised -> five maps at the stage ends, finest first.

    Each level has ceil(n/2) rows and columns of the one before, at every size. Keys are torchvision's.
    """

    def __init__(self, bands: int = 3, width: float = 1.0, kernel5: int = 5) -> None:
        """`kernel5`: 5 as in the paper, 3 as in the public weights."""
        super().__init__()
        first, third = scaled(64, width), scaled(192, width)
        outputs = third

        def module(name: str) -> Inception:
            nonlocal outputs
            one, reduce3, three, reduce5, five, project = (scaled(channels, width) for channels in TABLE[name])
            block = Inception(outputs, (one, reduce3, three, reduce5, five, project), kernel5)
            outputs = block.channels
            return block

        self.conv1 = ConvBN(bands, first, 7, stride=2)
        self.conv2 = ConvBN(first, first, 1)
        self.conv3 = ConvBN(first, third, 3)
        self.inception3a, self.inception3b = module("3a"), module("3b")
        self.inception4a, self.inception4b, self.inception4c = module("4a"), module("4b"), module("4c")
        self.inception4d, self.inception4e = module("4d"), module("4e")
        self.inception5a, self.inception5b = module("5a"), module("5b")
        self.halve = Halve()
        self.channels = (first, third, self.inception3b.channels, self.inception4e.channels, outputs)
        self.strides = (2, 4, 8, 16, 32)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Top to bottom, the columns of the paper's figure 3."""
        x2 = self.conv1(x)
        x4 = self.conv3(self.conv2(self.halve(x2)))
        x8 = self.inception3b(self.inception3a(self.halve(x4)))
        x16 = self.inception4c(self.inception4b(self.inception4a(self.halve(x8))))
        x16 = self.inception4e(self.inception4d(x16))
        x32 = self.inception5b(self.inception5a(self.halve(x16)))
        return [x2, x4, x8, x16, x32]


def create_encoder(name: str, *, bands: int = 3, width: float = 1.0, kernel5: int = 5) -> InceptionV1:
    """The encoder called `name`: declares `channels` and `strides`, maps (N, bands, H, W) to five maps, finest first.

    Raises:
        ValueError: there is no such encoder.
    """
    if name not in ENCODERS:
        raise ValueError(f"no encoder is called {name!r}: choose one of {', '.join(ENCODERS)}")
    return InceptionV1(bands, width, kernel5)
