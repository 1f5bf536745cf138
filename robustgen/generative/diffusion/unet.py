"""A small U-Net that is told how noisy its images are.

Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015 (the way
down, the way up, and the bridges between them); Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models",
NeurIPS 2020 (residual blocks that are told the noise); Perez et al., "FiLM: Visual Reasoning with a General
Conditioning Layer", AAAI 2018 (a scale and a shift for each channel); Xiao, "Designing Deep Generative Models with
Symbiotic Composition", 2022, equation 6.13 (group norms that a style sets).
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.checks import check_integers

__all__ = ["UNet", "check_network", "from_patches", "to_patches"]


def check_network(shape: tuple[int, ...], width: int, levels: int, patch: int) -> None:
    """Raise unless they are arguments of a :class:`UNet` of images of ``shape``.

    Raises:
        TypeError, ValueError: no integers from 1 on, or images that are not made of such patches.
    """
    check_integers(width=width, levels=levels, patch=patch)
    if shape[1] % patch or shape[2] % patch:
        raise ValueError(f"images of {shape[1]}x{shape[2]} pixels are not made of patches of {patch}x{patch}")


def to_patches(x: Tensor, size: int) -> Tensor:
    """(N, C, H, W) -> (N, C size^2, H / size, W / size); torch leaves no images as they are.

    >>> to_patches(torch.zeros(0, 1, 8, 8), 2).shape
    torch.Size([0, 4, 4, 4])
    """
    n, c, h, w = x.shape
    return F.pixel_unshuffle(x, size) if n else x.reshape(0, c * size**2, h // size, w // size)


def from_patches(x: Tensor, size: int) -> Tensor:
    """The way back from :func:`to_patches`.

    >>> from_patches(torch.zeros(0, 4, 4, 4), 2).shape
    torch.Size([0, 1, 8, 8])
    """
    n, c, h, w = x.shape
    return F.pixel_shuffle(x, size) if n else x.reshape(0, c // size**2, h * size, w * size)


class _Block(nn.Module):
    """Two 3x3 convolutions behind normalisations, with a way around them."""

    def __init__(self, in_channels: int, out_channels: int, told: int, style: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(in_channels, style), _norm(out_channels, style)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.film = nn.Linear(told, 2 * out_channels)
        same = in_channels == out_channels
        self.around = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)
        nn.init.zeros_(self.conv2.weight)  # each block begins as the way around it

    def forward(self, h: Tensor, told: Tensor, *style: Tensor) -> Tensor:
        scale, shift = self.film(told)[:, :, None, None].chunk(2, 1)
        y = self.conv1(F.silu(self.norm1(h, *style)))
        y = self.conv2(F.silu(self.norm2(y, *style) * (1 + scale) + shift))
        result: Tensor = y + self.around(h)
        return result


class _StyledNorm(nn.GroupNorm):
    """Scale and shift are functions of a style (N, S)."""

    def __init__(self, groups: int, channels: int, style: int) -> None:
        super().__init__(groups, channels, affine=False)
        self.set = nn.Linear(style, 2 * channels)

    def forward(self, h: Tensor, style: Tensor) -> Tensor:
        scale, shift = self.set(style)[:, :, None, None].chunk(2, 1)
        return super().forward(h) * (1 + scale) + shift


def _norm(channels: int, style: int) -> nn.GroupNorm:
    groups = next(g for g in (8, 4, 2, 1) if g == 1 or channels % (2 * g) == 0)
    return _StyledNorm(groups, channels, style) if style else nn.GroupNorm(groups, channels)


class UNet(nn.Module):
    """(N, C, H, W), a number (N,) that says how noisy each is and perhaps its class (N,) -> (N, C', H, W).

    Args:
        in_channels, out_channels: C and C'.
        width: channels at full resolution; at each of the other levels twice as many.
        levels: resolutions; each is half of the one before, rounded up.
        patch: patches of so many pixels squared are seen as channels, H and W being multiples of it.
        classes: K; it is told classes 0 ... K - 1, and K where none is known. 0: it knows of none.
        style: length of a vector (N, style) that sets the scale and shift of every group norm; 0: there is none.

    The output begins at zero.

    >>> UNet(1, 2, width=4)(torch.zeros(3, 1, 7, 9), torch.zeros(3)).shape
    torch.Size([3, 2, 7, 9])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 12,
        levels: int = 3,
        patch: int = 1,
        classes: int = 0,
        style: int = 0,
    ) -> None:
        super().__init__()
        told, self.patch = 2 * width, patch
        in_channels, out_channels = in_channels * patch**2, out_channels * patch**2
        self.register_buffer("frequencies", torch.logspace(0, math.log10(64), 8), persistent=False)
        self.tell = nn.Sequential(nn.Linear(16, told), nn.SiLU())
        self.tell_class = nn.Embedding(classes + 1, told) if classes else None
        widths = [width] + [2 * width] * (levels - 1)
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down = nn.ModuleList(_Block(w, w, told, style) for w in widths)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_Block(2 * w, w, told, style) for w in widths[:-1])
        self.norm, self.out = _norm(width, style), nn.Conv2d(width, out_channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    frequencies: Tensor

    def forward(self, x: Tensor, noise: Tensor, y: Tensor | None = None, style: Tensor | None = None) -> Tensor:
        angles = noise[:, None] * self.frequencies.to(noise)
        told = self.tell(torch.cat([angles.sin(), angles.cos()], 1))
        if self.tell_class is not None:
            told = told + self.tell_class(y)
        styles = () if style is None else (style,)
        h, bridges = self.stem(to_patches(x, self.patch)), []
        for level, block in enumerate(self.down):
            h = block(h, told, *styles)
            if level < len(self.shrink):
                bridges.append(h)
                h = self.shrink[level](h)
        for level in reversed(range(len(self.grow))):
            bridge = bridges[level]
            h = self.grow[level](F.interpolate(h, size=bridge.shape[2:], mode="nearest"))
            h = self.up[level](torch.cat([h, bridge], 1), told, *styles)
        return from_patches(self.out(F.silu(self.norm(h, *styles))), self.patch)
