"""Generative models, trained in full here: one model, one file, one paper."""

from robustgen.generative.adversarial.dcgan import DCGAN
from robustgen.generative.adversarial.lsgan import LSGAN
from robustgen.generative.adversarial.wgan_gp import WGANGP
from robustgen.generative.autoregressive.gated_pixelcnn import GatedPixelCNN
from robustgen.generative.autoregressive.pixelcnn import PixelCNN
from robustgen.generative.autoregressive.pixelcnn_plus_plus import PixelCNNPlusPlus
from robustgen.generative.autoregressive.pixelrnn import PixelRNN
from robustgen.generative.base import GenerativeModel
from robustgen.generative.diffusion.ddgan import DDGAN
from robustgen.generative.diffusion.ddpm import DDPM
from robustgen.generative.diffusion.denoiser import Denoiser, DenoisingObjective
from robustgen.generative.diffusion.diffusion_classifier import DiffusionClassifier
from robustgen.generative.diffusion.edm import EDM
from robustgen.generative.diffusion.score_sde import ScoreSDE
from robustgen.generative.energy.deep_boltzmann_machine import DBM
from robustgen.generative.energy.energy_model import EnergyModel
from robustgen.generative.energy.equilibrium_matching import EquilibriumMatching
from robustgen.generative.energy.gaussian_mixture import GaussianMixture
from robustgen.generative.energy.jem import JEM
from robustgen.generative.energy.noise_contrastive import NCE
from robustgen.generative.energy.noise_free import NoiseFreeEBM
from robustgen.generative.energy.product_of_experts import ProductOfExperts
from robustgen.generative.energy.rbm import RBM
from robustgen.generative.energy.tilted import Tilted
from robustgen.generative.fitting import GenerativeObjective, fit
from robustgen.generative.flows.continuous import ContinuousFlow
from robustgen.generative.flows.glow import Glow
from robustgen.generative.flows.maf import MAF
from robustgen.generative.flows.real_nvp import RealNVP
from robustgen.generative.flows.residual import ResidualFlow
from robustgen.generative.flows.reverse_kl import reverse_kl
from robustgen.generative.latent.flow_vae import FlowPosteriorVAE, FlowPriorVAE
from robustgen.generative.latent.glf import GLF
from robustgen.generative.latent.hierarchical_pixel_vae import HierarchicalPixelVAE
from robustgen.generative.latent.iaf_vae import IAFVAE
from robustgen.generative.latent.latent_flow import LatentFlow, fit_latent_flow
from robustgen.generative.latent.ncp_vae import NCPVAE
from robustgen.generative.latent.pixel_vae import PixelVAE
from robustgen.generative.latent.prior_hole import prior_hole
from robustgen.generative.latent.rae import RAE
from robustgen.generative.latent.top_down_vae import TopDownVAE
from robustgen.generative.latent.two_stage_vae import TwoStageVAE
from robustgen.generative.latent.vae import VAE
from robustgen.generative.latent.vamp_prior_vae import VampPriorVAE
from robustgen.generative.latent.wae import WAE
from robustgen.generative.loading import load, model_classes
from robustgen.generative.pixels import Pixels

__all__ = [
    "DBM",
    "DCGAN",
    "DDGAN",
    "DDPM",
    "EDM",
    "GLF",
    "IAFVAE",
    "JEM",
    "LSGAN",
    "MAF",
    "NCE",
    "NCPVAE",
    "RAE",
    "RBM",
    "VAE",
    "WAE",
    "WGANGP",
    "ContinuousFlow",
    "Denoiser",
    "DenoisingObjective",
    "DiffusionClassifier",
    "EnergyModel",
    "EquilibriumMatching",
    "FlowPosteriorVAE",
    "FlowPriorVAE",
    "GatedPixelCNN",
    "GaussianMixture",
    "GenerativeModel",
    "GenerativeObjective",
    "Glow",
    "HierarchicalPixelVAE",
    "LatentFlow",
    "NoiseFreeEBM",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "PixelRNN",
    "PixelVAE",
    "Pixels",
    "ProductOfExperts",
    "RealNVP",
    "ResidualFlow",
    "ScoreSDE",
    "Tilted",
    "TopDownVAE",
    "TwoStageVAE",
    "VampPriorVAE",
    "fit",
    "fit_latent_flow",
    "load",
    "model_classes",
    "prior_hole",
    "reverse_kl",
]
