"""A convolutional generator and a discriminator that halve and double resolution by strided convolutions.

Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks", 2016, section 3, with 5x5 kernels at stride 2, for images of any size: 28 <-> 14 <-> 7 <-> 4.
"""

import itertools
from collections.abc import Callable

from torch import Tensor, nn

from robustgen.generative.adversarial.improved_techniques import MinibatchDiscrimination

__all__ = ["Discriminator", "Generator", "halvings"]

Norm = Callable[[int], nn.Module]  # channels -> a layer


def halvings(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes from the image down, each half of the one before, rounded up: twice, and on while both sides exceed 4.

    >>> halvings(28, 28), halvings(8, 8)
    ([(28, 28), (14, 14), (7, 7), (4, 4)], [(8, 8), (4, 4), (2, 2)])
    """
    sizes = [(height, width)]
    while len(sizes) < 3 or min(sizes[-1]) > 4:
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


class Generator(nn.Module):
    """z (N, latent_dim) -> images (N, *shape) in [-1, 1].

    A linear layer to the smallest map, then transposed convolutions, each to twice the size and half the channels, the
    last one to the image and tanh; ReLU elsewhere.

    Args:
        shape: (C, H, W).
        latent_dim: length of z.
        width: channels of the last map before the image; twice as many at each smaller one.
        norm: makes the layer behind each of these but the last.

    >>> import torch
    >>> Generator((1, 28, 28), 16, 4, nn.BatchNorm2d)(torch.zeros(2, 16)).shape
    torch.Size([2, 1, 28, 28])
    """

    def __init__(self, shape: tuple[int, ...], latent_dim: int, width: int, norm: Norm) -> None:
        super().__init__()
        sizes = halvings(*shape[1:])[::-1]
        channels = [width * 2**k for k in reversed(range(len(sizes) - 1))]
        start = (channels[0], *sizes[0])
        layers: list[nn.Module] = [nn.Linear(latent_dim, start[0] * start[1] * start[2]), nn.Unflatten(1, start)]
        for (a, b), (small, large) in zip(
            itertools.pairwise([*channels, shape[0]]), itertools.pairwise(sizes), strict=True
        ):
            odd = tuple(n - (2 * m - 1) for m, n in zip(small, large, strict=True))  # 1 where the larger size is even
            layers += [norm(a), nn.ReLU(), nn.ConvTranspose2d(a, b, 5, 2, padding=2, output_padding=odd)]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        self.apply(_initialise)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class Discriminator(nn.Module):
    """Images (N, *shape) in [-1, 1] -> one number each, (N,), unbounded.

    Strided convolutions with leaky ReLU (slope 0.2), each to half the size and twice the channels, and a linear layer.

    Args:
        shape: (C, H, W).
        width: channels of the first map.
        norm: makes the layer behind each convolution but the first; None: nothing.
        kernels: of minibatch discrimination before the linear layer; 0: without.

    >>> import torch
    >>> Discriminator((3, 32, 32), 4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2])
    """

    def __init__(self, shape: tuple[int, ...], width: int, norm: Norm | None = None, kernels: int = 0) -> None:
        super().__init__()
        sizes = halvings(*shape[1:])
        channels = [shape[0], *(width * 2**k for k in range(len(sizes) - 1))]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(itertools.pairwise(channels)):
            layers += [nn.Conv2d(a, b, 5, 2, padding=2), *([norm(b)] if norm and i else []), nn.LeakyReLU(0.2)]
        self.body: nn.Module = nn.Sequential(*layers)
        features = channels[-1] * sizes[-1][0] * sizes[-1][1]
        self.across = MinibatchDiscrimination(features, kernels) if kernels else nn.Identity()
        self.linear = nn.Linear(features + kernels, 1)
        self.apply(_initialise)

    def features(self, x: Tensor) -> Tensor:
        """The last map, flattened: (N, F)."""
        return self.body(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.across(self.features(x))).squeeze(1).to(self.linear.weight.dtype)  # under autocast too


def _initialise(layer: nn.Module) -> None:
    """Section 4: weights from N(0, 0.02^2)."""
    if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
