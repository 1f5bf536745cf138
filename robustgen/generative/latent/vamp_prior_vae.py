"""A variational autoencoder whose prior is a mixture of the posteriors of learned images.

Tomczak and Welling, "VAE with a VampPrior", AISTATS 2018, equation 9.
"""

import math

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers
from robustgen.generative.blocks.gaussian import gaussian_log_prob
from robustgen.generative.latent.base import Posterior
from robustgen.generative.latent.vae import GaussianVAE
from robustgen.model import evaluating

__all__ = ["VampPriorVAE"]


class VampPriorVAE(GaussianVAE):
    """p(z) = (1/K) sum over k of q(z | u_k), with images u_k that are learned as weights are.

    In training batch norm takes its running averages for the u_k, which are no data.

    Args:
        shape: (C, H, W).
        latent_dim, architecture, width: as in :class:`VAE`.
        beta: pixels are N(decoder(z), 1 / beta), of which ``log_prob`` is a lower bound; samples are expected images.
            None: learned.
        prior_components: K (500 in the paper).
        kl_warmup, importance_samples: see :class:`LatentVariableModel`.

    Raises:
        ValueError: an argument out of range.

    >>> vae = VampPriorVAE((1, 8, 8), latent_dim=2, architecture="mlp", width=16, prior_components=5).eval()
    >>> vae.log_prob(torch.rand(4, 1, 8, 8)).shape, vae.sample(3).shape
    (torch.Size([4]), torch.Size([3, 1, 8, 8]))
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        latent_dim: int = 20,
        architecture: str = "infogan",
        width: int | None = None,
        beta: float | None = None,
        prior_components: int = 500,
        kl_warmup: int = 0,
        importance_samples: int = 1,
    ) -> None:
        super().__init__(
            shape,
            latent_dim=latent_dim,
            architecture=architecture,
            width=width,
            beta=beta,
            kl_warmup=kl_warmup,
            importance_samples=importance_samples,
        )
        check_integers(prior_components=prior_components)
        self.prior_components = prior_components
        self.raw_images = nn.Parameter(torch.randn(prior_components, *self.shape))

    def pseudo_inputs(self) -> Tensor:
        """The images u (K, *shape), in (0, 1)."""
        return self.raw_images.sigmoid()

    def _parts(self) -> Posterior:
        """q(z | u_k) of each."""
        with evaluating(self.encoder):
            return self._encode(self.pseudo_inputs())

    def _log_prior(self, z: Tensor) -> Tensor:
        mean, log_std, _ = self._parts()
        parts = gaussian_log_prob(z[:, None], mean, log_std).sum(2)  # (N, K)
        return (parts.logsumexp(1) - math.log(self.prior_components))[:, None]

    def _kl(self, posterior: Posterior, z: Tensor, log_q: Tensor) -> Tensor:
        return (log_q.sum(1) - self._log_prior(z).sum(1))[:, None]

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (self.latent_dim + 1,)

    def prior_sample(self, noise: Tensor) -> Tensor:
        mean, log_std, _ = self._parts()
        k = (torch.special.ndtr(noise[:, 0]) * self.prior_components).long().clamp(max=self.prior_components - 1)
        return mean[k] + log_std[k].exp() * noise[:, 1:]
