"""Fortified networks: denoising autoencoders in the hidden layers of an existing network."""

from robustgen.fortified.autoencoder import ConvAutoencoder, DenseAutoencoder
from robustgen.fortified.network import FortifiedNetwork, fortify
from robustgen.fortified.objective import FortifiedObjective

__all__ = ["ConvAutoencoder", "DenseAutoencoder", "FortifiedNetwork", "FortifiedObjective", "fortify"]
