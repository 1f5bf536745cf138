"""Convolutions that can also be evaluated a piece at a time, from what they remember of the pieces before.

A causal network computes a pixel from earlier ones. Sampling pixel after pixel with one full forward each computes
every feature of the image again and again. Here the same layers are called with a *piece* of their input, one row or
one pixel of it, and an ``Incremental``, which knows where the piece is and keeps what every layer was given before:
each feature is computed once. Ramachandran, Le Paine, Khorrami et al., "Fast Generation for Convolutional
Autoregressive Models", ICLR 2017 workshop, section 2.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Incremental", "WindowConv2d", "sample_in_raster_order"]


class Incremental:
    """Where an incremental evaluation is, and what layers have been given so far.

    Args:
        size: (H, W) of the maps that are computed piece by piece.
        row: of the piece.
        column: of the piece; None: it is the whole row.
    """

    def __init__(self, size: tuple[int, int], row: int = 0, column: int | None = None) -> None:
        self.size, self.row, self.column = size, row, column
        self._maps: dict[nn.Module, Tensor] = {}
        self._weights: dict[nn.Module, Tensor] = {}

    def at(self, row: int, column: int | None = None) -> "Incremental":
        """The same memory at another piece."""
        return self._view(self.size, row, column)

    def coarser(self) -> "Incremental | None":
        """The same memory, on maps of half the size; None where the piece holds no point of the coarser grid."""
        if self.row % 2 or (self.column is not None and self.column % 2):
            return None
        height, width = self.size
        size = (-(-height // 2), -(-width // 2))
        return self._view(size, self.row // 2, None if self.column is None else self.column // 2)

    def crop(self, x: Tensor) -> Tensor:
        """The piece of a whole map x (N, C, H, W), or of a whole row (N, C, 1, W)."""
        if x.shape[2] > 1:
            x = x[:, :, self.row : self.row + 1]
        return x if self.column is None else x[..., self.column : self.column + 1]

    def put(self, layer: nn.Module, piece: Tensor) -> Tensor:
        """Keep a map of ``layer`` from the piece's first point on; returns all of it, zero where nothing is known."""
        known = self._maps.get(layer)
        if known is None:
            known = piece.new_zeros(len(piece), *self.size, piece.shape[1]).permute(0, 3, 1, 2)  # windows lie together
            self._maps[layer] = known
        height, width = piece.shape[2:]
        column = self.column or 0
        there = known[:, :, self.row : self.row + height, column : column + width]
        there.copy_(piece[:, :, : there.shape[2], : there.shape[3]])
        return known

    def known(self, layer: nn.Module) -> Tensor:
        """What :meth:`put` has kept for ``layer``."""
        return self._maps[layer]

    def weight(self, layer: "WindowConv2d") -> Tensor:
        """The layer's kernel (out, kh * kw * in), flattened once."""
        if layer not in self._weights:
            self._weights[layer] = layer.kernel().permute(0, 2, 3, 1).flatten(1).contiguous()
        return self._weights[layer]

    def _view(self, size: tuple[int, int], row: int, column: int | None) -> "Incremental":
        other = Incremental(size, row, column)
        other._maps, other._weights = self._maps, self._weights
        return other


class WindowConv2d(nn.Conv2d):
    """A convolution whose output at (r, c) sees a window that ends in, or before, that row.

    Args:
        in_channels, out_channels: of the maps.
        kernel_size: (kh, kw) of the window, which covers rows r - above ... r - above + kh - 1 and columns
            c - left ... c - left + kw - 1; what is outside the map counts as zero.
        above, left: where the window begins.
        stride: the output has only every ``stride``-th row and column.
        of_image: the input is the image itself, which is given whole in an incremental evaluation too.

    >>> import torch
    >>> conv = WindowConv2d(1, 1, (1, 2), above=1, left=0)  # sees the row above, from the same column on
    >>> x = torch.zeros(1, 1, 3, 3, requires_grad=True)
    >>> torch.autograd.grad(conv(x)[0, 0, 1, 1], x)[0].ne(0)[0, 0].int()
    tensor([[0, 1, 1],
            [0, 0, 0],
            [0, 0, 0]], dtype=torch.int32)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        above: int,
        left: int,
        stride: int = 1,
        of_image: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride)
        self.above, self.left, self.of_image = above, left, of_image
        height, width = kernel_size
        # the end of a stride-2 map whose size is odd needs no padding: the window never leaves it on that side
        self.margins = (left, width - 1 - left, above, height - 1 - above)

    def kernel(self) -> Tensor:
        """The weights that are used, (out, in, kh, kw)."""
        return self.weight

    def forward(self, x: Tensor, now: Incremental | None = None) -> Tensor:
        """The output map (N, out, H', W') of x (N, in, H, W), or its piece (N, out, 1, w) of a piece of x."""
        if now is None:
            return F.conv2d(F.pad(x, self.margins), self.kernel(), self.bias, self.stride)
        height, width = self.kernel_size
        if (height, width) == (1, 1) and not self.of_image:
            windows = x.permute(0, 2, 3, 1).flatten(1, 2)  # (N, w, in)
        else:
            windows = self._windows(x if self.of_image else now.put(self, x), now)
        return F.linear(windows, now.weight(self), self.bias).transpose(1, 2).unsqueeze(2)

    def _windows(self, x: Tensor, now: Incremental) -> Tensor:
        """What the outputs of the piece see of the whole map x, (N, w, kh * kw * in)."""
        height, width = self.kernel_size
        stride = self.stride[1]
        count = -(-x.shape[3] // stride) if now.column is None else 1
        top = now.row - self.above
        left = (0 if now.column is None else now.column) - self.left
        around = _cut(x, top, top + height, left, left + (count - 1) * stride + width)
        return around.unfold(3, width, stride).permute(0, 3, 2, 4, 1).flatten(2)  # (N, w, kh, kw, in)


def _cut(x: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """x[:, :, top:bottom, left:right], zero outside of x."""
    height, width = x.shape[2:]
    inside = x[:, :, max(top, 0) : max(min(bottom, height), 0), max(left, 0) : max(min(right, width), 0)]
    missing = (max(-left, 0), max(right - width, 0), max(-top, 0), max(bottom - height, 0))
    return F.pad(inside, missing) if any(missing) else inside


def sample_in_raster_order(
    rows: Callable[[Tensor, Incremental | None], Any],
    pixels: Callable[[Tensor, Any, Incremental | None], Tensor],
    draw: Callable[[Tensor, Tensor], Tensor],
    uniforms: Tensor,
    passes: int = 1,
    cached: bool = True,
) -> Tensor:
    """Images (N, C, H, W), pixel after pixel, each drawn given those before.

    Args:
        rows: what the rows above say: of the image so far (N, C, H, W), all of it, or a row where it is told one.
        pixels: of the image and what ``rows`` gave, the parameters (N, P, H, W) of each pixel or (N, P, 1, 1) of one.
        draw: values (N, C, 1, 1) of parameters (N, P, 1, 1) and uniform numbers (N, C, 1, 1).
        uniforms: (N, C, H, W) in [0, 1), the only source of randomness.
        passes: evaluations that a pixel takes; after the k-th its first k channels are right.
        cached: evaluate piece by piece; otherwise the whole network for each pixel, which gives the same images.
    """
    x = torch.zeros_like(uniforms)
    height, width = x.shape[2:]
    now = Incremental((height, width))
    for r in range(height):
        above = rows(x, now.at(r)) if cached else None
        for c in range(width):
            for k in range(passes):
                if cached:
                    parameters = pixels(x, above, now.at(r, c))
                else:
                    parameters = pixels(x, rows(x, None), None)[:, :, r : r + 1, c : c + 1]
                drawn = draw(parameters, uniforms[:, :, r : r + 1, c : c + 1])
                x[:, k:, r, c] = drawn[:, k:, 0, 0]
    return x
