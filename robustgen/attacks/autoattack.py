"""AutoAttack: four complementary attacks without parameters to tune, each on what the ones before left standing.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
2020, section 6 (Linf, L2); Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers",
2021, section 5 (L1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from robustgen.attacks.apgd import APGD
from robustgen.attacks.apgd_targeted import APGDT
from robustgen.attacks.at_eps import AtEps
from robustgen.attacks.base import Attack
from robustgen.attacks.fab import FAB
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Search
from robustgen.attacks.square import Square

__all__ = ["AutoAttack"]

VERSIONS = ("standard", "plus", "rand")


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """The ensemble with its published budgets; a number made with others should not bear its name.

    Args:
        version: which attacks.

            - "standard": :class:`~robustgen.attacks.APGD` on the cross-entropy, :class:`~robustgen.attacks.APGDT`,
              targeted :class:`~robustgen.attacks.FAB`, :class:`~robustgen.attacks.Square`.
            - "plus": these, APGD with the ratio loss (which needs 3 classes: with fewer it is the margin) and FAB in
              its untargeted form; five restarts of both APGD and of untargeted FAB.
            - "rand", for stochastic models: APGD on both losses, gradients averaged over 20 draws.
        steps: of every gradient attack.
        n_targets: classes of the targeted attacks, C - 1 if there are fewer.
        n_queries: of Square.

    The others are those of :class:`~robustgen.attacks.Attack`. Of all points visited the one of lowest margin is
    returned. Attacks with ``early_stop=False`` run on every sample.

    Raises:
        ValueError: as every attack, or an unknown version.

    >>> import torch
    >>> linear = torch.nn.Linear(2, 3, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
    >>> AutoAttack(eps=0.13).run(linear, torch.tensor([[0.75, 0.5]]), torch.tensor([0])).success.item()
    True
    """

    norms = ("Linf", "L2", "L1")

    version: str = "standard"
    steps: int = 100
    n_targets: int = 9
    n_queries: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version not in VERSIONS:
            raise ValueError(f"unknown version {self.version!r}; known: {', '.join(VERSIONS)}")
        self.parts()

    def parts(self) -> Sequence[Attack]:
        """The attacks, the cheapest first."""
        common: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(Attack)}
        steps = common | {"steps": self.steps}
        climbing = steps | {"multi_eps": self.norm == "L1"}
        if self.version == "rand":
            return tuple(APGD(**climbing, loss=loss, eot_samples=20) for loss in ("ce", "dlr"))
        targeted = (APGDT(**climbing, n_targets=self.n_targets), self._boundary(n_targets=self.n_targets))
        square = Square(**common, n_queries=self.n_queries)
        if self.version == "standard":
            return (APGD(**climbing), *targeted, square)
        both = (APGD(**climbing, restarts=5), APGD(**climbing, restarts=5, loss="dlr"))
        return (*both, self._boundary(restarts=5), square, *targeted)

    def _boundary(self, **settings: Any) -> Attack:
        common: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(Attack) if f.name != "eps"}
        return AtEps(attack=FAB(**common, steps=self.steps, **settings), eps=self.eps)

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        raise NotImplementedError("its parts search")
