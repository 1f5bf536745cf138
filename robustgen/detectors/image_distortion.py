"""How far an image must be bent to look like one of the training images: no network, nothing trained.

Keysers, Deselaers, Gollan and Ney, "Deformation Models for Image Recognition", IEEE TPAMI 2007: the image distortion
model, in which each pixel is matched with the best one of a small window, compared by the image gradients around it, on
a short list of Euclidean neighbours. Theirs is the sum of the pixels' costs, of one image against the other. Here the
costs are squared first, and both directions count: a stroke that only one of two images has is a small part of it, and
yet makes another sign.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.checks import check_integers, check_numbers
from robustgen.detectors.base import Detector, check_network
from robustgen.detectors.neighbours import nearest_rows

__all__ = ["ImageDistortion", "distortions"]


class ImageDistortion(Detector):
    """score(x) = mean of the ``k`` smallest max(D(x, b), D(b, x)) / |g(x)|^exponent over some training images b.

    D are :func:`distortions` of the images' gradients g; dividing by a power of their norm keeps images of few strokes
    from being near everything (a choice of this library). Images of ``fit`` are kept, and saved with the detector. The
    short list holds the training images nearest to x by Euclidean distance, both blurred and at half resolution.

    Args:
        model: what the images pass through first, to (N, C, H, W).
        window: pixels that a pixel may move, in each direction.
        shortlist: training images that are compared.
        k: how many nearest ones are averaged.
        exponent: of the norm; 0: no division.
        batch_size: inputs scored at once; ``batch_size * shortlist`` pairs of images are in memory.

    Raises:
        TypeError: a generative model.
        ValueError: a number below 1 (window: 0), k above shortlist, or in ``fit`` fewer images than the short list;
            what is no image (N, C, H, W), or one of a single pixel, which has no gradients.

    >>> bars = torch.eye(8).view(8, 1, 8, 1).expand(8, 1, 8, 8).contiguous()  # a horizontal bar at each height
    >>> detector = ImageDistortion(shortlist=2, k=1).fit(bars[2:6])
    >>> near, far = detector.score(torch.cat([bars[6:7], bars.mT[3:4]])).tolist()
    >>> near < 0.05 < far
    True
    """

    def __init__(
        self,
        model: nn.Module = nn.Identity(),
        window: int = 2,
        shortlist: int = 20,
        k: int = 5,
        exponent: float = 0.5,
        *,
        batch_size: int = 8,
    ) -> None:
        super().__init__(model, batch_size)
        check_network(model, "ImageDistortion")
        check_integers(0, window=window)
        check_integers(shortlist=shortlist, k=k)
        check_numbers(exponent=exponent)
        if k > shortlist:
            raise ValueError(f"k must be at most the short list of {shortlist}, got {k}")
        if not math.isfinite(exponent):
            raise ValueError(f"exponent must be finite, got {exponent}")
        self.window, self.shortlist, self.k, self.exponent = window, shortlist, k, exponent

    def _images(self, x: Tensor) -> Tensor:
        images: Tensor = self.model(x)
        if images.ndim != 4 or images.shape[2:].numel() < 2:
            raise ValueError(f"images (N, C, H, W) of several pixels are needed, got shape {tuple(images.shape)}")
        return images

    def _fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
        images = torch.cat([self._images(x) for x, _ in batches])  # (M, C, H, W)
        if len(images) < self.shortlist:
            raise ValueError(f"a short list of {self.shortlist} needs as many images in fit, got {len(images)}")
        return {"images": images, "blurred": _blurred(images)}

    def _score(self, x: Tensor) -> Tensor:
        x = self._images(x)
        with torch.no_grad():
            _, nearest = nearest_rows(_blurred(x), self.statistics["blurred"].to(x), self.shortlist)  # (N, K)
        theirs = _gradients(self.statistics["images"][nearest.cpu()].flatten(0, 1).to(x))  # (N * K, 2C, H, W)
        own = _gradients(x)
        ours = own.repeat_interleave(self.shortlist, dim=0)
        cost = torch.maximum(*distortions(ours, theirs, self.window))
        nearest_cost = cost.view(len(x), -1).topk(self.k, largest=False).values.mean(1)
        return nearest_cost / _norm(own).clamp(min=1e-3) ** self.exponent


def distortions(a: Tensor, b: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """D(a, b) and D(b, a); D(a, b) = (sum over pixels p of a of c(p)^2)^(1/2), c(p) = min over |d| <= window of E_d(p).

    E_d(p) is the squared difference of a and b moved by d, over all channels of the 3x3 pixels around p.

    Args:
        a, b: features (N, C, H, W) of two batches of images, pair by pair; outside of the images they are 0.
        window: largest |d| along each axis.

    Returns:
        Two of (N,), >= 0; the first is 0 where each pixel of a, with the 3x3 around it, is found in b.

    >>> a = torch.zeros(1, 1, 9, 9)
    >>> a[..., 4, 4] = 1
    >>> b = a.roll(2, dims=3)
    >>> distortions(a, b, window=2)
    (tensor([0.]), tensor([0.]))
    >>> distortions(a, b, window=1)[0].item() > 0
    True
    """
    height, width = a.shape[-2:]
    of_a = of_b = a.new_full((len(a), height, width), torch.inf)
    edge = window + 1  # how far outside of one image the other has pixels, or the context of one
    wide_a, wide_b = F.pad(a, (edge + window,) * 4), F.pad(b, (edge,) * 4)
    last = 2 * window
    for i in range(last + 1):
        for j in range(last + 1):
            moved = wide_a[..., i : i + height + 2 * edge, j : j + width + 2 * edge]
            error = _context((moved - wide_b).square().sum(1))  # (N, H + 2 window, W + 2 window); both have use for it
            of_b = torch.minimum(of_b, error[:, window : window + height, window : window + width])
            of_a = torch.minimum(of_a, error[:, last - i : last - i + height, last - j : last - j + width])
    return _norm(of_a), _norm(of_b)


def _context(x: Tensor) -> Tensor:
    """Sums of 3x3 pixels of x (N, H, W), where all of them are in it; far faster than a pooling layer."""
    x = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    return x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]


def _gradients(x: Tensor) -> Tensor:
    """Sobel's horizontal and vertical derivatives, (N, 2C, H, W), of x (N, C, H, W), per pixel."""
    across = x.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    kernels = torch.stack([across, across.T])[:, None].repeat(x.shape[1], 1, 1, 1)
    return F.conv2d(x, kernels, padding=1, groups=x.shape[1])


def _blurred(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.avg_pool2d(x, 3, 1, 1), 2, ceil_mode=True).flatten(1)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)
