"""The networks of energies: an image in, one number out or a few, without normalisation across the batch."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers

__all__ = ["ARCHITECTURES", "EnergyNetwork"]

ARCHITECTURES = ("conv", "residual", "mlp", "fourier")
_FREQUENCY = 10.0  # standard deviation, radians per unit of [-1, 1]


class _Block(nn.Module):
    """x + conv(swish(conv(swish(x)))), of 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(nn.functional.silu(self.first(nn.functional.silu(x))))


class _FourierFeatures(nn.Module):
    """Sines and cosines of random directions, 2 n of them, which are kept with the weights."""

    def __init__(self, dim: int, n: int) -> None:
        super().__init__()
        self.register_buffer("directions", _FREQUENCY * torch.randn(dim, n))

    def forward(self, x: Tensor) -> Tensor:
        phase = x.flatten(1) @ self.directions
        return torch.cat([phase.sin(), phase.cos()], 1)


class _Sum(nn.Module):
    """Swish, then the sum over all places: (N, C, H, W) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x).sum((2, 3))


class EnergyNetwork(nn.Sequential):
    """f(x) (N,) of images x (N, *shape) in [0, 1], which it sees in [-1, 1]; each from its own image alone.

    Args:
        shape: (C, H, W).
        architecture: "conv": a 3x3 convolution, 4x4 ones of stride 2 until a side is at most 4, a linear layer (Nijkamp
            et al., "Learning Non-Convergent Non-Persistent Short-Run MCMC Toward Energy-Based Model", 2019, appendix).
            "residual": ``layers`` residual blocks, an average over 2x2 and ``layers`` wider ones, a sum over places, a
            linear layer (Xiao, "Designing Deep Generative Models with Symbiotic Composition", 2022, section 4.4.1).
            "mlp": ``layers`` hidden layers (section 5.5.1). "fourier": one on random Fourier features, which learns the
            fine structure of a few dimensions at once (Tancik et al., "Fourier Features Let Networks Learn High
            Frequency Functions in Low Dimensional Domains", NeurIPS 2020). Swish between layers in all.
        width: channels at image resolution, twice as many below; units of a hidden layer.
        layers: see above; None: 3 blocks, 5 hidden layers, 2 on Fourier features; a "conv" has as many as it needs.
        outputs: numbers that come out of an image; of several f(x) is (N, outputs).

    Raises:
        ValueError: an unknown architecture, a number below 1, or layers of a "conv".

    >>> EnergyNetwork((1, 8, 8), width=4)(torch.rand(3, 1, 8, 8)).shape
    torch.Size([3])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int,
        architecture: str = "conv",
        layers: int | None = None,
        outputs: int = 1,
    ) -> None:
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
        check_integers(width=width, outputs=outputs)
        if layers is not None:
            check_integers(layers=layers)
            if architecture == "conv":
                raise ValueError("a 'conv' has as many layers as its images need: leave layers out")
        super().__init__(
            *{"conv": _conv, "residual": _residual, "mlp": _mlp, "fourier": _fourier}[architecture](
                shape, width, layers, outputs
            )
        )
        self.to(memory_format=torch.channels_last)  # chains run through it all the time: it is half as fast again

    def forward(self, x: Tensor) -> Tensor:
        u = (2 * x - 1).contiguous(memory_format=torch.channels_last)
        return super().forward(u).squeeze(1).to(x.dtype)  # under autocast too


def _conv(shape: tuple[int, ...], width: int, layers: int | None, outputs: int) -> list[nn.Module]:
    channels, height, breadth = shape
    made: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU()]
    channels = width
    while min(height, breadth) > 4:
        made += [nn.Conv2d(channels, 2 * width, 4, stride=2, padding=1), nn.SiLU()]
        channels, height, breadth = 2 * width, height // 2, breadth // 2
    # An energy is known up to a constant.
    return [*made, nn.Flatten(), nn.Linear(channels * height * breadth, outputs, bias=False)]


def _residual(shape: tuple[int, ...], width: int, layers: int | None, outputs: int) -> list[nn.Module]:
    blocks = 3 if layers is None else layers
    channels, height, breadth = shape
    halve = [nn.AvgPool2d(2)] if min(height, breadth) > 1 else []
    return [
        nn.Conv2d(channels, width, 3, padding=1),
        *(_Block(width) for _ in range(blocks)),
        *halve,
        nn.Conv2d(width, 2 * width, 3, padding=1),
        *(_Block(2 * width) for _ in range(blocks)),
        _Sum(),
        nn.Linear(2 * width, outputs, bias=False),
    ]


def _mlp(shape: tuple[int, ...], width: int, layers: int | None, outputs: int) -> list[nn.Module]:
    return [nn.Flatten(), *_hidden(math.prod(shape), width, 5 if layers is None else layers, outputs)]


def _fourier(shape: tuple[int, ...], width: int, layers: int | None, outputs: int) -> list[nn.Module]:
    hidden = _hidden(2 * width, width, 2 if layers is None else layers, outputs)
    return [_FourierFeatures(math.prod(shape), width), *hidden]


def _hidden(inputs: int, width: int, layers: int, outputs: int) -> list[nn.Module]:
    sizes = [inputs, *[width] * layers]
    hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())]
    return [*hidden, nn.Linear(width, outputs, bias=False)]
