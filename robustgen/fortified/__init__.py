"""What wraps an existing network: denoising autoencoders in its layers, smoothing, purification."""

from robustgen.fortified.autoencoder import ConvAutoencoder, DenseAutoencoder
from robustgen.fortified.hidden_matching import HiddenMatchingNetwork, HiddenMatchingObjective
from robustgen.fortified.input_encoding import InputEncoding
from robustgen.fortified.language_model import LanguageModelObjective
from robustgen.fortified.monitor import SequenceMonitor
from robustgen.fortified.network import FortifiedNetwork, fortify
from robustgen.fortified.objective import FortifiedObjective
from robustgen.fortified.purifiers import DeepImagePrior, DefenseGAN, LangevinChain, Projection, Purifier
from robustgen.fortified.purify import Purified, purify
from robustgen.fortified.recurrent import free_run, step_errors
from robustgen.fortified.smoothing import Certificate, SmoothedClassifier, smooth

__all__ = [
    "Certificate",
    "ConvAutoencoder",
    "DeepImagePrior",
    "DefenseGAN",
    "DenseAutoencoder",
    "FortifiedNetwork",
    "FortifiedObjective",
    "HiddenMatchingNetwork",
    "HiddenMatchingObjective",
    "InputEncoding",
    "LangevinChain",
    "LanguageModelObjective",
    "Projection",
    "Purified",
    "Purifier",
    "SequenceMonitor",
    "SmoothedClassifier",
    "fortify",
    "free_run",
    "purify",
    "smooth",
    "step_errors",
]
