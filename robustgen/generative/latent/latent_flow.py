"""Flows of codes and of hidden states.

Dinh, Krueger and Bengio, "NICE: Non-linear Independent Components Estimation", ICLR 2015 workshop, section 3.3 (a scale
for each number); Xiao, "Designing Deep Generative Models with Symbiotic Composition", 2022, section 3.4 (couplings).
"""

import torch
from torch import Tensor, nn

from robustgen.generative.flows.coupling import coupling_density
from robustgen.generative.flows.transform import Chain, Density, Transform

__all__ = ["Scaling", "latent_density"]


class Scaling(Transform):
    """y = x exp(s), with one s for each of ``dim`` numbers, which is not bounded; at the start 0.

    >>> Scaling(2)(torch.ones(1, 2))
    (tensor([[1., 1.]], grad_fn=<MulBackward0>), tensor([0.], grad_fn=<ExpandBackward0>))
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return y * (-self.log_scale).exp()


def latent_density(dim: int, blocks: int = 4, width: int = 64) -> Density:
    """A :func:`coupling_density` behind a :class:`Scaling`: codes may be of any size, a coupling's scales are bounded.

    Args:
        dim, blocks, width: see :func:`coupling_density`.

    Raises:
        ValueError: an argument out of range.

    >>> latent_density(3).log_prob(torch.zeros(2, 3)).shape
    torch.Size([2])
    """
    if dim < 2:
        raise ValueError(f"latent_dim must be at least 2 for a flow of codes, got {dim}")
    couplings = coupling_density(dim, blocks, width).transform
    return Density(Chain(Scaling(dim), couplings), dim)
