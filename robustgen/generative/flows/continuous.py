"""Continuous flow: an ordinary differential equation carries images to noise.

Chen, Rubanova, Bettencourt and Duvenaud, "Neural Ordinary Differential Equations", NeurIPS 2018, theorem 1 (the change
of the log density) and section 2 (the adjoint); Grathwohl, Chen, Bettencourt, Sutskever and Duvenaud, "FFJORD:
Free-form Continuous Dynamics for Scalable Reversible Generative Models", ICLR 2019, section 3.1 (Hutchinson's trace,
with one random vector for a whole solution) and appendix B.1 (the layers). The equations are solved by torchdiffeq.
"""

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.checks import check_flags, check_integers, check_positive
from robustgen.generative.flows.base import Flow, Logit
from robustgen.generative.flows.transform import ActNorm, Estimated, KeyedChain, jacobian

__all__ = ["SOLVERS", "TRACES", "Continuous", "ContinuousFlow", "Dynamics", "SolvedFlow"]

SOLVERS = ("rk4", "dopri5")
TRACES = ("hutchinson", "exact")


def _torchdiffeq() -> Any:
    try:
        import torchdiffeq
    except ImportError:
        raise ImportError("continuous flows need torchdiffeq: pip install 'robustgen[ode]'") from None
    return torchdiffeq


class _ConcatSquash(nn.Module):
    """A layer whose outputs are gated and shifted by functions of the time."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        outputs = len(layer.weight)
        self.layer, self.gate, self.shift = layer, nn.Linear(1, outputs), nn.Linear(1, outputs, bias=False)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        y, t = self.layer(x), t.view(1, 1)
        shape = (1, -1, *[1] * (y.ndim - 2))
        return y * self.gate(t).sigmoid().view(shape) + self.shift(t).view(shape)


class Dynamics(nn.Module):
    """f of dx/dt = f(t, x), of vectors (D,) or of images (C, H, W): three layers, all of which are told the time.

    Fully connected, or convolutions of 3 x 3; of images with even sides, on maps in which each 2 x 2 square is four
    channels. At the start f = 0.

    Args:
        shape: of one x.
        width: hidden units or features.

    >>> Dynamics((1, 6, 6), width=4)(torch.tensor(0.5), torch.ones(2, 1, 6, 6)).shape
    torch.Size([2, 1, 6, 6])
    """

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.factor = 2 if len(shape) == 3 and shape[1] % 2 == shape[2] % 2 == 0 else 1
        inner = shape[0] * self.factor**2
        layers: list[nn.Linear | nn.Conv2d] = [
            nn.Linear(a, b) if len(shape) == 1 else nn.Conv2d(a, b, 3, padding=1)
            for a, b in ((inner, width), (width, width), (width, inner))
        ]
        nn.init.zeros_(layers[-1].weight)
        nn.init.zeros_(layers[-1].bias)
        self.layers = nn.ModuleList(map(_ConcatSquash, layers))
        nn.init.zeros_(self.layers[-1].shift.weight)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        if self.factor > 1:
            x = F.pixel_unshuffle(x, self.factor)
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(t, x))
        x = self.layers[-1](t, x)
        return F.pixel_shuffle(x, self.factor) if self.factor > 1 else x


class _WithTrace(nn.Module):
    """The dynamics of x and, beside it, of the log determinant so far."""

    def __init__(self, dynamics: nn.Module, signs: Tensor | None) -> None:
        super().__init__()
        self.dynamics, self.signs = dynamics, signs

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, graph = state[0], torch.is_grad_enabled()
        with torch.enable_grad():
            if not (graph and x.requires_grad):
                x = x.detach().requires_grad_()
            f = self.dynamics(t, x)
            if self.signs is None:
                trace = jacobian(f, x, graph).diagonal(dim1=1, dim2=2).sum(1)
            else:
                products = [torch.autograd.grad(f, x, v, create_graph=graph, retain_graph=True)[0] for v in self.signs]
                trace = (torch.stack(products) * self.signs).flatten(2).sum(2).mean(0)
        return (f, trace) if graph else (f.detach(), trace.detach())


class Continuous(Estimated):
    """y = x(1), where x(0) = x and dx/dt = f(t, x); log |det dy/dx| = integral of tr df/dx.

    Both are right up to the solver's error.

    Args:
        dynamics: f(t, x) -> (N, ...), of a time and of x (N, ...) row by row.
        solver: "rk4", with equal ``steps``; "dopri5", whose steps adapt to ``tolerance``: to that of a whole batch in
            training, in eval mode to each x by itself, one after the other.
        steps: of "rk4".
        tolerance: of "dopri5", absolute and relative.
        trace: "hutchinson": v' (df/dx) v of random signs v, the same ones from 0 to 1. "exact": D backward passes for
            each evaluation of f.
        draws: vectors v in eval mode; in training there is one.
        adjoint: whether gradients are found by solving backwards, in memory that does not grow with the steps, but with
            a solver's error of their own.

    Raises:
        ImportError: at the first solution, without torchdiffeq.
        FloatingPointError: an adaptive solver that finds no step small enough.
        TypeError, ValueError: an argument out of range.

    >>> step, x = Continuous(Dynamics((3,), 8), trace="exact").eval(), torch.randn(5, 3)
    >>> y, log_det = step(x)
    >>> torch.allclose(step.inverse(y), x, atol=1e-4), log_det.shape
    (True, torch.Size([5]))
    """

    def __init__(
        self,
        dynamics: nn.Module,
        solver: str = "rk4",
        steps: int = 6,
        tolerance: float = 1e-5,
        trace: str = "hutchinson",
        draws: int = 1,
        adjoint: bool = False,
    ) -> None:
        super().__init__()
        check_integers(steps=steps, draws=draws)
        check_positive(tolerance=tolerance)
        check_flags(adjoint=adjoint)
        if solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
        if trace not in TRACES:
            raise ValueError(f"trace must be one of {', '.join(TRACES)}, got {trace!r}")
        self.dynamics, self.solver, self.steps, self.tolerance = dynamics, solver, steps, tolerance
        self.trace, self.draws, self.adjoint = trace, draws, adjoint

    def forward(self, x: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        signs = None if self.trace == "exact" else self.signs(x, ids, 1 if self.training else self.draws)

        def solved(rows: slice) -> tuple[Tensor, ...]:
            field = _WithTrace(self.dynamics, None if signs is None else signs[:, rows])
            return self._solve(field, (x[rows], x.new_zeros(len(x[rows]))), 0, 1)

        y, log_det = self._by_rows(solved, len(x))
        return y, log_det

    def inverse(self, y: Tensor) -> Tensor:
        return self._by_rows(lambda rows: self._solve(_Alone(self.dynamics), (y[rows],), 1, 0), len(y))[0]

    def _by_rows(self, solved: Callable[[slice], tuple[Tensor, ...]], n: int) -> tuple[Tensor, ...]:
        graph = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(graph):
            if self.solver == "rk4" or self.training or n < 2:
                return solved(slice(None))
            return tuple(map(torch.cat, zip(*(solved(slice(i, i + 1)) for i in range(n)), strict=True)))

    def _solve(self, field: nn.Module, state: tuple[Tensor, ...], start: int, end: int) -> tuple[Tensor, ...]:
        """The state at ``end``."""
        solvers = _torchdiffeq()
        if not state[0].numel():
            return state
        state = tuple(part.clone() for part in state)  # autograd refuses tensors of inference mode
        settings: dict[str, Any] = {"method": self.solver}
        if self.solver == "rk4":
            settings["options"] = {"step_size": 1 / self.steps}
        else:
            settings |= {"rtol": self.tolerance, "atol": self.tolerance}
        solve = solvers.odeint
        if self.adjoint:
            solve, settings["adjoint_params"] = solvers.odeint_adjoint, tuple(self.dynamics.parameters())
        with torch.autocast(state[0].device.type, enabled=False):
            try:
                path = solve(field, state, state[0].new_tensor([start, end]), **settings)
            except AssertionError as error:  # the step became too small for the number format
                raise FloatingPointError(f"the equation of a continuous flow cannot be solved: {error}") from None
        return tuple(part[-1] for part in path)


class _Alone(nn.Module):
    """The dynamics of x as those of a state of one part."""

    def __init__(self, dynamics: nn.Module) -> None:
        super().__init__()
        self.dynamics = dynamics

    def forward(self, t: Tensor, state: tuple[Tensor]) -> tuple[Tensor]:
        return (self.dynamics(t, state[0]),)


class SolvedFlow(Flow):
    """A flow with a :class:`Continuous` part, which takes ``steps`` and ``tolerance`` from it."""

    steps: int
    tolerance: float

    @torch.no_grad()
    def solver_error(self, x: Tensor) -> Tensor:
        """By how much ``log_prob`` of x would change, (N,) in nats, with twice the steps or 1/100 of the tolerance."""
        finer = copy.deepcopy(self)
        for part in finer.transform.modules():
            if isinstance(part, Continuous):
                part.steps, part.tolerance = 2 * self.steps, self.tolerance / 100
        return finer.log_prob(x) - self.log_prob(x)


class ContinuousFlow(SolvedFlow):
    """An image, behind an actnorm, carried to noise by an ordinary differential equation of a network.

    Needs torchdiffeq: ``pip install 'robustgen[ode]'``. ``log_prob`` is right up to the solver's error
    (:meth:`solver_error`); with Hutchinson's trace it is so in expectation, over vectors that depend on the image.

    Args:
        shape: (C, H, W).
        width: features of the network, :class:`Dynamics`.
        solver, steps, tolerance, trace, draws, adjoint: see :class:`Continuous`.
        alpha: of the :class:`Logit` before it.
        levels, dequantization, quantization: see :class:`Flow`.

    Attributes:
        log_prob_kind: "estimated" where the trace is Hutchinson's and nothing is dequantized.

    Raises:
        TypeError, ValueError: an argument that is out of range.

    >>> flow = ContinuousFlow((1, 4, 4), width=4, steps=2).eval()
    >>> x = torch.ones(3, 1, 4, 4)
    >>> flow.log_prob(x).shape, bool((flow.solver_error(x).abs() < 0.1).all()), flow.sample(2).shape
    (torch.Size([3]), True, torch.Size([2, 1, 4, 4]))
    """

    log_prob_kind: ClassVar[str | None] = "estimated"

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 32,
        solver: str = "rk4",
        steps: int = 6,
        tolerance: float = 1e-5,
        trace: str = "hutchinson",
        draws: int = 1,
        adjoint: bool = False,
        alpha: float = 1e-6,
        levels: int = 256,
        dequantization: str = "uniform",
        quantization: str | None = None,
    ) -> None:
        super().__init__(shape, levels, dequantization, quantization)
        check_integers(width=width)
        self.width, self.solver, self.steps, self.tolerance = width, solver, steps, tolerance
        self.trace, self.draws, self.adjoint, self.alpha = trace, draws, adjoint, alpha
        dynamics = Dynamics(self.shape, width)
        carried = Continuous(dynamics, solver, steps, tolerance, trace, draws, adjoint)
        self.transform = KeyedChain(Logit(alpha), ActNorm(self.shape[0]), carried, levels=levels)
        if self.pixels is None and trace == "exact":
            self.log_prob_kind = "exact"  # type: ignore[misc]
