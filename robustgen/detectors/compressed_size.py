"""The compressed size alone: what an image's complexity says without any model of the data."""

import io
import zlib

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from robustgen.checks import ROUNDING, check_images
from robustgen.detectors.base import Detector, check_network

__all__ = ["CompressedSize", "compressed_bits"]


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


def compressed_bits(x: Tensor) -> Tensor:
    """Bits (N,), of x's dtype and device, of the shorter of PNG and zlib for each image at 8 bits a value.

    PNG predicts pixels from their neighbours and wins on photographs; zlib, which has hardly a header, wins on small
    drawings. Constant: no gradient passes.

    Args:
        x: images (N, C, H, W) in [0, 1]; other numbers of channels than 1 and 3 are laid below one another for PNG.

    Raises:
        TypeError, ValueError: not such images.

    >>> flat, noise = torch.zeros(1, 1, 8, 8), torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> bool(compressed_bits(flat) < compressed_bits(noise))
    True
    """
    if check_images(x, (0.0, 1.0), rounding=ROUNDING).ndim != 4:
        raise ValueError(f"compressed sizes are of images (N, C, H, W), got shape {tuple(x.shape)}")
    pixels = (x.detach() * 255).round().to(torch.uint8).cpu().numpy()
    return torch.tensor([8.0 * _shortest(image) for image in pixels], dtype=x.dtype, device=x.device)


def _shortest(image: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> int:
    """Bytes for one image (C, H, W)."""
    drawn = np.ascontiguousarray(image.transpose(1, 2, 0)) if len(image) == 3 else image.reshape(-1, image.shape[2])
    png = io.BytesIO()
    Image.fromarray(drawn).save(png, "PNG", compress_level=9)
    return min(png.tell(), len(zlib.compress(image.tobytes(), 9)))
