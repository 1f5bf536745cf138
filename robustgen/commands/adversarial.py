"""How ``robustgen train`` trains adversarially: an attack, a loss, a guard, and which options go together."""

from dataclasses import dataclass
from typing import Any

from robustgen.attacks import FGSM, KLPGD, PGD, Attack, RandomStartFGSM
from robustgen.commands.runs import FortifySpec
from robustgen.fortified import FortifiedObjective
from robustgen.training import (
    AWP,
    ClassificationLoss,
    ClassifierObjective,
    Mart,
    Objective,
    OverfittingGuard,
    Trades,
)

__all__ = ["AdversarialSpec", "adversarial_training", "training_attack"]


@dataclass(frozen=True)
class AdversarialSpec:
    """What is trained on; without an attack, clean inputs alone."""

    attack: Attack | None = None
    clean_weight: float = 1.0
    loss: ClassificationLoss | None = None
    awp: float | None = None
    guard: OverfittingGuard | None = None

    def objective(self, fortified: FortifySpec | None) -> Objective:
        """The objective of a plain or of a fortified network."""
        objective: Objective
        if fortified is None:
            objective = ClassifierObjective(self.attack, self.clean_weight, loss=self.loss)
        else:
            objective = FortifiedObjective(
                self.attack,
                lambda_rec=fortified.lambda_rec,
                lambda_adv=fortified.lambda_adv,
                detach_states=fortified.detach_states,
                clean_weight=self.clean_weight,
                loss=self.loss,
            )
        return objective if self.awp is None else AWP(objective, gamma=self.awp)

    def extras(self) -> dict[str, Any] | None:
        """What a run's description says beside its attack and clean weight; None where there is nothing."""
        parts = {"loss": self.loss, "guard": self.guard}
        found = {name: part.describe() for name, part in parts.items() if part is not None}
        return (found if self.awp is None else found | {"awp": self.awp}) or None


def adversarial_training(
    method: str | None,
    attack: str,
    *,
    eps: float,
    norm: str,
    steps: int,
    clean_weight: float | None,
    beta: float | None,
    awp: float | None,
    seed: int,
) -> AdversarialSpec:
    """What the options of the command ask for.

    Args:
        method: "madry", "trades", "mart" or "fast", each of which chooses its attack and loss; or None.
        attack: without a method, "none", "fgsm" or "pgd", its loss beside ``clean_weight`` times the clean one.
        beta: of "trades" and "mart"; None is the papers' 6 and 5.
        awp: gamma of the adversarial weight perturbation; None is without.

    Raises:
        ValueError: an unknown method or attack, or options that do not go together.
    """
    common: dict[str, Any] = {"eps": eps, "norm": norm, "seed": seed, "early_stop": False}
    if beta is not None and method not in ("trades", "mart"):
        raise ValueError("--beta weighs the second term of --adversarial trades or mart")
    if awp is not None and method is None and attack == "none":
        raise ValueError("--awp goes with adversarial training: pass --adversarial or --attack")
    if method is None:
        found = training_attack(attack, eps, norm, steps, seed)
        return AdversarialSpec(found, 1.0 if clean_weight is None else clean_weight, awp=awp)
    if attack != "none" or clean_weight is not None:
        raise ValueError(f"--adversarial {method} chooses attack and loss: leave out --attack and --clean-weight")
    weight = {} if beta is None else {"beta": beta}
    if method == "madry":
        return AdversarialSpec(PGD(**common, steps=steps), 0.0, awp=awp)
    if method == "trades":
        return AdversarialSpec(KLPGD(**common, steps=steps), loss=Trades(**weight), awp=awp)
    if method == "mart":
        return AdversarialSpec(PGD(**common, steps=steps), loss=Mart(**weight), awp=awp)
    if method == "fast":
        fast = RandomStartFGSM(**common)
        guard = OverfittingGuard(weak=fast, strong=PGD(eps=eps, norm=norm, seed=seed, steps=10))
        return AdversarialSpec(fast, 0.0, awp=awp, guard=guard)
    raise ValueError(f"unknown method {method!r}; known: madry, trades, mart, fast")


def training_attack(name: str, eps: float, norm: str, steps: int, seed: int) -> Attack | None:
    """The attack inside adversarial training: "none", "fgsm" or "pgd"."""
    common: dict[str, Any] = {"eps": eps, "norm": norm, "seed": seed, "early_stop": False}
    known = {"none": None, "fgsm": lambda: FGSM(**common), "pgd": lambda: PGD(**common, steps=steps)}
    if name not in known:
        raise ValueError(f"unknown attack {name!r}; known: {', '.join(known)}")
    make = known[name]
    return None if make is None else make()
