"""Mixtures of logistic distributions on the levels of pixels, with all channels of a pixel at once.

Salimans, Karpathy, Chen and Kingma, "PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood
and Other Modifications", ICLR 2017: section 2.1 (the distribution of a channel), 2.2 (of a pixel).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robustgen.checks import check_integers
from robustgen.generative.blocks.pixel_likelihood import PixelLikelihood

__all__ = [
    "DiscretizedLogisticMixture",
    "discretized_logistic_mixture_log_prob",
    "discretized_logistic_mixture_sample",
    "parameters_per_component",
]

_LOWEST_LOG_SCALE = -7.0  # of values in [-1, 1]: a tenth of a step of 8-bit pixels


def parameters_per_component(channels: int) -> int:
    """A weight; of each channel a mean and a scale, and a coefficient for every channel before it.

    >>> parameters_per_component(1), parameters_per_component(3)
    (3, 10)
    """
    return 1 + 2 * channels + channels * (channels - 1) // 2


class _Components(NamedTuple):
    """The K components at each pixel: log weights (N, K, ...), the rest (N, K, C, ...) and (N, K, C (C-1) / 2, ...)."""

    log_weights: Tensor
    means: Tensor
    log_scales: Tensor
    coefficients: Tensor

    def mean(self, channel: int, before: Tensor) -> Tensor:
        """Means (N, K, ...) of a channel, shifted by what the channels before it, (N, 1 or K, >= channel, ...), are."""
        first = channel * (channel - 1) // 2
        shift = (self.coefficients[:, :, first : first + channel] * before[:, :, :channel]).sum(2)
        return self.means[:, :, channel] + shift


def _components(parameters: Tensor, channels: int) -> _Components:
    size = parameters_per_component(channels)
    if parameters.shape[1] % size or not parameters.shape[1]:
        raise ValueError(
            f"a mixture for {channels} channels has a multiple of {size} parameters a pixel, got {parameters.shape[1]}"
        )
    weights, means, log_scales, coefficients = parameters.unflatten(1, (-1, size)).split(
        [1, channels, channels, size - 1 - 2 * channels], 2
    )
    log_scales = log_scales.clamp(min=_LOWEST_LOG_SCALE)
    return _Components(weights[:, :, 0].log_softmax(1), means, log_scales, coefficients.tanh())


def _log1mexp(log_x: Tensor) -> Tensor:
    """log(1 - exp(-x)) of x = exp(log_x), which may underflow."""
    tiny = log_x < -12
    x = torch.where(tiny, 0.0, log_x).exp()
    return torch.where(tiny, log_x - log_x.exp() / 2, torch.log(-torch.expm1(-x)))


def _log_mass(v: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """log probability of the bin around v in [-1, 1]; the first and the last reach to infinity. All broadcast.

    sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a)) for the bin's ends a > b in units of the scale: a sum of
    logarithms, which is exact in both tails and differentiable everywhere.
    """
    half = 1 / (levels - 1)
    inverse = (-log_scale).exp()
    upper = F.logsigmoid((v + half - mean) * inverse)  # log P(at most this level)
    lower = F.logsigmoid((mean - v + half) * inverse)  # log P(at least this level)
    between = upper + lower + _log1mexp(math.log(2 * half) - log_scale)
    edge = 1 - half
    return torch.where(v.detach() < -edge, upper, torch.where(v.detach() > edge, lower, between))


def discretized_logistic_mixture_log_prob(x: Tensor, parameters: Tensor, levels: int) -> Tensor:
    """log p of each pixel, its channels together, in nats: (N, H, W).

    p(x) = sum over k of w_k prod over channels c of the mass that a logistic distribution with mean
    m_kc + sum over c' < c of tanh(a_kcc') x_c' and scale s_kc has within half a step of x_c, in units where pixels lie
    in [-1, 1]; s_kc is at least exp(-7). Sums to one over all values of a pixel.

    Args:
        x: (N, C, H, W) in [0, 1], on the levels.
        parameters: (N, K * parameters_per_component(C), H, W): for each component its log weight, C means, C log
            scales and the a_kcc' in the order (1, 0), (2, 0), (2, 1), ...
        levels: at least 2.

    Raises:
        ValueError: a number of parameters that is no multiple of a component's.

    >>> x = torch.linspace(0, 1, 5)[:, None, None, None]
    >>> discretized_logistic_mixture_log_prob(x, torch.ones(5, 6, 1, 1), levels=5).exp().sum()
    tensor(1.0000)
    """
    components, v = _components(parameters, x.shape[1]), 2 * x - 1
    joint = components.log_weights
    for c in range(x.shape[1]):
        scales = components.log_scales[:, :, c]
        joint = joint + _log_mass(v[:, c : c + 1], components.mean(c, v[:, None]), scales, levels)
    return joint.logsumexp(1)


def discretized_logistic_mixture_sample(parameters: Tensor, uniforms: Tensor, levels: int) -> Tensor:
    """Pixels (N, C, H, W) in [0, 1], each channel by the inverse of its distribution function given those before.

    Args:
        parameters: see :func:`discretized_logistic_mixture_log_prob`.
        uniforms: (N, C, H, W) in [0, 1).
        levels: at least 2.

    Raises:
        ValueError: a number of parameters that is no multiple of a component's.
    """
    components = _components(parameters, uniforms.shape[1])
    steps = levels - 1
    x = torch.zeros_like(uniforms)
    log_weights = components.log_weights
    for c in range(uniforms.shape[1]):
        u, mean, log_scale = (
            uniforms[:, c : c + 1],
            components.mean(c, 2 * x[:, None] - 1),
            components.log_scales[:, :, c],
        )
        weights, inverse = log_weights.softmax(1), (-log_scale).exp()
        level = torch.zeros_like(u)
        for bit in reversed(range(steps.bit_length())):  # the highest level of which P(below it) <= u
            trial = level + 2**bit
            below = (weights * (((2 * trial - 1) / steps - 1 - mean) * inverse).sigmoid()).sum(1, keepdim=True)
            level = torch.where((trial <= steps) & (below <= u), trial, level)
        x[:, c : c + 1] = level / steps
        log_weights = log_weights + _log_mass(
            2 * x[:, c : c + 1] - 1, mean, log_scale, levels
        )  # which component it was
    return x


class DiscretizedLogisticMixture(PixelLikelihood):
    """The likelihood above for images of ``channels`` on ``levels``, with K ``components``.

    Raises:
        ValueError: no component.
    """

    def __init__(self, channels: int, levels: int, components: int = 10) -> None:
        super().__init__()
        check_integers(components=components)
        self.channels, self.levels = channels, levels
        self.parameters_per_pixel = components * parameters_per_component(channels)

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        return discretized_logistic_mixture_log_prob(x, parameters, self.levels).flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The expected image, exact for the first channel; others take those before at their mean."""
        components, steps = _components(parameters, self.channels), self.levels - 1
        means: list[Tensor] = []  # of each channel in each component, in [-1, 1]
        for c in range(self.channels):
            before = torch.stack(means, 2) if means else components.means[:, :, :0]
            centre, inverse = components.mean(c, before), (-components.log_scales[:, :, c]).exp()
            level = torch.zeros_like(centre)
            for k in range(1, self.levels):  # the mean is the sum of P(level >= k)
                level = level + ((centre - (2 * k - 1) / steps + 1) * inverse).sigmoid()
            means.append(2 * level / steps - 1)
        weights = components.log_weights.exp()[:, :, None]
        return ((weights * torch.stack(means, 2)).sum(1) + 1) / 2

    def sample(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        return discretized_logistic_mixture_sample(parameters, uniforms, self.levels)
