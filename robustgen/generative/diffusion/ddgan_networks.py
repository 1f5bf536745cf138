"""The two networks of a denoising diffusion GAN, for images and for vectors of a few numbers.

Xiao, Kreis and Vahdat, "Tackling the Generative Learning Trilemma with Denoising Diffusion GANs", ICLR 2022, section
4.3 and appendix C.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.generative.adversarial.strided import halvings
from robustgen.generative.diffusion.unet import UNet

__all__ = ["DenseDiscriminator", "DenseGenerator", "Discriminator", "Generator"]


class Generator(nn.Module):
    """u_t (N, C, H, W), its time (N,), int64, and z (N, latent_dim) -> (N, C, H, W), unbounded.

    A U-Net that is told the time and whose group norms are set by what a small network, which is not told the time,
    makes of z.

    >>> net = Generator(1, steps=4, latent_dim=3, width=4)
    >>> net(torch.zeros(2, 1, 8, 8), torch.tensor([1, 4]), torch.zeros(2, 3)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self, channels: int, *, steps: int, latent_dim: int, width: int, levels: int = 3, patch: int = 1
    ) -> None:
        super().__init__()
        self.steps = steps
        style, sizes = (4 * width, [latent_dim, 4 * width, 4 * width]) if latent_dim else (0, [])
        self.mapping = nn.Sequential(*(part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())))
        self.network = UNet(channels, channels, width, levels, patch, style=style)
        self.network.out.reset_parameters()  # at zero it would make one image of every z

    def forward(self, u: Tensor, t: Tensor, z: Tensor) -> Tensor:
        style = self.mapping(z) if len(self.mapping) else None
        return self.network(u, t.to(u) / self.steps, style=style)


class _Down(nn.Module):
    """A strided convolution to half the size, whose channels the time scales and shifts."""

    def __init__(self, in_channels: int, out_channels: int, steps: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 5, stride=2, padding=2)
        self.told = nn.Embedding(steps + 1, 2 * out_channels)
        nn.init.zeros_(self.told.weight)

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.told(t)[:, :, None, None].chunk(2, 1)
        return F.leaky_relu(self.conv(h) * (1 + scale) + shift, 0.2)


class Discriminator(nn.Module):
    """u_s and u_t (N, *shape), a time (N,), int64, -> (N,), unbounded, high where u_t may have been u_s.

    As plain as that of a DCGAN: strided convolutions, each to half the size and twice the channels, and a linear layer
    of the last map. The source has residual blocks, a sum over the last map and statistics of the batch; in the few
    steps of a small training such a network stays near chance where this one tells generated from real.

    >>> Discriminator((1, 8, 8), steps=4, width=4)(*torch.zeros(2, 3, 1, 8, 8), torch.tensor([1, 2, 4])).shape
    torch.Size([3])
    """

    def __init__(self, shape: tuple[int, ...], *, steps: int, width: int) -> None:
        super().__init__()
        sizes = halvings(*shape[1:])
        channels = [2 * shape[0], *(width * 2**k for k in range(len(sizes) - 1))]
        self.down = nn.ModuleList(_Down(a, b, steps) for a, b in pairwise(channels))
        self.out = nn.Linear(channels[-1] * math.prod(sizes[-1]), 1)

    def forward(self, u_s: Tensor, u_t: Tensor, t: Tensor) -> Tensor:
        t, h = t.to(u_s.device), torch.cat([u_s, u_t], 1)
        for block in self.down:
            h = block(h, t)
        return self.out(h.flatten(1)).squeeze(1)


class DenseGenerator(nn.Sequential):
    """As :class:`Generator`, of ``levels`` hidden layers of ``width`` units on everything at once.

    >>> net = DenseGenerator((2, 1, 1), steps=4, latent_dim=3, width=8)
    >>> net(torch.zeros(5, 2, 1, 1), torch.full((5,), 4), torch.zeros(5, 3)).shape
    torch.Size([5, 2, 1, 1])
    """

    def __init__(self, shape: tuple[int, ...], *, steps: int, latent_dim: int, width: int, levels: int = 3) -> None:
        super().__init__(*_hidden(math.prod(shape) + 1 + latent_dim, width, levels), nn.Linear(width, math.prod(shape)))
        self.steps = steps

    def forward(self, u: Tensor, t: Tensor, z: Tensor) -> Tensor:
        told = t.to(u)[:, None] / self.steps
        return super().forward(torch.cat([u.flatten(1), told, z], 1)).view_as(u)


class DenseDiscriminator(nn.Sequential):
    """As :class:`Discriminator`, of ``levels`` hidden layers of ``width`` units on everything at once."""

    def __init__(self, shape: tuple[int, ...], *, steps: int, width: int, levels: int = 3) -> None:
        super().__init__(*_hidden(2 * math.prod(shape) + 1, width, levels), nn.Linear(width, 1))
        self.steps = steps

    def forward(self, u_s: Tensor, u_t: Tensor, t: Tensor) -> Tensor:
        told = t.to(u_s)[:, None] / self.steps
        return super().forward(torch.cat([u_s.flatten(1), u_t.flatten(1), told], 1)).squeeze(1)


def _hidden(inputs: int, width: int, layers: int) -> list[nn.Module]:
    sizes = [inputs, *[width] * layers]
    return [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.LeakyReLU(0.2))]
