"""Salimans, Karpathy, Chen and Kingma, "PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood
and Other Modifications", ICLR 2017."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from robustgen.checks import check_integers, check_numbers, check_shape
from robustgen.generative.autoregressive.base import AutoregressiveModel
from robustgen.generative.blocks.discretized_logistic import DiscretizedLogisticMixture
from robustgen.generative.blocks.incremental import Incremental, WindowConv2d
from robustgen.generative.pixels import Pixels

__all__ = ["PixelCNNPlusPlus"]


def _conv(in_channels: int, out_channels: int, kernel: tuple[int, int] = (1, 1), **window: Any) -> nn.Module:
    """A weight-normalised convolution; its window ends in the own row and has a column to the left, or as it says."""
    window = {"above": kernel[0] - 1, "left": min(kernel[1] - 1, 1)} | window
    conv: nn.Module = weight_norm(WindowConv2d(in_channels, out_channels, kernel, **window))
    return conv


def _concat_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], 1))


class _Block(nn.Module):
    """A gated residual block, with another map beside its own where ``beside`` says how many channels that has."""

    def __init__(self, width: int, kernel: tuple[int, int], beside: int, dropout: float) -> None:
        super().__init__()
        self.conv = _conv(2 * width, width, kernel)
        self.beside = _conv(2 * beside, width) if beside else None
        self.gate = _conv(2 * width, 2 * width, kernel)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, beside: Tensor | None, now: Incremental | None) -> Tensor:
        y = self.conv(_concat_elu(x), now)
        if self.beside is not None and beside is not None:
            y = y + self.beside(_concat_elu(beside), now)
        value, gate = self.gate(self.dropout(_concat_elu(y)), now).chunk(2, 1)
        return x + value * gate.sigmoid()


class _Maps(NamedTuple):
    """What the blocks of a stream gave: on the way down, up again, and at the resolutions below."""

    down: list[Tensor]
    up: list[Tensor]
    inner: "_Maps | None"


class _Stream(nn.Module):
    """One stream: blocks at one resolution, the same at half of it and below, and blocks again, with short-cuts.

    Args:
        width: features.
        kernel: of its convolutions; its window decides what the stream sees.
        blocks: on the way down, at each resolution.
        resolutions: how many.
        other: channels of the maps of another stream that each block is given besides, or 0.
        dropout: probability.
    """

    def __init__(
        self, width: int, kernel: tuple[int, int], blocks: int, resolutions: int, other: int, dropout: float
    ) -> None:
        super().__init__()
        last = resolutions == 1
        self.down = nn.ModuleList(_Block(width, kernel, other, dropout) for _ in range(blocks))
        self.up = nn.ModuleList(
            _Block(width, kernel, other + width, dropout) for _ in range(blocks if last else blocks + 1)
        )
        if not last:
            self.reduce = _conv(width, width, kernel, stride=2)
            self.enlarge = _conv(width, 4 * width)
        self.inner = None if last else _Stream(width, kernel, blocks, resolutions - 1, other, dropout)

    def forward(self, x: Tensor, other: _Maps | None, now: Incremental | None) -> _Maps:
        """Its maps, of x (N, width, H, W) and those of the other stream; their pieces at ``now``."""
        down: list[Tensor] = []
        up: list[Tensor] = []
        inner: _Maps | None = None
        for i, block in enumerate(self.down):
            down.append(block(down[-1] if down else x, _piece(other.down[i], now) if other else None, now))
        short_cuts, x = [x, *down], down[-1]
        if self.inner is None:
            short_cuts.pop()  # this is x
        else:
            coarser = now.coarser() if now else None
            if now and coarser is None:
                now.put(self.reduce, x)  # seen by windows of points to come
            else:
                inner = self.inner(self.reduce(x, now), other.inner if other else None, coarser)
            x = self._enlarged(inner, x.shape[2:], now, coarser)
        for i, block in enumerate(self.up):
            beside = short_cuts.pop()
            if other:
                beside = torch.cat([_piece(other.up[i], now), beside], 1)
            x = block(x, beside, now)
            up.append(x)
        return _Maps(down, up, inner)

    def _enlarged(
        self, inner: _Maps | None, size: Sequence[int], now: Incremental | None, coarser: Incremental | None
    ) -> Tensor:
        """The last map of the resolution below at this one: each point there is four here, some of earlier pieces."""
        fine = None if inner is None else F.pixel_shuffle(self.enlarge(inner.up[-1], coarser), 2)
        if now is None:
            assert fine is not None
            return fine[:, :, : size[0], : size[1]]
        return now.crop(now.known(self.enlarge) if fine is None else now.put(self.enlarge, fine))


def _piece(x: Tensor, now: Incremental | None) -> Tensor:
    return x if now is None else now.crop(x)


class PixelCNNPlusPlus(AutoregressiveModel):
    """A pixel, all its channels at once, is a mixture of discretised logistic distributions; its parameters come from
    two streams of gated residual blocks, one that sees all rows above and one that sees the row's earlier pixels too,
    each over several resolutions.

    Weights are normalised (section 2 of Salimans and Kingma, "Weight Normalization", NIPS 2016) without the paper's
    data-dependent initialisation, and points of a coarser resolution are enlarged to 2 x 2 each in both streams. The
    paper lets the learning rate decay by 0.999995 a step and scores with averaged weights (decay 0.9995).

    Args:
        shape: of an image, (channels, height, width).
        levels: of a pixel, at least 2.
        quantization: of values between two levels, see :class:`robustgen.generative.Pixels`.
        width: features of each stream.
        blocks: at each resolution, at least 1.
        resolutions: at least 1; each has half the height and width of the one before, rounded up.
        components: of the mixture.
        dropout: in each block, in training.

    Raises:
        ValueError: an argument out of range.

    >>> model = PixelCNNPlusPlus((3, 5, 7), levels=4, width=4, blocks=1, components=2).eval()
    >>> model.logits(torch.zeros(2, 3, 5, 7)).shape, model.log_prob(torch.zeros(2, 3, 5, 7)).shape
    (torch.Size([2, 20, 5, 7]), torch.Size([2]))
    """

    whole_pixels = True

    def __init__(
        self,
        shape: tuple[int, ...],
        levels: int = 256,
        quantization: str | None = None,
        width: int = 160,
        blocks: int = 5,
        resolutions: int = 3,
        components: int = 10,
        dropout: float = 0.5,
    ) -> None:
        pixels = Pixels(levels, quantization)
        distribution = DiscretizedLogisticMixture(check_shape(shape)[0], levels, components)
        super().__init__(shape, pixels, distribution)
        check_integers(width=width, blocks=blocks, resolutions=resolutions)
        check_numbers(dropout=dropout)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.width, self.blocks, self.resolutions = width, blocks, resolutions
        self.components, self.dropout = components, dropout
        channels = self.shape[0]
        self.above = _conv(channels, width, (2, 3), above=2, of_image=True)  # two rows above
        self.over = _conv(channels, width, (1, 3), above=1, of_image=True)  # the row above
        self.before = _conv(channels, width, (2, 1), left=1, of_image=True)  # the column to the left
        self.vertical = _Stream(width, (2, 3), blocks, resolutions, 0, dropout)
        self.horizontal = _Stream(width, (2, 2), blocks, resolutions, width, dropout)
        self.head = _conv(width, distribution.parameters_per_pixel)

    def _rows(self, x: Tensor, y: Tensor | None, now: Incremental | None = None) -> _Maps:
        maps: _Maps = self.vertical(self.above(2 * x - 1, now), None, now)
        return maps

    def _pixels(self, x: Tensor, rows: _Maps, now: Incremental | None = None) -> Tensor:
        v = 2 * x - 1
        h = self.horizontal(self.over(v, now) + self.before(v, now), rows, now).up[-1]
        result: Tensor = self.head(F.elu(h), now)
        return result
