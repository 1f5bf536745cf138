"""A classifier made of a diffusion: the class that an image's noise is best predicted with.

Li, Prabhudesai, Duggal, Brown and Pathak, "Your Diffusion Model is Secretly a Zero-Shot Classifier", ICCV 2023
(algorithm 1: the same times and noise for all classes); Chen, Dong, Wang, Yang, Duan, Su and Zhu, "Robust
Classification via a Single Diffusion Model", ICML 2024 (its gradient for attacks; times that are not drawn).
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustgen.checks import check_flags, check_integers, check_seed
from robustgen.counter_rng import normal
from robustgen.generative.diffusion.guidance import ClassConditional

__all__ = ["DiffusionClassifier"]

_STREAM = 67


class DiffusionClassifier(nn.Module):
    """Images x (N, *shape) in [0, 1] -> logits (N, classes): minus the mean of :meth:`ClassConditional.noise_error`.

    Each pass asks the network for ``draws`` * ``classes`` predictions of an image. The times are the middles of as many
    equal parts. The noise is one and the same for all images and passes, by ``seed``, so that logits are a smooth
    function of x without anything random for an attack to average over; or it is ``fresh`` in each pass, by torch's
    global random numbers, for each image its own. Gradients are exact; one draw's activations are kept at a time.

    Args:
        model: class-conditional, a :class:`DDPM` or :class:`EDM` with ``classes``; it is held, not copied.
        draws: times.
        fresh: see above.
        seed: of the noise that is not fresh.

    Raises:
        TypeError: a model that was told no classes.
        ValueError: an argument out of range; in a pass, what the model's ``check`` raises.

    >>> from robustgen.generative import DDPM
    >>> classify = DiffusionClassifier(DDPM((1, 8, 8), classes=3, width=4), draws=2).eval()
    >>> classify(torch.rand(5, 1, 8, 8)).shape
    torch.Size([5, 3])
    """

    def __init__(self, model: ClassConditional, *, draws: int = 32, fresh: bool = False, seed: int = 0) -> None:
        super().__init__()
        if not getattr(model, "classes", 0):
            raise TypeError(f"this {type(model).__name__} was told no classes: train one with classes=...")
        check_integers(draws=draws)
        check_flags(fresh=fresh)
        check_seed(seed)
        self.model, self.draws, self.fresh, self.seed = model, draws, fresh, seed

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.model.check(x), x.new_zeros(len(x), self.model.classes)
        if not len(x):
            return total
        for k in range(self.draws):
            if self.fresh:
                noise = torch.randn_like(x)
            else:
                noise = normal(self.seed, torch.tensor([k], device=x.device), self.model.shape, (_STREAM,), x.dtype)
            position, noise = (k + 0.5) / self.draws, noise.expand_as(x)
            total = total + checkpoint(self._errors, x, noise, position, use_reentrant=False)
        return -total / self.draws

    def _errors(self, x: Tensor, noise: Tensor, position: float) -> Tensor:
        """(N, classes)."""
        classes = self.model.classes
        y = torch.arange(classes, device=x.device).repeat(len(x))
        rows, noises = (part.repeat_interleave(classes, 0) for part in (x, noise))
        return self.model.noise_error(rows, noises, position, y).unflatten(0, (-1, classes))
