"""What all flows of images share: how pixels become real numbers, log p(x), samples, training.

Theis, van den Oord and Bethge, "A note on the evaluation of generative models", ICLR 2016, section 3.1: the density of
x + uniform noise bounds the log probability of discrete x from below. Dinh, Sohl-Dickstein and Bengio, "Density
estimation using Real NVP", ICLR 2017, section 4.1: the flow sees the logit of pixels; of alpha + (1 - 2 alpha) x, whose
ends are alike, in Papamakarios, Pavlakou and Murray, "Masked Autoregressive Flow for Density Estimation", NIPS 2017.
Ho, Chen, Srinivas, Duan and Abbeel, "Flow++: Improving Flow-Based Generative Models with Variational Dequantization and
Architecture Design", ICML 2019, section 3.1: noise that a flow shapes for each image.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.checks import check_numbers
from robustgen.counter_rng import content_ids, normal, uniform
from robustgen.generative.base import GenerativeModel
from robustgen.generative.blocks.gaussian import gaussian_log_prob
from robustgen.generative.flows.coupling import ConvNetwork, MaskedCoupling, checkerboard
from robustgen.generative.flows.transform import Transform, start
from robustgen.generative.pixels import Pixels, bits_per_dim
from robustgen.training import Batch

__all__ = ["DEQUANTIZATIONS", "Flow", "Logit", "VariationalNoise"]

DEQUANTIZATIONS = ("none", "uniform", "variational")
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
        width = 1 - 2 * self.alpha
        least = min(self.alpha, torch.finfo(x.dtype).eps)  # which what comes from far noise may be rounded below
        low = (self.alpha + width * x).clamp(min=least).log()
        high = (self.alpha + width * (1 - x)).clamp(min=least).log()  # 1 - a would lose its digits
        return low - high, (math.log(width) - low - high).flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        return (y.sigmoid() - self.alpha) / (1 - 2 * self.alpha)


class VariationalNoise(nn.Module):
    """q(u | x) of noise u in (0, 1): normal noise through couplings that know x, and through the normal distribution's
    cumulative one, where the paper has a sigmoid; so u is uniform at the start, when the couplings change nothing.

    Args:
        shape: of an image, (channels, height, width).
        couplings: with checkerboards by turns.
        width: features of the networks, and channels of what they are told of x.

    >>> noise = VariationalNoise((1, 4, 4))
    >>> u, log_q = noise(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
    >>> bool((u == 0.5).all()), bool((log_q == 0).all())
    (True, True)
    """

    def __init__(self, shape: tuple[int, int, int], couplings: int = 4, width: int = 16) -> None:
        super().__init__()
        channels, *size = shape
        self.context = nn.Conv2d(channels, width, 3, padding=1)
        self.couplings = nn.ModuleList(
            MaskedCoupling(
                ConvNetwork(channels + width, 2 * channels, (size[0], size[1]), width, blocks=1),
                checkerboard(size[0], size[1], first=i % 2),
            )
            for i in range(couplings)
        )

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """u (N, C, H, W) of standard normal ``eps`` for images x in [0, 1], and log q(u | x) (N,)."""
        context = F.elu(self.context(x - 0.5))
        h, log_q = eps, gaussian_log_prob(eps).flatten(1).sum(1)
        for coupling in self.couplings:
            h, log_det = coupling(h, context)
            log_q = log_q - log_det
        log_q = log_q - gaussian_log_prob(h).flatten(1).sum(1)  # du / dh is the normal density
        return torch.special.ndtr(h), log_q


class Flow(GenerativeModel):
    """A model of images whose every layer can be inverted.

    A subclass is one paper: its constructor puts into ``transform`` what leads from pixels in [0, 1] to standard normal
    noise. The first training step begins with the data-dependent start of its actnorms; scores and samples of a model
    that has not been trained leave them as they were made, and a saved or resumed one keeps them.

    Args:
        shape: of an image.
        levels: the values of a pixel that dequantization spreads; 256 for 8-bit images.
        dequantization: "none": ``log_prob`` is the log density of x itself, per unit of the [0, 1] scale; of images
            with few values it has no upper bound. "uniform": uniform noise fills the gap above each of the ``levels``,
            and ``log_prob`` is a lower bound on the log probability of the discrete image. "variational": noise that a
            small flow learns to shape for each image, along with the model; the bound can be tighter.
        quantization: how values between levels are moved, see :class:`Pixels`; only with dequantization.

    Attributes:
        log_prob_kind: "exact" of the density without dequantization, else "lower_bound".

    Raises:
        ValueError: an unknown dequantization, or quantization without any.
    """

    log_prob_kind: ClassVar[str | None] = "exact"
    dequantizations: ClassVar[tuple[str, ...]] = DEQUANTIZATIONS
    transform: Transform

    def __init__(self, shape: tuple[int, ...], levels: int, dequantization: str, quantization: str | None) -> None:
        super().__init__(shape)
        if dequantization not in self.dequantizations:
            raise ValueError(f"dequantization must be one of {', '.join(self.dequantizations)}, got {dequantization!r}")
        if dequantization == "none" and quantization is not None:
            raise ValueError("without dequantization any values in [0, 1] are taken: leave quantization out")
        self.levels, self.dequantization, self.quantization = levels, dequantization, quantization
        pixels = Pixels(levels, quantization)  # raises where they are none
        self.pixels = None if dequantization == "none" else pixels
        self.noise = VariationalNoise(self.shape) if dequantization == "variational" else None
        if self.pixels is not None:
            self.log_prob_kind = "lower_bound"  # type: ignore[misc]
        self._asks = True  # whether the next training step asks for actnorms that have not begun

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self.shape

    def to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The noise eps (N, *noise_shape) of images x (N, *shape), and log |det d eps/dx| (N,).

        x is taken as it is, without dequantization; raises as :meth:`log_prob` does.
        """
        x = self.check(x).clamp(0, 1)  # what it takes for rounding is no logit's input
        if not len(x):  # torch squeezes no empty batch
            return x.new_zeros(0, *self.noise_shape), x.new_zeros(0)
        eps, log_det = self.transform(x)
        return eps, log_det

    def _from_noise(self, eps: Tensor) -> Tensor:
        """Differentiable; a few may lie a little outside [0, 1]."""
        return self.transform.inverse(eps) if len(eps) else eps.new_zeros(0, *self.shape)

    def reconstruct(self, x: Tensor) -> Tensor:
        """x (N, *shape), to noise and back: what is lost says how exact the inverse is; raises as ``check`` does."""
        return self.from_noise(self.to_noise(x)[0])

    def _density(self, x: Tensor) -> Tensor:
        """log p (N,) of points x, per unit of the [0, 1] scale."""
        eps, log_det = self.transform(x)
        return gaussian_log_prob(eps).flatten(1).sum(1) + log_det

    def _spread(self, x: Tensor, fresh: bool) -> tuple[Tensor, Tensor | float]:
        """Points in [0, 1] of images: with noise that fills the gap above each level, and the noise's log density (N,)
        per unit of the [0, 1] scale."""
        if self.pixels is None:
            return x.clamp(0, 1), 0.0
        v = self.pixels(x, fresh)
        log_q: Tensor | float = self.dimensions * math.log(self.levels)
        if self.noise is None:
            u = torch.rand_like(v) if fresh else uniform(0, content_ids(v), v.shape[1:], (_STREAM,), v.dtype)
        else:
            eps = torch.randn_like(v) if fresh else normal(0, content_ids(v), v.shape[1:], (_STREAM,), v.dtype)
            u, of_unit = self.noise(v, eps)
            log_q = log_q + of_unit
        return (v * (self.levels - 1) + u) / self.levels, log_q

    def _log_prob(self, x: Tensor) -> Tensor:
        points, log_q = self._spread(x, fresh=False)
        return self._density(points) - log_q

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        eps = torch.randn(n, *self.noise_shape, generator=generator, device=self.device, dtype=self.dtype)
        return self.on_levels(self._from_noise(eps))

    def on_levels(self, x: Tensor) -> Tensor:
        """The images (N, *shape) that points x stand for: on the levels that dequantization spreads, else clamped."""
        if self.pixels is None:
            return x.clamp(0, 1)
        return (x * self.levels).floor().clamp(0, self.levels - 1) / (self.levels - 1)

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """-log p(x), with fresh dequantization noise; bits per dimension are logged."""
        points, log_q = self._spread(batch.x, fresh=True)
        if self._asks or step == 0:  # at 0: weights from before the start may have been loaded since
            start(self.transform, points)
            self._asks = False
        return self._losses(self._density(points) - log_q)

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """As in training, with the noise of scores."""
        return self._losses(self._log_prob(batch.x))

    def _losses(self, log_prob: Tensor) -> dict[str, Tensor]:
        loss = -log_prob.mean()
        return {"loss": loss, "bits_per_dim": bits_per_dim(loss.detach(), self.dimensions)}
