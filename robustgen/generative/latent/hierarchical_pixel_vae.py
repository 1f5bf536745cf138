"""A PixelVAE of two latent levels, with an autoregressive prior on the lower one.

Gulrajani, Kumar, Ahmed et al., "PixelVAE: A Latent Variable Model for Natural Images", ICLR 2017, section 3.2:
p(x, z_1, z_2) = p(x | z_1) p(z_1 | z_2) p(z_2) and q(z_1, z_2 | x) = q(z_1 | x) q(z_2 | x), in the bound of equation 4.
"""

import math

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers, check_shape
from robustgen.generative.blocks.gated import Condition
from robustgen.generative.blocks.gaussian import bounded_log_std, gaussian_kl, gaussian_log_prob
from robustgen.generative.blocks.residual import ResidualBlock
from robustgen.generative.blocks.softmax import discrete_likelihood
from robustgen.generative.latent.base import Posterior, gaussian_posterior
from robustgen.generative.latent.pixel_decoder import ConditionalPixelCNN, PixelCNNDecoder
from robustgen.generative.pixels import Pixels

__all__ = ["HierarchicalPixelVAE"]


class _Crop(nn.Module):
    """The first rows and columns: what a doubling made of a size that was rounded up is too large."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : self.size[0], : self.size[1]]


class HierarchicalPixelVAE(PixelCNNDecoder):
    """z_2 is a vector, z_1 a map of a quarter of the image's size: Gaussian given z_2 and its own earlier points.

    Latents z (N, D) of the common interface are z_1, flattened, and z_2 beside each other; :meth:`split` takes them
    apart. The networks are the paper's residual ones at a reduced size, without batch normalisation, so that an image
    has the same latents in whatever batch.

    Args:
        shape: (C, H, W).
        latent_channels: of z_1, (latent_channels, H / 4, W / 4).
        top_latent_dim: of z_2.
        width: features at image resolution, at least C; twice as many below.
        layers: autoregressive ones over the pixels; 0: independent pixels given z_1.
        prior_layers: autoregressive ones over z_1; 0: independent points given z_2.
        levels, quantization: see :class:`Pixels`.
        free_bits, kl_warmup, importance_samples: see :class:`~robustgen.generative.latent.base.LatentVariableModel`.

    Raises:
        ValueError: an argument out of range.

    >>> x = torch.rand(2, 1, 8, 8)
    >>> model = HierarchicalPixelVAE((1, 8, 8), width=4, latent_channels=2, quantization="nearest").eval()
    >>> {name: kl.shape for name, kl in model.kl_terms(x).items()}
    {'z_1': torch.Size([2]), 'z_2': torch.Size([2])}
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        latent_channels: int = 8,
        top_latent_dim: int = 32,
        width: int = 32,
        layers: int = 3,
        prior_layers: int = 3,
        levels: int = 256,
        quantization: str | None = None,
        free_bits: float = 0.0,
        kl_warmup: int = 0,
        importance_samples: int = 1,
    ) -> None:
        check_integers(latent_channels=latent_channels, top_latent_dim=top_latent_dim, width=width)
        check_integers(0, layers=layers, prior_layers=prior_layers)
        full = check_shape(shape)[1:]
        half, quarter, eighth = ((-(-full[0] // by), -(-full[1] // by)) for by in (2, 4, 8))
        self.latent_shape = (latent_channels, *quarter)  # of z_1
        latent_dim = math.prod(self.latent_shape) + top_latent_dim
        super().__init__(shape, latent_dim, Pixels(levels, quantization), free_bits, kl_warmup, importance_samples)
        self.latent_channels, self.top_latent_dim, self.width = latent_channels, top_latent_dim, width
        self.layers, self.prior_layers = layers, prior_layers
        self.levels, self.quantization = levels, quantization
        channels, wide = self.shape[0], 2 * width
        top_map = (wide, *eighth)
        self.distribution = discrete_likelihood(channels, levels)
        self.bottom_encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            ResidualBlock(width, wide, "down"),
            ResidualBlock(wide, wide),
            ResidualBlock(wide, wide, "down"),
            ResidualBlock(wide, wide),
        )
        self.to_bottom = nn.Sequential(nn.ELU(), nn.Conv2d(wide, 2 * latent_channels, 1))
        self.to_top = nn.Sequential(
            ResidualBlock(wide, wide, "down"),
            ResidualBlock(wide, wide),
            nn.ELU(),
            nn.Flatten(),
            nn.Linear(math.prod(top_map), 2 * top_latent_dim),
        )
        self.top_decoder = nn.Sequential(
            nn.Linear(top_latent_dim, math.prod(top_map)),
            nn.Unflatten(1, top_map),
            ResidualBlock(wide, wide),
            ResidualBlock(wide, wide, "up"),
            _Crop(quarter),
            ResidualBlock(wide, wide),
            nn.ELU(),
        )
        self.prior = ConditionalPixelCNN(latent_channels, 2 * latent_channels, wide, prior_layers, 5, 3, maps=wide)
        self.bottom_decoder = nn.Sequential(
            nn.Conv2d(latent_channels, wide, 1),
            ResidualBlock(wide, wide),
            ResidualBlock(wide, wide, "up"),
            _Crop(half),
            ResidualBlock(wide, wide),
            ResidualBlock(wide, width, "up"),
            _Crop(full),
            ResidualBlock(width, width),
            nn.ELU(),
        )
        per_pixel = self.distribution.parameters_per_pixel
        self.pixel_cnn = ConditionalPixelCNN(channels, per_pixel, width, layers, 5, 3, maps=width, groups=channels)

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z_1 (N, latent_channels, H / 4, W / 4) and z_2 (N, top_latent_dim) of z, or the same parts of its noise."""
        bottom, top = z.split([self.latent_dim - self.top_latent_dim, self.top_latent_dim], 1)
        return bottom.unflatten(1, self.latent_shape), top

    def kl_terms(self, x: Tensor) -> dict[str, Tensor]:
        """KL of each level, (N,) >= 0, in nats, given the z that is drawn for x: ``{"z_1": ..., "z_2": ...}``.

        They sum to the KL of :meth:`elbo_terms`. Raises as :meth:`log_prob` does.
        """
        v = self._on_levels(x)
        bottom, top = self.split(self._elbo(v, self._encode(v), self._noise(v, range(1))[0])[1])
        return {"z_1": bottom.flatten(1).sum(1), "z_2": top.sum(1)}

    def prior_sample(self, noise: Tensor) -> Tensor:
        """z (N, D) from p(z_2) p(z_1 | z_2), z_1 point after point; without graph.

        Args:
            noise: standard normal (N, D), in the order of z: :meth:`split` gives the part of each level.
        """
        bottom, top = self.split(noise)
        with torch.no_grad():
            z = self.prior.sample(Condition(maps=self.top_decoder(top)), bottom, _gaussian)
        return torch.cat([z.flatten(1), top], 1)

    def _encode(self, v: Tensor) -> Posterior:
        h = self.bottom_encoder(v)
        bottom, top = gaussian_posterior(self.to_bottom(h).to(v.dtype)), gaussian_posterior(self.to_top(h).to(v.dtype))
        return Posterior(*(torch.cat([b.flatten(1), t], 1) for b, t in zip(bottom[:2], top[:2], strict=True)))

    def _prior(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation (N, D) of p(z), each point's given the points before it in z."""
        bottom, top = self.split(z)
        parameters = self.prior(bottom, Condition(maps=self.top_decoder(top))).to(z.dtype)
        mean, a = parameters.chunk(2, 1)
        standard = torch.zeros_like(top)
        return torch.cat([mean.flatten(1), standard], 1), torch.cat([bounded_log_std(a).flatten(1), standard], 1)

    def _log_prior(self, z: Tensor) -> Tensor:
        return gaussian_log_prob(z, *self._prior(z))

    def _kl(self, posterior: Posterior, z: Tensor, log_q: Tensor) -> Tensor:
        return gaussian_kl(posterior.mean, posterior.log_std, *self._prior(z))

    def _condition(self, z: Tensor) -> Condition:
        return Condition(maps=self.bottom_decoder(self.split(z)[0]))


def _gaussian(parameters: Tensor, noise: Tensor) -> Tensor:
    mean, a = parameters.chunk(2, 1)
    return mean + bounded_log_std(a).exp() * noise
