"""Fortified networks: denoising autoencoders in the hidden layers of an existing network."""

from robustgen.fortified.autoencoder import ConvAutoencoder, DenseAutoencoder
from robustgen.fortified.hidden_matching import HiddenMatchingNetwork, HiddenMatchingObjective
from robustgen.fortified.input_encoding import InputEncoding
from robustgen.fortified.language_model import LanguageModelObjective
from robustgen.fortified.monitor import SequenceMonitor
from robustgen.fortified.network import FortifiedNetwork, fortify
from robustgen.fortified.objective import FortifiedObjective
from robustgen.fortified.recurrent import free_run, step_errors
from robustgen.fortified.smoothing import Certificate, SmoothedClassifier, smooth

__all__ = [
    "Certificate",
    "ConvAutoencoder",
    "DenseAutoencoder",
    "FortifiedNetwork",
    "FortifiedObjective",
    "HiddenMatchingNetwork",
    "HiddenMatchingObjective",
    "InputEncoding",
    "LanguageModelObjective",
    "SequenceMonitor",
    "SmoothedClassifier",
    "fortify",
    "free_run",
    "smooth",
    "step_errors",
]
