"""Images as an autoencoder gives them back: on what it has learned of its data, or near to it.

Meng and Chen, "MagNet: a Two-Pronged Defense against Adversarial Examples", CCS 2017 (the reformer).
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from robustgen.fortified.purifiers.base import Purifier
from robustgen.generative import GenerativeModel

__all__ = ["Projection"]


class Projection(Purifier):
    """x -> G(E(x)) of a model that reconstructs: a VAE, a GLF, any autoencoder. It draws nothing.

    Gradients are exact, but where the model quantizes pixels: there they pass straight through.

    Raises:
        TypeError: a model that does not reconstruct images.

    >>> import torch
    >>> from robustgen.generative import GLF
    >>> glf, x = GLF((1, 8, 8), latent_dim=2, architecture="mlp", width=16).eval(), torch.rand(2, 1, 8, 8)
    >>> [project] = Projection(glf).chain(None)
    >>> torch.equal(project(x), glf.reconstruct(x))
    True
    """

    def __init__(self, model: GenerativeModel) -> None:
        super().__init__(model)
        if not hasattr(model, "reconstruct"):
            raise TypeError(f"{type(model).__name__} does not reconstruct images: it has neither codes nor noise")

    def chain(self, depth: None, steps: int | None = None) -> Sequence[Callable[[Tensor], Tensor]]:
        """One function; ValueError for a depth or steps, which it has not."""
        if depth is not None or steps is not None:
            raise ValueError(f"a projection by {type(self.model).__name__} has no depth and no steps: leave them out")
        reconstruct: Callable[[Tensor], Tensor] = self.model.reconstruct
        return [reconstruct]
