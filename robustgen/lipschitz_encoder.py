"""An encoder that lengthens no change of its input, so that distances between its features can be certified.

Anil, Lucas and Grosse, "Sorting out Lipschitz function approximation", ICML 2019: linear layers with orthonormal rows
or columns, and an activation that sorts pairs, which lengthens no gradient and shortens none. Trained by contrast
(:class:`robustgen.training.ContrastiveObjective`) or as a classifier of the known classes, it goes before
:class:`robustgen.detectors.NearestNeighbour`.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustgen.checks import check_integers

__all__ = ["MaxMin", "Orthonormal", "lipschitz_encoder"]


_NEARLY_DEPENDENT = 1e-3  # of the longest row, what the others leave of one: its square is rounded to 1e-16


class MaxMin(nn.Module):
    """The larger, then the smaller, of each pair of features, (N, D) -> (N, D) for even D.

    The first half of the features is paired with the second. Source, section 4.1 (groups of two).

    Raises:
        ValueError: an odd number of features.

    >>> MaxMin()(torch.tensor([[1.0, 5.0, 3.0, 2.0]]))
    tensor([[3., 5., 1., 2.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] % 2:
            raise ValueError(f"MaxMin sorts pairs, and {x.shape[1]} features are an odd number")
        a, b = x.chunk(2, 1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)


class Orthonormal(nn.Module):
    """Matrices whose rows (columns, where there are more rows) are orthonormal: L^-1 V with V V' = L L', of any V.

    A parametrization (:mod:`torch.nn.utils.parametrize`) of a weight; computed in float64. Of rows that depend on each
    other, or nearly so, by Householder's QR, which completes them; their gradient is large, or not finite.

    >>> w = Orthonormal()(torch.tensor([[3.0, 0.0, 4.0], [1.0, 2.0, 2.0]]))
    >>> torch.allclose(w @ w.T, torch.eye(2), atol=1e-6)
    True
    """

    def forward(self, v: Tensor) -> Tensor:
        tall = v.shape[0] > v.shape[1]
        rows = (v.T if tall else v).double()
        lower, failed = torch.linalg.cholesky_ex(rows @ rows.T)
        size = lower.diagonal()
        if failed or size.min() < _NEARLY_DEPENDENT * size.max():
            q, r = torch.linalg.qr(rows.T)
            found = (q * torch.where(r.diagonal() < 0, -1.0, 1.0)).T  # the same, were it not for rounding
        else:
            found = torch.linalg.solve_triangular(lower, rows, upper=False)
        found = found.to(v.dtype)
        return found.T if tall else found


def lipschitz_encoder(n_inputs: int, hidden: Sequence[int] = (256, 256), n_outputs: int = 32) -> nn.Sequential:
    """Orthogonal linear layers with :class:`MaxMin` between them, (N, ...) -> (N, n_outputs).

    Its weights are made orthogonal at every call, wherever an optimizer takes what they are made of;
    :func:`robustgen.lipschitz.lipschitz_bound` is 1, but for rounding.

    Args:
        n_inputs: numbers in one input.
        hidden: features of each hidden layer, even.
        n_outputs: features.

    Raises:
        ValueError: a number below 1, or an odd number of hidden features.

    >>> from robustgen.lipschitz import lipschitz_bound
    >>> encoder = lipschitz_encoder(64, [16], 8)
    >>> encoder(torch.zeros(2, 1, 8, 8)).shape, round(lipschitz_bound(encoder), 4)
    (torch.Size([2, 8]), 1.0)
    """
    check_integers(n_inputs=n_inputs, n_outputs=n_outputs)
    for units in hidden:
        check_integers(hidden=units)
        if units % 2:
            raise ValueError(f"MaxMin sorts pairs: hidden features must be even, got {units}")
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise([n_inputs, *hidden, n_outputs]):
        linear = nn.Linear(a, b)
        nn.init.orthogonal_(linear.weight)
        parametrize.register_parametrization(linear, "weight", Orthonormal())
        layers += [linear, MaxMin()]
    return nn.Sequential(*layers[:-1])
