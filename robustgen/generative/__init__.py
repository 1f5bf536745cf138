"""Generative models, trained in full here: one model, one file, one paper."""

from robustgen.generative.base import GenerativeModel
from robustgen.generative.fitting import GenerativeObjective, fit
from robustgen.generative.gated_pixelcnn import GatedPixelCNN
from robustgen.generative.hierarchical_pixel_vae import HierarchicalPixelVAE
from robustgen.generative.iaf_vae import IAFVAE
from robustgen.generative.loading import load, model_classes
from robustgen.generative.pixel_vae import PixelVAE
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
    "HierarchicalPixelVAE",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "PixelRNN",
    "PixelVAE",
    "Pixels",
    "fit",
    "load",
    "model_classes",
]
