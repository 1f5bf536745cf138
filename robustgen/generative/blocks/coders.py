"""Encoders from images to features, and decoders from latents to feature maps at image resolution.

The convolutional pair is that of Gulrajani, Kumar, Ahmed et al., "PixelVAE: A Latent Variable Model for Natural
Images", 2017, appendix (MNIST), for images of any size: 28 -> 14 -> 7, padded to 8, -> 4 and back.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ConvDecoder", "ConvEncoder", "coarsest", "halved", "mlp_decoder", "mlp_encoder"]


def halved(size: int) -> list[int]:
    """A height or width, and what one, two and three halvings, rounded up, leave of it.

    >>> halved(28)
    [28, 14, 7, 4]
    """
    sizes = [size]
    for _ in range(3):
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def coarsest(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of the smallest maps of the convolutional pair, for images (C, H, W)."""
    return halved(shape[1])[-1], halved(shape[2])[-1]


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
    """Eight 3x3 convolutions, three of stride 2: (N, C, H, W) -> (N, features).

    Args:
        shape: (C, H, W).
        width: channels at image resolution; twice as many below half of it.

    >>> ConvEncoder((1, 28, 28), width=4)(torch.zeros(2, 1, 28, 28)).shape  # 8 maps of 4 x 4
    torch.Size([2, 128])
    """

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        outs = [width, width, width, 2 * width, 2 * width, 2 * width, 2 * width, 2 * width]
        strides = [1, 2, 1, 2, 1, 2, 1, 1]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=s, padding=1) for i, o, s in zip([shape[0], *outs], outs, strides, strict=False)
        )
        _keep_scale(self.convs)
        self.features = 2 * width * math.prod(coarsest(shape))

    def forward(self, x: Tensor) -> Tensor:
        for i, conv in enumerate(self.convs):
            if i in (0, 2, 4):  # before each stage that ends in a halving: one row and column more where they are odd
                x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
            x = F.relu(conv(x))
        return x.flatten(1)


class ConvDecoder(nn.Module):
    """A linear layer and eight 3x3 convolutions, three of them transposed with stride 2: (N, D) -> (N, width, H, W).

    Args:
        latent_dim: D.
        shape: (C, H, W) of the images.
        width: channels at image resolution; twice as many at a quarter of it and below.

    >>> ConvDecoder(3, (1, 28, 28), 4)(torch.zeros(2, 3)).shape
    torch.Size([2, 4, 28, 28])
    """

    def __init__(self, latent_dim: int, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.sizes = list(zip(halved(shape[1]), halved(shape[2]), strict=True))[::-1]  # smallest first
        self.start = (2 * width, *self.sizes[0])
        self.linear = nn.Linear(latent_dim, math.prod(self.start))
        self.first = nn.ModuleList(nn.Conv2d(2 * width, 2 * width, 3, padding=1) for _ in range(2))
        ins, outs = [2 * width, 2 * width, width], [2 * width, width, width]
        self.doubling = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 3, stride=2, padding=1, output_padding=1) for i, o in zip(ins, outs, strict=True)
        )
        self.convs = nn.ModuleList(nn.Conv2d(o, o, 3, padding=1) for o in outs)
        _keep_scale([*self.first, *self.doubling, *self.convs])

    def forward(self, z: Tensor) -> Tensor:
        x = self.linear(z).unflatten(1, self.start)
        x = x.contiguous(memory_format=torch.channels_last)  # transposed convolutions are several times as fast so
        for conv in self.first:
            x = F.relu(conv(x))
        for doubling, conv, (height, width) in zip(self.doubling, self.convs, self.sizes[1:], strict=True):
            x = F.relu(conv(F.relu(doubling(x))))[:, :, :height, :width]
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
