"""The one builder of all networks: a table in, an encoder out that declares its features."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from models.inception.blocks import Padding, Step, Style, build

STRIDES = (2, 4, 8, 16, 32)
"""Of the five levels, in pixels."""

MakeHead = Callable[[int, int, float], nn.Module]
"""(channels, classes, dropout) -> what turns a map (N, channels, H, W) into logits (N, classes)."""
MakeAux = Callable[[int, int, Style], nn.Module]
"""(channels, classes, style) -> an auxiliary head, likewise."""


@dataclass(frozen=True)
class Network:
    """One network: its table, and what its published weights were trained with."""

    table: Mapping[str, Step]
    """Layers from the input on, by name; `V` marks what is not padded in the paper."""
    ends: tuple[str, str, str, str, str]
    """The last layer at each of `STRIDES`."""
    bn: bool = True
    bias: bool = False
    eps: float = 1e-3
    count_include_pad: bool = False
    dropout: float = 0.2
    """In front of the classifier."""
    aux: Mapping[str, MakeAux] = field(default_factory=dict)
    """Auxiliary heads by the layer that they look at."""
    aux_weight: float = 0.0
    """Weight of each auxiliary loss."""
    head: MakeHead | None = None
    """The classifier, where it is more than one linear layer."""


class Encoder(nn.Module):
    """(N, bands, H, W) normalised -> five maps at the stage ends, finest first.

    `channels` and `strides` declare them. With padding `same` each level has ceil(n/2) rows and columns of the one
    before, at every size, and its cells lie on the pixels; with `valid` the layers marked V lose their rims, as in the
    published classifiers. The weights are the same for both.
    """

    def __init__(self, network: Network, bands: int, style: Style) -> None:
        super().__init__()
        channels, widths = bands, {}
        for name, step in network.table.items():
            layer, channels = build(step, channels, style)
            self.add_module(name, layer)
            widths[name] = channels
        self.widths = widths
        """Channels after each layer."""
        self.ends = network.ends
        self.channels = tuple(widths[name] for name in network.ends)
        self.strides = STRIDES

    def maps(self, x: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """What the layers `names` give, in their order."""
        found = {}
        for name, layer in self.named_children():
            x = layer(x)
            if name in names:
                found[name] = x
        return found

    def forward(self, x: Tensor) -> list[Tensor]:
        """The table from top to bottom."""
        return list(self.maps(x, self.ends).values())


def style_of(
    network: Network, padding: Padding = "same", width: float = 1.0, count_include_pad: bool | None = None
) -> Style:
    """How `network` is made; `count_include_pad` as its public weights want it if None."""
    if padding not in {"same", "valid"}:
        raise ValueError(f"padding is {padding!r}: choose 'same' (aligned with the pixels) or 'valid' (as published)")
    if not isinstance(count_include_pad, bool | None):
        raise ValueError(f"count_include_pad is {count_include_pad!r}: choose true or false")  # noqa: TRY004 - see `variant`
    counted = network.count_include_pad if count_include_pad is None else count_include_pad
    return Style(padding, width, network.bn, network.bias, network.eps, counted)
