"""Gated masked layers in two stacks, which together see every earlier pixel.

van den Oord, Kalchbrenner, Vinyals et al., "Conditional Image Generation with PixelCNN Decoders", NIPS 2016: equation 2
(the gate), 4 (conditioning) and figure 2 (a layer).
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from robustgen.generative.blocks.incremental import Incremental, WindowConv2d
from robustgen.generative.blocks.masked_conv import MaskedConv2d

__all__ = ["Condition", "GatedLayer", "GatedStack", "gate"]


def gate(y: Tensor) -> Tensor:
    """tanh(f) * sigmoid(g) of features (N, 2 K, H, W) in which f and g take turns: so both halves of every feature are
    in the same part of a :class:`MaskedConv2d`.

    >>> import torch
    >>> gate(torch.tensor([[1.0, 0.0, -1.0, 100.0]])[:, :, None, None]).flatten()
    tensor([ 0.3808, -0.7616])
    """
    return y[:, 0::2].tanh() * y[:, 1::2].sigmoid()


class Condition(NamedTuple):
    """What an image is generated from.

    Attributes:
        vector: (N, V), the same for all pixels: a class, a latent vector; or None.
        maps: (N, M, H, W), of the image's size; or None.
    """

    vector: Tensor | None = None
    maps: Tensor | None = None


class GatedLayer(nn.Module):
    """One layer of both stacks.

    The vertical map at row r has seen rows above r alone: the first layer's vertical window ends in the row above,
    which shifts the whole stack down by one row, so that it can be added to the horizontal map as it stands, nowhere
    the other way round. The horizontal map has seen the row's earlier pixels besides. A first layer (mask "A") reads
    the image in both stacks and has no residual connection.

    Args:
        in_channels: of both maps; of the image in a first layer, else ``width``.
        width: features, at least ``groups``.
        kernel_size: k; the vertical window is the upper half of k x k, the horizontal one the left half of 1 x k.
        mask: "A" for the first layer, else "B".
        groups: channels of the image.
        vector, maps: sizes of the :class:`Condition`; 0: none.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        kernel_size: int,
        mask: str,
        groups: int = 1,
        vector: int = 0,
        maps: int = 0,
    ) -> None:
        super().__init__()
        first, half = mask == "A", kernel_size // 2
        self.residual = not first
        self.horizontal_conv = MaskedConv2d(in_channels, 2 * width, (1, kernel_size), mask, groups, together=2)
        rows = half if first else half + 1
        self.vertical_conv = WindowConv2d(in_channels, 2 * width, (rows, kernel_size), half, half, of_image=first)
        self.across = WindowConv2d(2 * width, 2 * width, (1, 1), 0, 0)
        self.out = MaskedConv2d(width, width, 1, "B", groups)
        for conv in (self.horizontal_conv, self.vertical_conv):
            nn.init.kaiming_uniform_(conv.weight, nonlinearity="tanh")
        for conv in (self.across, self.out):
            nn.init.kaiming_uniform_(conv.weight, nonlinearity="linear")
        self.vector = nn.Linear(vector, 4 * width, bias=False) if vector else None
        self.maps = nn.Conv2d(maps, 4 * width, 1, bias=False) if maps else None

    def vertical(self, v: Tensor, condition: Condition, now: Incremental | None = None) -> tuple[Tensor, Tensor]:
        """The vertical map (N, width, H, W); what it and the condition add to the horizontal one (N, 2 width, H, W).

        Args:
            v: (N, in_channels, H, W), or its row if ``now`` says so (of the image: all of it).
        """
        y = self.vertical_conv(v, now)
        added = self._conditioning(condition, now)
        if added is None:
            return gate(y), self.across(y, now)
        to_vertical, to_horizontal = added.chunk(2, 1)
        y = y + to_vertical
        return gate(y), self.across(y, now) + to_horizontal

    def horizontal(self, h: Tensor, added: Tensor, now: Incremental | None = None) -> Tensor:
        """The horizontal map (N, width, H, W) of h (N, in_channels, H, W) and what :meth:`vertical` adds to it."""
        y = self.out(gate(self.horizontal_conv(h, now) + added), now)
        return y + h if self.residual else y

    def _conditioning(self, condition: Condition, now: Incremental | None) -> Tensor | None:
        """What the condition adds to both halves of both gates, (N, 4 width, 1 or H, 1 or W)."""
        vector, maps = condition
        if (vector is None) != (self.vector is None) or (maps is None) != (self.maps is None):
            raise ValueError("give the layers the parts of the condition that they were made for, and no others")
        terms = []
        if self.vector is not None and vector is not None:
            terms.append(self.vector(vector)[:, :, None, None])
        if self.maps is not None and maps is not None:
            terms.append(self.maps(maps if now is None else now.crop(maps)))
        return sum(terms[1:], terms[0]) if terms else None


class GatedStack(nn.Module):
    """Gated layers from an image to features, of which part j at a pixel has seen all pixels before and channels < j.

    Args:
        channels: C of the image.
        width: features, at least C.
        layers: behind the first one.
        first_kernel_size, kernel_size: odd; of the first layer and of the others.
        vector, maps: sizes of the :class:`Condition`; 0: none.
        groups: parts of the features; None: C. With 1 they have seen pixels before alone, and of their own nothing.

    Raises:
        ValueError: no layer, an even kernel, or a width below the groups.

    >>> import torch
    >>> stack = GatedStack(1, width=8, layers=2, vector=10)
    >>> stack(torch.zeros(5, 1, 6, 6), Condition(vector=torch.zeros(5, 10))).shape
    torch.Size([5, 8, 6, 6])
    """

    def __init__(
        self,
        channels: int,
        width: int,
        layers: int,
        first_kernel_size: int = 7,
        kernel_size: int = 5,
        vector: int = 0,
        maps: int = 0,
        groups: int | None = None,
    ) -> None:
        super().__init__()
        if layers < 0:
            raise ValueError(f"layers behind the first one must not be negative, got {layers}")
        groups = channels if groups is None else groups
        first = GatedLayer(channels, width, first_kernel_size, "A", groups, vector, maps)
        others = [GatedLayer(width, width, kernel_size, "B", groups, vector, maps) for _ in range(layers)]
        self.layers = nn.ModuleList([first, *others])

    def rows(self, x: Tensor, condition: Condition | None = None, now: Incremental | None = None) -> list[Tensor]:
        """What rows above and the condition say, for each layer: (N, 2 width, H, W), or a row of it at ``now``.

        Args:
            x: the image (N, C, H, W), as far as it is known.
        """
        added = []
        for layer in self.layers:
            x, more = layer.vertical(x, condition or Condition(), now)
            added.append(more)
        return added

    def pixels(self, x: Tensor, rows: Sequence[Tensor], now: Incremental | None = None) -> Tensor:
        """The features (N, width, H, W), or those of a pixel at ``now``, of the image and of what ``rows`` returned."""
        for layer, added in zip(self.layers, rows, strict=True):
            x = layer.horizontal(x, added if now is None else now.crop(added), now)
        return x

    def forward(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        return self.pixels(x, self.rows(x, condition))
