"""The distance to the nearest, or k-th nearest, training example: the row that a generative detector has to beat.

Cover and Hart, "Nearest Neighbor Pattern Classification", 1967, for the rule; as a measure of novelty, Knorr and Ng,
"Algorithms for Mining Distance-Based Outliers in Large Datasets", 1998.
"""

from torch import Tensor, nn

from robustgen.checks import check_integers
from robustgen.detectors.base import check_network
from robustgen.detectors.nearest_features import NearestFeatures

__all__ = ["NearestNeighbour"]


class NearestNeighbour(NearestFeatures):
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

    >>> import torch
    >>> detector = NearestNeighbour().fit(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    >>> detector.score(torch.tensor([[0.0, 0.5], [4.0, 5.0]]))
    tensor([0.5000, 5.0000])
    """

    def __init__(self, model: nn.Module = nn.Identity(), k: int = 1, *, batch_size: int = 256) -> None:
        super().__init__(model, batch_size)
        check_network(model, "NearestNeighbour")
        check_integers(k=k)
        self.k = k

    def _features(self, x: Tensor) -> Tensor:
        features: Tensor = self.model(x)
        return features.flatten(1)

    def _size(self, x: Tensor) -> Tensor:
        return self._features(x).norm(dim=1)

    def _lipschitz(self, norm: str, dimensions: int) -> float | None:
        return self._bound_of_model(norm, dimensions)
