"""By how much a network's output can move for a change of its input: a bound from its layers, where each has one."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustgen.lipschitz_encoder import MaxMin, Orthonormal
from robustgen.model import Normalize

__all__ = ["NORMS", "in_norm", "lipschitz_bound"]

NORMS = ("L2", "L1", "Linf")

_NONE_LONGER = (  # modules that lengthen no change
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus),
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
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    if type(module) is nn.Sequential:
        bounds = [lipschitz_bound(part) for part in module]
        return None if None in bounds else math.prod(b for b in bounds if b is not None)
    if type(module) is nn.LeakyReLU:
        return max(1.0, abs(module.negative_slope))
    if type(module) is nn.ELU:
        return max(1.0, abs(module.alpha))
    if type(module) in _NONE_LONGER:
        return 1.0
    if type(module) is Normalize:
        return float(1 / module.std.double().min())
    if parametrize.is_parametrized(module):
        kinds = {type(part) for parts in module.parametrizations.values() for part in parts}
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


def _largest(weight: Tensor) -> float:
    """Singular value of a matrix; in float64."""
    return float(torch.linalg.matrix_norm(weight.detach().double(), 2)) if weight.numel() else 0.0


def in_norm(bound: float | None, norm: str, dimensions: int) -> float | None:
    """An L2 bound of inputs with so many numbers, in another norm of the input: a change is at most as long in L2 as in
    L1, and at most sqrt(dimensions) times as long as in Linf."""
    if bound is None:
        return None
    return bound * math.sqrt(dimensions) if norm == "Linf" else bound
