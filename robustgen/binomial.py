"""Exact bounds of a share, from counts: what a certificate by Monte Carlo stands on.

Clopper and Pearson, "The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial", 1934: the bound
holds with the stated probability for every n and every share, which a normal approximation does not.
"""

import math

import torch
from torch import Tensor

from robustgen.checks import check_integers, check_numbers

__all__ = ["check_level", "lower_bound", "majority_p_value", "most_provable", "needed_draws", "upper_bound"]


def check_level(alpha: float) -> None:
    """TypeError or ValueError unless alpha, the probability that a bound may be wrong with, is in (0, 1)."""
    check_numbers(alpha=alpha)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}")


def lower_bound(successes: Tensor, n: int, alpha: float) -> Tensor:
    """What a share is at least, with probability 1 - alpha, float64 (N,), after ``successes`` (N,) of n draws.

    >>> lower_bound(torch.tensor([0, 100]), 100, 0.001)  # none at all; alpha ** (1 / n)
    tensor([0.0000, 0.9333], dtype=torch.float64)
    """
    from scipy.special import betaincinv  # slow to import

    check_level(alpha)
    k = successes.detach().cpu().double().numpy()
    bound = torch.from_numpy(betaincinv(k.clip(min=1), n - k + 1, alpha))
    return torch.where(successes.cpu() > 0, bound, 0.0)


def upper_bound(successes: Tensor, n: int, alpha: float) -> Tensor:
    """What a share is at most, with probability 1 - alpha, likewise."""
    return 1 - lower_bound(n - successes, n, alpha)


def most_provable(n: int, alpha: float) -> float:
    """The largest lower bound that n draws can give, where all of them succeed: alpha ** (1 / n)."""
    check_integers(n=n)
    check_level(alpha)
    return float(alpha ** (1 / n))


def needed_draws(share: float, alpha: float) -> int:
    """The least n with which a lower bound can exceed ``share``, in (0, 1).

    >>> needed_draws(0.99, 0.001), most_provable(688, 0.001) > 0.99 > most_provable(687, 0.001)
    (688, True)
    """
    check_level(alpha)
    return math.floor(math.log(alpha) / math.log(share)) + 1


def majority_p_value(first: Tensor, second: Tensor) -> Tensor:
    """How likely two equally likely outcomes differ by as much as these counts (N,), or more: two-sided, float64 (N,).

    Hung and Fithian, "Rank Verification for Exponential Families", 2019: of the two most frequent of many outcomes
    that is still a level, though they were chosen by looking.
    """
    from scipy.stats import binom

    larger = torch.maximum(first, second).cpu().numpy()
    total = (first + second).cpu().numpy()
    tail = torch.from_numpy(binom.sf(larger - 1, total, 0.5))
    return (2 * tail).clamp(max=1.0)
