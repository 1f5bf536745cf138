"""Flows of codes, and of the hidden states of a network that they leave alone.

Xiao, "Designing Deep Generative Models with Symbiotic Composition", 2022, section 3.3.2: a flow that learns from codes
and hands no gradient back may learn from any states. Dinh, Krueger and Bengio, "NICE: Non-linear Independent Components
Estimation", ICLR 2015 workshop, section 3.3, for a scale of each number.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers, check_numbers
from robustgen.features import FeatureExtractor
from robustgen.generative.flows.coupling import coupling_density
from robustgen.generative.flows.transform import Chain, Density, Transform
from robustgen.inputs import Inputs, check_inputs, each
from robustgen.model import naming_inputs, untouched
from robustgen.training import Batch, Trainer, as_source
from robustgen.training.schedules import cosine
from robustgen.turns import seeded

__all__ = [
    "LatentFlow",
    "Scaling",
    "StateDensity",
    "check_state_fit",
    "fit_latent_flow",
    "fit_states",
    "latent_density",
]

_BATCH = 256  # inputs whose states are taken at once
_SHRINKAGE = 1e-3  # as Mahalanobis has it


class Scaling(Transform):
    """y = x exp(s), with one s for each of ``dim`` numbers, which is not bounded; at the start 0.

    >>> Scaling(2)(torch.ones(1, 2))
    (tensor([[1., 1.]], grad_fn=<MulBackward0>), tensor([0.], grad_fn=<ExpandBackward0>))
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return y * (-self.log_scale).exp()


def latent_density(dim: int, blocks: int = 4, width: int = 64) -> Density:
    """A :func:`coupling_density` behind a :class:`Scaling`: codes may be of any size, a coupling's scales are bounded.

    Args:
        dim, blocks, width: see :func:`coupling_density`.

    Raises:
        ValueError: an argument out of range.

    >>> latent_density(3).log_prob(torch.zeros(2, 3)).shape
    torch.Size([2])
    """
    if dim < 2:
        raise ValueError(f"latent_dim must be at least 2 for a flow of codes, got {dim}")
    couplings = coupling_density(dim, blocks, width).transform
    return Density(Chain(Scaling(dim), couplings), dim)


class StateDensity(nn.Module):
    """log p(h) of states (N, D): whitened by the mean and covariance of those that it was fitted to, then a flow.

    So it begins as the Gaussian of these states, and the flow has only the rest to learn.

    Args:
        dim: D, at least 2.
        blocks, width: see :func:`latent_density`.
        noise: standard deviation of what training adds to whitened states, which have 1. Units that never fire have no
            density; with noise they have, and all is smoother.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, dim: int, blocks: int = 4, width: int = 64, noise: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("whitening", torch.eye(dim))  # lower triangular
        self.flow, self.noise = latent_density(dim, blocks, width), noise

    def whiten(self, h: Tensor) -> None:
        """Take the mean of h (N, D), and its covariance with a thousandth of its mean variance on the diagonal."""
        h = h.double()
        centred = h - h.mean(0)
        covariance = centred.T @ centred / len(h)
        variance = covariance.diagonal().mean()
        floor = _SHRINKAGE * (variance if variance > 0 else torch.ones_like(variance))
        identity = torch.eye(h.shape[1]).to(h)
        factor = torch.linalg.cholesky(covariance + floor * identity)
        self.mean.copy_(h.mean(0))
        self.whitening.copy_(torch.linalg.solve_triangular(factor, identity, upper=False))

    def _white(self, h: Tensor) -> Tensor:
        if h.shape[1] != len(self.mean):
            raise ValueError(f"the states have {h.shape[1]} numbers each, those that were fitted had {len(self.mean)}")
        return (h - self.mean) @ self.whitening.T

    def _log_prob(self, white: Tensor) -> Tensor:
        return self.flow.log_prob(white) + self.whitening.diagonal().log().sum()

    def log_prob(self, h: Tensor) -> Tensor:
        """log p(h) (N,) in nats.

        Raises:
            ValueError: states of another width.
        """
        return self._log_prob(self._white(h))

    def forward(self, h: Tensor) -> Tensor:
        """The mean of -log p(h), (), in training of states with noise."""
        white = self._white(h)
        return -self._log_prob(white + self.noise * torch.randn_like(white) if self.training else white).mean()


class _MaximumLikelihood:
    """-log p, for the trainer."""

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        return {"loss": model(batch.x)}


def check_state_fit(blocks: int, width: int, noise: float, epochs: int) -> None:
    """TypeError or ValueError for settings of :func:`fit_states` that are out of range."""
    check_integers(blocks=blocks, width=width, epochs=epochs)
    check_numbers(noise=noise)
    if not 0 <= noise < float("inf"):
        raise ValueError(f"noise must be a finite number >= 0, got {noise}")


def fit_states(
    h: Tensor, *, blocks: int, width: int, noise: float, epochs: int, seed: int = 0, progress: bool = False
) -> StateDensity:
    """A :class:`StateDensity` fitted by maximum likelihood to states h (N, D), frozen and in eval mode.

    Adam, lr 1e-3 and down to 0 by a cosine, batches of 128. The global random state is left alone.

    Raises:
        ValueError: states of less than two numbers or that are not finite, a setting out of range.
        FloatingPointError: the training diverged.
    """
    check_state_fit(blocks, width, noise, epochs)
    h = h.detach()
    if h.shape[1] < 2:
        raise ValueError(f"a flow needs states of at least two numbers, got {h.shape[1]}: name another layer=")
    if not h.isfinite().all():
        raise ValueError("the states hold NaN or Inf: the network overflows on these data")
    with seeded(seed):
        density = StateDensity(h.shape[1], blocks, width, noise).to(h)
    density.whiten(h)
    trainer = Trainer(_MaximumLikelihood(), epochs=epochs, schedule=cosine, seed=seed, progress=progress)
    with torch.enable_grad():
        trainer.fit(density, h)
    return density.eval().requires_grad_(False)


class LatentFlow(nn.Module):
    """log p of what a network makes of x at one of its layers; made by :func:`fit_latent_flow`.

    The network is called in eval mode and left as it is; it is no part of this module. ``log_prob`` is what detectors
    ask of a model, :class:`~robustgen.detectors.Likelihood` for one.

    Attributes:
        log_prob_kind: "exact": of the states, not of x.
        density: the :class:`StateDensity`.
    """

    log_prob_kind: ClassVar[str | None] = "exact"

    def __init__(self, network: nn.Module, extractor: FeatureExtractor, density: StateDensity) -> None:
        super().__init__()
        self.density = density
        self._network = (network,)  # in a tuple it is no part of this module, nor of its modes and weights
        self._extractor = extractor

    def states(self, x: Inputs) -> Tensor:
        """What the density is of, (N, D); differentiable in x."""
        x = check_inputs(x)
        with untouched(self._network[0]), naming_inputs(x):
            return self._extractor(x)[0]

    def log_prob(self, x: Inputs) -> Tensor:
        """log p(h(x)) (N,) in nats, of each input alone; differentiable in x.

        Raises:
            TypeError, ValueError: x is no batch of inputs, or its states have another width than those fitted.
        """
        return self.density.log_prob(self.states(x).to(self.density.mean))


def fit_latent_flow(
    net: nn.Module,
    layer: str | None,
    data: Any,
    *,
    blocks: int = 4,
    width: int = 64,
    noise: float = 0.1,
    epochs: int = 50,
    seed: int = 0,
    progress: bool = False,
) -> LatentFlow:
    """Learn the density of the hidden states of ``net`` on ``data``, without touching it.

    Weights, buffers, modes and the global random state stay as they are: the states are taken in eval mode, once.

    Args:
        net: any network; states of several places (maps, sequences) are averaged over them.
        layer: the name of the layer whose output the states are, see ``net.named_modules()``; None: the input of the
            ``nn.Linear`` that makes the logits.
        data: what :func:`robustgen.training.as_source` takes; labels are not used.
        blocks, width: affine couplings of the flow and hidden units of their networks.
        noise: in training, of whitened states, see :class:`StateDensity`.
        epochs: over the states.
        seed: of everything random.
        progress: a progress bar.

    Raises:
        TypeError: not such data, no ``nn.Module``, or a layer that is not named.
        ValueError: no such layer, data that the network does not take, states that are no finite vectors of at least
            two numbers, or a setting out of range.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    >>> flow = fit_latent_flow(net, "1", x, epochs=2, width=8)
    >>> flow.states(x).shape, flow.log_prob(x).shape
    (torch.Size([200, 8]), torch.Size([200]))
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"fit_latent_flow needs an nn.Module, got {type(net).__name__}")
    check_state_fit(blocks, width, noise, epochs)
    source, extractor = as_source(data), FeatureExtractor(net, layer)
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    parts = []
    with torch.no_grad(), untouched(net):
        for indices in torch.arange(len(source)).split(_BATCH):
            x = each(check_inputs(source.batch(indices)[0]), lambda t: t.to(device))
            with naming_inputs(x):
                parts.append(extractor(x)[0])
    h = torch.cat(parts)
    density = fit_states(h, blocks=blocks, width=width, noise=noise, epochs=epochs, seed=seed, progress=progress)
    return LatentFlow(net, extractor, density)
