"""The compressed size alone: what an image's complexity says without any model of the data."""

from torch import Tensor, nn

from robustgen.detectors.base import Detector, check_network
from robustgen.detectors.compression import compressed_bits

__all__ = ["CompressedSize"]


class CompressedSize(Detector):
    """score(x) = L(f(x)), bits of the shorter of two lossless compressors: more complex is more anomalous.

    Nothing is learned and no gradient passes. It is the second term of :class:`InputComplexity` with the opposite sign.

    Args:
        model: f, what the images go through first; the identity leaves them as they are.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a generative model.
        ValueError: in ``fit`` and ``score``, other inputs than images (N, C, H, W) in [0, 1].

    >>> import torch
    >>> noise = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> detector = CompressedSize().fit(noise)
    >>> bool(detector.score(noise).min() > detector.score(torch.ones(1, 1, 8, 8)))
    True
    """

    def __init__(self, model: nn.Module = nn.Identity(), *, batch_size: int = 256) -> None:
        super().__init__(model, batch_size)
        check_network(model, "CompressedSize")

    def _score(self, x: Tensor) -> Tensor:
        return compressed_bits(self.model(x))
