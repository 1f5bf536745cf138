"""Invertible maps, and the density that a chain of them gives.

Rezende and Mohamed, "Variational Inference with Normalizing Flows", ICML 2015, equations 5 to 7: log p(x) is the log
density of the noise and the log determinants, summed.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from robustgen.counter_rng import content_ids, integers
from robustgen.generative.blocks.gaussian import gaussian_log_prob

__all__ = ["Chain", "Density", "Estimated", "KeyedChain", "Transform", "jacobian"]

_STREAM = 37  # of the random signs that estimate log determinants


class Transform(nn.Module, ABC):
    """An invertible map of x (N, ...), in the direction from data to noise; each row alone."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y, which may have another shape, and log |det dy/dx| (N,)."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        """The x of ``y``."""

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The x of ``y``, and log |det dy/dx| (N,) there; overridden where the two share work."""
        x = self.inverse(y)
        return x, self(x)[1]


class Chain(Transform):
    """Several transforms, one after another.

    >>> import torch
    >>> chain = Chain()
    >>> y, log_det = chain(torch.ones(2, 3))
    >>> log_det.tolist(), bool((chain.inverse(y) == 1).all())
    ([0.0, 0.0], True)
    """

    def __init__(self, *transforms: Transform) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for transform in self.transforms:
            x, log_det = transform(x)
            total = total + log_det
        return x, total

    def inverse(self, y: Tensor) -> Tensor:
        for transform in reversed(self.transforms):
            y = transform.inverse(y)
        return y

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        total = y.new_zeros(len(y))
        for transform in reversed(self.transforms):
            y, log_det = transform.inverse_and_log_det(y)
            total = total + log_det
        return y, total


class Density(nn.Module):
    """log p(z) of vectors z (N, D) anywhere in R^D: standard normal noise behind ``transform``.

    What latent flows and densities of hidden states are made of; images in [0, 1] have
    :class:`~robustgen.generative.flows.base.Flow`.

    Args:
        transform: a :class:`Transform` of vectors.
        dim: D.

    >>> import torch
    >>> density = Density(Chain(), dim=2)
    >>> round(float(density.log_prob(torch.zeros(1, 2))), 4)  # -log(2 pi)
    -1.8379
    """

    def __init__(self, transform: Transform, dim: int) -> None:
        super().__init__()
        self.transform, self.dim = transform, dim

    def to_noise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The noise eps (N, D) of z (N, D), and log |det d eps/dz| (N,)."""
        eps, log_det = self.transform(z)
        return eps, log_det

    def from_noise(self, eps: Tensor) -> Tensor:
        """The z (N, D) of eps (N, D)."""
        return self.transform.inverse(eps)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) (N,) in nats."""
        eps, log_det = self.to_noise(z)
        return gaussian_log_prob(eps).sum(1) + log_det


class Estimated(Transform):
    """A transform whose log determinant is estimated with random vectors: its expected value is right, in a stated sense.

    In training the vectors are fresh, from torch's global generator. In eval mode they are a function of the input
    alone, through ``ids``, so that its score depends neither on its batch nor on the call.
    """

    @abstractmethod
    def forward(self, x: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As of any transform; in eval mode ``ids`` (N,) are those of the inputs, by default x at a step of 1/255."""

    def signs(self, x: Tensor, ids: Tensor | None, count: int) -> Tensor:
        """``count`` vectors for each x (N, ...) of 1 and -1 at random, (count, N, ...)."""
        if self.training:
            bits = torch.randint(0, 2, (count, *x.shape), device=x.device)
        else:
            ids = content_ids(x) if ids is None else ids
            bits = integers(0, ids, (count, *x.shape[1:]), 2, (_STREAM,)).transpose(0, 1)
        return 2 * bits.to(x.dtype) - 1


class KeyedChain(Chain):
    """A :class:`Chain` in which random vectors of :class:`Estimated` parts are keyed by what goes into the first one.

    What later parts see differs in its last digits from batch to batch, and keys made of it would differ altogether.

    Args:
        levels: of images in [0, 1], to which they are rounded down for the key: dequantized or not, it is the image's.
            None: vectors, at a step of 1/255.
    """

    def __init__(self, *transforms: Transform, levels: int | None = None) -> None:
        super().__init__(*transforms)
        self.levels = levels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ids, total = self._ids(x), x.new_zeros(len(x))
        for i, transform in enumerate(self.transforms):
            if isinstance(transform, Estimated):
                x, log_det = transform(x, (2 * i + 1) * ids)  # other vectors for each part
            else:
                x, log_det = transform(x)
            total = total + log_det
        return x, total

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return Transform.inverse_and_log_det(self, y)  # the key is known at the end alone

    def _ids(self, x: Tensor) -> Tensor:
        if self.levels is None:
            return content_ids(x)
        steps = self.levels - 1
        return content_ids((x.detach() * self.levels).floor().clamp(0, steps) / steps)


def jacobian(y: Tensor, x: Tensor, graph: bool) -> Tensor:
    """dy/dx (N, D, D) of y (N, ...), a function of x (N, ...) row by row; D backward passes.

    Args:
        graph: whether it is to be differentiated itself.
    """
    numbers = y.flatten(1).unbind(1)
    rows = [torch.autograd.grad(v.sum(), x, retain_graph=True, create_graph=graph)[0].flatten(1) for v in numbers]
    return torch.stack(rows, 1)
