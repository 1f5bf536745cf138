"""Historical averaging: a player of a game is held near the mean of its own past weights.

Salimans et al., "Improved Techniques for Training GANs", 2016, section 3.3.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

__all__ = ["HistoricalAverage"]


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
