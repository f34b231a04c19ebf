"""Encoder, global average and linear layer: images to classes."""

from typing import Any

from torch import Tensor, nn

from models.inception.blocks import Padding
from models.inception.encoder import Encoder, MakeHead, style_of
from models.inception.family import find_network


class LinearHead(nn.Module):
    """Mean over the whole map, dropout, one linear layer."""

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        return self.fc(self.dropout(x.mean((2, 3))))  # type: ignore[no-any-return] # torch's modules return Any


class Classifier(nn.Module):
    """Normalised (N, bands, H, W) -> logits (N, classes), at every size that the encoder takes.

    `aux` holds the auxiliary heads by the layer of the encoder that they look at; they serve training alone.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, aux: dict[str, nn.Module], aux_weight: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.aux = nn.ModuleDict(aux)
        self.aux_weight = aux_weight
        """Weight of each auxiliary loss beside the main one."""

    def forward(self, x: Tensor) -> Tensor:
        """Encode, average, classify."""
        last = self.encoder.ends[-1]
        return self.head(self.encoder.maps(x, {last})[last])  # type: ignore[no-any-return] # torch's modules return Any

    def with_aux(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and those of each auxiliary head, all (N, classes)."""
        last = self.encoder.ends[-1]
        maps = self.encoder.maps(x, {last, *self.aux})
        return self.head(maps[last]), [head(maps[name]) for name, head in self.aux.items()]


class Patches(nn.Module):
    """A classifier over squares of `cell` pixels: (N, C, T, T) -> logits (N, K, T / cell, T / cell).

    Each square is classified from its own pixels alone; T is a multiple of `cell`.
    """

    def __init__(self, classifier: nn.Module, cell: int) -> None:
        super().__init__()
        self.classifier, self.cell = classifier, cell

    def forward(self, x: Tensor) -> Tensor:
        """Cut into squares, classify each."""
        images, bands, height, width = x.shape
        rows, cols = height // self.cell, width // self.cell
        x = x.reshape(images, bands, rows, self.cell, cols, self.cell).permute(0, 2, 4, 1, 3, 5)
        logits: Tensor = self.classifier(x.reshape(images * rows * cols, bands, self.cell, self.cell))
        return logits.reshape(images, rows, cols, -1).permute(0, 3, 1, 2)


def create_classifier(
    name: str,
    *,
    classes: int = 1000,
    bands: int = 3,
    padding: Padding = "valid",
    width: float = 1.0,
    count_include_pad: bool | None = None,
    aux: bool = False,
    dropout: float | None = None,
    **variant: Any,
) -> Classifier:
    """The classifier on the encoder `name`, by default with the padding of the published networks.

    Args:
        name: one of `models.inception.ENCODERS`.
        classes: K.
        bands: channels of the input, which is normalised.
        padding: `valid` as in the published networks, `same` as in the encoders of segmenters.
        width: multiplier of the channels, rounded to multiples of 8.
        count_include_pad: whether averages count the padding; as the network's public weights want it if None.
        aux: with auxiliary heads, where the network has them (v1, v3).
        dropout: share of the features that training drops; the network's own if None.
        variant: options of that network, as `create_encoder` takes them.

    Raises:
        ValueError: there is no such network or option, or it has no auxiliary heads.
    """
    network = find_network(name, **variant)
    if aux and not network.aux:
        raise ValueError(f"{name} has no auxiliary heads: leave `aux` out")
    style = style_of(network, padding, width, count_include_pad)
    encoder = Encoder(network, bands, style)
    make: MakeHead = network.head or LinearHead
    return Classifier(
        encoder,
        make(encoder.channels[-1], classes, network.dropout if dropout is None else dropout),
        {layer: head(encoder.widths[layer], classes, style) for layer, head in network.aux.items()} if aux else {},
        network.aux_weight,
    )
