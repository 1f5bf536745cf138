"""The Mahalanobis distance to the nearest class in a classifier's features.

Lee, Lee, Lee and Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
NeurIPS 2018, equations 1 and 2, of one layer and without the perturbation of inputs.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from robustgen.checks import check_flags, check_numbers
from robustgen.detectors.base import Detector, check_network, check_width
from robustgen.features import FeatureExtractor
from robustgen.inputs import Inputs
from robustgen.lipschitz import in_norm, lipschitz_bound, lipschitz_bound_inside
from robustgen.model import logits_of, untouched

__all__ = ["Mahalanobis"]


class Mahalanobis(Detector):
    """score(x) = min over classes c of (f(x) - m_c)' S^-1 (f(x) - m_c), with S the covariance tied over classes.

    With S = L L', it is the squared Euclidean distance after multiplication by L^-1: features and means are whitened
    once, and one matrix product gives the distances to all classes. In float64.

    Classes are the labels of ``fit``; where there are none, those that the classifier itself says.

    Its root gives the same order; it moves by at most the length of L^-1 times the change of f(x), so that its alarms
    can be certified where f has a bound.

    Args:
        model: a classifier.
        layer: whose output f is, see :class:`~robustgen.features.FeatureExtractor`; None: the input of the
            ``nn.Linear`` that makes the logits.
        shrinkage: weight in [0, 1] of the mean variance on the diagonal in S, against directions without variance, such
            as units that never fire, which would count infinitely.
        root: score the distance, not its square.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a generative model, or ``root`` that is no flag.
        ValueError: no such layer, ``shrinkage`` outside [0, 1], or in ``fit`` a covariance that is singular.

    >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # variance 1/2 in each direction
    >>> Mahalanobis(nn.Linear(2, 2)).fit(x, torch.zeros(4, dtype=torch.int64)).score(torch.tensor([[2.0, 0.0]]))
    tensor([8.])
    """

    takes_tokens = True

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        shrinkage: float = 1e-3,
        *,
        root: bool = False,
        batch_size: int = 256,
    ) -> None:
        super().__init__(model, batch_size)
        check_network(model, "Mahalanobis")
        check_numbers(shrinkage=shrinkage)
        if not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage must be in [0, 1], got {shrinkage}")
        check_flags(root=root)
        self.layer, self.shrinkage, self.root = layer, shrinkage, root
        self._extractor = FeatureExtractor(model, layer)

    def _fit(self, batches: Iterable[tuple[Inputs, Tensor | None]]) -> dict[str, Tensor]:
        features, labels = [], []
        for x, y in batches:
            states, output = self._extractor(x)
            features.append(states.double())
            labels.append(logits_of(output).argmax(1) if y is None else y.to(states.device))
        f, classes = torch.cat(features), torch.cat(labels).unique(return_inverse=True)[1]  # (N, D), (N,)
        counts = classes.bincount().to(f)
        means = f.new_zeros(len(counts), f.shape[1]).index_add_(0, classes, f) / counts[:, None]  # (C, D)
        within = f - means[classes]
        covariance = within.T @ within / len(f)
        average = covariance.diagonal().mean()
        covariance = (1 - self.shrinkage) * covariance + self.shrinkage * average * torch.eye(len(covariance)).to(f)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed:
            raise ValueError("the covariance of the features is singular: fit on more data, or set a larger shrinkage")
        whitening = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(f), upper=False)  # L^-1
        mean = f.mean(0)  # distances are taken about it, so that no digits cancel in the expanded square
        return {"mean": mean, "whitening": whitening, "classes": (means - mean) @ whitening.T}

    def _score(self, x: Inputs) -> Tensor:
        features = self._extractor(x)[0]
        check_width(features, len(self.statistics["mean"]))
        mean, whitening, classes = (self.statistics[k].to(features.device) for k in ("mean", "whitening", "classes"))
        white = (features.double() - mean) @ whitening.T  # (N, D)
        distances = white.square().sum(1, keepdim=True) - 2 * white @ classes.T + classes.square().sum(1)  # (N, C)
        least = distances.amin(1)
        return (least.clamp(min=1e-24).sqrt() if self.root else least).to(features)

    def _lipschitz(self, norm: str, dimensions: int) -> float | None:
        if not self.root or lipschitz_bound(self.model) is None:
            return None
        like = self.statistics["like"]
        with torch.no_grad(), untouched(self.model):
            layer, given = self._extractor.place(like.new_zeros(1, *like.shape[1:], device=self._device))
        bound = lipschitz_bound_inside(self.model, layer, given)
        return None if bound is None else in_norm(self._longest * bound, norm, dimensions)

    @property
    def _longest(self) -> float:
        """By how much whitening lengthens; it is one map for all classes, and a minimum moves no faster."""
        return float(torch.linalg.matrix_norm(self.statistics["whitening"], 2))

    def _size(self, x: Tensor) -> Tensor:
        return self._longest * self._extractor(x)[0].norm(dim=1)
