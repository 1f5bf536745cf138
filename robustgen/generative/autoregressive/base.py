"""What all models share that give a pixel its distribution given the pixels before it, in raster order."""

import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustgen.checks import check_integers, check_labels
from robustgen.generative.base import GenerativeModel
from robustgen.generative.blocks.incremental import Incremental, sample_in_raster_order
from robustgen.generative.blocks.pixel_likelihood import PixelLikelihood
from robustgen.generative.pixels import Pixels, bits_per_dim
from robustgen.training import Batch

__all__ = ["AutoregressiveModel"]


class AutoregressiveModel(GenerativeModel):
    """log p(x) = sum over pixels i of log p(x_i | x_1 ... x_(i-1)), rows from the top, each from the left.

    A subclass is a network in two parts, ``_rows`` and ``_pixels``, both of which can be evaluated whole or piece by
    piece (:mod:`robustgen.generative.blocks.incremental`).

    Args:
        shape: of an image.
        pixels: the levels and how values get there.
        distribution: of a pixel, given its parameters.
        n_classes: of the labels y that the model is conditioned on; None: it knows none.

    Attributes:
        whole_pixels: the network gives all channels of a pixel together; otherwise each given those before it.
    """

    log_prob_kind: ClassVar[str | None] = "exact"
    whole_pixels: ClassVar[bool] = False

    def __init__(
        self,
        shape: tuple[int, ...],
        pixels: Pixels,
        distribution: PixelLikelihood,
        n_classes: int | None = None,
    ) -> None:
        super().__init__(shape)
        if n_classes is not None:
            check_integers(n_classes=n_classes)
        self.pixels, self.levels, self.quantization = pixels, pixels.levels, pixels.quantization
        self.distribution, self.n_classes = distribution, n_classes

    def _rows(self, x: Tensor, y: Tensor | None, now: Incremental | None = None) -> Any:
        """What rows above (and labels y, one-hot (N, n_classes)) say of each pixel; of a row of them at ``now``."""
        return None

    @abstractmethod
    def _pixels(self, x: Tensor, rows: Any, now: Incremental | None = None) -> Tensor:
        """Parameters (N, P, H, W) of each pixel's distribution, or (N, P, 1, 1) of the pixel at ``now``.

        Args:
            x: the image (N, C, H, W), as far as it is known.
            rows: what ``_rows`` returned.
        """

    def logits(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The parameters of each pixel's distribution given the true pixels before it.

        Returns:
            (N, C, levels, H, W), or (N, C, 1, H, W) for two levels: logits; a mixture's parameters are (N, P, H, W).

        Raises:
            TypeError, ValueError: as :meth:`log_prob` does, or labels y (N,) missing, unasked for or out of range.
        """
        x = self.pixels(self.check(x))
        parameters = self._predict(x, self._one_hot(y, x))
        return parameters if self.whole_pixels else parameters.unflatten(1, (self.shape[0], -1))

    def class_log_prob(self, x: Tensor) -> Tensor:
        """log p(x | y) in nats of every class, (N, n_classes).

        Raises:
            TypeError, ValueError: as :meth:`log_prob` does, or the model is not conditioned on classes.
        """
        if self.n_classes is None:
            raise ValueError(f"this {type(self).__name__} knows no classes: make it with n_classes")
        x = self.pixels(self.check(x))
        labels = torch.arange(self.n_classes, device=x.device)[:, None].expand(-1, len(x))
        return torch.stack([self._given(x, self._one_hot(y, x)) for y in labels], 1)

    def _log_prob(self, x: Tensor) -> Tensor:
        """Of a conditional model log p(x) of all classes together, each as likely as the others."""
        if self.n_classes is None:
            return self._given(self.pixels(x), None)
        return self.class_log_prob(x).logsumexp(1) - math.log(self.n_classes)

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The negative log-likelihood, log p(x | y) in a conditional model, in nats an image and in bits a dimension.

        Raises:
            ValueError: values that are not on the levels, or a conditional model without labels in its data.
        """
        x = self.pixels(batch.x, fresh=self.training)
        y = None if self.n_classes is None else self._one_hot(batch.y, x)
        loss = -self._given(x, y).mean()
        return {"loss": loss, "bits_per_dim": bits_per_dim(loss.detach(), self.dimensions)}

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self.sample(n, generator)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        uniforms: Tensor | None = None,
        y: Tensor | None = None,
        cached: bool = True,
    ) -> Tensor:
        """n images (n, *shape) in [0, 1], pixel after pixel, on the model's device. Use it in eval mode.

        Args:
            generator: of the model's device; None: torch's global one. Draws what is not given below.
            uniforms: (n, *shape) in [0, 1): the noise. Pixel values are the inverse of their distribution function at
                it, so that an image is a function of its uniforms and y alone.
            y: labels (n,) of a conditional model; None: each class as likely as the others.
            cached: compute each feature once. Otherwise a full forward a pixel, which gives the same images.

        Raises:
            ValueError: a negative n, uniforms of another shape or outside [0, 1), labels out of range or of an
                unconditional model.
        """
        if n < 0:
            raise ValueError(f"n must not be negative, got {n}")
        if uniforms is None:
            uniforms = torch.rand(n, *self.shape, generator=generator, device=self.device, dtype=self.dtype)
        elif tuple(uniforms.shape) != (n, *self.shape):
            raise ValueError(f"uniforms must have shape {(n, *self.shape)}, got {tuple(uniforms.shape)}")
        elif not bool(((uniforms >= 0) & (uniforms < 1)).all()):
            raise ValueError("uniforms must be in [0, 1), and none NaN")
        if y is None and self.n_classes is not None:
            y = torch.randint(self.n_classes, (n,), generator=generator, device=self.device)
        labels = self._one_hot(y, uniforms)
        return sample_in_raster_order(
            lambda x, now: self._rows(x, labels, now),
            self._pixels,
            self.distribution.sample,
            uniforms.to(self.device, self.dtype),
            1 if self.whole_pixels else self.shape[0],
            cached,
        )

    def _given(self, x: Tensor, y: Tensor | None) -> Tensor:
        """log p(x | y) (N,), in the precision of x also under autocast."""
        return self.distribution.log_prob(x, self._predict(x, y).to(x.dtype))

    def _predict(self, x: Tensor, y: Tensor | None) -> Tensor:
        return self._pixels(x, self._rows(x, y))

    def _one_hot(self, y: Tensor | None, like: Tensor) -> Tensor | None:
        """Labels (N,) as (N, n_classes), in the dtype of ``like`` (N, ...); None where the model knows none."""
        if self.n_classes is None:
            if y is not None:
                raise ValueError(f"this {type(self).__name__} knows no classes: make it with n_classes")
            return None
        if y is None:
            raise ValueError(f"this {type(self).__name__} is conditioned on {self.n_classes} classes: give labels y")
        y = check_labels(y, len(like), self.n_classes)
        return torch.nn.functional.one_hot(y, self.n_classes).to(like)
