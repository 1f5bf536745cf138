"""Detectors: score inputs for being off the training manifold, with calibrated false-alarm rates."""

from robustgen.detectors.autoencoder_reconstruction import AutoencoderReconstruction
from robustgen.detectors.base import Detector
from robustgen.detectors.compressed_size import CompressedSize
from robustgen.detectors.density_of_states import DensityOfStates
from robustgen.detectors.density_ratio import DensityRatio
from robustgen.detectors.diffusion_reconstruction import DiffusionReconstruction
from robustgen.detectors.discriminator import Discriminator
from robustgen.detectors.energy import Energy
from robustgen.detectors.feature_likelihood import FeatureLikelihood
from robustgen.detectors.feature_times_image_distance import FeatureTimesImageDistance
from robustgen.detectors.image_distortion import ImageDistortion
from robustgen.detectors.input_complexity import InputComplexity
from robustgen.detectors.k_nearest_features import KNearestFeatures
from robustgen.detectors.latent_density import LatentDensity
from robustgen.detectors.lift_map_detect import LiftMapDetect
from robustgen.detectors.likelihood import Likelihood
from robustgen.detectors.likelihood_ratio import LikelihoodRatio, mutate
from robustgen.detectors.likelihood_regret import LikelihoodRegret
from robustgen.detectors.loading import load
from robustgen.detectors.mahalanobis import Mahalanobis
from robustgen.detectors.max_logit import MaxLogit
from robustgen.detectors.max_softmax import MaxSoftmax
from robustgen.detectors.mean_brightness import MeanBrightness
from robustgen.detectors.model_energy import ModelEnergy
from robustgen.detectors.multiscale_scores import MultiscaleScores
from robustgen.detectors.nearest_diffusion_features import NearestDiffusionFeatures
from robustgen.detectors.nearest_neighbour import NearestNeighbour
from robustgen.detectors.pca_residual import PCAResidual
from robustgen.detectors.reconstruction import ReconstructionError
from robustgen.detectors.sklearn_interface import OutlierEstimator, as_sklearn
from robustgen.detectors.smoothed import SmoothedDetector
from robustgen.detectors.typicality import Typicality
from robustgen.detectors.waic import WAIC

__all__ = [
    "WAIC",
    "AutoencoderReconstruction",
    "CompressedSize",
    "DensityOfStates",
    "DensityRatio",
    "Detector",
    "DiffusionReconstruction",
    "Discriminator",
    "Energy",
    "FeatureLikelihood",
    "FeatureTimesImageDistance",
    "ImageDistortion",
    "InputComplexity",
    "KNearestFeatures",
    "LatentDensity",
    "LiftMapDetect",
    "Likelihood",
    "LikelihoodRatio",
    "LikelihoodRegret",
    "Mahalanobis",
    "MaxLogit",
    "MaxSoftmax",
    "MeanBrightness",
    "ModelEnergy",
    "MultiscaleScores",
    "NearestDiffusionFeatures",
    "NearestNeighbour",
    "OutlierEstimator",
    "PCAResidual",
    "ReconstructionError",
    "SmoothedDetector",
    "Typicality",
    "as_sklearn",
    "load",
    "mutate",
]
