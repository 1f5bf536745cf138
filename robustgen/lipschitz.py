"""By how much a network's output can move for a change of its input: a bound from its layers, where each has one.

And an encoder whose bound is 1, so that distances between its features can be certified. Anil, Lucas and Grosse,
"Sorting out Lipschitz function approximation", ICML 2019: linear layers with orthonormal rows or columns, and an
activation that sorts pairs, which lengthens no gradient and shortens none. Trained by contrast
(:class:`robustgen.training.ContrastiveObjective`) or as a classifier of the known classes, it goes before
:class:`robustgen.detectors.NearestNeighbour`.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustgen.checks import check_integers
from robustgen.model import Normalize

__all__ = [
    "NORMS",
    "MaxMin",
    "Orthonormal",
    "in_norm",
    "lipschitz_bound",
    "lipschitz_bound_inside",
    "lipschitz_encoder",
]

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


NORMS = ("L2", "L1", "Linf")

_NONE_LONGER = (  # modules that lengthen no change
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.ReLU, nn.Tanh, nn.Sigmoid),
    *(nn.Hardtanh, nn.ReLU6, MaxMin),
)
_ROUNDING = 1e-6  # of a weight that is computed anew at every call


def lipschitz_bound(module: nn.Module) -> float | None:
    """A number c with \\|f(x) - f(y)\\| <= c \\|x - y\\| in L2, for ``module`` in eval mode; None where none is known.

    Known are ``nn.Sequential`` of linear layers, orthogonal ones too (their largest singular value), 2-D convolutions
    (the same of their patches where these do not overlap; else the root of the product of their L1 and Linf norms,
    Schur's bound), :class:`~robustgen.model.Normalize`, activations that lengthen nothing, and a few others. The
    product over layers may be far from the truth, and grows with depth; of orthogonal layers it is 1.

    >>> lipschitz_bound(nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False), nn.ReLU())) is None
    False
    >>> lipschitz_bound(nn.LSTM(2, 2)) is None
    True
    """
    if _altered(module):
        return None
    if type(module) is nn.Sequential:
        bounds = [lipschitz_bound(part) for part in module]
        return None if None in bounds else math.prod(b for b in bounds if b is not None)
    if type(module) is nn.LeakyReLU:
        return max(1.0, abs(module.negative_slope))
    if type(module) is nn.ELU:
        return max(1.0, abs(module.alpha))
    if type(module) is nn.Softplus:
        return 1.0 if _jump(module) < _ROUNDING else None
    if type(module) in _NONE_LONGER:
        return 1.0
    if type(module) is Normalize:
        return float(1 / module.std.double().min())
    if parametrize.is_parametrized(module):
        added = [part for parts in module.parametrizations.values() for part in parts]
        kinds = {None if _altered(part) else type(part) for part in added}
        if parametrize.type_before_parametrizations(module) is not nn.Linear or kinds != {Orthonormal}:
            return None
        return (1 + _ROUNDING) * _largest(module.weight)
    if type(module) is nn.Linear:
        return _largest(module.weight)
    if type(module) is nn.Conv2d:
        apart = all(s >= k for s, k in zip(module.stride, module.kernel_size, strict=True))
        if apart and module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros":
            return _largest(module.weight.flatten(1))  # each input is in one patch, and patches map alike
        size = module.weight.detach().double().abs()
        rows, columns = size.flatten(1).sum(1).max(), size.sum((0, 2, 3)).max()
        return float((rows * columns).sqrt()) if module.padding_mode == "zeros" else None
    return None


def _altered(module: nn.Module) -> bool:
    """Whether an instance does something else than its class."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _jump(softplus: nn.Softplus) -> float:
    """By how much the curve and the line, which replaces it from beta x = threshold on, differ there, of their size."""
    beta, threshold = float(softplus.beta), float(softplus.threshold)
    if not (beta > 0 and threshold > 0):
        return math.inf
    return math.log1p(math.exp(-threshold)) / max(beta, threshold)


def lipschitz_bound_inside(module: nn.Module, layer: str, given: bool) -> float | None:
    """Such a bound of what the layer of that name returns, or is ``given``; None where none is known, or where the
    layer stands in several places.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Linear(2, 2))
    >>> lipschitz_bound_inside(net, "1", True), lipschitz_bound_inside(net, "2", True) == lipschitz_bound(net[:2])
    (1.0, True)
    """
    if layer == "":
        return None if _altered(module) else 1.0 if given else lipschitz_bound(module)
    if type(module) is not nn.Sequential or _altered(module):
        return None
    first, _, rest = layer.partition(".")
    names = list(module._modules)
    part = module.get_submodule(layer)
    if sum(m is part for _, m in module.named_modules(remove_duplicate=False)) > 1:
        return None
    bounds = [lipschitz_bound(module.get_submodule(name)) for name in names[: names.index(first)]]
    bounds.append(lipschitz_bound_inside(module.get_submodule(first), rest, given))
    return None if None in bounds else math.prod(b for b in bounds if b is not None)


def _largest(weight: Tensor) -> float:
    """Singular value of a matrix; in float64."""
    return float(torch.linalg.matrix_norm(weight.detach().double(), 2)) if weight.numel() else 0.0


def in_norm(bound: float | None, norm: str, dimensions: int) -> float | None:
    """An L2 bound of inputs with so many numbers, in another norm of the input: a change is at most as long in L2 as in
    L1, and at most sqrt(dimensions) times as long as in Linf."""
    if bound is None:
        return None
    return bound * math.sqrt(dimensions) if norm == "Linf" else bound
