"""The distance to the k-th nearest training example in a classifier's features.

Sun, Ming, Zhu and Li, "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022, section 3.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.checks import check_integers
from robustgen.detectors.base import check_network
from robustgen.detectors.nearest_features import NearestFeatures
from robustgen.features import FeatureExtractor
from robustgen.inputs import Inputs

__all__ = ["KNearestFeatures"]


class KNearestFeatures(NearestFeatures):
    """score(x) = distance of f(x) / |f(x)| to the k-th nearest of the examples of ``fit``, in [0, 2].

    The examples' features are kept, and saved with the detector.

    Args:
        model: a classifier, or another network of features.
        layer: whose output f is, see :class:`~robustgen.features.FeatureExtractor`; None: the input of the
            ``nn.Linear`` that makes the logits.
        k: the paper takes 50 of 50,000 examples.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a generative model.
        ValueError: no such layer, k below 1, or in ``fit`` fewer than k examples.

    >>> import torch
    >>> detector = KNearestFeatures(nn.Linear(2, 2), k=1).fit(torch.eye(2))  # the features are the inputs
    >>> detector.score(torch.tensor([[2.0, 0.0], [-3.0, 0.0]]))
    tensor([0.0000, 1.4142])
    """

    takes_tokens = True

    def __init__(self, model: nn.Module, layer: str | None = None, k: int = 50, *, batch_size: int = 256) -> None:
        super().__init__(model, batch_size)
        check_network(model, "KNearestFeatures")
        check_integers(k=k)
        self.layer, self.k, self._extractor = layer, k, FeatureExtractor(model, layer)

    def _features(self, x: Inputs) -> Tensor:
        return F.normalize(self._extractor(x)[0])  # (N, D)
