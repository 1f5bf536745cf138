"""Ho, Chen, Srinivas, Duan and Abbeel, "Flow++: Improving Flow-Based Generative Models with Variational Dequantization
and Architecture Design", ICML 2019, section 3.1: noise that a flow shapes for each image."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.generative.blocks.gaussian import gaussian_log_prob
from robustgen.generative.flows.coupling import ConvNetwork, MaskedCoupling, checkerboard

__all__ = ["VariationalNoise"]


class VariationalNoise(nn.Module):
    """q(u | x) of noise u in (0, 1): normal noise through couplings that know x, and through the normal distribution's
    cumulative one, where the paper has a sigmoid; so u is uniform at the start, when the couplings change nothing.

    Args:
        shape: of an image, (channels, height, width).
        couplings: with checkerboards by turns.
        width: features of the networks, and channels of what they are told of x.

    >>> noise = VariationalNoise((1, 4, 4))
    >>> u, log_q = noise(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
    >>> bool((u == 0.5).all()), bool((log_q == 0).all())
    (True, True)
    """

    def __init__(self, shape: tuple[int, int, int], couplings: int = 4, width: int = 16) -> None:
        super().__init__()
        channels, *size = shape
        self.context = nn.Conv2d(channels, width, 3, padding=1)
        self.couplings = nn.ModuleList(
            MaskedCoupling(
                ConvNetwork(channels + width, 2 * channels, (size[0], size[1]), width, blocks=1),
                checkerboard(size[0], size[1], first=i % 2),
            )
            for i in range(couplings)
        )

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """u (N, C, H, W) of standard normal ``eps`` for images x in [0, 1], and log q(u | x) (N,)."""
        context = F.elu(self.context(x - 0.5))
        h, log_q = eps, gaussian_log_prob(eps).flatten(1).sum(1)
        for coupling in self.couplings:
            h, log_det = coupling(h, context)
            log_q = log_q - log_det
        log_q = log_q - gaussian_log_prob(h).flatten(1).sum(1)  # du / dh is the normal density
        return torch.special.ndtr(h), log_q
