"""A variational autoencoder whose prior is reweighted by a classifier of its codes.

Aneja, Schwing, Kautz and Vahdat, "A Contrastive Learning Approach for Training Variational Autoencoder Priors", NeurIPS
2021 (NCP-VAE), equations 5 to 7, and sampling-importance-resampling of section 3.2.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from robustgen.checks import check_integers
from robustgen.counter_rng import normal
from robustgen.generative.blocks.gaussian import gaussian_kl, gaussian_log_prob
from robustgen.generative.latent.base import Posterior
from robustgen.generative.latent.coders import dense
from robustgen.generative.latent.two_stage_vae import StagedVAE

__all__ = ["NCPVAE"]

_STREAM = 43
_CHUNK = 10_000


class NCPVAE(StagedVAE):
    """p(z) = r(z) N(z; 0, I) / Z with r = D / (1 - D) of a classifier D that tells codes from draws of N(0, I).

    ``log_prob`` is the lower bound without log Z, which :meth:`log_normalizer` estimates: "unnormalised". Samples
    are expected images of z, of which each is one of ``proposals`` draws from N(0, I), taken with weight r.

    Args:
        shape: (C, H, W).
        latent_dim, architecture, width: as in :class:`VAE`.
        beta: pixels are N(decoder(z), 1 / beta); None: learned.
        classifier_width: hidden units in each of the three hidden layers of D.
        proposals: of each sample.
        first_steps: training steps of the VAE before the classifier begins, which then has all others, as in the paper;
            0: both learn in every step.

    Raises:
        ValueError: an argument out of range.

    >>> vae = NCPVAE((1, 8, 8), latent_dim=2, architecture="mlp", width=16, classifier_width=8, proposals=5).eval()
    >>> vae.log_prob(torch.rand(4, 1, 8, 8)).shape, vae.sample(3).shape
    (torch.Size([4]), torch.Size([3, 1, 8, 8]))
    """

    log_prob_kind = "unnormalised"

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        latent_dim: int = 20,
        architecture: str = "infogan",
        width: int | None = None,
        beta: float | None = None,
        classifier_width: int = 256,
        proposals: int = 100,
        first_steps: int = 0,
    ) -> None:
        super().__init__(
            shape, latent_dim=latent_dim, architecture=architecture, width=width, beta=beta, first_steps=first_steps
        )
        check_integers(classifier_width=classifier_width, proposals=proposals)
        self.classifier_width, self.proposals = classifier_width, proposals
        self.second = dense(latent_dim, classifier_width, 1, hidden=3)

    def log_ratio(self, z: Tensor) -> Tensor:
        """log r(z) (N,) of codes z (N, D)."""
        return self.second(z).squeeze(1).to(z.dtype)

    def _second_loss(self, z: Tensor) -> Tensor:
        on_codes, on_prior = self.log_ratio(z), self.log_ratio(torch.randn_like(z))
        return F.softplus(-on_codes).mean() + F.softplus(on_prior).mean()

    def _log_prior(self, z: Tensor) -> Tensor:
        return (gaussian_log_prob(z).sum(1) + self.log_ratio(z))[:, None]

    def _kl(self, posterior: Posterior, z: Tensor, log_q: Tensor) -> Tensor:
        return (gaussian_kl(posterior.mean, posterior.log_std).sum(1) - self.log_ratio(z))[:, None]

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (self.proposals * (self.latent_dim + 1),)

    def prior_sample(self, noise: Tensor) -> Tensor:
        proposals, last = noise.unflatten(1, (self.proposals, -1)).split([self.latent_dim, 1], 2)
        u = torch.special.ndtr(last.squeeze(2)).clamp(1e-7, 1 - 1e-7)
        log_weights = self.log_ratio(proposals.flatten(0, 1)).unflatten(0, (-1, self.proposals))
        k = (log_weights - (-u.log()).log()).argmax(1)  # by Gumbel's noise: k with probability in proportion to r
        return proposals[torch.arange(len(k), device=k.device), k]

    @torch.no_grad()
    def log_normalizer(self, draws: int = 100_000, seed: int = 0) -> tuple[float, float]:
        """An estimate of log Z = log E r(z), z ~ N(0, I), and its standard error; of heavy weights both are too low.

        Raises:
            ValueError: fewer than two draws.
        """
        check_integers(2, draws=draws)
        parts = []
        for ids in torch.arange(draws, device=self.device).split(_CHUNK):
            parts.append(self.log_ratio(normal(seed, ids, (self.latent_dim,), (_STREAM,), self.dtype)).double())
        log_weights = torch.cat(parts)
        log_z = log_weights.logsumexp(0) - math.log(draws)
        return float(log_z), float((log_weights - log_z).exp().std() / draws**0.5)
