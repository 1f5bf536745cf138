"""What all flows of images share: how pixels become real numbers, log p(x), samples, training.

Theis, van den Oord and Bethge, "A note on the evaluation of generative models", ICLR 2016, section 3.1: the density of
x + uniform noise bounds the log probability of discrete x from below. Dinh, Sohl-Dickstein and Bengio, "Density
estimation using Real NVP", ICLR 2017, section 4.1: the flow sees the logit of alpha + (1 - 2 alpha) x.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.checks import check_numbers
from robustgen.counter_rng import content_ids, uniform
from robustgen.generative.base import GenerativeModel
from robustgen.generative.blocks.gaussian import gaussian_log_prob
from robustgen.generative.flows.transform import Transform
from robustgen.generative.pixels import Pixels, bits_per_dim
from robustgen.training import Batch

__all__ = ["DEQUANTIZATIONS", "Flow", "Logit"]

DEQUANTIZATIONS = ("none", "uniform")
_STREAM = 31  # of the noise that dequantizes scored images


class Logit(Transform):
    """log(a / (1 - a)) of a = alpha + (1 - 2 alpha) x: from [0, 1] to the real line.

    Args:
        alpha: in (0, 0.5), keeps 0 and 1 finite.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        check_numbers(alpha=alpha)
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha must lie in (0, 0.5), got {alpha}")
        self.alpha = alpha

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.alpha + (1 - 2 * self.alpha) * x
        slope = math.log(1 - 2 * self.alpha) - a.log() - (1 - a).log()
        return a.log() - (1 - a).log(), slope.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        return (y.sigmoid() - self.alpha) / (1 - 2 * self.alpha)


class Flow(GenerativeModel):
    """A model of images whose every layer can be inverted.

    A subclass is one paper: its constructor puts into ``transform`` what leads from pixels in [0, 1] to standard normal
    noise.

    Args:
        shape: of an image.
        levels: the values of a pixel that dequantization spreads; 256 for 8-bit images.
        dequantization: "none": ``log_prob`` is the log density of x itself, per unit of the [0, 1] scale; of images
            with few values it has no upper bound. "uniform": uniform noise fills the gap above each of the ``levels``,
            and ``log_prob`` is a lower bound on the log probability of the discrete image.
        quantization: how values between levels are moved, see :class:`Pixels`; only with dequantization.

    Attributes:
        log_prob_kind: "exact" of the density without dequantization, else "lower_bound".

    Raises:
        ValueError: an unknown dequantization, or quantization without any.
    """

    log_prob_kind: ClassVar[str | None] = "exact"
    transform: Transform

    def __init__(self, shape: tuple[int, ...], levels: int, dequantization: str, quantization: str | None) -> None:
        super().__init__(shape)
        if dequantization not in DEQUANTIZATIONS:
            raise ValueError(f"dequantization must be one of {', '.join(DEQUANTIZATIONS)}, got {dequantization!r}")
        if dequantization == "none" and quantization is not None:
            raise ValueError("without dequantization any values in [0, 1] are taken: leave quantization out")
        self.levels, self.dequantization, self.quantization = levels, dequantization, quantization
        self.pixels = None if dequantization == "none" else Pixels(levels, quantization)
        if self.pixels is not None:
            self.log_prob_kind = "lower_bound"  # type: ignore[misc]

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the noise of one image."""
        return self.shape

    def to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The noise eps (N, *noise_shape) of images x (N, *shape), and log |det d eps/dx| (N,).

        x is taken as it is, without dequantization; raises as :meth:`log_prob` does.
        """
        eps, log_det = self.transform(self.check(x))
        return eps, log_det

    def from_noise(self, eps: Tensor) -> Tensor:
        """The images (N, *shape) of eps (N, *noise_shape), differentiable; a few may lie a little outside [0, 1]."""
        return self.transform.inverse(eps)

    def _density(self, x: Tensor) -> Tensor:
        """log p (N,) of points x, per unit of the [0, 1] scale."""
        eps, log_det = self.transform(x)
        return gaussian_log_prob(eps).flatten(1).sum(1) + log_det

    def _spread(self, x: Tensor, fresh: bool) -> Tensor:
        """Points in [0, 1) of images on the levels: uniform noise above each level."""
        assert self.pixels is not None
        steps = self.levels - 1
        v = self.pixels(x, fresh)
        u = torch.rand_like(v) if fresh else uniform(0, content_ids(v.detach()), v.shape[1:], (_STREAM,), v.dtype)
        return (v * steps + u) / self.levels

    def _nats(self, x: Tensor, fresh: bool = False) -> Tensor:
        if self.pixels is None:
            return self._density(x)
        return self._density(self._spread(x, fresh)) - self.dimensions * math.log(self.levels)

    def _log_prob(self, x: Tensor) -> Tensor:
        return self._nats(x)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        eps = torch.randn(n, *self.noise_shape, generator=generator, device=self.device, dtype=self.dtype)
        x = self.from_noise(eps)
        if self.pixels is None:
            return x.clamp(0, 1)
        return (x * self.levels).floor().clamp(0, self.levels - 1) / (self.levels - 1)

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """-log p(x), with fresh dequantization noise; bits per dimension are logged."""
        return self._losses(self._nats(batch.x, fresh=True))

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """As in training, with the noise of scores."""
        return self._losses(self._nats(batch.x))

    def _losses(self, log_prob: Tensor) -> dict[str, Tensor]:
        loss = -log_prob.mean()
        return {"loss": loss, "bits_per_dim": bits_per_dim(loss.detach(), self.dimensions)}
