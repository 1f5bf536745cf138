"""Encoders from images to features, and decoders from latents to feature maps at image resolution.

"conv" is the pair of Gulrajani, Kumar, Ahmed et al., "PixelVAE: A Latent Variable Model for Natural Images", 2017,
appendix (MNIST), for images of any size: 28 -> 14 -> 7, padded to 8, -> 4 and back. "infogan" is that of Chen, Duan,
Houthooft et al., "InfoGAN: Interpretable Representation Learning by Information Maximizing Generative Adversarial
Nets", NIPS 2016, appendix C.1, as Xiao, "Designing Deep Generative Models with Symbiotic Composition", 2022, table 3.6,
has it: 28 -> 14 -> 7 and back, with batch norm.
"""

import math
from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.checks import check_integers, nearest

__all__ = [
    "ARCHITECTURES",
    "ConvDecoder",
    "ConvEncoder",
    "InfoGANDecoder",
    "InfoGANEncoder",
    "check_architecture",
    "coders",
    "dense",
    "mlp_decoder",
    "mlp_encoder",
    "stage_sizes",
]

ARCHITECTURES = {"conv": 32, "mlp": 500, "infogan": 64}  # by name, the width of the paper


def stage_sizes(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Height and width of the maps of the convolutional pair: of images (C, H, W) and behind each of three stages.

    A stage halves them, rounded up, but none below 4: a 3 x 3 kernel sees little else than padding there.

    >>> stage_sizes((1, 28, 28)), stage_sizes((1, 8, 8))
    ([(28, 28), (14, 14), (7, 7), (4, 4)], [(8, 8), (4, 4), (4, 4), (4, 4)])
    """
    sizes = [(shape[1], shape[2])]
    for _ in range(3):
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)) if min(height, width) > 4 else (height, width))
    return sizes


def _keep_scale(convs: Iterable[nn.Conv2d | nn.ConvTranspose2d]) -> None:
    """He et al., "Delving Deep into Rectifiers", 2015: weights of which a stack of ReLU layers keeps a signal's scale.

    With PyTorch's own, eight such layers shrink it a thousandfold, and a decoder starts out deaf to z.
    """
    for conv in convs:
        taps = math.prod(conv.kernel_size)
        if isinstance(conv, nn.ConvTranspose2d):
            taps /= math.prod(conv.stride)  # that meet in a point
        nn.init.normal_(conv.weight, std=math.sqrt(2 / (conv.in_channels * taps)))
        nn.init.zeros_(conv.bias)


class ConvEncoder(nn.Module):
    """Eight 3x3 convolutions, three of which may halve the map: (N, C, H, W) -> (N, features).

    Args:
        shape: (C, H, W).
        width: channels at image resolution; twice as many from the end of the second stage on.

    >>> ConvEncoder((1, 28, 28), width=4)(torch.zeros(2, 1, 28, 28)).shape  # 8 maps of 4 x 4
    torch.Size([2, 128])
    """

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        sizes, wide = stage_sizes(shape), 2 * width
        self.halving = [small != large for large, small in pairwise(sizes)]
        strides = [s for halving in self.halving for s in (1, 2 if halving else 1)]
        outs = [width, width, width, wide, wide, wide, wide, wide]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, s, padding=1)
            for i, o, s in zip([shape[0], *outs[:-1]], outs, [*strides, 1, 1], strict=True)
        )
        _keep_scale(self.convs)
        self.features = wide * math.prod(sizes[-1])

    def forward(self, x: Tensor) -> Tensor:
        for i, conv in enumerate(self.convs):
            if i in (0, 2, 4) and self.halving[i // 2]:  # a stage begins: one row and column more where they are odd
                x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
            x = F.relu(conv(x))
        return x.flatten(1)


class ConvDecoder(nn.Module):
    """A linear layer and eight 3x3 convolutions, the way back of :class:`ConvEncoder`: (N, D) -> (N, width, H, W).

    Args:
        latent_dim: D.
        shape: (C, H, W) of the images.
        width: channels at image resolution; twice as many in the first stage and before.

    >>> ConvDecoder(3, (1, 28, 28), 4)(torch.zeros(2, 3)).shape
    torch.Size([2, 4, 28, 28])
    """

    def __init__(self, latent_dim: int, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.sizes, wide = stage_sizes(shape)[::-1], 2 * width  # smallest first
        self.start = (wide, *self.sizes[0])
        self.linear = nn.Linear(latent_dim, math.prod(self.start))
        self.first = nn.ModuleList(nn.Conv2d(wide, wide, 3, padding=1) for _ in range(2))
        ins, outs = [wide, wide, width], [wide, width, width]
        doubling = [small != large for small, large in pairwise(self.sizes)]
        self.doubling = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 3, 2, padding=1, output_padding=1) if d else nn.Conv2d(i, o, 3, padding=1)
            for i, o, d in zip(ins, outs, doubling, strict=True)
        )
        self.convs = nn.ModuleList(nn.Conv2d(o, o, 3, padding=1) for o in outs)
        _keep_scale([*self.first, *self.doubling, *self.convs])

    def forward(self, z: Tensor) -> Tensor:
        x = self.linear(z).unflatten(1, self.start)
        x = x.contiguous(memory_format=torch.channels_last)  # transposed convolutions are several times as fast so
        for conv in self.first:
            x = F.relu(conv(x))
        for doubling, conv, (height, width) in zip(self.doubling, self.convs, self.sizes[1:], strict=True):
            x = F.relu_(conv(F.relu_(doubling(x))))[:, :, :height, :width]  # in place: large maps cost memory traffic
        return x


def mlp_encoder(shape: tuple[int, ...], width: int) -> nn.Module:
    """Two hidden layers of ``width`` units: (N, C, H, W) -> (N, width)."""
    inputs = math.prod(shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())


def mlp_decoder(latent_dim: int, shape: tuple[int, ...], width: int, channels: int) -> nn.Module:
    """Two hidden layers of ``width`` units: (N, D) -> (N, channels, H, W)."""
    hidden = nn.Sequential(nn.Linear(latent_dim, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    size = (channels, *shape[1:])
    return nn.Sequential(*hidden, nn.Linear(width, math.prod(size)), nn.Unflatten(1, size))


class InfoGANEncoder(nn.Module):
    """Two 4x4 convolutions of stride 2 and a linear layer: (N, C, H, W) -> (N, 16 width); batch norm but in the first.

    Args:
        shape: (C, H, W); odd sides are padded.
        width: channels behind the first convolution, twice as many behind the second.

    >>> InfoGANEncoder((1, 28, 28), width=4).eval()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 64])
    """

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        smallest = _halved(shape)[-1]
        self.first = nn.Conv2d(shape[0], width, 4, 2, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 4, 2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2 * width)
        self.features = 16 * width
        self.dense = nn.Linear(2 * width * math.prod(smallest), self.features, bias=False)
        self.dense_norm = nn.BatchNorm1d(self.features)

    def forward(self, x: Tensor) -> Tensor:
        _check_batch(self, x)
        x = F.relu(self.first(_evened(x)))
        x = F.relu(self.norm(self.second(_evened(x))))
        return F.relu(self.dense_norm(self.dense(x.flatten(1))))


class InfoGANDecoder(nn.Module):
    """The way back of :class:`InfoGANEncoder`: (N, D) -> (N, channels, H, W), without activation at the end.

    Args:
        latent_dim: D.
        shape: (C, H, W) of the images.
        width: channels before the last layer, twice as many before that.
        channels: of the output.

    >>> InfoGANDecoder(3, (1, 7, 7), width=4, channels=1).eval()(torch.zeros(2, 3)).shape
    torch.Size([2, 1, 7, 7])
    """

    def __init__(self, latent_dim: int, shape: tuple[int, ...], width: int, channels: int) -> None:
        super().__init__()
        self.sizes = _halved(shape)[::-1]  # smallest first
        self.start = (2 * width, *self.sizes[0])
        self.dense = nn.Sequential(
            nn.Linear(latent_dim, 16 * width, bias=False),
            nn.BatchNorm1d(16 * width),
            nn.ReLU(),
            nn.Linear(16 * width, math.prod(self.start), bias=False),
            nn.BatchNorm1d(math.prod(self.start)),
            nn.ReLU(),
        )
        self.first = nn.ConvTranspose2d(2 * width, width, 4, 2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.ConvTranspose2d(width, channels, 4, 2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        _check_batch(self, z)
        x = self.dense(z).unflatten(1, self.start)
        x = F.relu(self.norm(self._cropped(self.first(x), 1)))
        return self._cropped(self.last(x), 2)

    def _cropped(self, x: Tensor, stage: int) -> Tensor:
        height, width = self.sizes[stage]
        return x[:, :, :height, :width]


def _check_batch(coder: nn.Module, x: Tensor) -> None:
    if coder.training and len(x) == 1:
        raise ValueError("in train mode infogan's batch norm needs two images at least: another batch size, or eval()")


def _halved(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Height and width of images (C, H, W), and halved once and twice, rounded up."""
    sizes = [(shape[1], shape[2])]
    for _ in range(2):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def _evened(x: Tensor) -> Tensor:
    """x with one row or column of zeros more where there is an odd number of them."""
    return F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))


def check_architecture(architecture: str, width: int | None) -> int:
    """The width of a pair of :func:`coders`, of which None is the paper's; ValueError for what is none."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}; {nearest(architecture, ARCHITECTURES)}")
    if width is not None:
        check_integers(width=width)
    return ARCHITECTURES[architecture] if width is None else width


def coders(
    architecture: str, shape: tuple[int, ...], latent_dim: int, width: int, channels: int
) -> tuple[nn.Module, int, nn.Module]:
    """An encoder (N, C, H, W) -> (N, features), its features, and a decoder (N, latent_dim) -> (N, channels, H, W).

    Args:
        architecture: of ``ARCHITECTURES``.
        width: channels of "conv" at image resolution and of "infogan" one stage below, units of a hidden layer of
            "mlp".
    """
    if architecture == "conv":
        conv = ConvEncoder(shape, width)
        decoder = nn.Sequential(ConvDecoder(latent_dim, shape, width), nn.Conv2d(width, channels, 1))
        return conv, conv.features, decoder
    if architecture == "infogan":
        strided = InfoGANEncoder(shape, width)
        return strided, strided.features, InfoGANDecoder(latent_dim, shape, width, channels)
    return mlp_encoder(shape, width), width, mlp_decoder(latent_dim, shape, width, channels)


def dense(inputs: int, width: int, outputs: int, hidden: int) -> nn.Sequential:
    """``hidden`` ReLU layers of ``width`` units: (N, inputs) -> (N, outputs)."""
    widths = [inputs, *[width] * hidden]
    layers = [m for i, o in pairwise(widths) for m in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, outputs))
