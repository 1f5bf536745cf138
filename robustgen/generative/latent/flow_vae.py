"""Variational autoencoders with a flow: as the prior, or on the posterior.

Xiao, "Designing Deep Generative Models with Symbiotic Composition", 2022, equations 3.2 to 3.4 (the prior, which Chen,
Kingma, Salimans et al., "Variational Lossy Autoencoder", ICLR 2017, section 3.2, have first); Rezende and Mohamed,
"Variational Inference with Normalizing Flows", ICML 2015, equation 15 (the posterior).
"""

from torch import Tensor

from robustgen.checks import check_integers
from robustgen.generative.latent.base import Posterior
from robustgen.generative.latent.latent_flow import latent_density
from robustgen.generative.latent.vae import GaussianVAE

__all__ = ["FlowPosteriorVAE", "FlowPriorVAE"]


class _FlowVAE(GaussianVAE):
    """What both share: their arguments, and a KL that is its value at the drawn z."""

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        latent_dim: int = 20,
        architecture: str = "infogan",
        width: int | None = None,
        beta: float | None = 1.0,
        flow_blocks: int = 4,
        flow_width: int = 64,
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
        check_integers(flow_blocks=flow_blocks, flow_width=flow_width)
        self.flow_blocks, self.flow_width = flow_blocks, flow_width
        self.flow = latent_density(latent_dim, flow_blocks, flow_width)

    def _kl(self, posterior: Posterior, z: Tensor, log_q: Tensor) -> Tensor:
        return (log_q.sum(1) - self._log_prior(z).sum(1))[:, None]


class FlowPriorVAE(_FlowVAE):
    """z = f^-1(eps) with eps ~ N(0, I); q(z | x) is a diagonal Gaussian.

    The larger beta is, the nearer this comes to :class:`GLF`; the entropy of q keeps codes from shrinking.

    Args:
        shape: (C, H, W).
        latent_dim: of z, at least 2.
        architecture, width: as in :class:`VAE`.
        beta: the weight of the reconstruction, half the squared error of an image: pixels are N(decoder(z), 1 / beta),
            of which ``log_prob`` is a lower bound; samples are expected images. None: learned.
        flow_blocks, flow_width: affine couplings and hidden units of their networks.
        kl_warmup, importance_samples: see :class:`LatentVariableModel`.

    Raises:
        ValueError: an argument out of range.

    >>> import torch
    >>> vae = FlowPriorVAE((1, 8, 8), latent_dim=2, architecture="mlp", width=16).eval()
    >>> vae.log_prob(torch.rand(4, 1, 8, 8)).shape, vae.sample(3).shape
    (torch.Size([4]), torch.Size([3, 1, 8, 8]))
    """

    def prior_sample(self, noise: Tensor) -> Tensor:
        return self.flow.from_noise(noise)

    def _log_prior(self, z: Tensor) -> Tensor:
        return self.flow.log_prob(z).to(z.dtype)[:, None]


class FlowPosteriorVAE(_FlowVAE):
    """p(z) = N(0, I); z = f(z_0) with z_0 from a diagonal Gaussian of the encoder, f the same for all images.

    The arguments are those of :class:`FlowPriorVAE`.

    >>> import torch
    >>> vae = FlowPosteriorVAE((1, 8, 8), latent_dim=2, architecture="mlp", width=16).eval()
    >>> vae.log_prob(torch.rand(4, 1, 8, 8)).shape, vae.sample(3).shape
    (torch.Size([4]), torch.Size([3, 1, 8, 8]))
    """

    def _draw(self, posterior: Posterior, noise: Tensor) -> tuple[Tensor, Tensor]:
        start, log_q = super()._draw(posterior, noise)
        z, log_det = self.flow.to_noise(start)
        return z.to(start.dtype), log_q - log_det.to(start.dtype)[:, None] / self.latent_dim
