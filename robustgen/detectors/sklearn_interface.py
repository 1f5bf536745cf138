"""Detectors behind scikit-learn's interface for outlier detection, whose signs are the opposite of ours."""

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from robustgen.detectors.base import Detector

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    Array = np.ndarray[Any, Any]

__all__ = ["OutlierEstimator", "as_sklearn"]


def as_sklearn(
    detector: Detector,
    *,
    shape: tuple[int, ...] | None = None,
    fpr: float = 0.05,
    calibration_fraction: float = 0.3,
    random_state: int = 0,
) -> "OutlierEstimator":
    """``detector`` as a scikit-learn outlier detector; a calibrated one can predict at once, without ``fit``.

    Args:
        shape: of one input, for tables X (N, features) that hold images; None leaves X as it is.
        fpr: nominal rate at which in-distribution inputs are predicted to be outliers.
        calibration_fraction: share of the data of ``fit``, drawn at random, that is kept for calibration.
        random_state: of that draw.

    >>> from torch import nn
    >>> from robustgen.detectors import ReconstructionError
    >>> from robustgen.fortified import fortify
    >>> x = torch.rand(100, 8, generator=torch.Generator().manual_seed(0)).numpy()
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> net = fortify(net, "auto", example_input=torch.ones(2, 8), init="random")
    >>> as_sklearn(ReconstructionError(net)).fit(x).predict(100 * x[:3])
    array([-1, -1, -1])
    """
    estimator = OutlierEstimator(detector, shape, fpr, calibration_fraction, random_state)
    if detector.calibration_ is not None:
        estimator.detector_ = detector
    return estimator


class OutlierEstimator(OutlierMixin, BaseEstimator):
    """See :func:`as_sklearn`. X is an array (N, features) or (N, ...); NaN and Inf are a ValueError.

    ``fit`` leaves the detector that it was made with as it is and works on a copy around the same model.

    Attributes:
        detector_: the fitted, calibrated detector.
    """

    def __init__(
        self,
        detector: Detector,
        shape: tuple[int, ...] | None = None,
        fpr: float = 0.05,
        calibration_fraction: float = 0.3,
        random_state: int = 0,
    ) -> None:
        self.detector, self.shape, self.fpr = detector, shape, fpr
        self.calibration_fraction, self.random_state = calibration_fraction, random_state

    def fit(self, X: "ArrayLike", y: object = None) -> "OutlierEstimator":
        """Fit and calibrate on in-distribution X; ValueError where too little of it is left for ``fpr``."""
        x = self._tensor(X)
        fitted, kept = train_test_split(
            np.arange(len(x)), test_size=self.calibration_fraction, random_state=self.random_state
        )
        detector = copy.copy(self.detector).fit(x[fitted]).calibrate(x[kept])
        detector.calibration.threshold(self.fpr)
        self.detector_ = detector
        return self

    def score_samples(self, X: "ArrayLike") -> "Array":
        """Minus the detector's score: float64 (N,), higher = more normal."""
        check_is_fitted(self)
        return -self.detector_.score(self._tensor(X)).double().cpu().numpy()

    def decision_function(self, X: "ArrayLike") -> "Array":
        """``score_samples(X) - offset_``: float64 (N,), negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: "ArrayLike") -> "Array":
        """-1 for outliers and +1 for inliers, int (N,)."""
        return np.where(self.score_samples(X) < self.offset_, -1, 1)

    @property
    def offset_(self) -> float:
        """The value of ``score_samples`` below which an input is an outlier."""
        check_is_fitted(self)
        return -self.detector_.calibration.threshold(self.fpr)

    def _tensor(self, X: "ArrayLike") -> Tensor:
        array = check_array(X, dtype=np.float64, allow_nd=True)
        dtypes = [p.dtype for p in self.detector.model.parameters() if p.is_floating_point()]
        x = torch.tensor(array, dtype=dtypes[0] if dtypes else torch.float64)
        return x if self.shape is None else x.reshape(len(x), *self.shape)
