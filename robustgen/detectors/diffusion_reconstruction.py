"""How far an image moves when it is diffused and denoised, from little noise to much.

Graham, Pinaya, Tudosiu, Nachev, Ourselin and Cardoso, "Denoising Diffusion Models for Out-of-Distribution Detection",
CVPR workshops 2023: reconstructions from several depths, each error in standard deviations of those of usual images,
averaged. Theirs has a perceptual distance beside the squared error.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustgen.checks import check_integers, check_positive
from robustgen.detectors.base import Detector
from robustgen.detectors.denoising import check_denoiser, keyed_noise, levels_down, step_down

if TYPE_CHECKING:
    from robustgen.generative import GenerativeModel

__all__ = ["DiffusionReconstruction"]


class DiffusionReconstruction(Detector):
    """score(x) = mean over depths of (e - m) / s, where e is the mean squared error of x's reconstruction from there.

    Each image is given noise, the same at all depths up to its size and by its own pixels, which is taken away in
    ``steps`` without fresh noise. m and s are mean and standard deviation of e in ``fit``.

    Args:
        model: with ``denoise(x, sigma)``: a :class:`~robustgen.generative.DDPM`, ``EDM`` or ``Denoiser``.
        sigmas: the depths, as standard deviation of the noise of pixels in [0, 1].
        steps: calls of the model for each depth.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a model that does not denoise.
        ValueError: an argument out of range, or noise that the model does not know.

    >>> from robustgen.generative import Denoiser
    >>> model, x = Denoiser((1, 8, 8), width=4).eval(), torch.eye(8).expand(4, 1, 8, 8)
    >>> DiffusionReconstruction(model, steps=2).fit(x).score(x).shape
    torch.Size([4])
    """

    def __init__(
        self,
        model: "GenerativeModel",
        sigmas: Sequence[float] = (0.15, 0.3, 0.6, 1.0),
        steps: int = 5,
        *,
        batch_size: int = 256,
    ) -> None:
        super().__init__(model, batch_size)
        check_denoiser(model, "DiffusionReconstruction")
        check_integers(steps=steps)
        if not isinstance(sigmas, Sequence) or isinstance(sigmas, str) or not sigmas:
            raise TypeError(f"sigmas must be a list of numbers, got {sigmas!r}")
        check_positive(**{f"sigmas[{i}]": sigma for i, sigma in enumerate(sigmas)})
        self.sigmas, self.steps = list(sigmas), steps

    def _errors(self, x: Tensor) -> Tensor:
        """(N, depths)."""
        noise = keyed_noise(x, 0)
        return torch.stack([self._error(x, x + sigma * noise, sigma) for sigma in self.sigmas], 1)

    def _error(self, x: Tensor, v: Tensor, sigma: float) -> Tensor:
        for high, low in pairwise(levels_down(self.model, sigma, self.steps)):
            v = step_down(self.model, v, high, low)
        return (v - x).square().flatten(1).mean(1)

    def _fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
        errors = torch.cat([self._errors(x) for x, _ in batches]).double()
        return {"mean": errors.mean(0), "std": errors.std(0, correction=0).clamp(min=1e-12)}

    def _score(self, x: Tensor) -> Tensor:
        errors = self._errors(x)
        return ((errors - self.statistics["mean"].to(errors)) / self.statistics["std"].to(errors)).mean(1)
