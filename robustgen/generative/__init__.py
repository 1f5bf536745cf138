"""Generative models, trained in full here: one model, one file, one paper."""

from robustgen.generative.base import GenerativeModel
from robustgen.generative.dcgan import DCGAN
from robustgen.generative.diffusion.denoiser import Denoiser, DenoisingObjective
from robustgen.generative.energy import EnergyModel
from robustgen.generative.fitting import GenerativeObjective, fit
from robustgen.generative.gated_pixelcnn import GatedPixelCNN
from robustgen.generative.hierarchical_pixel_vae import HierarchicalPixelVAE
from robustgen.generative.iaf_vae import IAFVAE
from robustgen.generative.loading import load, model_classes
from robustgen.generative.lsgan import LSGAN
from robustgen.generative.pixel_vae import PixelVAE
from robustgen.generative.pixelcnn import PixelCNN
from robustgen.generative.pixelcnn_plus_plus import PixelCNNPlusPlus
from robustgen.generative.pixelrnn import PixelRNN
from robustgen.generative.pixels import Pixels
from robustgen.generative.vae import VAE
from robustgen.generative.wgan_gp import WGANGP

__all__ = [
    "DCGAN",
    "IAFVAE",
    "LSGAN",
    "VAE",
    "WGANGP",
    "Denoiser",
    "DenoisingObjective",
    "EnergyModel",
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
