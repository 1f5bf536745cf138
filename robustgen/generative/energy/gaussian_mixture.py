"""A mixture of Gaussians of the pixels: the density that has always been there.

Dempster, Laird and Rubin, "Maximum Likelihood from Incomplete Data via the EM Algorithm", 1977; EM is scikit-learn's.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers, check_positive
from robustgen.generative.base import GenerativeModel
from robustgen.generative.blocks.gaussian import COVARIANCES, Mixture
from robustgen.training import Batch, Source

__all__ = ["GaussianMixture"]

_IMAGES = 10_000  # that a mixture is fitted to


class GaussianMixture(GenerativeModel):
    """p(x) = sum_k w_k N(x; m_k, S_k), the density of the values as they are, on R^D.

    EM fits it to at most 10,000 training images at the end of an epoch, from k-means and to its end: one epoch will do,
    and further ones find the same. The trainer's own steps only measure. What they are handed, since a trainer wants a
    parameter, is ``shift``, by which the whole mixture is displaced: 0, where a learning rate of 0 leaves it.

    Args:
        shape: (C, H, W).
        components: K.
        covariance: "full", or "diag": pixels are independent in each component.
        floor: a standard deviation, on the [0, 1] scale, whose square every variance is raised by: a pixel that is
            always black would have none. The smaller it is, the more such pixels weigh.

    Raises:
        ValueError: an argument out of range; in training, more components than training images.

    >>> mixture, x = GaussianMixture((1, 8, 8), components=2).eval(), torch.rand(5, 1, 8, 8)
    >>> mixture.log_prob(x).shape, mixture.sample(3).shape
    (torch.Size([5]), torch.Size([3, 1, 8, 8]))
    """

    log_prob_kind = "exact"

    def __init__(
        self, shape: tuple[int, ...], *, components: int = 10, covariance: str = "full", floor: float = 0.02
    ) -> None:
        super().__init__(shape)
        check_integers(components=components)
        check_positive(floor=floor)
        if covariance not in COVARIANCES:
            raise ValueError(f"covariance must be one of {', '.join(COVARIANCES)}, got {covariance!r}")
        self.components, self.covariance, self.floor = components, covariance, floor
        self.mixture = Mixture(components, self.dimensions, covariance)
        self.shift = nn.Parameter(torch.zeros(self.dimensions))

    def _log_prob(self, x: Tensor) -> Tensor:
        return self.mixture.log_prob(x.flatten(1) - self.shift)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (self.dimensions + 1,)

    def _from_noise(self, eps: Tensor) -> Tensor:
        """The first number picks the component; images may lie outside [0, 1]."""
        return (self.mixture.of_noise(eps) + self.shift).view(-1, *self.shape)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        eps = torch.randn(n, *self.noise_shape, generator=generator, device=self.device, dtype=self.dtype)
        return self._from_noise(eps).clamp(0, 1)

    def check_training(self, n: int, batch_size: int) -> None:
        super().check_training(n, batch_size)
        self.mixture.check_points(min(n, _IMAGES))

    def fit_without_gradients(self, data: Source) -> None:
        """Fit the mixture to training ``data``."""
        x = self.check(data.sample(_IMAGES)[0]).to(self.device)
        self.mixture.fit(x.flatten(1) - self.shift, self.floor)

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """-log p(x), by the mixture of the epoch before."""
        return {"loss": -self._log_prob(batch.x).mean()}

    @staticmethod
    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A learning rate of 0: EM does it all."""
        return torch.optim.SGD(parameters, lr=0.0)
