"""What several tests need: generative models of which everything is known in closed form, numbers of NumPy."""

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from robustgen.generative import GenerativeModel
from robustgen.generative.blocks.gaussian import gaussian_kl, gaussian_log_prob
from robustgen.generative.latent.base import LatentVariableModel, Posterior


class Gaussian(GenerativeModel):
    """N(mean, covariance) of the pixels; with ``pixels`` it passes for a model of discrete ones."""

    log_prob_kind = "exact"

    def __init__(self, mean, covariance, shape, pixels=None):
        super().__init__(shape)
        self.pixels = pixels
        self.mean = nn.Parameter(mean)
        self.register_buffer("covariance", covariance)

    def _log_prob(self, x):
        return MultivariateNormal(self.mean, self.covariance, validate_args=False).log_prob(x.flatten(1))

    def _sample(self, n, generator):
        raise NotImplementedError

    def training_step(self, batch, step):
        raise NotImplementedError


class Critic(GenerativeModel):
    """A model without likelihood, whose discriminator is minus the squared distance to a point."""

    def __init__(self, centre, shape):
        super().__init__(shape)
        self.centre = nn.Parameter(centre)
        self.register_buffer("offset", torch.zeros((), dtype=centre.dtype))

    def discriminate(self, x):
        return self.offset - (self.check(x).flatten(1) - self.centre).square().sum(1)

    _sample = Gaussian._sample
    training_step = Gaussian.training_step


class LinearGaussian(LatentVariableModel):
    """x = W z + centre + s e with orthogonal columns of W: the posterior is a diagonal Gaussian, the ELBO closed.

    The encoder is right but for its mean, which does not reach beyond ``reach``, and is off by ``error``.
    """

    def __init__(self, w, s, centre=0.5, shape=(1, 2, 4), reach=math.inf, error=0.0):
        super().__init__(shape, w.shape[1], None, 0.0, 0, 1)
        self.w, self.s, self.reach, self.error = nn.Parameter(w), s, reach, error
        self.register_buffer("centre", torch.tensor(centre, dtype=w.dtype))

    def posterior(self, x):
        precision = 1 + self.w.square().sum(0) / self.s**2
        mean = (x.flatten(1) - self.centre) @ self.w / self.s**2 / precision
        return Posterior(mean, -0.5 * precision.log().expand_as(mean))

    def _encode(self, v):
        mean, log_std, _ = self.posterior(v)
        mean = mean if self.reach == math.inf else self.reach * torch.tanh(mean / self.reach)
        return Posterior(mean + self.error, log_std + self.error)

    def decode(self, z):
        return (self.centre + z @ self.w.T).view(-1, *self.shape)

    def _decode_log_prob(self, v, z):
        return gaussian_log_prob(v, self.decode(z), math.log(self.s)).flatten(1).sum(1)

    def _elbo(self, v, posterior, noise):
        mean, log_std, _ = posterior
        spread = (2 * log_std).exp() @ self.w.square().sum(0) / (2 * self.s**2)
        return self._decode_log_prob(v, mean) - spread, gaussian_kl(mean, log_std)

    def decode_sample(self, z, uniforms):
        raise NotImplementedError

    def exact(self, x):
        covariance = self.w @ self.w.T + self.s**2 * torch.eye(len(self.w), dtype=x.dtype)
        return MultivariateNormal(self.centre.expand(len(self.w)), covariance).log_prob(x.flatten(1))


# Numbers as NumPy has them, for tests of what takes numbers.

_KINDS = {int: np.int64, float: np.array, bool: np.bool_}  # np.float64 is a float of Python, too


def numpy_numbers(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that are numbers or flags, as scalars of NumPy or arrays without dimensions."""
    return {name: _KINDS[type(value)](value) for name, value in settings.items() if type(value) in _KINDS}
