"""Noise-contrastive estimation: an energy and its log Z learned by telling data from noise of known density.

Gutmann and Hyvarinen, "Noise-contrastive estimation: A new estimation principle for unnormalized statistical models",
AISTATS 2010, equations 2 and 3, with several noise samples for each image as in their JMLR article of 2012, equation 8.
A flow as the noise: Gao et al., "Flow Contrastive Estimation of Energy-Based Models", CVPR 2020, here with the flow
fixed. Sampling importance resampling: Rubin, "Using the SIR algorithm to simulate posterior distributions", 1988.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from robustgen.checks import check_integers
from robustgen.generative.base import GenerativeModel
from robustgen.generative.energy.base_model import describe_model, frozen_model
from robustgen.generative.energy.gaussian_mixture import GaussianMixture
from robustgen.generative.energy.network import EnergyNetwork
from robustgen.generative.flows.base import Flow
from robustgen.training import Batch, Source

__all__ = ["NCE"]

_NOISES = ("gaussian", "uniform", "base")
_FLOOR = 0.1  # of the Gaussian's standard deviation: thinner than the data it would leave some without noise about them
_AT_ONCE = 500  # proposals


class NCE(GenerativeModel):
    """p(x) = exp(-f(x) - c): the network f and the number c learn to tell data from noise by log p(x) - log q(x).

    At the optimum c is log Z; where noise and data are easy to tell apart it is wherever the training left it, so that
    ``log_prob`` counts as unnormalised. The nearer the noise to the data, the better: "uniform" noise teaches the
    difference to black screens and little more. No chains are run, in training or to draw samples, which are noise
    resampled by p / q: of noise far from the data, a few proposals over and over.

    Args:
        shape: (C, H, W).
        noise: "gaussian": of the mean and covariance of the data, fitted at the end of each epoch, N(1/2, 1/4 I)
            during the first. "uniform": on the cube [0, 1]^D. "base": draws of ``base``. None: "base" where one is
            given, else "gaussian". With "gaussian" and "base" p is a density on R^D.
        base: a trained model with an exact ``log_prob``, copied and frozen; or its description.
        noise_samples: for each image of a batch.
        proposals: that a sample is chosen from.
        architecture, width, layers: of f, see :class:`EnergyNetwork`.

    Raises:
        TypeError: a base that is no generative model.
        ValueError: an argument out of range, noise "base" without a base or a base for other noise, a base of other
            images, of levels, or whose likelihood is not exact.

    >>> nce, x = NCE((1, 8, 8), width=4, noise="uniform").eval(), torch.rand(2, 1, 8, 8)
    >>> bool((nce.log_ratio(x) == nce.log_prob(x)).all())  # log q = 0
    True
    """

    log_prob_kind = "unnormalised"

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        noise: str | None = None,
        base: GenerativeModel | Mapping[str, Any] | None = None,
        noise_samples: int = 1,
        proposals: int = 1000,
        architecture: str = "conv",
        width: int = 32,
        layers: int | None = None,
    ) -> None:
        super().__init__(shape)
        check_integers(noise_samples=noise_samples, proposals=proposals)
        noise = noise or ("gaussian" if base is None else "base")
        if noise not in _NOISES:
            raise ValueError(f"noise must be one of {', '.join(_NOISES)}, got {noise!r}")
        if (noise == "base") == (base is None):
            given = "none" if base is None else "one"
            raise ValueError(f"noise='base' needs a base and no other noise takes one: got noise={noise!r} and {given}")
        self.noise, self.noise_samples, self.proposals = noise, noise_samples, proposals
        self.architecture, self.width, self.layers = architecture, width, layers
        self.base: GenerativeModel | None = None
        if base is not None:
            self.base = self._checked(frozen_model(base))
        elif noise == "gaussian":
            self.base = frozen_model(GaussianMixture(self.shape, components=1, floor=_FLOOR))
            self.base.mixture.means.fill_(0.5)
            self.base.mixture.factors.mul_(0.5)
        self.network = EnergyNetwork(self.shape, width=width, architecture=architecture, layers=layers)
        self.log_z = nn.Parameter(torch.zeros(()))
        if base is not None and self.base is not None:
            self.to(device=self.base.device, dtype=self.base.dtype)

    def _checked(self, base: GenerativeModel) -> GenerativeModel:
        name = type(base).__name__
        if base.shape != self.shape:
            raise ValueError(f"the base is of images {base.shape}, not {self.shape}")
        if base.log_prob_kind != "exact" or getattr(base, "pixels", None) is not None:
            kind = f"{base.log_prob_kind} of levels" if base.log_prob_kind == "exact" else base.log_prob_kind
            raise ValueError(f"noise needs an exact density (of a flow, dequantization='none'): {name}'s is {kind}")
        return base

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able; of a base its class and its arguments."""
        names = ("shape", "noise", "noise_samples", "proposals", "architecture", "width", "layers")
        own = {name: getattr(self, name) for name in names}
        return own | {"base": describe_model(self.base) if self.noise == "base" and self.base is not None else None}

    def train(self, mode: bool = True) -> "NCE":
        """The noise stays in eval mode."""
        super().train(mode)
        if self.base is not None:
            self.base.eval()
        return self

    def energy(self, x: Tensor) -> Tensor:
        """f(x) in nats, (N,), of images x (N, *shape)."""
        return self.network(x)

    def _log_prob(self, x: Tensor) -> Tensor:
        return -self.energy(x) - self.log_z

    def _log_noise(self, x: Tensor) -> Tensor:
        """log q(x) (N,), of points that may lie outside [0, 1], as some of the noise does."""
        if self.base is None:
            return x.new_zeros(len(x))
        return self.base._density(x) if isinstance(self.base, Flow) else self.base._log_prob(x)

    def log_ratio(self, x: Tensor) -> Tensor:
        """log p(x) - log q(x), (N,) in nats, of images as :meth:`log_prob` takes them: the logit of "no noise"."""
        x = self.check(x)
        return self._log_ratio(x) if len(x) else x.flatten(1).sum(1)

    def _log_ratio(self, x: Tensor) -> Tensor:
        return self._log_prob(x) - self._log_noise(x)

    @torch.no_grad()
    def _draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n of the noise (n, *shape)."""
        options: dict[str, Any] = {"generator": generator, "device": self.device, "dtype": self.dtype}
        if self.base is None:
            return torch.rand(n, *self.shape, **options)
        if self.base.noise_shape is None:
            return self.base.sample(n, generator)
        return self.base.from_noise(torch.randn(n, *self.base.noise_shape, **options))

    @torch.no_grad()
    def resample(self, n: int, proposals: int, generator: torch.Generator | None = None) -> Tensor:
        """n images (n, *shape) chosen from so many proposals of the noise, with chances that go as p / q.

        With replacement: a proposal may come several times. Of noise on R^D some lie outside [0, 1].

        Raises:
            ValueError: n or proposals below 1.
        """
        check_integers(n=n, proposals=proposals)
        x = torch.cat([self._draw(min(_AT_ONCE, proposals - i), generator) for i in range(0, proposals, _AT_ONCE)])
        log_weights = torch.cat([self._log_ratio(part).double() for part in x.split(_AT_ONCE)])
        chosen = torch.multinomial(log_weights.softmax(0), n, replacement=True, generator=generator)
        return x[chosen]

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self.resample(n, self.proposals, generator).clamp(0, 1)

    def fit_without_gradients(self, data: Source) -> None:
        """Mean and covariance of the Gaussian; nothing of other noise."""
        if self.noise == "gaussian" and self.base is not None:
            self.base.fit_without_gradients(data)

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Cross-entropy of data and noise, by the logit log p - log q - log of the noise samples an image."""
        noise = self._draw(self.noise_samples * len(batch.x))
        both = torch.cat([batch.x, noise])
        with torch.no_grad():
            log_q = self._log_noise(both) + math.log(self.noise_samples)
        on_data, on_noise = (self._log_prob(both) - log_q).split([len(batch.x), len(noise)])
        loss = softplus(-on_data).mean() + self.noise_samples * softplus(on_noise).mean()
        right = ((on_data > 0).float().mean() + (on_noise < 0).float().mean()) / 2
        return {"loss": loss, "told_apart": right.detach(), "log_z": self.log_z.detach().clone()}
