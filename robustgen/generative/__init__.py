"""Generative models, trained in full here: one model, one file, one paper."""

from robustgen.generative.base import GenerativeModel
from robustgen.generative.fitting import GenerativeObjective, fit
from robustgen.generative.gated_pixelcnn import GatedPixelCNN
from robustgen.generative.iaf_vae import IAFVAE
from robustgen.generative.loading import load, model_classes
from robustgen.generative.pixelcnn import PixelCNN
from robustgen.generative.pixelcnn_plus_plus import PixelCNNPlusPlus
from robustgen.generative.pixelrnn import PixelRNN
from robustgen.generative.pixels import Pixels
from robustgen.generative.vae import VAE

__all__ = [
    "IAFVAE",
    "VAE",
    "GatedPixelCNN",
    "GenerativeModel",
    "GenerativeObjective",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "PixelRNN",
    "Pixels",
    "fit",
    "load",
    "model_classes",
]
