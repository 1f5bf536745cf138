"""What detectors share that keep features of the examples of ``fit`` and measure how far the nearest are."""

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from robustgen.detectors.base import Detector, check_width
from robustgen.detectors.neighbours import nearest_distances
from robustgen.inputs import Inputs

__all__ = ["NearestFeatures"]


class NearestFeatures(Detector):
    """score(x) = distance of ``_features(x)`` to the ``k``-th nearest of those of ``fit``."""

    k: int

    @abstractmethod
    def _features(self, x: Inputs) -> Tensor:
        """(N, D) of inputs (N, ...)."""

    def _fit(self, batches: Iterable[tuple[Inputs, Tensor | None]]) -> dict[str, Tensor]:
        bank = torch.cat([self._features(x) for x, _ in batches])
        if len(bank) < self.k:
            raise ValueError(f"k={self.k} neighbours need as many examples in fit, got {len(bank)}: lower k")
        return {"bank": bank}  # (M, D)

    def _score(self, x: Inputs) -> Tensor:
        features = self._features(x)
        check_width(features, self.statistics["bank"].shape[1])
        return nearest_distances(features, self.statistics["bank"].to(features), self.k)[:, -1]
