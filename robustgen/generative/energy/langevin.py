"""Langevin dynamics: samples of exp(-E) from the gradient of E.

The unadjusted Langevin algorithm (Roberts and Tweedie, "Exponential convergence of Langevin distributions and their
discrete approximations", 1996): x <- x - a grad E(x) + sqrt(2 a) e, e ~ N(0, I). Without a Metropolis correction the
stationary density is that of exp(-E) up to terms of the order of a; for E = x^2 / 2 its variance is 1 / (1 - a / 2).
With it (section 1.4 there) it is that of exp(-E), and a step too large for E is refused instead of leading away.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["check_kept", "check_reach", "langevin", "reflect"]

_REACH = 100.0  # times the data's range: chains do not come back from there


def reflect(x: Tensor) -> Tensor:
    """x folded into [0, 1] at the walls, as often as needed.

    >>> reflect(torch.tensor([-0.25, 0.5, 1.25, 2.5]))
    tensor([0.2500, 0.5000, 0.7500, 0.5000])
    """
    return 1 - (x.remainder(2) - 1).abs()


def check_kept(n: int, buffer_size: int) -> None:
    """ValueError where fewer chains are kept than a batch has images: each of these has one of its own."""
    if n > buffer_size:
        raise ValueError(f"a batch of {n} needs as many chains: set buffer_size to at least {n}")


def check_reach(x: Tensor, width: float, remedy: str) -> Tensor:
    """Return x (N, ...) unless chains have left for good: a FloatingPointError for NaN or 100 times the data's width.

    >>> check_reach(torch.full((1, 2), 500.0), 1.0, "take a smaller step")
    Traceback (most recent call last):
    FloatingPointError: chains have left the range of the data for good: take a smaller step
    """
    if len(x) and not bool(x.detach().abs().max() <= _REACH * width):  # NaN is not, either
        raise FloatingPointError(f"chains have left the range of the data for good: {remedy}")
    return x


def langevin(
    energy: Callable[[Tensor], Tensor],
    x: Tensor,
    steps: int,
    step_size: float,
    *,
    reflected: bool = False,
    adjusted: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Where chains that start at x (N, ...) are after ``steps`` steps; without graph, and no ``.grad`` is touched.

    Args:
        energy: E, (N, ...) -> (N,) in nats, each from its own example alone.
        steps: any number >= 0.
        step_size: a; the noise of a step has standard deviation sqrt(2 a).
        reflected: fold every step into [0, 1]: the target is exp(-E) on the cube [0, 1]^D, zero outside. (Clamping
            instead would pile mass up on the walls, which no density has.)
        adjusted: take or refuse each step by the rule of Metropolis and Hastings; not with ``reflected``.
        generator: of the device of x; None: torch's global one.

    >>> g = torch.Generator().manual_seed(0)
    >>> x = langevin(lambda x: 0.5 * x.square().sum(1), torch.zeros(20000, 1), 50, 0.5, generator=g)
    >>> round(x.var().item(), 1)  # 1 / (1 - 0.5 / 2)
    1.3
    >>> x = langevin(lambda x: 0.5 * x.square().sum(1), torch.zeros(20000, 1), 50, 0.5, adjusted=True, generator=g)
    >>> round(x.var().item(), 1)
    1.0

    Raises:
        ValueError: adjusted and reflected steps at once.
    """
    if adjusted and reflected:
        raise ValueError("adjusted steps are not reflected: choose one")
    noise = (2 * step_size) ** 0.5
    x = x.detach()
    for step in range(steps):
        if step == 0 or not adjusted:
            value, gradient = _with_gradient(energy, x)
        e = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        moved = x - step_size * gradient + noise * e
        if not adjusted:
            x = reflect(moved) if reflected else moved
            continue
        new_value, new_gradient = _with_gradient(energy, moved)
        back = (x - moved + step_size * new_gradient).square().flatten(1).sum(1) / (4 * step_size)
        log_ratio = value - new_value + e.square().flatten(1).sum(1) / 2 - back
        u = torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype)
        taken = u.log() < log_ratio  # never where the new energy is NaN
        value = torch.where(taken, new_value, value)
        rows = taken.view(-1, *[1] * (x.ndim - 1))
        x, gradient = torch.where(rows, moved, x), torch.where(rows, new_gradient, gradient)
    return x


def _with_gradient(energy: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """E(x) (N,) and its gradient, without graph."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = energy(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient
