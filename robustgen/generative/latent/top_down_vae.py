"""A hierarchical VAE: groups of latents, each with a prior that depends on the groups above it.

Sonderby et al., "Ladder Variational Autoencoders", NIPS 2016, section 2 (one way down for prior and posterior); Vahdat
and Kautz, "NVAE: A Deep Hierarchical Variational Autoencoder", NeurIPS 2020, equation 5 (posteriors relative to the
prior), with Gaussian pixels, which let Langevin chains run through them (Xiao, "Designing Deep Generative Models with
Symbiotic Composition", 2022, section 4.4.3).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.checks import check_integers, check_shape
from robustgen.generative.blocks.gaussian import bounded_log_std, gaussian_log_prob
from robustgen.generative.blocks.pixel_likelihood import Gaussian
from robustgen.generative.blocks.residual import ResidualBlock
from robustgen.generative.latent.base import LatentVariableModel, Posterior

__all__ = ["TopDownVAE"]


class _Group(nn.Module):
    """One group of latents on the way down: its prior given all above, and how it goes on from there.

    Args:
        width: channels of the way down.
        channels: of the group.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.prior = nn.Conv2d(width, 2 * channels, 1)
        self.posterior = nn.Conv2d(width, 2 * channels, 1)
        self.inward = nn.Conv2d(channels, width, 1)
        self.onward = ResidualBlock(width, width)
        nn.init.zeros_(self.posterior.weight)

    def corrected(self, h: Tensor, mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the noise's posterior: what x says and what the groups above say."""
        of_mean, of_std = self.posterior(F.elu(h)).chunk(2, 1)
        return mean + of_mean.to(mean.dtype), log_std + bounded_log_std(of_std.to(mean.dtype))

    def forward(self, h: Tensor, eps: Tensor) -> Tensor:
        """The way down behind the group's latents, z = mean + std eps."""
        mean, a = self.prior(F.elu(h)).chunk(2, 1)
        result: Tensor = self.onward(h + self.inward(mean + bounded_log_std(a).exp() * eps))
        return result


class TopDownVAE(LatentVariableModel):
    """Groups z_1, z_2, ... of maps at a quarter, then at half of the image's size, and pixels N(decoder, scale^2).

    The latents of the common interface are the noise of all groups, eps (N, D), each N(0, I): z_l is a Gaussian given
    the groups above with eps_l as its noise, so that :meth:`decode` of eps is an ancestral sample, and a posterior
    N(m, s^2) of eps_l is NVAE's of z_l, relative to its prior. Posteriors see the image and the groups above.

    Args:
        shape: (C, H, W), sides at least 4.
        groups: how many, the first half of them (rounded up) at a quarter of the size.
        latent_channels: of a group's maps.
        width: channels at half the size, twice as many at a quarter.
        scale, free_bits, kl_warmup, importance_samples: see :class:`VAE`.

    Raises:
        ValueError: an argument out of range.

    >>> vae = TopDownVAE((1, 8, 8), groups=2, latent_channels=1, width=4).eval()
    >>> vae.noise_shape, vae.decode(torch.zeros(3, 20)).shape  # 2 x 2 and 4 x 4 places
    ((20,), torch.Size([3, 1, 8, 8]))
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        groups: int = 4,
        latent_channels: int = 4,
        width: int = 16,
        scale: float | None = None,
        free_bits: float = 0.0,
        kl_warmup: int = 0,
        importance_samples: int = 1,
    ) -> None:
        check_integers(groups=groups, latent_channels=latent_channels, width=width)
        channels, height, breadth = check_shape(shape)
        if min(height, breadth) < 4:
            raise ValueError(f"sides of at least 4 have a quarter, got {height} x {breadth}")
        half, quarter = ((-(-height // by), -(-breadth // by)) for by in (2, 4))
        below = groups // 2
        self._maps = [(latent_channels, *quarter)] * (groups - below) + [(latent_channels, *half)] * below
        super().__init__(shape, sum(math.prod(m) for m in self._maps), None, free_bits, kl_warmup, importance_samples)
        self.groups, self.latent_channels, self.width, self.scale = groups, latent_channels, width, scale
        wide = 2 * width
        self.distribution = Gaussian(channels, scale)
        self.to_half = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), ResidualBlock(width, width, "down"), ResidualBlock(width, width)
        )
        self.to_quarter = nn.Sequential(ResidualBlock(width, wide, "down"), ResidualBlock(wide, wide))
        widths = [wide] * (groups - below) + [width] * below
        self.heads = nn.ModuleList(nn.Conv2d(w, 2 * latent_channels, 1) for w in widths)
        self.top = nn.Parameter(torch.zeros(1, wide, *quarter))
        self.way_down = nn.ModuleList(_Group(w, latent_channels) for w in widths)
        self.to_below = ResidualBlock(wide, width, "up")
        self.to_pixels = nn.Sequential(
            ResidualBlock(width, width, "up"), nn.ELU(), nn.Conv2d(width, channels, 3, padding=1)
        )
        self._half = half

    def _encode(self, v: Tensor) -> Posterior:
        at_half = self.to_half(v)
        features = {self._maps[0][1:]: self.to_quarter(at_half)} | {self._half: at_half}
        parts = [
            head(F.elu(features[m[1:]])).to(v.dtype).chunk(2, 1) for head, m in zip(self.heads, self._maps, strict=True)
        ]
        mean = torch.cat([part[0].flatten(1) for part in parts], 1)
        return Posterior(mean, torch.cat([bounded_log_std(part[1]).flatten(1) for part in parts], 1))

    def _split(self, eps: Tensor) -> list[Tensor]:
        sizes = [math.prod(m) for m in self._maps]
        return [part.unflatten(1, m) for part, m in zip(eps.split(sizes, 1), self._maps, strict=True)]

    def _below(self, h: Tensor, group: int) -> Tensor:
        """h, at the size of a group."""
        _, height, breadth = self._maps[group]
        return h if h.shape[1] == self.heads[group].in_channels else self.to_below(h)[:, :, :height, :breadth]

    def _draw(self, posterior: Posterior, noise: Tensor) -> tuple[Tensor, Tensor]:
        h = self.top.expand(len(noise), -1, -1, -1)
        drawn, log_q = [], []
        rows = zip(self.way_down, *map(self._split, (posterior.mean, posterior.log_std, noise)), strict=True)
        for i, (group, mean, log_std, e) in enumerate(rows):
            h = self._below(h, i)
            mean, log_std = group.corrected(h, mean, log_std)
            eps = mean + log_std.exp() * e
            drawn.append(eps.flatten(1))
            log_q.append((gaussian_log_prob(e) - log_std).flatten(1))
            h = group(h, eps)
        return torch.cat(drawn, 1), torch.cat(log_q, 1)

    def _kl(self, posterior: Posterior, z: Tensor, log_q: Tensor) -> Tensor:
        return log_q - gaussian_log_prob(z)  # posteriors of lower groups depend on what was drawn above

    def _parameters_of_pixels(self, z: Tensor) -> Tensor:
        h = self.top.expand(len(z), -1, -1, -1)
        for i, (group, eps) in enumerate(zip(self.way_down, self._split(z), strict=True)):
            h = group(self._below(h, i), eps)
        if h.shape[1] != self.width:
            h = self.to_below(h)[:, :, : self._half[0], : self._half[1]]
        pixels: Tensor = self.to_pixels(h)[:, :, : self.shape[1], : self.shape[2]]
        return pixels

    def _decode_log_prob(self, v: Tensor, z: Tensor) -> Tensor:
        return self.distribution.log_prob(v, self._parameters_of_pixels(z).to(v.dtype))

    def decode(self, z: Tensor) -> Tensor:
        return self.distribution.mean(self._parameters_of_pixels(z)).to(z.dtype)

    def decode_sample(self, z: Tensor, uniforms: Tensor) -> Tensor:
        return self.distribution.sample(self._parameters_of_pixels(z), uniforms)
