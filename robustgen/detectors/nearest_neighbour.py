"""The distance to the nearest, or k-th nearest, training example: the row that a generative detector has to beat.

Cover and Hart, "Nearest Neighbor Pattern Classification", 1967, for the rule; as a measure of novelty, Knorr and Ng,
"Algorithms for Mining Distance-Based Outliers in Large Datasets", 1998.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers
from robustgen.detectors.base import Detector, check_network, check_width
from robustgen.detectors.neighbours import nearest_distances

__all__ = ["NearestNeighbour"]


class NearestNeighbour(Detector):
    """score(x) = the k-th smallest |f(x) - f(b)| over the examples b of ``fit``, Euclidean, >= 0.

    The examples are kept, and saved with the detector. A change of f(x) moves the score by at most its own length, so
    that alarms can be certified.

    Args:
        model: f, what the distance is measured behind; the identity measures it between the inputs themselves.
        k: which neighbour.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a generative model.
        ValueError: k below 1, or in ``fit`` fewer than k examples.

    >>> detector = NearestNeighbour().fit(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    >>> detector.score(torch.tensor([[0.0, 0.5], [4.0, 5.0]]))
    tensor([0.5000, 5.0000])
    """

    def __init__(self, model: nn.Module = nn.Identity(), k: int = 1, *, batch_size: int = 256) -> None:
        super().__init__(model, batch_size)
        check_network(model, "NearestNeighbour")
        check_integers(k=k)
        self.k = k

    def _fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
        bank = torch.cat([self.model(x).flatten(1) for x, _ in batches])
        if len(bank) < self.k:
            raise ValueError(f"k={self.k} neighbours need as many examples in fit, got {len(bank)}: lower k")
        return {"bank": bank}  # (M, D)

    def _score(self, x: Tensor) -> Tensor:
        features = self.model(x).flatten(1)
        check_width(features, self.statistics["bank"].shape[1])
        return nearest_distances(features, self.statistics["bank"].to(features), self.k)[:, -1]

    def _size(self, x: Tensor) -> Tensor:
        return self.model(x).flatten(1).norm(dim=1)

    def _lipschitz(self, norm: str, dimensions: int) -> float | None:
        return self._bound_of_model(norm, dimensions)
