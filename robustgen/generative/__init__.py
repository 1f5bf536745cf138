"""Generative models, trained in full here: one model, one file, one paper."""

from robustgen.generative.base import GenerativeModel
from robustgen.generative.fitting import GenerativeObjective, fit
from robustgen.generative.iaf_vae import IAFVAE
from robustgen.generative.loading import load, model_classes
from robustgen.generative.pixels import Pixels
from robustgen.generative.vae import VAE

__all__ = ["IAFVAE", "VAE", "GenerativeModel", "GenerativeObjective", "Pixels", "fit", "load", "model_classes"]
