"""What all latent-variable models share: the bounds on log p(x) and training on them.

Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, equation 3 (the lower bound); Burda, Grosse and
Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016, equation 8 (the bound of K samples); Kingma, Salimans,
Jozefowicz et al., "Improving Variational Inference with Inverse Autoregressive Flow", NIPS 2016, section C.8 (free
bits).
"""

import math
from abc import abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from robustgen.checks import check_integers, check_numbers
from robustgen.counter_rng import content_ids, normal
from robustgen.generative.base import GenerativeModel
from robustgen.generative.blocks.gaussian import bounded_log_std, gaussian_kl, gaussian_log_prob
from robustgen.generative.pixels import Pixels
from robustgen.training import Batch

__all__ = ["LatentVariableModel", "Posterior", "gaussian_posterior"]

_STREAM = 11  # of posterior noise; Pixels draws from another
_NEXT_SAMPLE = 0x5851F42D4C957F2D  # any large odd number: ids of other images are hashes, none is that far from here
_CHUNK_ROWS, _CPU_CHUNK_ROWS = 1024, 64  # decoded at once; on a CPU, more fall out of its caches


class Posterior(NamedTuple):
    """q(z | x) of each image: a diagonal Gaussian, before whatever flow the model puts on top of it.

    Attributes:
        mean, log_std: (N, D).
        context: (N, H), what a flow sees of x besides; None without a flow.
    """

    mean: Tensor
    log_std: Tensor
    context: Tensor | None = None


def gaussian_posterior(outputs: Tensor, context: Tensor | None = None) -> Posterior:
    """Of a network's ``outputs`` (N, 2 D)."""
    mean, a = outputs.chunk(2, 1)
    return Posterior(mean, bounded_log_std(a), context)


class LatentVariableModel(GenerativeModel):
    """p(x) = integral of p(x | z) p(z) dz over z in R^D, bounded from below with an encoder q(z | x).

    A subclass gives ``_encode``, ``_decode_log_prob``, ``decode`` and ``decode_sample``; one with another posterior
    or prior than a diagonal and a standard Gaussian also ``_draw``, ``_kl``, ``_log_prior``, ``prior_sample``.

    Args:
        shape: of an image.
        latent_dim: D.
        pixels: where a discrete model moves values; None: a density, which takes any values in [0, 1].
        free_bits: nats. The KL of each dimension, averaged over the batch, costs at least that much in training.
        kl_warmup: steps over which the weight of the KL in the loss rises linearly to 1; 0: it is 1 from the start.
        importance_samples: K of the bound that is trained on; 1 is the ELBO.

    Raises:
        ValueError: an argument out of range, or K > 1 with free bits or a warm-up: that bound has no KL.
    """

    log_prob_kind: ClassVar[str | None] = "lower_bound"

    def __init__(
        self,
        shape: tuple[int, ...],
        latent_dim: int,
        pixels: Pixels | None,
        free_bits: float,
        kl_warmup: int,
        importance_samples: int,
    ) -> None:
        super().__init__(shape)
        check_integers(latent_dim=latent_dim, importance_samples=importance_samples)
        check_integers(0, kl_warmup=kl_warmup)
        check_numbers(free_bits=free_bits)
        if not 0 <= free_bits < float("inf"):
            raise ValueError(f"free_bits must be a finite number >= 0, got {free_bits}")
        if importance_samples > 1 and (free_bits or kl_warmup):
            raise ValueError("free_bits and kl_warmup must be 0 where importance_samples > 1: that bound has no KL")
        self.latent_dim, self.pixels = latent_dim, pixels
        self.free_bits, self.kl_warmup, self.importance_samples = free_bits, kl_warmup, importance_samples

    @abstractmethod
    def _encode(self, v: Tensor) -> Posterior:
        """q(z | v) of v (N, *shape) on the model's levels."""

    @abstractmethod
    def _decode_log_prob(self, v: Tensor, z: Tensor) -> Tensor:
        """log p(v | z) (N,) of v (N, *shape) on the model's levels and z (N, D)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """The expected images (N, *shape), in [0, 1], of latents z (N, D)."""

    @abstractmethod
    def decode_sample(self, z: Tensor, uniforms: Tensor) -> Tensor:
        """Images (N, *shape) in [0, 1] drawn from p(x | z), z (N, D), with the uniform numbers (N, *shape) given."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the noise that ``prior_sample`` makes one latent of: (D,), where a prior does not need more."""
        return (self.latent_dim,)

    @property
    def draw_dim(self) -> int:
        """Numbers of noise that a draw from q(z | x) takes; D, but for a model of two levels of latents."""
        return self.latent_dim

    def prior_sample(self, noise: Tensor) -> Tensor:
        """Latents z (N, D) from p(z), of standard normal ``noise`` (N, *noise_shape)."""
        return noise

    def _log_prior(self, z: Tensor) -> Tensor:
        """log p(z), a term for each dimension (N, D), or one for all of them (N, 1)."""
        return gaussian_log_prob(z)

    def _draw(self, posterior: Posterior, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z (N, D) from q and log q(z | x) (N, D), a term for each dimension."""
        z = posterior.mean + posterior.log_std.exp() * noise
        return z, gaussian_log_prob(noise) - posterior.log_std

    def _kl(self, posterior: Posterior, z: Tensor, log_q: Tensor) -> Tensor:
        """KL(q(z | x) || p(z)), (N, D) or (N, 1), in closed form; without one, its value at z, drawn with ``log_q``."""
        return gaussian_kl(posterior.mean, posterior.log_std)

    def _elbo(self, v: Tensor, posterior: Posterior, noise: Tensor) -> tuple[Tensor, Tensor]:
        """log p(v | z) (N,) and KL (N, D) or (N, 1) with z of ``noise`` (N, D)."""
        z, log_q = self._draw(posterior, noise)
        return self._decode_log_prob(v, z), self._kl(posterior, z, log_q)

    def _importance_terms(self, v: Tensor, posterior: Posterior, noise: Tensor) -> tuple[Tensor, Tensor]:
        """log p(v | z_k) and log q(z_k | v) - log p(z_k), both (K, N), with z_k of ``noise`` (K, N, D)."""
        k = len(noise)
        z, log_q = self._draw(Posterior(*(_tiled(part, k) for part in posterior)), noise.flatten(0, 1))
        reconstruction = self._decode_log_prob(v.repeat(k, 1, 1, 1), z)
        divergence = log_q.sum(1) - self._log_prior(z).sum(1)
        return reconstruction.unflatten(0, (k, -1)), divergence.unflatten(0, (k, -1))

    def _on_levels(self, x: Tensor, fresh: bool = False) -> Tensor:
        x = self.check(x)
        return x if self.pixels is None else self.pixels(x, fresh)

    def encode(self, x: Tensor) -> Posterior:
        """q(z | x) of images x (N, *shape) in [0, 1]; raises as :meth:`log_prob` does."""
        return self._encode(self._on_levels(x))

    def decode_log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z) in nats, (N,), of images x (N, *shape) and latents z (N, D); raises as :meth:`log_prob` does."""
        return self._decode_log_prob(self._on_levels(x), z)

    def posterior_noise(self, x: Tensor, samples: int = 1, first: int = 0) -> Tensor:
        """The standard normal numbers (samples, N, draw_dim) that scores of x use: a function of each image and of k.

        Sample k is ``first``, ``first`` + 1, ...: more samples go on where fewer ended.
        """
        return self._noise(self._on_levels(x), range(first, first + samples))

    def _noise(self, v: Tensor, samples: range) -> Tensor:
        k = torch.arange(samples.start, samples.stop, device=v.device)[:, None]
        ids = (content_ids(v) + k * _NEXT_SAMPLE).flatten()
        return normal(0, ids, (self.draw_dim,), (_STREAM,), v.dtype).unflatten(0, (len(k), -1))

    def elbo_terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x | z) for one z from q(z | x), and KL(q(z | x) || p(z)): both (N,), in nats.

        Their difference is :meth:`log_prob`. The KL is exact where it has a closed form, else its value at that z,
        which may be negative. Raises as :meth:`log_prob` does.
        """
        v = self._on_levels(x)
        reconstruction, kl = self._elbo(v, self._encode(v), self._noise(v, range(1))[0])
        return reconstruction, kl.sum(1)

    def _log_prob(self, x: Tensor) -> Tensor:
        reconstruction, kl = self.elbo_terms(x)
        return reconstruction - kl

    def elbo_of(self, x: Tensor, mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
        """The ELBO (N,) of x under another q(z | x): N(mean, exp(log_std)^2), before the flow where there is one.

        Args:
            x: images (N, *shape).
            mean, log_std, noise: (N, D); the bound is differentiable in the first two. For ``noise``, see
                :meth:`posterior_noise`.
        """
        v = self._on_levels(x)
        reconstruction, kl = self._elbo(v, Posterior(mean, log_std, self._context(v)), noise)
        return reconstruction - kl.sum(1)

    def _context(self, v: Tensor) -> Tensor | None:
        """``_encode(v).context``."""
        return None

    def importance_weighted_log_prob(self, x: Tensor, samples: int = 100, chunk: int | None = None) -> Tensor:
        """log (1/K) sum over k of p(x | z_k) p(z_k) / q(z_k | x), (N,), in nats, with z_k from q(z | x).

        In expectation a lower bound on log p(x) that rises to it with K. The encoder runs once. Without graph unless x
        requires grad.

        Args:
            x: images (N, *shape) in [0, 1].
            samples: K; the first of more samples are those of fewer.
            chunk: samples decoded at once; None: as many as make a batch of good size. The value does not depend on it.

        Raises:
            TypeError, ValueError: as :meth:`log_prob` does, or ``samples`` or ``chunk`` below 1.
        """
        if samples < 1 or (chunk is not None and chunk < 1):
            raise ValueError(f"samples and chunk must be at least 1, got {samples} and {chunk}")
        with torch.set_grad_enabled(x.requires_grad and torch.is_grad_enabled()):
            v = self._on_levels(x)
            if not len(v):
                return v.flatten(1).sum(1)
            rows = _CPU_CHUNK_ROWS if v.device.type == "cpu" else _CHUNK_ROWS
            chunk = max(1, rows // len(v)) if chunk is None else chunk
            posterior = self._encode(v)
            total = v.new_full((len(v),), -torch.inf)
            for first in range(0, samples, chunk):
                noise = self._noise(v, range(first, min(first + chunk, samples)))
                reconstruction, divergence = self._importance_terms(v, posterior, noise)
                total = torch.logaddexp(total, (reconstruction - divergence).logsumexp(0))
            return total - math.log(samples)

    def latents(self, x: Tensor) -> Tensor:
        """Where q(z | x) is centred, (N, D): its mean, or what the flow makes of the mean of its Gaussian."""
        posterior = self.encode(x)
        return self._draw(posterior, posterior.mean.new_zeros(len(posterior.mean), self.draw_dim))[0]

    def draw_latents(self, x: Tensor) -> Tensor:
        """One draw (N, D) from q(z | x) of each image, with the noise of scores; raises as :meth:`log_prob` does."""
        return self._draw(self.encode(x), self.posterior_noise(x)[0])[0]

    def reconstruct(self, x: Tensor) -> Tensor:
        """The expected images (N, *shape) of the :meth:`latents` of x."""
        return self.decode(self.latents(x))

    def _from_noise(self, eps: Tensor) -> Tensor:
        """Expected images."""
        return self.decode(self.prior_sample(eps))

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(n, *self.noise_shape, generator=generator, device=self.device, dtype=self.dtype)
        uniforms = torch.rand(n, *self.shape, generator=generator, device=self.device, dtype=self.dtype)
        return self.decode_sample(self.prior_sample(noise), uniforms)

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The bound that is trained on, with fresh noise, warm-up and free bits; ELBO and its two parts are logged."""
        v = self._on_levels(batch.x, fresh=True)
        noise = torch.randn(self.importance_samples, len(v), self.draw_dim, dtype=v.dtype, device=v.device)
        weight = min(1.0, (step + 1) / self.kl_warmup) if self.kl_warmup else 1.0
        return self._objective(v, noise, weight, self.free_bits)

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The bound that is trained on, with the noise of scores, without warm-up and free bits."""
        v = self._on_levels(batch.x)
        return self._objective(v, self._noise(v, range(self.importance_samples)), 1.0, 0.0)

    def _objective(self, v: Tensor, noise: Tensor, kl_weight: float, free_bits: float) -> dict[str, Tensor]:
        posterior = self._encode(v)
        if len(noise) > 1:
            reconstruction, kl = self._importance_terms(v, posterior, noise)
            loss = math.log(len(noise)) - (reconstruction - kl).logsumexp(0).mean()
        else:
            reconstruction, terms = self._elbo(v, posterior, noise[0])
            kl, cost = terms.sum(1), terms.mean(0)
            loss = kl_weight * (cost.clamp(min=free_bits) if free_bits else cost).sum() - reconstruction.mean()
        found = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        return {"loss": loss} | {name: value.detach().mean() for name, value in found.items()}


def _tiled(part: Tensor | None, k: int) -> Tensor | None:
    return None if part is None else part.repeat(k, 1)
