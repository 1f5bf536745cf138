"""log Z of a Boltzmann machine: exact where it is small, else between two estimates.

Neal, "Annealed importance sampling", Statistics and Computing, 2001; Salakhutdinov and Murray, "On the Quantitative
Analysis of Deep Belief Networks", ICML 2008, section 3 (the path from a base-rate machine to a restricted Boltzmann
machine, with the hidden units summed out). Burda, Grosse and Salakhutdinov, "Accurate and Conservative Estimates of MRF
Log-likelihood using Reverse Annealing", AISTATS 2015, algorithm 2 (RAISE).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from robustgen.checks import check_integers

__all__ = ["MOST_UNITS", "LogPartition", "Machine", "anneal", "anneal_back", "exact_log_partition", "of_log_weights"]

MOST_UNITS = 16  # on one side of a machine whose states are all summed
_STATES = 4096  # that are summed at once


class LogPartition(NamedTuple):
    """log Z in nats.

    Attributes:
        value: the number, or an estimate.
        standard_error: of an estimate, by the delta method where it is a mean of weights; too small where few of them
            carry the mean. 0 where the value is exact.
        effective_samples: (sum of weights)^2 / sum of their squares. Where it is a handful, believe nothing.
    """

    value: float
    standard_error: float = 0.0
    effective_samples: float = math.inf


def of_log_weights(log_weights: Tensor) -> LogPartition:
    """The logarithm of the mean of n weights, n > 1.

    >>> of_log_weights(torch.zeros(4))
    LogPartition(value=0.0, standard_error=0.0, effective_samples=4.0)
    """
    n = len(log_weights)
    value = log_weights.logsumexp(0) - math.log(n)
    relative = (log_weights - value).exp()
    spread = relative.std() / math.sqrt(n)
    return LogPartition(value.item(), spread.item(), (relative.sum().square() / relative.square().sum()).item())


class Machine(NamedTuple):
    """Binary units on two sides, those of one tied to those of the other alone: E(a, b) = -a W b' - a p' - b r'.

    A restricted Boltzmann machine has the visible units on the near side, a; a deep one every second layer.

    Attributes:
        weight: W (A, B).
        near: p (A,), biases.
        far: r (B,), biases.
    """

    weight: Tensor
    near: Tensor
    far: Tensor

    def double(self) -> "Machine":
        """In float64."""
        return Machine(*(part.double() for part in self))

    def detach(self) -> "Machine":
        """Without graph."""
        return Machine(*(part.detach() for part in self))

    def turned(self) -> "Machine":
        """The same machine with its sides exchanged."""
        return Machine(self.weight.T, self.far, self.near)

    def log_marginal(self, a: Tensor) -> Tensor:
        """log sum_b exp(-E(a, b)) (N,) of a (N, A): minus the free energy.

        >>> Machine(torch.zeros(2, 1), torch.tensor([1.0, 2.0]), torch.zeros(1)).log_marginal(torch.ones(1, 2))
        tensor([3.6931])
        """
        return a @ self.near + softplus(self.far + a @ self.weight).sum(1)

    def far_given(self, a: Tensor) -> Tensor:
        """p(b = 1 | a) (N, B)."""
        return torch.sigmoid(self.far + a @ self.weight)

    def near_given(self, b: Tensor) -> Tensor:
        """p(a = 1 | b) (N, A)."""
        return torch.sigmoid(self.near + b @ self.weight.T)

    @torch.no_grad()
    def gibbs(self, a: Tensor, steps: int, generator: torch.Generator | None = None) -> Tensor:
        """Where chains from a (N, A) are after ``steps`` times b ~ p(b | a), a ~ p(a | b); reversible in a."""
        for _ in range(steps):
            a = draw(self.near_given(draw(self.far_given(a), generator)), generator)
        return a


def draw(p: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Zeros and ones, of which p are the probabilities of a one."""
    return (torch.rand(p.shape, generator=generator, device=p.device, dtype=p.dtype) < p).to(p.dtype)


def exact_log_partition(machine: Machine) -> Tensor:
    """log Z, a scalar in float64, by summing over all states of the smaller side; differentiable.

    Raises:
        ValueError: more than ``MOST_UNITS`` units there.

    >>> round(exact_log_partition(Machine(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2))).exp().item(), 6)
    32.0
    """
    machine = machine.double()
    if len(machine.far) < len(machine.near):
        machine = machine.turned()
    units = len(machine.near)
    if units > MOST_UNITS:
        raise ValueError(
            f"{units} units have 2^{units} states: an exact sum takes {MOST_UNITS} units at most, use method='ais'"
        )
    bits = 2 ** torch.arange(units, device=machine.near.device)
    parts = [
        machine.log_marginal((states[:, None] // bits % 2).double()).logsumexp(0)
        for states in torch.arange(2**units, device=machine.near.device).split(_STATES)
    ]
    return torch.stack(parts).logsumexp(0)


class _Path:
    """Machines from one of independent units (t = 0) to ``machine`` (t = 1): p_t(a) of exp((1 - t) a base' + t ...)."""

    def __init__(self, machine: Machine, base: Tensor, steps: int) -> None:
        check_integers(steps=steps)
        self.machine, self.base, self.steps = machine.double().detach(), base.double(), steps
        self.log_z = (softplus(self.base).sum() + len(self.machine.far) * math.log(2)).item()  # at t = 0

    def rise(self, a: Tensor, k: int) -> Tensor:
        """log p*_t(a) at t = k / steps less that one step before, (N,)."""
        field, (t, before) = self.machine.far + a @ self.machine.weight, (k / self.steps, (k - 1) / self.steps)
        return (t - before) * (a @ (self.machine.near - self.base)) + (
            softplus(t * field) - softplus(before * field)
        ).sum(1)

    def move(self, a: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
        """A step of Gibbs sampling that leaves p_t, t = k / steps, as it is."""
        t, m = k / self.steps, self.machine
        return Machine(t * m.weight, (1 - t) * self.base + t * m.near, t * m.far).gibbs(a, 1, generator)


@torch.no_grad()
def anneal(
    machine: Machine, base: Tensor, *, steps: int, chains: int, generator: torch.Generator | None = None
) -> Tensor:
    """Annealed importance sampling: log weights (chains,) in float64, the mean of whose exponentials tends to Z.

    The mean of the weights is right on average, so that its logarithm falls short of log Z on average.

    Args:
        base: log odds (A,) of the independent units on the near side that every chain starts from.
        steps: from t = 0 to t = 1, evenly.

    >>> flat = Machine(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2))
    >>> anneal(flat, torch.zeros(3), steps=1, chains=2).div(math.log(2)).round()  # at its end from the start
    tensor([5., 5.], dtype=torch.float64)
    """
    path = _Path(machine, base, steps)
    a = draw(path.base.sigmoid().expand(chains, -1), generator)
    log_weights = path.rise(a, 1)
    for k in range(2, steps + 1):
        a = path.move(a, k - 1, generator)
        log_weights += path.rise(a, k)
    return path.log_z + log_weights


@torch.no_grad()
def anneal_back(
    machine: Machine, base: Tensor, a: Tensor, *, steps: int, generator: torch.Generator | None = None
) -> Tensor:
    """The same path from states a (N, A) back to independent units: (N,) in float64.

    log p*(a) less this is the log weight of RAISE: the mean of the weights tends to the probability that annealing
    forwards, which is close to p, ends at a. For a drawn from p the mean of exp(-what is returned) is 1 / Z.
    """
    path = _Path(machine, base, steps)
    a = a.double()
    total = torch.full((len(a),), path.log_z, dtype=torch.float64, device=a.device)
    for k in range(steps, 0, -1):
        a = path.move(a, k, generator)
        total += path.rise(a, k)
    return total
