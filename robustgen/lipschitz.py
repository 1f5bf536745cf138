"""By how much a network's output can move for a change of its input: a bound from its layers, where each has one."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustgen.lipschitz_encoder import MaxMin, Orthonormal
from robustgen.model import Normalize

__all__ = ["NORMS", "in_norm", "lipschitz_bound", "lipschitz_bound_inside"]

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
