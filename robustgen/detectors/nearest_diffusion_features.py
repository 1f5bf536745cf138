"""The distance to the nearest training image in what the network of a diffusion makes of it.

Baranchuk, Voynov, Rubachev, Khrulkov and Babenko, "Label-Efficient Semantic Segmentation with Diffusion Models", ICLR
2022: the states of a diffusion's U-Net tell what is in an image, though no label was seen. Distances between them are
those of Sun, Ming, Zhu and Li, "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022, section 3, here
without their normalisation and of whole maps, not of averages over places.
"""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from robustgen.checks import check_integers, check_positive
from robustgen.detectors.denoising import check_denoiser
from robustgen.detectors.nearest_features import NearestFeatures
from robustgen.layers import find_layer, first_tensor, watching

if TYPE_CHECKING:
    from robustgen.generative import GenerativeModel

__all__ = ["NearestDiffusionFeatures"]


class NearestDiffusionFeatures(NearestFeatures):
    """score(x) = Euclidean distance of h(x) to the k-th nearest h of the examples of ``fit``, >= 0.

    h(x) is the state of one layer as the model is told to take noise ``sigma`` away from x, to which none was added:
    nothing is random. The examples' states are kept, and saved with the detector.

    Args:
        model: with ``denoise(x, sigma)``: a :class:`~robustgen.generative.DDPM`, ``EDM`` or ``Denoiser``.
        sigma: as standard deviation of the noise of pixels in [0, 1]; the model's most where that is less.
        layer: whose output h is, see ``model.named_modules()``; None: the deepest block of the U-Net on its way down.
        k: which neighbour.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a model that does not denoise.
        ValueError: an argument out of range, no such layer, none named for a network that is no U-Net of this library,
            a layer without one state for each image, or in ``fit`` fewer than k examples, or a model that draws as it
            denoises (a ``DDGAN`` with latents).

    >>> import torch
    >>> from robustgen.generative import Denoiser
    >>> model, x = Denoiser((1, 8, 8), width=4).eval(), torch.rand(6, 1, 8, 8)
    >>> detector = NearestDiffusionFeatures(model).fit(x[:4])
    >>> detector.score(x).gt(0).tolist()
    [False, False, False, False, True, True]
    """

    def __init__(
        self,
        model: "GenerativeModel",
        sigma: float = 0.6,
        layer: str | None = None,
        k: int = 1,
        *,
        batch_size: int = 256,
    ) -> None:
        super().__init__(model, batch_size)
        check_denoiser(model, "NearestDiffusionFeatures")
        check_positive(sigma=sigma)
        check_integers(k=k)
        self.sigma, self.layer, self.k = sigma, layer, k
        self._layer = find_layer(model, _deepest(model) if layer is None else layer)

    def _features(self, x: Tensor) -> Tensor:
        """h(x), (N, D)."""
        with watching({self._layer: self.model.get_submodule(self._layer)}) as calls:
            self.model.denoise(x, min(self.sigma, self.model.sigma_max))
        states = [first_tensor(call.output) for call in calls]
        if not states or states[-1] is None or states[-1].shape[:1] != x.shape[:1]:
            raise ValueError(f"layer {self._layer!r} has no state for each image: name another")
        return states[-1].flatten(1)


def _deepest(model: nn.Module) -> str:
    """The name of the last block down of its U-Net."""
    from robustgen.generative.diffusion.unet import UNet

    for name, part in model.named_modules():
        if isinstance(part, UNet):
            return f"{name}.down.{len(part.down) - 1}"
    raise ValueError(f"{type(model).__name__} has no U-Net of this library: name the layer of the features, layer=")
