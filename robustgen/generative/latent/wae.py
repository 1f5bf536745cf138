"""The Wasserstein autoencoder: codes are deterministic, and as a whole distributed like the prior.

Tolstikhin, Bousquet, Gelly and Schoelkopf, "Wasserstein Auto-Encoders", ICLR 2018: algorithm 1 (WAE-GAN) and 2
(WAE-MMD).
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.checks import check_integers, check_numbers, nearest
from robustgen.generative.blocks.gaussian import gaussian_log_prob
from robustgen.generative.latent.autoencoder import AutoEncoder
from robustgen.generative.latent.coders import dense
from robustgen.generative.latent.prior_hole import mmd_squared
from robustgen.training import Batch

__all__ = ["WAE"]

_PENALTIES = ("mmd", "gan")


class WAE(AutoEncoder):
    """z = E(x), p(z) = N(0, I), and a penalty on what tells the codes of a batch from draws of p(z).

    ``log_prob_kind`` is None: the model has no density of images. ``latent_log_prob`` is log N(E(x); 0, I), which is
    the density of codes only as far as the penalty has made them so: see :func:`prior_hole`.

    With "gan" a step trains either the discriminator of codes or the autoencoder, by turns, where the paper does both.

    Args:
        shape: (C, H, W).
        latent_dim, architecture, width: as in :class:`VAE`.
        penalty: "mmd": the unbiased estimate of :func:`mmd_squared`. "gan": -log D(E(x)) of a discriminator D, which
            is high on draws of the prior.
        weight: of the penalty beside the squared error of an image (10 in the paper, on MNIST). The error grows with
            the image: of 8 x 8 pixels "gan" needs about 0.5, and with 10 all codes end up in one place.
        discriminator_width: hidden units in each of the four hidden layers of D.

    Raises:
        ValueError: an argument out of range or an unknown penalty.

    >>> wae, x = WAE((1, 8, 8), latent_dim=2, architecture="mlp", width=16).eval(), torch.rand(4, 1, 8, 8)
    >>> wae.latent_log_prob(x).shape, wae.sample(5).shape
    (torch.Size([4]), torch.Size([5, 1, 8, 8]))
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        latent_dim: int = 8,
        architecture: str = "infogan",
        width: int | None = None,
        penalty: str = "mmd",
        weight: float = 10.0,
        discriminator_width: int = 512,
    ) -> None:
        super().__init__(shape, latent_dim, architecture, width)
        if penalty not in _PENALTIES:
            raise ValueError(f"unknown penalty {penalty!r}; {nearest(penalty, _PENALTIES)}")
        check_numbers(weight=weight)
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight must be a finite number >= 0, got {weight}")
        check_integers(discriminator_width=discriminator_width)
        self.penalty, self.weight, self.discriminator_width = penalty, weight, discriminator_width
        if penalty == "gan":
            self.discriminator = nn.Sequential(dense(latent_dim, discriminator_width, 1, hidden=4), nn.Flatten(0))

    def _log_prior(self, z: Tensor) -> Tensor:
        return gaussian_log_prob(z).sum(1)

    @property
    def players(self) -> Mapping[str, nn.Module]:
        if self.penalty == "mmd":
            return {}
        autoencoder = nn.ModuleList([self.encoder, self.to_code, self.decoder])
        return {"discriminator": self.discriminator, "autoencoder": autoencoder}

    def player_at(self, step: int) -> str:
        """By turns, the discriminator first."""
        return "autoencoder" if step % 2 else "discriminator"

    def _penalty(self, z: Tensor) -> Tensor:
        """Of the codes z (N, D) of a batch, ()."""
        if self.penalty == "gan":
            return F.softplus(-self.discriminator(z)).mean().to(z.dtype)
        return mmd_squared(z, torch.randn_like(z))

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The squared error of an image and the weighted penalty; in its turn, the loss of the discriminator."""
        if self.penalty == "gan" and self.player_at(step) == "discriminator":
            with torch.no_grad():
                z = self._encode(batch.x)
            on_prior, on_codes = self.discriminator(torch.randn_like(z)), self.discriminator(z)
            return {"loss": (F.softplus(-on_prior).mean() + F.softplus(on_codes).mean()).to(z.dtype)}
        z = self._encode(batch.x)
        reconstruction, penalty = self._squared_error(batch.x, self.decode(z)).mean(), self._penalty(z)
        logged = {"reconstruction": reconstruction.detach(), "penalty": penalty.detach()}
        return {"loss": reconstruction + self.weight * penalty} | logged

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The loss of the autoencoder."""
        return self.training_step(batch, 1)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:  # type: ignore[override]
        """Adam, beta 0.5 and 0.999, lr 1e-3, but 5e-4 for the discriminator: a faster one gets ahead of the encoder."""
        given = list(parameters)
        of_discriminator = self.penalty == "gan" and given[0] is next(self.discriminator.parameters())
        return torch.optim.Adam(given, lr=5e-4 if of_discriminator else 1e-3, betas=(0.5, 0.999))
