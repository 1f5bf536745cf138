"""The distance to the nearest training example: the row that a generative detector has to beat.

Cover and Hart, "Nearest Neighbor Pattern Classification", 1967, for the rule; as a measure of novelty, Knorr and Ng,
"Algorithms for Mining Distance-Based Outliers in Large Datasets", 1998.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from robustgen.detectors.base import Detector, check_network, check_width
from robustgen.detectors.neighbours import nearest_distances

__all__ = ["NearestNeighbour"]


class NearestNeighbour(Detector):
    """score(x) = min over the examples b of ``fit`` of |f(x) - f(b)|, Euclidean, >= 0.

    The examples are kept, and saved with the detector.

    Args:
        model: f, what the distance is measured behind; the identity measures it between the inputs themselves.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a generative model.

    >>> detector = NearestNeighbour().fit(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    >>> detector.score(torch.tensor([[0.0, 0.5], [4.0, 5.0]]))
    tensor([0.5000, 5.0000])
    """

    def __init__(self, model: nn.Module = nn.Identity(), *, batch_size: int = 256) -> None:
        super().__init__(model, batch_size)
        check_network(model, "NearestNeighbour")

    def _fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
        return {"bank": torch.cat([self.model(x).flatten(1) for x, _ in batches])}  # (M, D)

    def _score(self, x: Tensor) -> Tensor:
        features = self.model(x).flatten(1)
        check_width(features, self.statistics["bank"].shape[1])
        return nearest_distances(features, self.statistics["bank"].to(features), 1)[:, 0]
