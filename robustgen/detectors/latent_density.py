"""How unlikely the code of an image is, and how much of the image the code has lost.

Xiao, "Designing Deep Generative Models with Symbiotic Composition", 2022, section 3.3.2, for the model whose codes have
a density. An encoder may put anything where codes are dense, so that the density alone is no test of the image; that
both are standardised before they are added is this library's choice.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustgen.checks import nearest
from robustgen.detectors.base import Detector

if TYPE_CHECKING:
    from robustgen.generative import GenerativeModel

__all__ = ["LatentDensity"]

_PARTS = ("sum", "latent", "reconstruction")


class LatentDensity(Detector):
    """score(x) = a(x) + b(x), with a = -log p(E(x)) and b = log of the reconstruction error, each standardised.

    By their means and standard deviations on the data of ``fit``; the error by its logarithm, whose distribution has no
    long tail that would outvote the density.

    Args:
        model: an autoencoder with a density of its codes, such as ``GLF``, ``RAE`` or ``WAE``.
        parts: "sum", or only one of the two: "latent" in nats, "reconstruction" as the mean squared error of a pixel.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a model without density of codes.
        ValueError: other ``parts``.

    >>> from robustgen.generative import GLF
    >>> glf, x = GLF((1, 8, 8), latent_dim=2, architecture="mlp", width=8).eval(), torch.rand(9, 1, 8, 8)
    >>> detector = LatentDensity(glf).fit(x)
    >>> abs(float(detector.score(x).mean())) < 1e-5, detector.score(x).shape
    (True, torch.Size([9]))
    """

    def __init__(self, model: "GenerativeModel", parts: str = "sum", *, batch_size: int = 256) -> None:
        super().__init__(model, batch_size)
        if not callable(getattr(model, "latent_log_prob", None)):
            raise TypeError(f"LatentDensity needs a density of codes, {type(model).__name__} has no latent_log_prob")
        if parts not in _PARTS:
            raise ValueError(f"unknown parts {parts!r}; {nearest(parts, _PARTS)}")
        self.parts = parts

    def _both(self, x: Tensor) -> Tensor:
        """-log p(E(x)) and the log of the reconstruction error, (N, 2)."""
        error = self.model.reconstruction_error(x)
        return torch.stack([-self.model.latent_log_prob(x), (error + torch.finfo(error.dtype).tiny).log()], 1)

    def _fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
        if self.parts != "sum":
            return {}
        both = torch.cat([self._both(x).double() for x, _ in batches])
        mean, std = both.mean(0), both.std(0, correction=0)
        std = torch.maximum(std, 1e-6 * mean.abs())  # a part that is constant must not blow up its rounding noise
        return {"mean": mean, "std": torch.where(std > 0, std, torch.ones_like(std))}

    def _score(self, x: Tensor) -> Tensor:
        if self.parts == "latent":
            return -self.model.latent_log_prob(x)
        if self.parts == "reconstruction":
            return self.model.reconstruction_error(x)
        both = self._both(x)
        mean, std = self.statistics["mean"].to(both.device), self.statistics["std"].to(both.device)
        return ((both.double() - mean) / std).sum(1).to(both)
