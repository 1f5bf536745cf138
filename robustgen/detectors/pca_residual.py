"""What the leading principal components leave of an input.

Pearson, "On Lines and Planes of Closest Fit to Systems of Points in Space", 1901; the residual as a test of an
observation: Jackson and Mudholkar, "Control Procedures for Residuals Associated with Principal Component Analysis",
1979, equation 2.2.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from robustgen.checks import check_flags, check_integers
from robustgen.detectors.base import Detector, check_network, check_width

__all__ = ["PCAResidual"]


class PCAResidual(Detector):
    """score(x) = |(I - P P') (f(x) - m)|^2, with m the mean of ``fit`` and P its leading principal components.

    Its root gives the same order, and moves by at most the length of a change of f(x): its alarms can be certified.

    Args:
        model: f, what the components are of; the identity takes the inputs themselves.
        components: number of columns of P.
        root: score the length, not its square.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a generative model, or ``root`` that is no flag.
        ValueError: ``components`` below 1, or in ``fit`` not below the numbers of dimensions and inputs.

    >>> line = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    >>> PCAResidual(components=1).fit(line).score(torch.tensor([[7.0, 7.0], [0.0, 2.0]])).round(decimals=4)
    tensor([0., 2.])
    """

    def __init__(
        self, model: nn.Module = nn.Identity(), components: int = 64, *, root: bool = False, batch_size: int = 256
    ) -> None:
        super().__init__(model, batch_size)
        check_network(model, "PCAResidual")
        check_integers(components=components)
        check_flags(root=root)
        self.components, self.root = components, root

    def _fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
        n, mean, scatter = 0, torch.zeros(()), torch.zeros(())
        for x, _ in batches:
            features = self.model(x).flatten(1).double()  # (B, D)
            # merged with the earlier batches by their means: a sum of raw squares would cancel
            shift = features.mean(0) - mean
            centred = features - features.mean(0)
            scatter = scatter + centred.T @ centred + shift.outer(shift) * (n * len(x) / (n + len(x)))  # (D, D)
            n += len(x)
            mean = mean + shift * (len(x) / n)  # (D,)
        if self.components >= len(mean):
            raise ValueError(f"{self.components} components leave nothing of {len(mean)} dimensions: take fewer")
        if self.components >= n:  # n points span n - 1 directions about their mean; any others would be arbitrary
            least = self.components + 1
            raise ValueError(f"{self.components} components need at least {least} inputs in fit, got {n}: take fewer")
        basis = torch.linalg.eigh(scatter).eigenvectors[:, -self.components :]  # (D, components)
        return {"mean": mean, "basis": basis}

    def _score(self, x: Tensor) -> Tensor:
        features = self.model(x).flatten(1)
        check_width(features, len(self.statistics["mean"]))
        centred = features - self.statistics["mean"].to(features)
        basis = self.statistics["basis"].to(features)
        rest = centred - centred @ basis @ basis.T
        return torch.linalg.vector_norm(rest, dim=1) if self.root else rest.square().sum(1)

    def _size(self, x: Tensor) -> Tensor:
        return self.model(x).flatten(1).norm(dim=1)

    def _lipschitz(self, norm: str, dimensions: int) -> float | None:
        return self._bound_of_model(norm, dimensions) if self.root else None
