"""Adversarial spheres: errors on and off a manifold that is known exactly.

Section 2.8.4 of the source argues, without a measurement, that autoencoders trained on clean states alone cannot help
against adversarial inputs that lie on the manifold, while the adversarial loss may. Here both kinds are made. What the
attacks should find is known in closed form for the exact classifier ||x|| against the middle radius, which is attacked
first in every cell.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.attacks import PGD, Attack, SpherePGD
from robustgen.counter_rng import derive_seed
from robustgen.data import spheres
from robustgen.evaluation.metrics import auroc
from robustgen.experiments.experiment import (
    LAMB_2018,
    Cell,
    Column,
    Experiment,
    Measurement,
    Row,
    counted,
    epochs_of,
)
from robustgen.experiments.training_cache import TrainingCache
from robustgen.fortified import FortifiedNetwork, FortifiedObjective, fortify
from robustgen.networks import mlp
from robustgen.training import ClassifierObjective

__all__ = ["EXPERIMENT"]

INNER, OUTER = 1.0, 1.3
HALF = (OUTER - INNER) / 2  # distance of every point to the exact classifier's boundary
BOUNDS = (-2.0, 2.0)
EPS = 0.1
SCALES = {
    "smoke": {"dim": 10, "n_train": 400, "n_test": 50, "units": 32, "epochs": 3, "steps": 5},
    "cpu": {"dim": 50, "n_train": 20_000, "n_test": 1000, "units": 256, "epochs": 10, "steps": 40},
    "full": {"dim": 500, "n_train": 500_000, "n_test": 1000, "units": 1000, "epochs": 20, "steps": 100},
}
TRAINING: dict[str, Any] = {"batch_size": 128, "lr": 2e-3, "attack_steps": 5}
WEIGHTS = {"lambda_rec": 0.1, "lambda_adv": 0.1}


class _Exact(nn.Module):
    """The exact classifier: logits (middle radius - ||x||, ||x|| - middle radius)."""

    def forward(self, x: Tensor) -> Tensor:
        beyond = x.norm(dim=1) - (INNER + OUTER) / 2
        return torch.stack([-beyond, beyond], 1)


class _Spheres(Experiment):
    name = "lamb-2018/adversarial-spheres"
    n_classes = 2
    title = "concentric spheres, attacks on and off the manifold"
    question = "Does fortifying help against inputs that are attacked on the data manifold, or off it?"
    finding = (
        "Off the sphere: plain {plain|off}, adversarial training {adversarial|off}, fortified adversarial "
        "training {fortified|off}. On the sphere: {plain|on}, {adversarial|on} and {fortified|on}."
    )
    source = f"{LAMB_2018}, section 2.8.4 (no numbers), after Gilmer et al. 2018"
    metric = "accuracy under attack, %"
    columns = (
        Column("off", f"off the sphere: PGD, L2, eps {EPS:g}"),
        Column("on", "on the sphere: no other bound"),
    )
    rows = (
        Row(key="plain", title="plain network", data=(None, False)),
        Row(key="fortified-rec", title="fortified, L_rec only, clean training", data=({"lambda_rec": 0.1}, False)),
        Row(key="adversarial", title="adversarial training (off the sphere)", data=(None, True)),
        Row(key="fortified", title="fortified, adversarial training", data=(WEIGHTS, True)),
        Row(
            key="fortified-detached",
            title="fortified, adversarial training, detached states",
            data=(WEIGHTS | {"detach_states": True}, True),
        ),
    )
    notes = (
        f"Spheres of radius {INNER:g} and {OUTER:g}: every point is {HALF:g} away from the exact boundary.",
        "AUROC: relative reconstruction error of both layers, clean against attacked inputs; one half is no signal.",
    )

    def describe(self, scale: str) -> str:
        s = SCALES[scale]
        return (
            f"{s['dim']} dimensions, {s['n_train']} training and {s['n_test']} test points, two hidden layers of "
            f"{s['units']} ReLUs, {s['epochs']} epochs, PGD-{s['steps']}"
        )

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        attacks = [attack.describe() for attack in _attacks(SCALES[scale])]
        row = {"row": list(self.row(cell.row).data), "column": cell.column}
        return SCALES[scale] | TRAINING | row | {"attacks": attacks, "radii": [INNER, OUTER]}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        s = SCALES[scale]
        x, y = spheres(s["n_train"], s["dim"], INNER, OUTER, seed=derive_seed(cell.seed, 0))
        x_test, y_test = spheres(s["n_test"], s["dim"], INNER, OUTER, seed=derive_seed(cell.seed, 1))
        off, on = _attacks(s)
        x_test, y_test = x_test.to(cache.device), y_test.to(cache.device)
        net, history = self._train(cell, s, off, (x, y), cache)
        attack: Attack = off if cell.column == "off" else on
        found = attack.run(net, x_test, y_test)
        hardest = replace(attack, early_stop=False)(net, x_test, y_test)
        numbers = {
            "clean": 100 * (net(x_test).argmax(1) == y_test).double().mean().item(),
            "attacked": 100 * (~found.success).double().mean().item(),
            "norm of attacked inputs over that of clean ones": (hardest.norm(dim=1) / x_test.norm(dim=1)).mean().item(),
        }
        if isinstance(net, FortifiedNetwork):
            errors = [sum(net.reconstruction_errors(z, relative=True).values()) for z in (x_test, hardest)]
            numbers["AUROC"] = auroc(*(e.double() for e in errors if isinstance(e, Tensor)))
        return Measurement(
            value=numbers["attacked"],
            numbers=counted(numbers, len(x_test)),
            verdicts=_closed_form(off, on, x_test[:100], y_test[:100]),
            history=epochs_of(history),
        )

    def _train(
        self, cell: Cell, s: dict[str, int], off: PGD, examples: tuple[Tensor, Tensor], cache: TrainingCache
    ) -> tuple[nn.Module, list[dict[str, float]]]:
        weights, adversarial = self.row(cell.row).data
        attack = replace(off, steps=TRAINING["attack_steps"]) if adversarial else None
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(cell.seed, 2))
            net: nn.Module = mlp(s["dim"], [s["units"]] * 2, 2)
            if weights is not None:
                net = fortify(net, ["2", "4"], example_input=examples[0][:2], init="random")
        objective = ClassifierObjective(attack) if weights is None else FortifiedObjective(attack, **weights)
        described = None if attack is None else attack.describe()
        training = (
            {"spheres": [INNER, OUTER], "seed": cell.seed, "weights": weights, "attack": described} | s | TRAINING
        )
        history = cache.train(
            training,
            net,
            objective,
            examples,
            epochs=s["epochs"],
            batch_size=TRAINING["batch_size"],
            lr=TRAINING["lr"],
            seed=cell.seed,
        )
        return net, history


def _attacks(s: dict[str, int]) -> tuple[PGD, SpherePGD]:
    """Off and on the sphere."""
    return (
        PGD(eps=EPS, norm="L2", steps=s["steps"], bounds=BOUNDS),
        SpherePGD(eps=2.1 * OUTER, steps=s["steps"], bounds=BOUNDS),  # all of the sphere
    )


def _closed_form(off: PGD, on: SpherePGD, x: Tensor, y: Tensor) -> list[dict[str, Any]]:
    """Whether the attacks find on the exact classifier what there is to find, and nothing else."""
    cases = {
        "exact classifier: off the sphere, nothing closer than the boundary": (replace(off, eps=0.99 * HALF), 0.0),
        "exact classifier: off the sphere, all beyond it": (
            replace(off, eps=1.01 * HALF, steps=40, random_start=False),
            1.0,
        ),
        "exact classifier: on the sphere, nothing": (on, 0.0),
    }
    verdicts = []
    for name, (attack, expected) in cases.items():
        broken = attack.run(_Exact(), x, y).success.double().mean().item()
        detail = f"{broken:.1%} of {len(x)} broken, {expected:.0%} expected"
        verdicts.append({"name": name, "verdict": "holds" if broken == expected else "violated", "detail": detail})
    return verdicts


EXPERIMENT = _Spheres()
