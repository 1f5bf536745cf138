"""The image of a generator that is nearest to an image, as descent on its noise finds it.

Samangouei, Kabkab and Chellappa, "Defense-GAN: Protecting Classifiers Against Adversarial Attacks Using Generative
Models", ICLR 2018, algorithm 1; its attack: Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of
Security", ICML 2018, section 5.4.2 (the identity in the place of its gradient).
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from robustgen.checks import check_integers, check_positive
from robustgen.fortified.purifiers.base import Purifier, chain_length, gradient_of
from robustgen.generative import GenerativeModel

__all__ = ["DefenseGAN"]

_State: TypeAlias = tuple[Tensor, Tensor, Tensor]  # the images, noise (N, R, ...) and its velocity
_MOMENTUM = 0.7  # of the public code


class DefenseGAN(Purifier):
    """G(z*), z* = argmin over z of the mean squared error of G(z) and x, by ``depth`` steps from random z.

    Of several starts the one that ends nearest counts. Any model with ``from_noise`` is a generator here.

    Args:
        model: with noise, of which it makes images.
        restarts: R.
        step_size: of the descent with momentum 0.7.
        gradient: what attacks get: "identity", with which the published defence fell, or "unrolled", exact and as many
            times as dear as there are steps.

    Raises:
        TypeError: a model that makes no images of normal noise alone.
        ValueError: an unknown gradient, or a number out of range.

    >>> from robustgen.generative import GLF
    >>> glf = GLF((1, 8, 8), latent_dim=2, architecture="mlp", width=16).eval()
    >>> x, chain = torch.rand(3, 1, 8, 8), DefenseGAN(glf, restarts=2).chain(depth=5)
    >>> for function in chain:
    ...     x = function(x)
    >>> len(chain), x.shape
    (7, torch.Size([3, 1, 8, 8]))
    """

    def __init__(
        self, model: GenerativeModel, restarts: int = 10, step_size: float = 10.0, gradient: str = "identity"
    ) -> None:
        super().__init__(model)
        if model.noise_shape is None:
            raise TypeError(f"{type(model).__name__} makes no images of normal noise alone: there is none to look for")
        check_integers(restarts=restarts)
        check_positive(step_size=step_size)
        if gradient not in ("identity", "unrolled"):
            raise ValueError(f"gradient must be 'identity' or 'unrolled', got {gradient!r}")
        self.restarts, self.step_size, self.exact = restarts, step_size, gradient == "unrolled"
        self.config = {"restarts": restarts, "step_size": step_size, "gradient": gradient}

    def chain(self, depth: int, steps: int | None = None) -> Sequence[Callable[..., _State | Tensor]]:
        """A start, ``steps`` of at most ``depth`` steps of descent, and the choice."""
        steps = chain_length(depth, steps)
        return [self._start, *[self._step] * steps, self._nearest]

    def _start(self, x: Tensor) -> _State:
        z = torch.randn(len(x), self.restarts, *(self.model.noise_shape or ()), dtype=x.dtype, device=x.device)
        return x, z, torch.zeros_like(z)

    def _step(self, state: _State) -> _State:
        x, z, velocity = state
        velocity = _MOMENTUM * velocity - self.step_size * gradient_of(lambda z: self._errors(x, z)[1].sum(1), z)
        return x, z + velocity, velocity

    def _nearest(self, state: _State) -> Tensor:
        images, errors = self._errors(*state[:2])
        return images[torch.arange(len(images), device=images.device), errors.argmin(1)]

    def _errors(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The images (N, R, ...) of z and their mean squared errors (N, R)."""
        images = self.model.from_noise(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        return images, (images - x[:, None]).square().flatten(2).mean(2)
