"""Generative models, trained in full here: one model, one file, one paper."""

from robustgen.generative.base import GenerativeModel
from robustgen.generative.dcgan import DCGAN
from robustgen.generative.energy import EnergyModel
from robustgen.generative.fitting import GenerativeObjective, fit
from robustgen.generative.iaf_vae import IAFVAE
from robustgen.generative.loading import load, model_classes
from robustgen.generative.lsgan import LSGAN
from robustgen.generative.pixels import Pixels
from robustgen.generative.vae import VAE
from robustgen.generative.wgan_gp import WGANGP

__all__ = [
    "DCGAN",
    "IAFVAE",
    "LSGAN",
    "VAE",
    "WGANGP",
    "EnergyModel",
    "GenerativeModel",
    "GenerativeObjective",
    "Pixels",
    "fit",
    "load",
    "model_classes",
]
