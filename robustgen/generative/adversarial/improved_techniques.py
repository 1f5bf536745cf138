"""Salimans et al., "Improved Techniques for Training GANs", 2016: those of its techniques that are layers.

Minibatch discrimination (section 3.2): how close an example is to the others of its batch, as further features.
Historical averaging (3.3): a player of a game is held near the mean of its own past weights. Virtual batch
normalisation (3.5): the batch of the statistics is a fixed one, and the example itself. That reference batch goes
through the network with every batch, so each layer sees its reference activations under the present weights. It is kept
in the model, which makes the network's output a function of each example alone.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

__all__ = ["HistoricalAverage", "MinibatchDiscrimination", "VirtualBatchNorm", "WithReference"]


class MinibatchDiscrimination(nn.Module):
    """Features f (N, F) -> (N, F + kernels): appends sum over the batch j of exp(-|M_ib - M_jb|_1), M_i = f_i T.

    A function of the batch, not of an example: a network with this layer cannot score single examples.

    Args:
        features: F.
        kernels: B, numbers appended.
        rows: C, length of each M_ib.

    >>> layer = MinibatchDiscrimination(4, kernels=2)
    >>> layer(torch.ones(3, 4))[:, 4:]  # three alike
    tensor([[3., 3.],
            [3., 3.],
            [3., 3.]], grad_fn=...)
    """

    def __init__(self, features: int, kernels: int, rows: int = 5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, kernels, rows) * features**-0.5)

    def forward(self, f: Tensor) -> Tensor:
        m = torch.einsum("nf,fbc->nbc", f, self.weight)  # (N, B, C)
        distance = (m[:, None] - m[None]).abs().sum(3)  # (N, N, B)
        return torch.cat([f, (-distance).exp().sum(1)], dim=1)


class HistoricalAverage(nn.Module):
    """|theta - (1 / t) sum over tau <= t of theta_tau|^2, where each call is one t.

    Args:
        parameters: how many numbers theta has.

    >>> player, average = nn.Linear(1, 1, bias=False), HistoricalAverage(1)
    >>> with torch.no_grad():
    ...     penalties = [average(player.apply(lambda m: m.weight.fill_(w))).item() for w in (1.0, 3.0)]
    >>> penalties
    [0.0, 1.0]
    """

    mean: Tensor
    count: Tensor

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(parameters))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, player: nn.Module) -> Tensor:
        theta = parameters_to_vector(player.parameters())
        self.count += 1
        self.mean += (theta.detach() - self.mean) / self.count
        return (theta - self.mean).square().sum()


class VirtualBatchNorm(nn.Module):
    """Normalises (R + N, C, H, W), of which the first R are the reference batch; scale and shift for each channel.

    The moments of an example are 1 / (R + 1) times its own plus R / (R + 1) times those of the reference batch, which
    is itself normalised by its own alone.

    Args:
        channels: C.
        reference: R.
    """

    def __init__(self, channels: int, reference: int) -> None:
        super().__init__()
        self.reference = reference
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, h: Tensor) -> Tensor:
        r = self.reference
        first = h.mean((2, 3), keepdim=True)  # (R + N, C, 1, 1)
        second = h.square().mean((2, 3), keepdim=True)
        moments = []
        for own in (first, second):
            shared = own[:r].mean(0, keepdim=True)
            moments.append(torch.cat([shared.expand_as(own[:r]), (own[r:] + r * shared) / (r + 1)]))
        mean, square = moments
        return (h - mean) * (square - mean.square() + 1e-5).rsqrt() * self.weight + self.bias

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, reference={self.reference}"


class WithReference(nn.Module):
    """Calls ``network`` on the reference batch and x together and returns its output for x.

    Args:
        network: with :class:`VirtualBatchNorm` layers in place of batch norms.
        reference: (R, ...), a fixed batch of what the network is called on; kept as a buffer.

    >>> net = WithReference(nn.Sequential(nn.Conv2d(1, 2, 3), VirtualBatchNorm(2, 8)), torch.rand(8, 1, 6, 6))
    >>> x = torch.rand(3, 1, 6, 6)
    >>> torch.allclose(net(x)[:1], net(x[:1]), atol=1e-5)
    True
    """

    reference: Tensor

    def __init__(self, network: nn.Module, reference: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("reference", reference)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(torch.cat([self.reference.to(x), x]))[len(self.reference) :]
