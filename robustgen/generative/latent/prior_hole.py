"""How far the codes of data are from the prior that samples start from: the hole that a decoder never saw.

The distance is the maximum mean discrepancy: Gretton, Borgwardt, Rasch, Schoelkopf and Smola, "A Kernel Two-Sample
Test", 2012, equation 3 (the unbiased estimate), with the kernel of Tolstikhin, Bousquet, Gelly and Schoelkopf,
"Wasserstein Auto-Encoders", ICLR 2018, section 4.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustgen.counter_rng import normal

if TYPE_CHECKING:
    from robustgen.generative.latent.autoencoder import AutoEncoder
    from robustgen.generative.latent.base import LatentVariableModel

__all__ = ["mmd_squared", "prior_hole"]

_STREAM = 41
_ROWS = 256  # of a kernel at once: all differences of 10,000 codes would take gigabytes


def mmd_squared(a: Tensor, b: Tensor) -> Tensor:
    """The unbiased estimate, (), of MMD^2 between what a (N, D) and b (M, D) are drawn from; it may be negative.

    The kernel is c / (c + |a - b|^2) with c = 2 D, the expected squared distance of two draws of N(0, I).

    Raises:
        ValueError: fewer than two points in one of them.

    >>> mmd_squared(torch.zeros(3, 1), torch.zeros(3, 1)).item()
    0.0
    >>> mmd_squared(torch.zeros(3, 1), torch.full((3, 1), 1e9)).item()
    2.0
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"the estimate needs at least two points of each kind, got {len(a)} and {len(b)}")
    return _within(a) + _within(b) - 2 * _kernel(a, b).mean()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    c = 2 * a.shape[1]
    parts = [(rows[:, None] - b).square().sum(2) for rows in a.split(_ROWS)]  # an expanded square would lose digits
    return c / (c + torch.cat(parts))


def _within(a: Tensor) -> Tensor:
    """The mean of the kernel over pairs of two different points."""
    n = len(a)
    return (_kernel(a, a).sum() - n) / (n * (n - 1))


@torch.no_grad()
def prior_hole(model: "AutoEncoder | LatentVariableModel", x: Tensor, seed: int = 0) -> float:
    """:func:`mmd_squared` between codes of images x (N, *shape) and N draws from the model's p(z). Use it in eval mode.

    A variational model's codes are one draw from q(z | x) for each image: together they are the aggregated posterior.

    Raises:
        TypeError: a model without a prior of codes.
        TypeError, ValueError: of images as ``log_prob`` does; ValueError for fewer than two.

    >>> from robustgen.generative import WAE
    >>> wae = WAE((1, 8, 8), latent_dim=2, architecture="mlp", width=8).eval()
    >>> prior_hole(wae, torch.zeros(50, 1, 8, 8)) > 0.1  # all codes are the same
    True
    """
    from robustgen.generative.latent.base import LatentVariableModel

    if not hasattr(model, "prior_sample"):
        raise TypeError(f"prior_hole needs a model with a prior of codes, {type(model).__name__} has none")
    codes = model.draw_latents(x) if isinstance(model, LatentVariableModel) else model.encode(x)
    noise = normal(seed, torch.arange(len(x), device=codes.device), model.noise_shape, (_STREAM,), codes.dtype)
    return float(mmd_squared(codes, model.prior_sample(noise)))
