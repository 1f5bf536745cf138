"""Product of experts: each expert is a Student-t density of one linear filter's output.

Hinton, "Training Products of Experts by Minimizing Contrastive Divergence", Neural Computation 2002; Welling, Hinton
and Osindero, "Learning Sparse Topographic Representations with Products of Student-t Distributions", NIPS 2002. Trained
by implicit score matching, which has a closed form here: Hyvarinen, "Estimation of Non-Normalized Statistical Models by
Score Matching", JMLR 2005.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers, check_positive
from robustgen.generative.base import GenerativeModel
from robustgen.generative.energy.langevin import check_reach, langevin
from robustgen.training import Batch

__all__ = ["ProductOfExperts"]


class ProductOfExperts(GenerativeModel):
    """E(x) = sum_i alpha_i log(1 + y_i^2 / 2), y_i = w_i . x + b_i, alpha_i > 0; log_prob is -E, without log Z.

    There is no network and no chain in training: gradient and Laplacian of E are sums over filters. The density is that
    of x + sigma noise, since pixels on a few levels have no score. It can be normalised on R^D only where enough
    filters span it: with fewer than D of them some direction is flat.

    Args:
        shape: (C, H, W).
        width: experts.
        sigma: noise on the data.
        step_size: of Langevin dynamics, from uniform noise to a sample.
        sample_steps: of them.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
        FloatingPointError: in ``sample``, chains that leave the data's range for good.

    >>> model = ProductOfExperts((1, 8, 8), width=70, sample_steps=5).eval()
    >>> x = model.sample(3)
    >>> bool((model.log_prob(x) == -model.energy(x)).all())
    True
    """

    log_prob_kind = "unnormalised"

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 256,
        sigma: float = 0.3,
        step_size: float = 0.01,
        sample_steps: int = 1000,
    ) -> None:
        super().__init__(shape)
        check_integers(width=width, sample_steps=sample_steps)
        check_positive(sigma=sigma, step_size=step_size)
        self.width, self.sigma, self.step_size, self.sample_steps = width, sigma, step_size, sample_steps
        self.filters = nn.Linear(self.dimensions, width)
        self.log_alpha = nn.Parameter(torch.zeros(width))

    def energy(self, x: Tensor) -> Tensor:
        """E (N,) in nats, up to a constant, of x (N, *shape) anywhere."""
        y = self.filters(x.flatten(1))  # (N, M)
        energy: Tensor = (y.square() / 2).log1p() @ self.log_alpha.exp()
        return energy

    def _log_prob(self, x: Tensor) -> Tensor:
        return -self.energy(x)

    def score_matching(self, x: Tensor) -> Tensor:
        """E[|grad E|^2 / 2 - tr grad^2 E], a scalar, at x (N, *shape)."""
        w, alpha = self.filters.weight, self.log_alpha.exp()
        y = self.filters(x.flatten(1))  # (N, M)
        heavy = 1 + y.square() / 2
        gradient = (alpha * y / heavy) @ w  # (N, D)
        laplacian = (alpha * (2 - heavy) / heavy.square()) @ w.square().sum(1)  # (N,)
        return (gradient.square().sum(1) / 2 - laplacian).mean()

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return {"loss": self.score_matching(batch.x + self.sigma * torch.randn_like(batch.x))}

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        x = torch.rand(n, *self.shape, generator=generator, device=self.device, dtype=self.dtype)
        x = langevin(self.energy, x, self.sample_steps, self.step_size, generator=generator)
        return check_reach(x, 1.0, "take a smaller step_size").clamp(0, 1)

    @staticmethod
    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam, learning rate 1e-2: filters begin far from the length that noisy pixels ask for."""
        return torch.optim.Adam(parameters, lr=1e-2)
