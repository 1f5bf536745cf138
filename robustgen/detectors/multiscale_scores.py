"""How large the score of an image is at many levels of noise, beside those of usual images.

Mahmood, Oliva and Styner, "Multiscale Score Matching for Out-of-Distribution Detection", ICLR 2021: the norms of scores
at several scales, of the image itself without noise, and a density of these norms. Here their logarithms are Gaussian.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustgen.checks import check_integers, check_positive
from robustgen.detectors.base import Detector
from robustgen.detectors.denoising import check_denoiser

if TYPE_CHECKING:
    from robustgen.generative import GenerativeModel

__all__ = ["MultiscaleScores"]

_RIDGE = 1e-4  # of the mean variance, so that few examples have an inverse covariance too


class MultiscaleScores(Detector):
    """score(x) = squared Mahalanobis distance of log |x - D(x, sigma)| at several sigma, from their mean in ``fit``.

    The score of a noisy image is (D - x) / sigma^2 (Tweedie). One call of the model for each scale, nothing random.

    Args:
        model: with ``denoise(x, sigma)``: a :class:`~robustgen.generative.DDPM`, ``EDM`` or ``Denoiser``.
        scales: how many sigma, geometrically from the model's least to
        sigma_max: as standard deviation of the noise of pixels in [0, 1]; the model's most where that is less.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a model that does not denoise.
        ValueError: an argument out of range.

    >>> from robustgen.generative import Denoiser
    >>> model, x = Denoiser((1, 8, 8), width=4).eval(), torch.rand(6, 1, 8, 8)
    >>> MultiscaleScores(model, scales=3).fit(x).score(x).shape
    torch.Size([6])
    """

    def __init__(
        self, model: "GenerativeModel", scales: int = 10, sigma_max: float = 1.0, *, batch_size: int = 256
    ) -> None:
        super().__init__(model, batch_size)
        check_denoiser(model, "MultiscaleScores")
        check_integers(2, scales=scales)
        check_positive(sigma_max=sigma_max)
        if sigma_max <= model.sigma_min:
            raise ValueError(f"sigma_max={sigma_max:g} is not above the model's least noise, {model.sigma_min:g}")
        self.scales, self.sigma_max = scales, sigma_max

    def _norms(self, x: Tensor) -> Tensor:
        """Logarithms, (N, scales)."""
        low, high = self.model.sigma_min, min(self.sigma_max, self.model.sigma_max)
        sigmas = torch.linspace(math.log(low), math.log(high), self.scales, dtype=torch.float64).exp().tolist()
        found = [(self.model.denoise(x, sigma) - x).flatten(1).norm(dim=1) for sigma in sigmas]
        return (torch.stack(found, 1) + 1e-12).log()

    def _fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
        norms = torch.cat([self._norms(x) for x, _ in batches]).double()
        covariance = (norms - norms.mean(0)).T @ (norms - norms.mean(0)) / len(norms)
        ridge = _RIDGE * covariance.diagonal().mean() + 1e-12
        covariance += ridge * torch.eye(self.scales, dtype=torch.float64, device=norms.device)
        return {"mean": norms.mean(0), "precision": torch.linalg.inv(covariance)}

    def _score(self, x: Tensor) -> Tensor:
        norms = self._norms(x)
        off = norms - self.statistics["mean"].to(norms)
        return ((off @ self.statistics["precision"].to(norms)) * off).sum(1)
