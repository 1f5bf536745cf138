"""Diagonal Gaussians, by mean and log standard deviation."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["bounded_log_std", "gaussian_kl", "gaussian_log_prob"]


def gaussian_log_prob(x: Tensor, mean: Tensor | float = 0.0, log_std: Tensor | float = 0.0) -> Tensor:
    """log N(x; mean, exp(log_std)^2), element by element, in nats.

    >>> gaussian_log_prob(torch.tensor([0.0, 1.0]))
    tensor([-0.9189, -1.4189])
    """
    scaled = (x - mean) * torch.exp(-torch.as_tensor(log_std))
    return -0.5 * scaled.square() - log_std - 0.5 * math.log(2 * math.pi)


def gaussian_kl(
    mean: Tensor, log_std: Tensor, prior_mean: Tensor | float = 0.0, prior_log_std: Tensor | float = 0.0
) -> Tensor:
    """KL(N(mean, exp(log_std)^2) || N(prior_mean, exp(prior_log_std)^2)), element by element, in nats, >= 0.

    >>> gaussian_kl(torch.tensor([0.0, 2.0]), torch.zeros(2))
    tensor([0., 2.])
    """
    ratio = log_std - prior_log_std
    scaled = (mean - prior_mean) * torch.exp(-torch.as_tensor(prior_log_std))
    return 0.5 * (scaled.square() + torch.expm1(2 * ratio)) - ratio


def bounded_log_std(a: Tensor) -> Tensor:
    """log(1 + elu(a)) of a network's output a: the standard deviation is exp(a) below 1 and 1 + a above.

    An exponential throughout would overflow on images unlike any that the network was trained on.

    >>> bounded_log_std(torch.tensor([-3.0, 0.0, torch.e - 1]))
    tensor([-3.,  0.,  1.])
    """
    return a.clamp(max=0) + torch.log1p(F.relu(a))
