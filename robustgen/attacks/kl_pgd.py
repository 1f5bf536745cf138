"""Projected gradient ascent of the divergence from the clean prediction: the inner maximisation of TRADES.

Zhang, Yu, Jiao, Xing, El Ghaoui and Jordan, "Theoretically Principled Trade-off between Robustness and Accuracy", 2019,
algorithm 1: from x + 0.001 * N(0, I), steps alpha * sign(grad_x' KL(f(x) || f(x'))), each projected on the ball.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustgen import counter_rng
from robustgen.attacks.base import Attack
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Search
from robustgen.checks import check_positive
from robustgen.model import kl_divergence

__all__ = ["KLPGD"]

_START_STD = 0.001  # of the width of the bounds; at x itself the gradient of the divergence is zero


@dataclass(frozen=True, kw_only=True)
class KLPGD(Attack):
    """Steps of fixed length up KL(f(x) || f(x')), whatever the label. The logits at x are queried once.

    Made for training (:class:`~robustgen.training.Trades`). To judge a network it is weak: the divergence also rises
    where the network only grows surer of the true class, and a network that is very sure of itself gives no gradient.

    Args:
        steps: gradient steps.
        step_size: length of a step; None means 2.5 * eps / steps, with the eps of each sample.
        selection: which of the points visited is returned: that of lowest "margin", as by every attack, or that of
            highest "divergence", which the maximisation is about and :meth:`for_training` selects.

    The others are those of :class:`~robustgen.attacks.Attack`.

    Raises:
        ValueError: as every attack; ``targeted``, since no class is aimed at; an unknown selection, or "divergence"
            with ``early_stop``.

    >>> import torch
    >>> linear = torch.nn.Linear(2, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> x_adv = KLPGD(eps=0.25).for_training()(linear, torch.tensor([[0.75, 0.5]]), torch.tensor([0]))
    >>> x_adv.sub(torch.tensor([[0.75, 0.5]])).abs()
    tensor([[0.2500, 0.2500]])
    """

    norms = ("Linf", "L2", "L1")

    steps: int = 10
    step_size: float | None = None
    selection: str = "margin"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size is not None:
            check_positive(step_size=self.step_size)
        if self.targeted:
            raise ValueError("KLPGD leaves the clean prediction and aims at no class: targeted must be False")
        if self.selection not in ("margin", "divergence"):
            raise ValueError(f"selection must be 'margin' or 'divergence', got {self.selection!r}")
        if self.selection == "divergence" and self.early_stop:
            raise ValueError("selection='divergence' looks at every step: set early_stop=False")

    def for_training(self) -> "KLPGD":
        """The same attack with ``early_stop=False`` and ``selection="divergence"``: the maximisation of the paper."""
        return replace(self, early_stop=False, selection="divergence")

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        ball = problem.ball
        alpha = 2.5 * ball.eps / self.steps if self.step_size is None else torch.full_like(ball.eps, self.step_size)
        x = problem.x[i]
        clean = yield from problem.clean_logits(i)
        highest = _Highest(x, clean)
        noise = counter_rng.normal(self.seed, problem.ids[i], tuple(x.shape[1:]), (), x.dtype)
        x = ball.project(i, x + _START_STD * (self.bounds[1] - self.bounds[0]) * noise)
        for _ in range(self.steps):
            logits, gradient = yield problem.divergence_gradient(i, x, clean)
            if self.selection == "divergence":
                highest.offer(x, logits)
            else:
                stays = problem.record(i, x, logits)
                i, x, clean, gradient = i[stays], x[stays], clean[stays], gradient[stays]
                if not len(i):
                    return
            x = ball.project(i, x + ball.step(i, gradient, alpha[i], at=x))
        logits = yield problem.logits(i, x)
        if self.selection == "divergence":
            highest.offer(x, logits)
            x, logits = highest.x, highest.logits
        problem.record(i, x, logits)


class _Highest:
    """Of the points offered, for each sample that whose prediction diverges most from the clean one."""

    def __init__(self, x: Tensor, clean: Tensor) -> None:
        self.x, self.logits, self.clean = x, clean, clean
        self.divergence = torch.full_like(clean[:, 0], float("-inf"))

    def offer(self, z: Tensor, logits: Tensor) -> None:
        divergence = kl_divergence(self.clean, logits)
        higher = divergence > self.divergence
        self.divergence = torch.where(higher, divergence, self.divergence)
        self.logits = torch.where(higher[:, None], logits, self.logits)
        self.x = torch.where(higher.reshape(-1, *[1] * (z.ndim - 1)), z, self.x)
