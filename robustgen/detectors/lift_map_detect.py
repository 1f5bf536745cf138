"""How far a diffusion's inpainting is from what was there.

Liu, Zhou, Wang and Weinberger, "Unsupervised Out-of-Distribution Detection with Diffusion Inpainting", ICML 2023: parts
of the image are lifted off, mapped back to the manifold of the training data by inpainting, and compared; several times
with alternating checkerboards, of which the median distance counts. Theirs is a perceptual distance. What is kept is
put back with noise at each step: Lugmayr et al., "RePaint", CVPR 2022, algorithm 1.
"""

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustgen.checks import check_integers, check_positive
from robustgen.detectors.base import Detector
from robustgen.detectors.denoising import check_denoiser, keyed_noise, levels_down, step_down

if TYPE_CHECKING:
    from robustgen.generative import GenerativeModel

__all__ = ["LiftMapDetect"]


def checkerboard(height: int, width: int, squares: int) -> Tensor:
    """(height, width) of 0 and 1, at most ``squares`` squares each way.

    >>> checkerboard(2, 4, squares=2)
    tensor([[0., 0., 1., 1.],
            [1., 1., 0., 0.]])
    """
    rows, columns = (torch.arange(side) * min(squares, side) // side for side in (height, width))
    return ((rows[:, None] + columns) % 2).float()


class LiftMapDetect(Detector):
    """score(x) = median over attempts of the mean squared difference between lifted pixels and their inpainting.

    Attempts take turns with a checkerboard and its complement. Noise is drawn by the image's own pixels. Nothing is
    learned in ``fit``.

    Args:
        model: with ``denoise(x, sigma)``: a :class:`~robustgen.generative.DDPM`, ``EDM`` or ``Denoiser``.
        squares: of the checkerboard along a side.
        attempts: how often.
        steps: calls of the model for each attempt.
        sigma: of the noise that inpainting starts from; the model's most where that is less.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a model that does not denoise.
        ValueError: an argument out of range.

    >>> from robustgen.generative import Denoiser
    >>> model, x = Denoiser((1, 8, 8), width=4).eval(), torch.eye(8).expand(4, 1, 8, 8)
    >>> LiftMapDetect(model, steps=2).fit(x).score(x).shape
    torch.Size([4])
    """

    def __init__(
        self,
        model: "GenerativeModel",
        squares: int = 8,
        attempts: int = 4,
        steps: int = 20,
        sigma: float = 5.0,
        *,
        batch_size: int = 256,
    ) -> None:
        super().__init__(model, batch_size)
        check_denoiser(model, "LiftMapDetect")
        check_integers(2, squares=squares)
        check_integers(attempts=attempts, steps=steps)
        check_positive(sigma=sigma)
        self.squares, self.attempts, self.steps, self.sigma = squares, attempts, steps, sigma

    def _score(self, x: Tensor) -> Tensor:
        board = checkerboard(x.shape[2], x.shape[3], self.squares).to(x)
        levels = levels_down(self.model, min(self.sigma, self.model.sigma_max), self.steps)
        found = [self._distance(x, board if k % 2 else 1 - board, levels, k) for k in range(self.attempts)]
        return torch.stack(found, 1).quantile(0.5, dim=1)

    def _distance(self, x: Tensor, lifted: Tensor, levels: list[float], draw: int) -> Tensor:
        noise = keyed_noise(x, draw)
        v = 0.5 + levels[0] * noise
        for sigma, lower in pairwise(levels):
            v = torch.where(lifted == 1, v, x + sigma * noise)
            v = step_down(self.model, v, sigma, lower)
        return ((v - x).square() * lifted).flatten(1).sum(1) / (lifted.sum() * x.shape[1])
