"""Random search in the ball: the floor that any gradient attack must beat."""

from dataclasses import dataclass

from torch import Tensor

from robustgen.attacks.base import Attack
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Search

__all__ = ["NoiseSearch"]


@dataclass(frozen=True, kw_only=True)
class NoiseSearch(Attack):
    """Draw points around x until one fools the model. It needs no gradient.

    A network that falls to noise but stands against gradients has masked gradients, not robustness.

    Args:
        n_queries: points tried for each sample.
        distribution: "uniform" in the ball, or "gaussian" (std eps for Linf, eps / sqrt(D) for L2,
            eps * sqrt(pi / 2) / D for L1, projected on the ball).

    The others are those of :class:`~robustgen.attacks.Attack`.
    """

    norms = ("Linf", "L2", "L1")

    n_queries: int = 100
    distribution: str = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distribution not in ("uniform", "gaussian"):
            raise ValueError(f"distribution must be 'uniform' or 'gaussian', got {self.distribution!r}")

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        draw = problem.ball.uniform if self.distribution == "uniform" else problem.ball.gaussian
        for query in range(self.n_queries):
            x = draw(i, self.seed, problem.ids[i], (query,))
            i = i[problem.record(i, x, (yield problem.logits(i, x)))]
            if not len(i):
                return
