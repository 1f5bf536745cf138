"""The same attack from every library, for benchmarks/attacks.py; one that is not installed raises ImportError."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustgen import attacks
from robustgen.attacks import PGD, AttackResult, Engine
from robustgen.attacks.prepare import prepare
from robustgen.model import untouched

__all__ = ["AUTOATTACK", "FULL", "PGD_SIDES", "Budget", "Case", "Counted", "Run", "floor", "judged", "our_pgd"]


@dataclass(frozen=True)
class Case:
    """What is attacked: a network in eval mode, images in [0, 1] (N, C, H, W), labels, a Linf radius, steps of PGD."""

    net: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    steps: int

    @property
    def alpha(self) -> float:
        return 2.5 * self.eps / self.steps


Run = Callable[[], AttackResult | Tensor]  # a side, ready to be timed


@dataclass(frozen=True)
class Budget:
    """Of AutoAttack's parts; the defaults are those of the standard version."""

    steps: int = 100
    n_queries: int = 5000


FULL = Budget()


def our_pgd(case: Case, early_stop: bool, prepare: bool = True) -> Run:
    attack = PGD(eps=case.eps, steps=case.steps, step_size=case.alpha, early_stop=early_stop)
    return lambda: attack.run(case.net, case.x, case.y, engine=Engine(prepare=prepare))


def _torchattacks_pgd(case: Case) -> Run:
    import torchattacks

    attack = torchattacks.PGD(case.net, eps=case.eps, alpha=case.alpha, steps=case.steps)
    return lambda: attack(case.x, case.y)


def _foolbox_pgd(case: Case) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox 3.3.4 imports from a deprecated place in scipy
        import foolbox

    model = foolbox.PyTorchModel(case.net, bounds=(0, 1), device=case.x.device)
    attack = foolbox.attacks.LinfPGD(steps=case.steps, abs_stepsize=case.alpha)
    return lambda: attack(model, case.x, case.y, epsilons=case.eps)[1]


class _Whole(nn.Module):
    """ART calls the layers of a Sequential one by one, which hides the network's calls from :class:`Counted`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def _art_pgd(case: Case) -> Run:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model=_Whole(case.net),
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(case.x.shape[1:]),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="gpu" if case.x.is_cuda else "cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier,
        norm=np.inf,
        eps=case.eps,
        eps_step=case.alpha,
        max_iter=case.steps,
        num_random_init=1,
        batch_size=len(case.x),
        verbose=False,
    )
    x, y = case.x.cpu().numpy(), case.y.cpu().numpy()  # it takes and returns NumPy arrays
    return lambda: torch.from_numpy(attack.generate(x=x, y=y)).to(case.x.device)


def _adv_lib_pgd(case: Case) -> Run:
    from adv_lib.attacks import pgd_linf

    return lambda: pgd_linf(
        case.net, case.x, case.y, case.eps, steps=case.steps, random_init=True, absolute_step_size=case.alpha
    )


PGD_SIDES: dict[str, Callable[[Case], Run]] = {
    "torchattacks": _torchattacks_pgd,
    "foolbox": _foolbox_pgd,
    "art": _art_pgd,
    "adv-lib": _adv_lib_pgd,
}


def _our_autoattack(case: Case, budget: Budget) -> Run:
    attack = attacks.AutoAttack(eps=case.eps, steps=budget.steps, n_queries=budget.n_queries)
    return lambda: attack.run(case.net, case.x, case.y)


def _our_autoattack_in_bfloat16(case: Case, budget: Budget) -> Run:
    """As the evaluator runs it: what the search in bfloat16 leaves is attacked by APGD in float32."""
    attack = attacks.AutoAttack(eps=case.eps, steps=budget.steps, n_queries=budget.n_queries)
    again = attacks.APGD(eps=case.eps, steps=budget.steps)

    def run() -> AttackResult:
        found = attack.run(case.net, case.x, case.y, engine=Engine(precision="bfloat16"))
        left = (~found.success).nonzero().squeeze(1)
        more = again.run(case.net, case.x[left], case.y[left], ids=left)
        for name in ("x_adv", "success", "distance"):
            getattr(found, name)[left] = getattr(more, name)
        for name in ("forwards", "backwards"):
            getattr(found, name)[left] += getattr(more, name)
        return found

    return run


def _torchattacks_parts(case: Case, budget: Budget) -> Run:
    """Its own AutoAttack runs 10 steps a part; these are its parts with the budget of the standard version."""
    import torchattacks as ta

    common = {"eps": case.eps, "norm": "Linf"}
    steps = {"steps": budget.steps}
    parts = [
        ta.APGD(case.net, loss="ce", **common, **steps),
        ta.APGDT(case.net, n_classes=10, **common, **steps),
        ta.FAB(case.net, multi_targeted=True, n_classes=10, **common, **steps),
        ta.Square(case.net, n_queries=budget.n_queries, **common),
    ]
    attack = ta.MultiAttack(parts)
    return lambda: attack(case.x, case.y)


def _reference(case: Case, budget: Budget) -> Run:
    from autoattack import AutoAttack

    attack = AutoAttack(case.net, norm="Linf", eps=case.eps, verbose=False, device=case.x.device, seed=0)
    attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = budget.steps
    attack.square.n_queries = budget.n_queries
    return lambda: attack.run_standard_evaluation(case.x, case.y, bs=len(case.x))


AUTOATTACK: dict[str, Callable[[Case, Budget], Run]] = {
    "robustgen": _our_autoattack,
    "robustgen, bfloat16": _our_autoattack_in_bfloat16,
    "torchattacks": _torchattacks_parts,
    "auto-attack": _reference,
}


def floor(case: Case) -> tuple[Callable[[], None], tuple[str, ...]]:
    """What no PGD can do without: steps x (forward + gradient in the input), on the network as our engine prepares it.

    Returns:
        What to time, and what the preparation did.
    """
    with torch.no_grad(), untouched(case.net):
        prepared = prepare(case.net, case.x[:8])

    def run() -> None:
        with untouched(case.net):
            for _ in range(case.steps):
                leaf = case.x.clone().requires_grad_(True)
                torch.autograd.grad(nn.functional.cross_entropy(prepared.model(leaf), case.y), leaf)

    return run, prepared.steps


class Counted:
    """Rows that go forwards and backwards through ``net`` inside the block."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.forwards, self.backwards = net, 0, 0

    def __enter__(self) -> "Counted":
        self._handle = self.net.register_forward_hook(self._forward)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _forward(self, module: nn.Module, args: Any, logits: Tensor) -> None:
        self.forwards += len(logits)
        if logits.requires_grad:
            logits.register_hook(self._backward)

    def _backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def judged(case: Case, found: AttackResult | Tensor, counted: Counted) -> dict[str, Any]:
    """Queries for a sample, robust accuracy by a forward of our own, and how far the points are."""
    ours = isinstance(found, AttackResult)  # it may search on a copy that the hook does not see
    x_adv = found.x_adv if ours else found.detach()
    with torch.no_grad():
        robust = case.net(x_adv).argmax(1) == case.y
    forwards, backwards = counted.forwards, counted.backwards
    if ours:
        forwards, backwards = int(found.forwards.sum()), int(found.backwards.sum())
    distance = (x_adv.double() - case.x.double()).abs().max().item()
    return {
        "forwards": forwards / len(case.x),
        "backwards": backwards / len(case.x),
        "robust accuracy": robust.double().mean().item(),
        "largest distance over eps": distance / case.eps if math.isfinite(distance) else None,
    }
