"""Coupling layers: one part of x is kept, and says how the other is scaled and shifted.

Dinh, Krueger and Bengio, "NICE: Non-linear Independent Components Estimation", ICLR 2015 workshop (shifts alone); Dinh,
Sohl-Dickstein and Bengio, "Density estimation using Real NVP", ICLR 2017, equations 7 to 9 (scales too, masks); Xiao,
"Designing Deep Generative Models with Symbiotic Composition", 2022, section 3.4 (the flow of latent vectors).
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.checks import check_integers
from robustgen.generative.blocks.residual import ResidualBlock
from robustgen.generative.flows.transform import Chain, Density, Transform

__all__ = ["ConvNetwork", "Coupling", "MaskedCoupling", "Permutation", "checkerboard", "coupling_density", "zeroed"]

_BOUND = 2.0  # of a log scale: inputs unlike any that the network saw neither overflow nor lose their digits


class Permutation(Transform):
    """y[:, i] = x[:, order[i]], of vectors or of channels.

    >>> swap = Permutation([1, 2, 0])
    >>> swap(torch.tensor([[5.0, 6.0, 7.0]]))[0], swap.inverse(torch.tensor([[6.0, 7.0, 5.0]]))
    (tensor([[6., 7., 5.]]), tensor([[5., 6., 7.]]))
    """

    order: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor(order), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.index_select(1, self.order), x.new_zeros(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return y.index_select(1, self.order.argsort())


def _scale_and_shift(network: nn.Module, additive: bool, kept: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """The log scale, in [-2, 2], and the shift of the other part."""
    found = network(kept if context is None else torch.cat([kept, context], 1)).to(kept.dtype)  # from autocast's
    if additive:
        return torch.zeros_like(found), found
    raw, shift = found.chunk(2, 1)
    return _BOUND * torch.tanh(raw / _BOUND), shift


class Coupling(Transform):
    """Of x (N, C, ...) the first ``kept`` channels (or numbers) stay, the others b become b exp(s) + t.

    Args:
        network: gives 2 (C - kept) channels, s before its bound and t, of the kept ones, with the channels of the
            context behind them where there is one; C - kept where ``additive``.
        kept: how many stay.
        additive: s = 0, which keeps volumes.

    >>> coupling = Coupling(nn.Linear(1, 4), kept=1)
    >>> x = torch.tensor([[0.3, -2.0, 5.0]])
    >>> y, log_det = coupling(x)
    >>> torch.allclose(coupling.inverse(y), x, atol=1e-5), bool((y[0, 0] == x[0, 0]).all()), log_det.shape
    (True, True, torch.Size([1]))
    """

    def __init__(self, network: nn.Module, kept: int, additive: bool = False) -> None:
        super().__init__()
        self.network, self.kept, self.additive = network, kept, additive

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        a, b = x[:, : self.kept], x[:, self.kept :]
        log_scale, shift = _scale_and_shift(self.network, self.additive, a, context)
        return torch.cat([a, b * log_scale.exp() + shift], 1), log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        a, b = y[:, : self.kept], y[:, self.kept :]
        log_scale, shift = _scale_and_shift(self.network, self.additive, a, context)
        return torch.cat([a, (b - shift) * (-log_scale).exp()], 1)

    def extra_repr(self) -> str:
        return f"kept={self.kept}, additive={self.additive}"


class MaskedCoupling(Transform):
    """As :class:`Coupling`, of parts that are no channels: what is kept is where ``mask`` is 1.

    Args:
        network: gives 2 C channels (C where ``additive``) of x with zeros where the mask is 0, and the context.
        mask: of zeros and ones, of the shape of one x, or one that is repeated over its channels.

    >>> coupling = MaskedCoupling(nn.Conv2d(1, 2, 3, padding=1), checkerboard(2, 2))
    >>> x = torch.tensor([[[[0.1, 0.2], [0.3, 0.4]]]])
    >>> (coupling(x)[0] == x).int().tolist()
    [[[[1, 0], [0, 1]]]]
    """

    mask: Tensor

    def __init__(self, network: nn.Module, mask: Tensor, additive: bool = False) -> None:
        super().__init__()
        self.network, self.additive = network, additive
        self.register_buffer("mask", mask, persistent=False)

    def _change(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_scale, shift = _scale_and_shift(self.network, self.additive, x * self.mask, context)
        return log_scale * (1 - self.mask), shift * (1 - self.mask)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._change(x, context)
        return x * log_scale.exp() + shift, log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        log_scale, shift = self._change(y, context)
        return (y - shift) * (-log_scale).exp()

    def extra_repr(self) -> str:
        return f"additive={self.additive}"


def checkerboard(height: int, width: int, first: int = 1) -> Tensor:
    """A mask (1, height, width) of ``first`` and 1 - ``first`` by turns, ``first`` in the upper left corner.

    >>> checkerboard(2, 3)
    tensor([[[1., 0., 1.],
             [0., 1., 0.]]])
    """
    parity = (torch.arange(height)[:, None] + torch.arange(width)) % 2
    return (parity == 1 - first).to(torch.get_default_dtype())[None]


_Layer = TypeVar("_Layer", nn.Linear, nn.Conv2d)


def zeroed(layer: _Layer) -> _Layer:
    """The layer with zeros for weights: a network that ends in it leaves x as it is at the start."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ConvNetwork(nn.Module):
    """A residual network of a coupling of maps: (N, inputs, H, W) -> (N, outputs, H, W), zeros at the start.

    Maps with even sides go through it at half the size with four times the channels, at a quarter of the cost.

    Args:
        inputs, outputs: channels.
        size: (H, W).
        width: features.
        blocks: of two 3 x 3 convolutions each.

    >>> ConvNetwork(2, 3, (6, 4), width=5, blocks=1)(torch.rand(1, 2, 6, 4)).shape
    torch.Size([1, 3, 6, 4])
    """

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int], width: int, blocks: int) -> None:
        super().__init__()
        side = 1 if size[0] % 2 or size[1] % 2 else 2
        self.down, self.up = nn.PixelUnshuffle(side), nn.PixelShuffle(side)
        self.first = nn.Conv2d(side**2 * inputs, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width, width) for _ in range(blocks))
        self.last = zeroed(nn.Conv2d(width, side**2 * outputs, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(self.down(x))
        for block in self.blocks:
            h = block(h)
        result: Tensor = self.up(self.last(F.elu(h)))
        return result


def coupling_density(dim: int, blocks: int = 4, width: int = 64) -> Density:
    """A density of vectors (N, dim): affine couplings, each with three fully connected layers.

    The second of two couplings changes what the first kept; between two such pairs there is a permutation, the same in
    every model of that ``dim``. At the start s = t = 0.

    Args:
        dim: at least 2.
        blocks: couplings.
        width: hidden units of their networks.

    Raises:
        TypeError, ValueError: an argument that is no integer or too small.

    >>> density = coupling_density(dim=5)
    >>> density.log_prob(torch.zeros(3, 5)).shape, density.from_noise(torch.zeros(3, 5)).shape
    (torch.Size([3]), torch.Size([3, 5]))
    """
    check_integers(2, dim=dim)
    check_integers(blocks=blocks, width=width)
    half = dim // 2
    layers: list[Transform] = []
    for i in range(blocks):
        kept = dim - half if i % 2 else half
        if i % 2:
            layers.append(Permutation([*range(half, dim), *range(half)]))
        elif i:
            generator = torch.Generator().manual_seed(i)  # fixed: no file needs to hold, or could break, the order
            layers.append(Permutation(torch.randperm(dim, generator=generator, device="cpu").tolist()))
        layers.append(Coupling(_dense(kept, width, 2 * (dim - kept)), kept))
    return Density(Chain(*layers), dim)


def _dense(inputs: int, width: int, outputs: int) -> nn.Module:
    first, second, last = nn.Linear(inputs, width), nn.Linear(width, width), zeroed(nn.Linear(width, outputs))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
