"""Two distances that err on different inputs, multiplied.

Kittler, Hatef, Duin and Matas, "On Combining Classifiers", IEEE TPAMI 1998: the product rule. Features of a network are
blind to what it has not learned to look at, pixels to nothing but what the short list lacks; an input that both find
far away is off the distribution. As both are distances, no scale has to be learned to multiply them.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers
from robustgen.detectors.base import Detector, check_network
from robustgen.detectors.image_distortion import ImageDistortion
from robustgen.detectors.k_nearest_features import KNearestFeatures

__all__ = ["FeatureTimesImageDistance"]


class FeatureTimesImageDistance(Detector):
    """score(x) = log(d(x) e(x)), d the k-NN distance in feature space, e the distortion distance between images.

    d is the score of :class:`KNearestFeatures`, e that of :class:`ImageDistortion`. A distance of zero counts as 1e-12.

    Args:
        model: the network of the features, such as an encoder trained on
            :class:`~robustgen.training.ContrastiveObjective`; it takes images (N, C, H, W).
        layer, k: see :class:`KNearestFeatures`.
        window, shortlist, neighbours, exponent: ``window``, ``shortlist``, ``k`` and ``exponent`` of
            :class:`ImageDistortion`.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a generative model.
        ValueError: as both of them do.

    >>> x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> detector = FeatureTimesImageDistance(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), k=3).fit(x[:30])
    >>> parts = KNearestFeatures(detector.model, k=3).fit(x[:30]), ImageDistortion().fit(x[:30])
    >>> bool(torch.allclose(detector.score(x).exp(), parts[0].score(x) * parts[1].score(x), atol=1e-6))
    True
    """

    former_names = ("FeaturesTimesDistortion",)

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        k: int = 20,
        window: int = 2,
        shortlist: int = 20,
        neighbours: int = 5,
        exponent: float = 0.5,
        *,
        batch_size: int = 8,
    ) -> None:
        super().__init__(model, batch_size)
        check_network(model, "FeatureTimesImageDistance")
        check_integers(neighbours=neighbours)  # its name in the distortion is k
        self.layer, self.k, self.window, self.shortlist = layer, k, window, shortlist
        self.neighbours, self.exponent = neighbours, exponent
        distortion = ImageDistortion(window=window, shortlist=shortlist, k=neighbours, exponent=exponent)
        self._parts = KNearestFeatures(model, layer, k), distortion

    def _fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
        seen = list(batches)
        features, distortion = self._parts
        return features._fit(seen) | distortion._fit(seen)

    def _score(self, x: Tensor) -> Tensor:
        logs = []
        for part in self._parts:
            part.statistics_ = self.statistics
            logs.append(part._score(x).clamp(min=1e-12).log())
        return torch.stack(logs).sum(0)
