"""The two-stage variational autoencoder: a second one learns the codes of the first.

Dai and Wipf, "Diagnosing and Enhancing VAE Models", ICLR 2019, section 4.
"""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers
from robustgen.generative.blocks.gaussian import gaussian_kl, gaussian_log_prob
from robustgen.generative.latent.base import Posterior, gaussian_posterior
from robustgen.generative.latent.coders import dense
from robustgen.generative.latent.vae import GaussianVAE
from robustgen.model import evaluating
from robustgen.training import Batch

__all__ = ["StagedVAE", "TwoStageVAE"]


class StagedVAE(GaussianVAE):
    """A VAE with p(z) = N(0, I), and ``second``: another model of its codes, which hands no gradient back.

    A subclass sets ``second`` and gives ``_second_loss`` and the prior that both make.

    Args:
        shape, latent_dim, architecture, width, beta: as in :class:`GaussianVAE`.
        first_steps: steps in which the VAE is trained, after which the second model is, on codes that no longer change;
            0: both learn in every step. History entries then begin with "first" or "second".
    """

    second: nn.Module

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        latent_dim: int,
        architecture: str,
        width: int | None,
        beta: float | None,
        first_steps: int,
    ) -> None:
        super().__init__(shape, latent_dim=latent_dim, architecture=architecture, width=width, beta=beta)
        check_integers(0, first_steps=first_steps)
        self.first_steps = first_steps

    @abstractmethod
    def _second_loss(self, z: Tensor) -> Tensor:
        """What the second model minimises, (), of codes z (N, D) without graph; noise from the global RNG."""

    @property
    def players(self) -> Mapping[str, nn.Module]:
        if not self.first_steps:
            return {}
        first = nn.ModuleList([self.encoder, self.to_posterior, self.decoder, self.distribution])
        return {"first": first, "second": self.second}

    def player_at(self, step: int) -> str:
        """The first for ``first_steps``, then the second."""
        return "first" if step < self.first_steps else "second"

    def _code(self, posterior: Posterior, noise: Tensor) -> Tensor:
        """z (N, D) of ``noise`` (N, D)."""
        return posterior.mean + posterior.log_std.exp() * noise

    def _first(self, v: Tensor, noise: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The loss of the VAE alone, its two parts, and the codes z (N, D)."""
        posterior = self._encode(v)
        z = self._code(posterior, noise)
        reconstruction = self._decode_log_prob(v, z).mean()
        kl = gaussian_kl(posterior.mean, posterior.log_std).sum(1).mean()
        return {
            "loss": kl - reconstruction,
            "reconstruction": reconstruction.detach(),
            "kl": kl.detach(),
        }, z.detach()

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Minus the bound of the VAE, minus that of the second model, or their sum; see ``first_steps``."""
        v = batch.x
        noise = torch.randn(len(v), self.latent_dim, dtype=v.dtype, device=v.device)
        if self.first_steps and self.player_at(step) == "second":
            with torch.no_grad(), evaluating(self.encoder):  # batch norm of the first model does not move any more
                z = self._code(self._encode(v), noise)
            return {"loss": self._second_loss(z)}
        found, z = self._first(v, noise)
        return found if self.first_steps else self._with_second(found, z)

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Both losses."""
        return self._with_second(*self._first(batch.x, self._noise(batch.x, range(1))[0][:, : self.latent_dim]))

    def _with_second(self, found: dict[str, Tensor], z: Tensor) -> dict[str, Tensor]:
        second = self._second_loss(z)
        return found | {"loss": found["loss"] + second, "second_loss": second.detach()}


class _SecondVAE(nn.Module):
    """u ~ N(0, I), z ~ N(decoder(u), scale^2), all of D numbers."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.encoder = dense(dim, width, 2 * dim, hidden=3)
        self.decoder = dense(dim, width, dim, hidden=3)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def encode(self, z: Tensor) -> Posterior:
        return gaussian_posterior(self.encoder(z).to(z.dtype))

    def log_prob(self, z: Tensor, u: Tensor) -> Tensor:
        """log p(z | u) (N, D)."""
        return gaussian_log_prob(z, self.decoder(u).to(z.dtype), self.log_scale)


class TwoStageVAE(StagedVAE):
    """x from z, and z from u ~ N(0, I) by a second VAE, which closes the gap between the codes z and N(0, I).

    ``log_prob`` is the lower bound of both together, with q(z | x) q(u | z); latents are z and u, one behind the other.
    Samples are expected images of z that are drawn. The optimizer's learning rate is 1e-3; the paper has 1e-4, for 400
    epochs of the first VAE and 800 of the second on MNIST.

    Args:
        shape: (C, H, W).
        latent_dim: of z, and of u.
        architecture, width: as in :class:`VAE`.
        beta: pixels are N(decoder(z), 1 / beta); None: learned, as in the paper.
        second_width: hidden units in each of the three hidden layers, each way, of the second VAE.
        first_steps: training steps of the first VAE before the second begins, which then has all others, as in the
            paper; 0: both learn in every step.

    Raises:
        ValueError: an argument out of range.

    >>> vae = TwoStageVAE((1, 8, 8), latent_dim=2, architecture="mlp", width=16, second_width=8).eval()
    >>> vae.log_prob(torch.rand(4, 1, 8, 8)).shape, vae.sample(3).shape
    (torch.Size([4]), torch.Size([3, 1, 8, 8]))
    """

    second: _SecondVAE

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        latent_dim: int = 20,
        architecture: str = "infogan",
        width: int | None = None,
        beta: float | None = None,
        second_width: int = 1024,
        first_steps: int = 0,
    ) -> None:
        super().__init__(
            shape, latent_dim=latent_dim, architecture=architecture, width=width, beta=beta, first_steps=first_steps
        )
        check_integers(second_width=second_width)
        self.second_width = second_width
        self.second = _SecondVAE(latent_dim, second_width)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (2 * self.latent_dim,)

    @property
    def draw_dim(self) -> int:
        return 2 * self.latent_dim

    def split(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """z and u, (N, D) each, of latents (N, 2 D), or the noise of each."""
        z, u = latents.split(self.latent_dim, 1)
        return z, u

    def _second_loss(self, z: Tensor) -> Tensor:
        posterior = self.second.encode(z)
        u = self._code(posterior, torch.randn_like(z))
        kl = gaussian_kl(posterior.mean, posterior.log_std)
        return (kl - self.second.log_prob(z, u)).sum(1).mean()

    def _draw(self, posterior: Posterior, noise: Tensor) -> tuple[Tensor, Tensor]:
        z, log_q = super()._draw(posterior, self.split(noise)[0])
        u, log_q_u = super()._draw(self.second.encode(z), self.split(noise)[1])
        return torch.cat([z, u], 1), torch.cat([log_q, log_q_u], 1)

    def _log_prior(self, z: Tensor) -> Tensor:
        z, u = self.split(z)
        return torch.cat([self.second.log_prob(z, u), gaussian_log_prob(u)], 1)

    def _kl(self, posterior: Posterior, z: Tensor, log_q: Tensor) -> Tensor:
        return log_q - self._log_prior(z)

    def prior_sample(self, noise: Tensor) -> Tensor:
        own, u = self.split(noise)
        return torch.cat([self.second.decoder(u).to(u.dtype) + self.second.log_scale.exp() * own, u], 1)

    def _decode_log_prob(self, v: Tensor, z: Tensor) -> Tensor:
        return super()._decode_log_prob(v, z[:, : self.latent_dim])

    def decode(self, z: Tensor) -> Tensor:
        """The expected images (N, *shape) of latents (N, 2 D), or of z alone (N, D)."""
        return super().decode(z[:, : self.latent_dim])
