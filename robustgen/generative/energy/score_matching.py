"""Score matching: an energy is fitted through its gradient, in which log Z does not appear.

All three have the minimiser of E |s - grad log p|^2 / 2, s = -grad E. Hyvarinen, "Estimation of Non-Normalized
Statistical Models by Score Matching", JMLR 2005 (integration by parts takes the unknown grad log p out); Song, Garg,
Shi and Ermon, "Sliced Score Matching: A Scalable Approach to Density and Score Estimation", UAI 2019 (a random
direction in place of the trace); Vincent, "A Connection Between Score Matching and Denoising Autoencoders", Neural
Computation 2011, equation 9 (of noisy data, without second derivatives).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from robustgen.generative.flows.transform import jacobian

__all__ = [
    "EXACT_DIMENSIONS",
    "check_exact",
    "denoising_score_matching",
    "implicit_score_matching",
    "sliced_score_matching",
]

EXACT_DIMENSIONS = 64  # each costs a backward pass, and all of their graphs are kept


def check_exact(dimensions: int, instead: str) -> None:
    """ValueError where an exact trace would take more than :data:`EXACT_DIMENSIONS` backward passes.

    Args:
        instead: what to take for it.
    """
    if dimensions > EXACT_DIMENSIONS:
        raise ValueError(f"an exact trace is for {EXACT_DIMENSIONS} dimensions at most, got {dimensions}: {instead}")


def denoising_score_matching(energy: Callable[[Tensor], Tensor], x: Tensor, sigma: float, noise: Tensor) -> Tensor:
    """sigma^2 / 2 E |s(x~) + (x~ - x) / sigma^2|^2 with s = -grad E and x~ = x + sigma noise, noise ~ N(0, I).

    The minimiser is the energy of the smoothed density, that of x~.

    Args:
        energy: E, (N, ...) -> (N,) in nats.
        x, noise: (N, ...).

    >>> denoising_score_matching(lambda x: x.sum(1), torch.zeros(1, 1), 2.0, torch.ones(1, 1)).item()  # (-2 + 1)^2 / 2
    0.5
    """
    score, _ = _score(energy, x + sigma * noise)
    return (noise + sigma * score).square().flatten(1).sum(1).mean() / 2


def implicit_score_matching(energy: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """E[tr ds/dx + |s|^2 / 2] with s = -grad E, the trace by D backward passes: E |s - grad log p|^2 / 2 + a constant.

    Args:
        energy: E, (N, ...) -> (N,) in nats, of each example alone; twice differentiable.
        x: (N, ...), of a density with a gradient: data on a few levels, or on a surface, have no minimiser.

    Raises:
        ValueError: more than :data:`EXACT_DIMENSIONS` dimensions.

    >>> implicit_score_matching(lambda x: x.square().sum(1) / 2, torch.ones(1, 3)).item()  # -3 + 3 / 2
    -1.5
    """
    check_exact(x[0].numel(), "take sliced_score_matching")
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        score, x = _score(energy, x)
        trace = jacobian(score, x, graph).diagonal(dim1=1, dim2=2).sum(1)
        loss = (trace + score.square().flatten(1).sum(1) / 2).mean()
    return loss if graph else loss.detach()


def sliced_score_matching(
    energy: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, *, variance_reduced: bool = False
) -> Tensor:
    """E[v' (ds/dx) v + (v' s)^2 / 2] with s = -grad E and random v: two backward passes, whatever the dimensions.

    Args:
        energy, x: as for :func:`implicit_score_matching`, whose expectation this has.
        v: of the shape of x, of mean zero and covariance I: normal, or signs.
        variance_reduced: |s|^2 / 2 in place of (v' s)^2 / 2, which is its expectation over v (section 3.2 of Song et
            al.).

    >>> x, v = torch.ones(1, 3), torch.tensor([[1.0, 1.0, -1.0]])
    >>> sliced_score_matching(lambda x: x.square().sum(1) / 2, x, v).item()  # -3 + 1 / 2
    -2.5
    >>> sliced_score_matching(lambda x: x.square().sum(1) / 2, x, v, variance_reduced=True).item()
    -1.5
    """
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        score, x = _score(energy, x)
        along = (score * v).flatten(1).sum(1)
        (product,) = torch.autograd.grad(along.sum(), x, create_graph=graph, retain_graph=True)
        size = score.square().flatten(1).sum(1) if variance_reduced else along.square()
        loss = ((product * v).flatten(1).sum(1) + size / 2).mean()
    return loss if graph else loss.detach()


def _score(energy: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """-grad E at x (N, ...), to be differentiated, and the x that it is a function of."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
    return -gradient, x
