"""How badly an autoencoder reconstructs an input.

Sakurada and Yairi, "Anomaly Detection Using Autoencoders with Nonlinear Dimensionality Reduction", 2014, equation 2;
with the mean of a variational autoencoder's decoder at the mean of its posterior: An and Cho, "Variational Autoencoder
Based Anomaly Detection Using Reconstruction Probability", 2015.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from robustgen.detectors.base import Detector

if TYPE_CHECKING:
    from robustgen.generative import GenerativeModel

__all__ = ["AutoencoderReconstruction"]


class AutoencoderReconstruction(Detector):
    """score(x) = mean over pixels of (x - decode(encode(x)))^2. Nothing is learned in ``fit``.

    Args:
        model: with ``reconstruct(x) -> (N, *shape)``, such as a variational autoencoder.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a model without ``reconstruct``.

    >>> import torch
    >>> class Halved(torch.nn.Module):
    ...     def reconstruct(self, x):
    ...         return x / 2
    >>> AutoencoderReconstruction(Halved()).fit(torch.zeros(1, 1, 2, 2)).score(torch.ones(1, 1, 2, 2))
    tensor([0.2500])
    """

    def __init__(self, model: "GenerativeModel", *, batch_size: int = 256) -> None:
        super().__init__(model, batch_size)
        if not callable(getattr(model, "reconstruct", None)):
            name = type(model).__name__
            raise TypeError(f"AutoencoderReconstruction needs an autoencoder, {name} has no reconstruct")

    def _score(self, x: Tensor) -> Tensor:
        return (x - self.model.reconstruct(x)).square().flatten(1).mean(1)
