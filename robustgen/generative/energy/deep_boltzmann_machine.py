"""The deep Boltzmann machine: several layers of hidden units, none of them a sum away.

Salakhutdinov and Hinton, "Deep Boltzmann Machines", AISTATS 2009, section 2 (equations 6 to 9: mean-field for the data,
persistent chains for the model) and section 3 (annealed importance sampling of log Z).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustgen.checks import check_integers
from robustgen.generative.energy.annealed_importance_sampling import Machine, draw
from robustgen.generative.energy.rbm import BoltzmannMachine

__all__ = ["DBM"]


class DBM(BoltzmannMachine):
    """E(v, h1, h2, ...) = -v W1 h1' - h1 W2 h2' - ... less biases; layers of hidden units, each tied to the next.

    What hidden units say of an image is no longer a product: ``mean_field_steps`` rounds find the product q that is
    nearest, and ``log_prob`` is the variational bound E_q[-E] + H(q), which lies KL(q || p(h | v)) below the log of
    what the image adds to Z; without log Z. With an exact log Z :meth:`log_likelihood` is a lower bound. Training
    raises the bound, with samples of persistent chains; layer-wise pretraining, which the paper's larger machines
    need, is left out.

    Args:
        shape: (C, H, W) of images whose values are 0 or 1.
        hidden: units in each layer, from the pixels up; two layers at least.
        mean_field_steps: rounds over the layers; 10 in the paper.
        k, chains, sample_steps, quantization: as in :class:`RBM`.

    Raises:
        ValueError: an argument out of range, or fewer than two layers.

    >>> dbm, x = DBM((1, 4, 4), hidden=[3, 2]).eval(), torch.eye(4).view(1, 1, 4, 4)
    >>> dbm.log_prob(x).shape, dbm.sample(2).unique().tolist()
    (torch.Size([1]), [0.0, 1.0])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        hidden: Sequence[int] = (128, 64),
        mean_field_steps: int = 10,
        k: int = 1,
        chains: int = 100,
        sample_steps: int = 1000,
        quantization: str | None = None,
    ) -> None:
        if not isinstance(hidden, Sequence) or isinstance(hidden, str) or len(hidden) < 2:
            raise ValueError(f"hidden must be the units of two layers or more, such as [128, 64], got {hidden!r}")
        for size in hidden:
            check_integers(hidden=size)
        check_integers(mean_field_steps=mean_field_steps, chains=chains)
        super().__init__(shape, hidden, k, chains, sample_steps, quantization)
        self.hidden, self.chains, self.mean_field_steps = list(hidden), chains, mean_field_steps

    @torch.no_grad()
    def _mean_field(self, machine: Machine, v: Tensor) -> Tensor:
        """Means of the hidden units of the near side for pixels v (N, D); those of the far side follow from them."""
        hidden = v.new_full((len(v), len(machine.near) - v.shape[1]), 0.5)
        for _ in range(self.mean_field_steps):
            far = machine.far_given(torch.cat([v, hidden], 1))
            hidden = machine.near_given(far)[:, v.shape[1] :]
        return hidden

    def _free_energy(self, machine: Machine, v: Tensor) -> Tensor:
        hidden = self._mean_field(machine, v.detach())  # where the bound is highest, so that it passes no gradient on
        entropy = torch.special.entr(hidden) + torch.special.entr(1 - hidden)
        return -machine.log_marginal(torch.cat([v, hidden], 1)) - entropy.sum(1)

    def _near_of(self, v: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        p = self._mean_field(self.machine, v).clamp(1e-6, 1 - 1e-6)
        drawn = draw(p, generator)
        return torch.cat([v, drawn], 1), (drawn * p.log() + (1 - drawn) * (-p).log1p()).sum(1)
