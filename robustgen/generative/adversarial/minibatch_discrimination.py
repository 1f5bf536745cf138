"""Minibatch discrimination: how close an example is to the others of its batch, as further features.

Salimans et al., "Improved Techniques for Training GANs", 2016, section 3.2.
"""

import torch
from torch import Tensor, nn

__all__ = ["MinibatchDiscrimination"]


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
