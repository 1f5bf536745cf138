"""The variational autoencoder whose posterior is an inverse autoregressive flow.

Kingma, Salimans, Jozefowicz et al., "Improving Variational Inference with Inverse Autoregressive Flow", NIPS 2016,
algorithm 1: z_0 from a Gaussian, then steps z_t = g_t z_{t-1} + (1 - g_t) m_t, whose log densities are read off.
"""

import math

from torch import Tensor, nn

from robustgen.checks import check_integers, nearest
from robustgen.generative.blocks.made import MADE
from robustgen.generative.latent.autoregressive_flow import InverseAutoregressiveStep, MaskedConvNet
from robustgen.generative.latent.base import Posterior, gaussian_posterior
from robustgen.generative.latent.coders import stage_sizes
from robustgen.generative.latent.vae import VAE

__all__ = ["IAFVAE"]

_NETWORKS = ("dense", "conv")


class IAFVAE(VAE):
    """A :class:`VAE` whose q(z | x) may be correlated and skewed; every second step goes through z backwards.

    The KL has no closed form: ``elbo_terms`` gives its value at the drawn z.

    Args:
        flow_steps: autoregressive steps behind the Gaussian.
        flow_network: "dense" (MADE), or "conv": masked convolutions over z as a map of the encoder's smallest size
            (4 x 4 for 28 x 28), of whose points ``latent_dim`` must then be a multiple.
        flow_width: hidden units of a dense step, features of a convolutional one.
        context_dim: numbers that the steps are told of x.

    The other arguments are those of :class:`VAE`.

    Raises:
        ValueError: as :class:`VAE` does, or an argument of the flow that is out of range.

    >>> import torch
    >>> x = torch.bernoulli(torch.full((4, 1, 8, 8), 0.5))
    >>> model = IAFVAE((1, 8, 8), latent_dim=2, architecture="mlp", width=16, flow_width=8, context_dim=4).eval()
    >>> model.log_prob(x).shape, model.latents(x).shape
    (torch.Size([4]), torch.Size([4, 2]))
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        latent_dim: int = 32,
        architecture: str = "conv",
        width: int | None = None,
        likelihood: str = "bernoulli",
        quantization: str | None = None,
        levels: int | None = None,
        components: int | None = None,
        scale: float | None = None,
        flow_steps: int = 2,
        flow_network: str = "dense",
        flow_width: int = 320,
        context_dim: int = 64,
        free_bits: float = 0.0,
        kl_warmup: int = 0,
        importance_samples: int = 1,
    ) -> None:
        super().__init__(
            shape,
            latent_dim=latent_dim,
            architecture=architecture,
            width=width,
            likelihood=likelihood,
            quantization=quantization,
            levels=levels,
            components=components,
            scale=scale,
            free_bits=free_bits,
            kl_warmup=kl_warmup,
            importance_samples=importance_samples,
        )
        if flow_network not in _NETWORKS:
            raise ValueError(f"unknown flow_network {flow_network!r}; {nearest(flow_network, _NETWORKS)}")
        check_integers(flow_steps=flow_steps, flow_width=flow_width, context_dim=context_dim)
        self.flow_steps, self.flow_network = flow_steps, flow_network
        self.flow_width, self.context_dim = flow_width, context_dim
        self.to_context = nn.Linear(self.features, context_dim)
        self.flow = nn.ModuleList(
            InverseAutoregressiveStep(self._network(), backwards=t % 2 == 1) for t in range(flow_steps)
        )

    def _network(self) -> nn.Module:
        if self.flow_network == "dense":
            return MADE(self.latent_dim, self.flow_width, self.context_dim)
        size = stage_sizes(self.shape)[-1]
        channels, rest = divmod(self.latent_dim, math.prod(size))
        if rest:
            raise ValueError(f"latent_dim={self.latent_dim} is no multiple of the {size} points of a latent map")
        return MaskedConvNet((channels, *size), self.flow_width, self.context_dim)

    def _encode(self, v: Tensor) -> Posterior:
        features = self.encoder(v)
        return gaussian_posterior(self.to_posterior(features).to(v.dtype), self.to_context(features))

    def _context(self, v: Tensor) -> Tensor | None:
        return self._encode(v).context

    def _draw(self, posterior: Posterior, noise: Tensor) -> tuple[Tensor, Tensor]:
        z, log_q = super()._draw(posterior, noise)
        for step in self.flow:
            z, log_gate = step(z, posterior.context)
            log_q = log_q - log_gate
        return z, log_q

    def _kl(self, posterior: Posterior, z: Tensor, log_q: Tensor) -> Tensor:
        return log_q - self._log_prior(z)
