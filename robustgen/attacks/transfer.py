"""Black-box transfer: attack a substitute trained on the same kind of data, show the result to the target once.

Papernot, McDaniel and Goodfellow, "Transferability in Machine Learning", 2016; the black-box threat model of Lamb,
"Generative Models: A Critical Review", 2018, section 2.6.1: the attacker has the training data, not the model.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from robustgen.attacks.base import AroundAttack
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Search
from robustgen.fingerprint import model_fingerprint
from robustgen.model import Model

__all__ = ["TransferAttack"]


@dataclass(frozen=True, kw_only=True)
class TransferAttack(AroundAttack):
    """Run ``attack`` on ``surrogate`` and hand what it finds to the model.

    Args:
        surrogate: the substitute model.
        attack: what runs on it, always with ``early_stop=False``: it cannot know when the target falls. Its eps, norm,
            bounds and the other common settings are those of the transfer attack.

    Counted queries are those of the target model (one forward after the clean ones).
    """

    surrogate: Model
    eps: float = field(init=False)

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        on_surrogate = self.attack.for_training()
        ball, free = problem.ball, problem.oracle.free
        eps = ball.eps[i] if ball.reach is None or self.norm != "Linf" else ball.reach[i]
        mask = None if free is None else free[i]
        x = on_surrogate(self.surrogate, problem.x[i], problem.y[i], ids=problem.ids[i], eps=eps, mask=mask)
        problem.record(i, x, (yield problem.logits(i, x)))

    def for_training(self) -> "TransferAttack":
        return replace(self, attack=self.attack.for_training())

    def describe(self) -> dict[str, Any]:
        surrogate = model_fingerprint(self.surrogate) if isinstance(self.surrogate, nn.Module) else repr(self.surrogate)
        return {"attack": "TransferAttack", "surrogate": surrogate, "of": self.attack.describe()}
