"""Detectors: score inputs for being off the training manifold, with calibrated false-alarm rates."""

from robustgen.detectors.base import Detector
from robustgen.detectors.loading import load
from robustgen.detectors.reconstruction import ReconstructionError
from robustgen.detectors.sklearn_interface import OutlierEstimator, as_sklearn

__all__ = ["Detector", "OutlierEstimator", "ReconstructionError", "as_sklearn", "load"]
