"""How far an image must be bent to look like one of the training images: no network, nothing trained.

Keysers, Deselaers, Gollan and Ney, "Deformation Models for Image Recognition", IEEE TPAMI 2007: the image distortion
model, in which each pixel is matched with the best one of a small window, compared by the image gradients around it, on
a short list of Euclidean neighbours. Theirs is the sum of the pixels' costs, of one image against the other. Here the
costs are squared first, and both directions count: a stroke that only one of two images has is a small part of it, and
yet makes another sign.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.detectors.base import Detector, check_network
from robustgen.detectors.neighbours import nearest_rows

__all__ = ["ImageDistortion", "distortion"]

_CONTEXT = 3  # pixels, square, that are compared around each pixel


class ImageDistortion(Detector):
    """score(x) = mean of the ``k`` smallest max(D(x, b), D(b, x)) / |g(x)|^(1/2) over some training images b.

    D is :func:`distortion`, g are the image's gradients; dividing by the root of their norm keeps images of few strokes
    from being near everything (a choice of this library). Images of ``fit`` are kept, and saved with the detector. The
    short list holds the training images nearest to x by Euclidean distance, both blurred and at half resolution.

    Args:
        model: what the images pass through first, to (N, C, H, W).
        window: pixels that a pixel may move, in each direction.
        shortlist: training images that are compared.
        k: how many nearest ones are averaged.
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
        *,
        batch_size: int = 8,
    ) -> None:
        super().__init__(model, batch_size)
        check_network(model, "ImageDistortion")
        if window < 0 or not 1 <= k <= shortlist:
            raise ValueError(f"window >= 0 and 1 <= k <= shortlist are needed, got {window=}, {k=}, {shortlist=}")
        self.window, self.shortlist, self.k = window, shortlist, k

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
        cost = torch.maximum(distortion(ours, theirs, self.window), distortion(theirs, ours, self.window))
        nearest_cost = cost.view(len(x), -1).topk(self.k, largest=False).values.mean(1)
        return nearest_cost / _norm(own).clamp(min=1e-3).sqrt()


def distortion(a: Tensor, b: Tensor, window: int) -> Tensor:
    """(sum over pixels p of a of c(p)^2)^(1/2), with c(p) = min over |d| <= window of |a - b moved by d|^2 around p.

    Args:
        a, b: features (N, C, H, W) of two batches of images, pair by pair; outside of the images they are 0.
        window: largest |d| along each axis.

    Returns:
        (N,), >= 0; 0 where each pixel of a, with the 3x3 around it, is found in b.

    >>> a = torch.zeros(1, 1, 9, 9)
    >>> a[..., 4, 4] = 1
    >>> b = a.roll(2, dims=3)
    >>> distortion(a, b, window=2).item(), distortion(a, b, window=1).item() > 0
    (0.0, True)
    """
    costs = (
        F.avg_pool2d((a - moved).square().sum(1, keepdim=True), _CONTEXT, 1, _CONTEXT // 2)
        for moved in _moved(b, window)
    )
    best = next(costs)
    for cost in costs:
        best = torch.minimum(best, cost)
    return _norm(_CONTEXT**2 * best)


def _moved(b: Tensor, window: int) -> Iterator[Tensor]:
    height, width = b.shape[-2:]
    wide = F.pad(b, (window,) * 4)
    for i in range(2 * window + 1):
        for j in range(2 * window + 1):
            yield wide[..., i : i + height, j : j + width]


def _gradients(x: Tensor) -> Tensor:
    """Sobel's horizontal and vertical derivatives, (N, 2C, H, W), of x (N, C, H, W), per pixel."""
    across = x.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    kernels = torch.stack([across, across.T])[:, None].repeat(x.shape[1], 1, 1, 1)
    return F.conv2d(x, kernels, padding=1, groups=x.shape[1])


def _blurred(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.avg_pool2d(x, 3, 1, 1), 2, ceil_mode=True).flatten(1)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)
