"""Generative models, trained in full here: one model, one file, one paper."""

from robustgen.generative.base import GenerativeModel
from robustgen.generative.fitting import GenerativeObjective, fit
from robustgen.generative.loading import load, model_classes
from robustgen.generative.pixels import Pixels

__all__ = ["GenerativeModel", "GenerativeObjective", "Pixels", "fit", "load", "model_classes"]
