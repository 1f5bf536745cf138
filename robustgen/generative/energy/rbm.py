"""Boltzmann machines of binary images, and the restricted one.

Smolensky, "Information processing in dynamical systems: foundations of harmony theory", 1986; Hinton, "Training
Products of Experts by Minimizing Contrastive Divergence", Neural Computation, 2002, equation 5 (CD); Tieleman,
"Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient", ICML 2008 (PCD). Starting
weights as in Hinton, "A Practical Guide to Training Restricted Boltzmann Machines", 2010, section 8.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from robustgen.checks import check_integers, nearest
from robustgen.generative.base import GenerativeModel
from robustgen.generative.energy.annealed_importance_sampling import (
    LogPartition,
    Machine,
    anneal,
    anneal_back,
    draw,
    exact_log_partition,
    of_log_weights,
)
from robustgen.generative.pixels import Pixels
from robustgen.training import Batch, Source

__all__ = ["RBM", "BoltzmannMachine"]

_PARTITIONS = ("exact", "ais", "raise")
_IMAGES = 10_000  # whose mean says how often a pixel is on


class BoltzmannMachine(GenerativeModel):
    """Binary units in layers, the pixels first, those of a layer tied to those of the next; p ~ exp(-E).

    What is shared: every second layer, beginning with the pixels, is one side of a :class:`Machine`, the others are the
    other side, so that Gibbs sampling goes from side to side whatever the number of layers.

    Args:
        shape: (C, H, W), whose values are the units of the first layer.
        sizes: of the layers of hidden units.
        k: steps of Gibbs sampling of each chain in a training step.
        chains: persistent ones, kept in the buffer ``near`` of the module; 0: none.
        sample_steps: of Gibbs sampling to a sample, from independent pixels.
        quantization: how pixels between 0 and 1 become one of them, see :class:`Pixels`.
    """

    log_prob_kind = "unnormalised"
    odds: Tensor
    near: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        sizes: Sequence[int],
        k: int,
        chains: int,
        sample_steps: int,
        quantization: str | None,
    ) -> None:
        super().__init__(shape)
        check_integers(k=k, sample_steps=sample_steps)
        self.k, self.sample_steps, self.quantization = k, sample_steps, quantization
        self.pixels = Pixels(2, quantization)
        layers = [self.dimensions, *sizes]
        self.weights = nn.ParameterList(
            [nn.Parameter(0.01 * torch.randn(layers[i], layers[i + 1])) for i in range(len(sizes))]
        )
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(n)) for n in layers])
        self.register_buffer("odds", torch.zeros(self.dimensions))  # log p / (1 - p) of each pixel in the training data
        if chains:
            self.register_buffer("near", torch.randint(2, (chains, sum(layers[::2]))).float())

    @property
    def machine(self) -> Machine:
        """The layers' two sides, with graph."""
        near, far = range(0, len(self.biases), 2), range(1, len(self.biases), 2)
        rows = [torch.cat([self._tie(i, j) for j in far], 1) for i in near]
        return Machine(torch.cat(rows), *(torch.cat([self.biases[i] for i in side]) for side in (near, far)))

    def _tie(self, i: int, j: int) -> Tensor:
        """Weights between layers i and j."""
        if abs(i - j) != 1:
            return self.biases[i].new_zeros(len(self.biases[i]), len(self.biases[j]))
        return self.weights[i] if i < j else self.weights[j].T

    @abstractmethod
    def _free_energy(self, machine: Machine, v: Tensor) -> Tensor:
        """-log of the sum of exp(-E) over the hidden units, (N,), of pixels v (N, D), or what stands for it."""

    @abstractmethod
    def _near_of(self, v: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The near side (N, A) with pixels v (N, D), and log of the probability of drawing its other units (N,)."""

    def free_energy(self, x: Tensor) -> Tensor:
        """F(x) (N,) in nats, p(x) ~ exp(-F(x)); of images as :meth:`log_prob` takes them."""
        return -self.log_prob(x)

    def _log_prob(self, x: Tensor) -> Tensor:
        return -self._free_energy(self.machine, self.pixels(x).flatten(1))

    def log_likelihood(self, x: Tensor, log_z: float | LogPartition) -> Tensor:
        """log p(x) (N,) in nats, given log Z: as exact as that is; see :meth:`log_partition`."""
        return self.log_prob(x) - (log_z.value if isinstance(log_z, LogPartition) else log_z)

    @torch.no_grad()
    def log_partition(
        self,
        method: str = "exact",
        *,
        data: Tensor | None = None,
        steps: int = 1000,
        chains: int = 100,
        generator: torch.Generator | None = None,
    ) -> LogPartition:
        """log Z in nats.

        Args:
            method: "exact": the sum over all states of one side, of 16 units at most. "ais": annealed importance
                sampling, from pixels that are independent and as often on as in the training data; too low on average.
                "raise": the same path backwards from images; too high on average where these are samples of the
                model (exact ones, for a machine of several hidden layers with those of its layers).
            data: images (N, *shape) for "raise".
            steps: of the path.
            chains: of "ais"; of "raise", for each image.

        Raises:
            ValueError: too many units for an exact sum, an unknown method, "raise" without images or other methods
                with them, or one chain or image alone, whose spread nothing tells.

        >>> rbm = RBM((1, 4, 4), hidden=2)
        >>> abs(rbm.log_partition("ais", steps=50).value - rbm.log_partition().value) < 0.01
        True
        """
        if method not in _PARTITIONS:
            raise ValueError(f"method must be one of {', '.join(_PARTITIONS)}, got {method!r}")
        if (data is None) == (method == "raise"):
            raise ValueError("method='raise' goes back from images: pass data, and to no other method")
        check_integers(1 if method == "raise" else 2, chains=chains)
        if method == "exact":
            return LogPartition(exact_log_partition(self.machine).item())
        if data is None:
            return of_log_weights(anneal(self.machine, self._start, steps=steps, chains=chains, generator=generator))
        if len(data) < 2:
            raise ValueError(f"method='raise' needs at least two images, got {len(data)}")
        back, _ = self._back(data, steps, chains, generator)
        each = math.log(chains) - (-back).logsumexp(0)  # (N,)
        return LogPartition(each.mean().item(), each.std().item() / math.sqrt(len(each)), float(len(each)))

    @torch.no_grad()
    def raise_log_likelihood(
        self, x: Tensor, *, steps: int = 1000, chains: int = 10, generator: torch.Generator | None = None
    ) -> Tensor:
        """Estimates (N,) in nats of log p(x), without log Z, by reverse annealing (RAISE).

        On average below the log probability with which annealing of so many steps ends at x; averaged over samples of
        the model that is below log p too, and tends to it with ``steps``.

        Args:
            x: as for :meth:`log_prob`.
            steps: of the path.
            chains: for each image.
        """
        check_integers(chains=chains)
        back, log_marginal = self._back(x, steps, chains, generator)
        return (log_marginal - back).logsumexp(0) - math.log(chains)

    def _back(self, x: Tensor, steps: int, chains: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """What ``anneal_back`` says of ``chains`` near sides with each image, and log p* of them less that of their
        draw, both (chains, N)."""
        v = self.pixels(self.check(x)).flatten(1).repeat(chains, 1)
        a, log_q = self._near_of(v, generator)
        back = anneal_back(self.machine, self._start, a, steps=steps, generator=generator)
        log_marginal = self.machine.double().log_marginal(a.double()) - log_q.double()
        return back.view(chains, -1), log_marginal.view(chains, -1)

    @property
    def _start(self) -> Tensor:
        """Log odds of the near side where all units are independent."""
        others = self.machine.near.shape[0] - self.dimensions
        return torch.cat([self.odds, self.odds.new_zeros(others)])

    def fit_without_gradients(self, data: Source) -> None:
        """How often each pixel is on: what annealing and samples start from."""
        x = self.check(data.sample(_IMAGES)[0]).to(self.device)
        on = self.pixels(x).flatten(1).sum(0)
        self.odds.copy_(((on + 1) / (len(x) - on + 1)).log())

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        a = draw(self._start.sigmoid().expand(n, -1), generator)
        a = self.machine.gibbs(a, self.sample_steps, generator)
        return a[:, : self.dimensions].view(n, *self.shape)

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """F on data less F on samples, whose gradient is that of -log p; F of both is logged."""
        v = self.pixels(batch.x, fresh=True).flatten(1)
        machine = self.machine
        a = machine.gibbs(self._chains_from(v), self.k)
        if hasattr(self, "near"):
            self.near.copy_(a)
        return self._losses(machine, v, a)

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The same against chains that stay where they are; and -log of the pseudo-likelihood, by a pixel each."""
        v, machine = self.pixels(batch.x).flatten(1), self.machine
        a = self._chains_from(v) if hasattr(self, "near") else machine.gibbs(v, self.k)
        flipped = v.clone()
        flipped[torch.arange(len(v)), torch.randint(v.shape[1], (len(v),), device=v.device)] -= 1
        rise = self._free_energy(machine, flipped.abs()) - self._free_energy(machine, v)
        return self._losses(machine, v, a) | {"pseudo_nll": self.dimensions * softplus(-rise).mean()}

    @staticmethod
    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Gradient descent, learning rate 0.05, which should fall, or its weights be averaged (``ema``)."""
        return torch.optim.SGD(parameters, lr=0.05)

    def _chains_from(self, v: Tensor) -> Tensor:
        return self.near if hasattr(self, "near") else v

    def _losses(self, machine: Machine, v: Tensor, a: Tensor) -> dict[str, Tensor]:
        on_data, on_samples = self._free_energy(machine, v).mean(), -machine.log_marginal(a).mean()
        return {
            "loss": on_data - on_samples,
            "data_energy": on_data.detach(),
            "sample_energy": on_samples.detach(),
        }


class RBM(BoltzmannMachine):
    """The restricted Boltzmann machine: E(v, h) = -v W h' - b v' - c h', one layer of hidden units.

    log_prob is -F(v) = b v' + sum softplus(c + v W), without log Z; :meth:`log_partition` says it, and
    :meth:`log_likelihood` takes it. Training follows the gradient of the likelihood, with samples of short chains in
    place of exact ones: log p rises until the chains no longer mix. At a constant learning rate many hidden units swing
    between modes; a schedule, or the average of the weights (``ema``), keeps them still. Persistent chains are, under
    ``torchrun``, those of rank 0, which every step begins with.

    Args:
        shape: (C, H, W) of images whose values are 0 or 1.
        hidden: units.
        method: where the chains of a training step begin. "pcd": where they were left, of ``chains`` persistent ones.
            "cd": at the images themselves.
        k: steps of each chain in a training step.
        chains: persistent ones; only for "pcd".
        sample_steps: of Gibbs sampling from independent pixels to a sample.
        quantization: how pixels between 0 and 1 become one of them, see :class:`Pixels`; None: they are refused.

    Raises:
        ValueError: an argument out of range, or an unknown method.

    >>> rbm, x = RBM((1, 4, 4), hidden=3).eval(), torch.eye(4).view(1, 1, 4, 4)
    >>> bool((rbm.log_prob(x) == -rbm.free_energy(x)).all())
    True
    >>> bool(rbm.log_likelihood(x, rbm.log_partition("exact")) < 0)
    True
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        hidden: int = 128,
        method: str = "pcd",
        k: int = 1,
        chains: int = 100,
        sample_steps: int = 1000,
        quantization: str | None = None,
    ) -> None:
        check_integers(hidden=hidden, chains=chains)
        if method not in ("cd", "pcd"):
            raise ValueError(f"unknown method {method!r}; {nearest(method, ('cd', 'pcd'))}")
        super().__init__(shape, [hidden], k, chains if method == "pcd" else 0, sample_steps, quantization)
        self.hidden, self.method, self.chains = hidden, method, chains

    def _free_energy(self, machine: Machine, v: Tensor) -> Tensor:
        return -machine.log_marginal(v)

    def _near_of(self, v: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        return v, v.new_zeros(len(v))
