"""DeepFool.

Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and accurate method to fool deep neural networks", 2016,
algorithm 2 (equations 8 and 9); for Linf equations 10 and 11 with p = inf.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustgen.attacks.ball import column, perturbation_norm
from robustgen.attacks.losses import rounding
from robustgen.attacks.minimal_norm import MinimalNormAttack
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Search

__all__ = ["DeepFool"]


@dataclass(frozen=True, kw_only=True)
class DeepFool(MinimalNormAttack):
    """Step to the nearest face of the linearised classifier's region until the class changes. L2 and Linf.

    The paper multiplies the sum of the steps by 1 + overshoot at its end; here every iterate is asked about in that
    form, so that nothing is returned which the model has not seen. The paper knows no bounds: here an element that they
    stop takes no further part, and the others go the rest of the way. Targeted, the only face is that between the
    target and the
    class that is highest at the moment. A sample is done when its class changes.

    Args:
        steps: at most so many, each of one forward and ``candidates`` backward passes (targeted: one); and a
            forward at the beginning, to choose them, and at the end.
        overshoot: share by which the perturbation is made longer to get across (eta).
        candidates: other classes considered, those of highest logit at x.

    The others are those of :class:`~robustgen.attacks.minimal_norm.MinimalNormAttack`.

    >>> linear = torch.nn.Linear(2, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> DeepFool(norm="Linf", overshoot=0.04).run(linear, torch.tensor([[0.75, 0.5]]), torch.tensor([0])).x_adv
    tensor([[0.6200, 0.6300]])
    """

    norms = ("L2", "Linf")

    steps: int = 50
    overshoot: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.overshoot < float("inf"):
            raise ValueError(f"overshoot must be a finite number >= 0, got {self.overshoot}")

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        x = problem.x[i]
        z, total = x, torch.zeros_like(x)
        rivals = problem.y[i, None] if self.targeted else (yield from self._candidates(problem, i))
        for _ in range(self.steps):
            logits, gap, gradients = yield from self._gaps(problem, i, z, rivals)
            problem.record(i, z, logits)
            stays = ~problem.fools(i, logits)
            i, x, z, total, rivals = i[stays], x[stays], z[stays], total[stays], rivals[stays]
            if not len(i):
                return
            gap = gap[stays].double() + rounding(logits[stays])[:, None].double()
            total = total + self._nearest_face(z, gap, gradients[stays])
            z = problem.ball.project(i, x + (1 + self.overshoot) * total)
            total = (z - x) / (1 + self.overshoot)
        problem.record(i, z, (yield problem.logits(i, z)))

    def _nearest_face(self, z: Tensor, gap: Tensor, gradients: Tensor) -> Tensor:
        """The shortest step (n, ...) that closes one of the gaps (n, k), in the linear model of the logits."""
        free = self._free(z[:, None], gradients)
        size, nearest = self._face_distances(z, gap, free).nan_to_num(float("inf")).min(1)
        w = free[torch.arange(len(z), device=z.device), nearest].double()
        unit = w.sign() if self.norm == "Linf" else w / column(perturbation_norm(w, "L2").clamp(min=1e-300), w)
        # No step is longer than the box: a flat model asks for more.
        size = size.clamp(max=self._span * max(1, z[:1].numel()) ** (0.0 if self.norm == "Linf" else 0.5))
        return (unit * column(size, unit)).to(z.dtype)
