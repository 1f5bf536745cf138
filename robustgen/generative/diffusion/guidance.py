"""Diffusion models that are told classes, and samples that are led to them.

Ho and Salimans, "Classifier-Free Diffusion Guidance", 2021, algorithms 1 (labels that are withheld at times, so that
one network knows images with and without a class) and 2 (samples beyond what the class alone says).
"""

from abc import abstractmethod

import torch
from torch import Tensor

from robustgen.checks import check_integers, check_labels, check_numbers
from robustgen.generative.base import GenerativeModel
from robustgen.generative.diffusion.unet import UNet
from robustgen.training import Batch

__all__ = ["ClassConditional"]


class ClassConditional(GenerativeModel):
    """A model whose U-Net ``network`` is told labels 0 ... ``classes`` - 1, or that there is none.

    Attributes:
        classes: how many; 0: it is told nothing.
        label_dropout: how often a label is withheld in training.
        guidance: samples of a class follow f(none) + guidance (f(class) - f(none)); 1: f(class) alone.
    """

    network: UNet

    def _set_classes(self, classes: int, label_dropout: float, guidance: float) -> None:
        check_integers(0, classes=classes)
        check_numbers(label_dropout=label_dropout, guidance=guidance)
        if not 0 < label_dropout < 1:
            raise ValueError(f"label_dropout must be in (0, 1), got {label_dropout}")
        if not 0 <= guidance < float("inf"):
            raise ValueError(f"guidance must be a finite number >= 0, got {guidance}")
        if guidance != 1 and not classes:
            raise ValueError(f"guidance={guidance:g} leads to a class: this {type(self).__name__} has none, classes=0")
        self.classes, self.label_dropout, self.guidance = classes, label_dropout, guidance

    def _ask(self, u: Tensor, noise: Tensor, y: Tensor | None = None, guidance: float = 1.0) -> Tensor:
        """What the network says of images (N, C, ...), how noisy they are (N,) and of what class (N,), if it is known.

        Guidance leads the first C channels.
        """
        if not self.classes:
            return self.network(u, noise)
        unknown = torch.full((len(u),), self.classes, device=u.device)
        if y is None or guidance == 1:
            return self.network(u, noise, unknown if y is None else y)
        both = self.network(u.repeat(2, 1, 1, 1), noise.repeat(2), torch.cat([y, unknown]))
        (of_class, rest), (of_none, _) = (part.tensor_split([u.shape[1]], 1) for part in both.chunk(2))
        return torch.cat([of_none + guidance * (of_class - of_none), rest], 1)

    def _labels(self, batch: Batch) -> Tensor | None:
        """Labels (N,) to train on, some of them withheld; None: a model that is told nothing."""
        if not self.classes:
            return None
        if batch.y is None:
            kind = type(self).__name__
            raise ValueError(f"a {kind} of classes={self.classes} learns from labelled images: these have no labels")
        y = check_labels(batch.y, len(batch.x), self.classes, f"y, for classes={self.classes},")
        withheld = torch.rand(len(y), device=y.device) < self.label_dropout
        return torch.where(withheld, torch.full_like(y, self.classes), y)

    @abstractmethod
    def noise_error(self, x: Tensor, noise: Tensor, position: float, y: Tensor | None = None) -> Tensor:
        """How badly it tells the ``noise`` (N, *shape) that images x (N, *shape) in [0, 1] are given; y: their classes.

        (N,), the squared error summed over pixels, with the weight that it has in training. Differentiable.

        Args:
            position: in (0, 1), where among the levels of noise in training; 0: the least.
        """

    @abstractmethod
    def _sample_of(self, n: int, y: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """n images in [0, 1], of classes y (N,) if they are given."""

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        y = torch.randint(self.classes, (n,), generator=generator, device=self.device) if self.classes else None
        return self._sample_of(n, y, generator)

    @torch.no_grad()
    def sample_classes(self, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """An image of each class y (N,), int64: (N, *shape), as ``sample`` draws them.

        Raises:
            TypeError: a model that was told no classes, or no such tensor.
            ValueError: labels that are no classes of it.
        """
        if not self.classes:
            raise TypeError(f"this {type(self).__name__} was told no classes: train one with classes=...")
        y = check_labels(y, len(y), self.classes).to(self.device)
        return self._sample_of(len(y), y, generator) if len(y) else self.sample(0)
