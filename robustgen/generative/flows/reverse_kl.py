"""Training a density on an energy instead of on data.

Rezende and Mohamed, "Variational Inference with Normalizing Flows", ICML 2015, equation 15.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from robustgen.checks import check_integers
from robustgen.generative.blocks.gaussian import gaussian_log_prob
from robustgen.generative.flows.transform import Density

__all__ = ["reverse_kl"]


def reverse_kl(
    density: Density, energy: Callable[[Tensor], Tensor], n: int, generator: torch.Generator | None = None
) -> Tensor:
    """An estimate of E[energy(z) + log p(z)] over z ~ p, a scalar to minimise: KL(p || exp(-energy) / Z) - log Z.

    p seeks one mode where it cannot have all: what it leaves out costs it nothing. For steps that are fast from noise
    to data, as :class:`~robustgen.generative.flows.maf.InverseAutoregressive`.

    Args:
        density: p; its parameters are what is trained.
        energy: (N, D) -> (N,), in nats and differentiable.
        n: draws of z.
        generator: of the density's device; None: torch's global one.

    Raises:
        ValueError: n below 1, or an energy that does not give a number for each z.

    >>> from robustgen.generative.flows.transform import Chain
    >>> value = reverse_kl(Density(Chain(), dim=2), lambda z: z.square().sum(1) / 2, n=8)
    >>> round(float(value), 4)  # p is N(0, I) already: -log Z = -log(2 pi)
    -1.8379
    """
    check_integers(n=n)
    like = next(density.parameters(), torch.zeros(()))
    eps = torch.randn(n, density.dim, generator=generator, device=like.device, dtype=like.dtype)
    z, log_det = density.transform.inverse_and_log_det(eps)
    values = energy(z)
    if not isinstance(values, Tensor) or values.shape != (n,):
        got = tuple(values.shape) if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise ValueError(f"the energy of {n} points must have shape ({n},), got {got}")
    return (values + gaussian_log_prob(eps).sum(1) + log_det).mean()
