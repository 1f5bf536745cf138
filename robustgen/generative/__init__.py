"""Generative models, trained in full here: one model, one file, one paper."""

from robustgen.generative.adversarial.dcgan import DCGAN
from robustgen.generative.adversarial.lsgan import LSGAN
from robustgen.generative.adversarial.wgan_gp import WGANGP
from robustgen.generative.autoregressive.gated_pixelcnn import GatedPixelCNN
from robustgen.generative.autoregressive.pixelcnn import PixelCNN
from robustgen.generative.autoregressive.pixelcnn_plus_plus import PixelCNNPlusPlus
from robustgen.generative.autoregressive.pixelrnn import PixelRNN
from robustgen.generative.base import GenerativeModel
from robustgen.generative.diffusion.denoiser import Denoiser, DenoisingObjective
from robustgen.generative.energy.energy_model import EnergyModel
from robustgen.generative.fitting import GenerativeObjective, fit
from robustgen.generative.flows.glow import Glow
from robustgen.generative.flows.real_nvp import RealNVP
from robustgen.generative.latent.hierarchical_pixel_vae import HierarchicalPixelVAE
from robustgen.generative.latent.iaf_vae import IAFVAE
from robustgen.generative.latent.pixel_vae import PixelVAE
from robustgen.generative.latent.vae import VAE
from robustgen.generative.loading import load, model_classes
from robustgen.generative.pixels import Pixels

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
    "Glow",
    "HierarchicalPixelVAE",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "PixelRNN",
    "PixelVAE",
    "Pixels",
    "RealNVP",
    "fit",
    "load",
    "model_classes",
]
