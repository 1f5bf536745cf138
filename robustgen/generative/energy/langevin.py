"""Langevin dynamics: samples of exp(-E) from the gradient of E.

The unadjusted Langevin algorithm (Roberts and Tweedie, "Exponential convergence of Langevin distributions and their
discrete approximations", 1996): x <- x - a grad E(x) + sqrt(2 a) e, e ~ N(0, I). Without a Metropolis correction the
stationary density is that of exp(-E) up to terms of the order of a; for E = x^2 / 2 its variance is 1 / (1 - a / 2).
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["langevin", "reflect"]


def reflect(x: Tensor) -> Tensor:
    """x folded into [0, 1] at the walls, as often as needed.

    >>> reflect(torch.tensor([-0.25, 0.5, 1.25, 2.5]))
    tensor([0.2500, 0.5000, 0.7500, 0.5000])
    """
    return 1 - (x.remainder(2) - 1).abs()


def langevin(
    energy: Callable[[Tensor], Tensor],
    x: Tensor,
    steps: int,
    step_size: float,
    *,
    reflected: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Where chains that start at x (N, ...) are after ``steps`` steps; without graph, and no ``.grad`` is touched.

    Args:
        energy: E, (N, ...) -> (N,) in nats, each from its own example alone.
        steps: any number >= 0.
        step_size: a; the noise of a step has standard deviation sqrt(2 a).
        reflected: fold every step into [0, 1]: the target is exp(-E) on the cube [0, 1]^D, zero outside. (Clamping
            instead would pile mass up on the walls, which no density has.)
        generator: of the device of x; None: torch's global one.

    >>> g = torch.Generator().manual_seed(0)
    >>> x = langevin(lambda x: 0.5 * x.square().sum(1), torch.zeros(20000, 1), 50, 0.5, generator=g)
    >>> round(x.var().item(), 1)  # 1 / (1 - 0.5 / 2)
    1.3
    """
    noise = (2 * step_size) ** 0.5
    x = x.detach()
    for _ in range(steps):
        with torch.enable_grad():
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(energy(x).sum(), x)
        e = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x = x.detach() - step_size * gradient + noise * e
        x = reflect(x) if reflected else x
    return x
