"""The demo: the three jobs on scikit-learn's handwritten digits, in under three minutes on two CPU cores."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustgen import data
from robustgen.attacks import FGSM, PGD, Attack
from robustgen.detectors import ReconstructionError
from robustgen.evaluation import (
    DetectorRobustness,
    RobustnessReport,
    evaluate_detection,
    evaluate_detector_robustness,
    evaluate_robustness,
    write_report,
)
from robustgen.evaluation.masking import VIOLATED, paired
from robustgen.files import environment
from robustgen.fortified import FortifiedNetwork, FortifiedObjective, fortify
from robustgen.networks import convnet, mlp
from robustgen.training import ClassificationLoss, ClassifierObjective, Objective, Trainer
from robustgen.training.recipes import Make, find
from robustgen.training.recipes.recipe import classifier

__all__ = ["Scale", "run_demo"]

HELD_OUT = (4, 9)
EPS = 0.15
LAYERS = "auto"


@dataclass(frozen=True)
class Scale:
    """How much work the demo does."""

    epochs: int = 40
    recipe_epochs: int = 30
    width: int = 16
    pgd_steps: int = 7
    test_examples: int = 400
    sweep_examples: int = 300
    guarded_examples: int = 100
    joint_steps: int = 100


SMOKE = Scale(
    epochs=2,
    recipe_epochs=2,
    width=8,
    pgd_steps=2,
    test_examples=60,
    sweep_examples=40,
    guarded_examples=20,
    joint_steps=5,
)


def run_demo(
    out: str | Path,
    *,
    scale: Scale | None = None,
    seed: int = 0,
    progress: bool = True,
    say: Callable[[str], None] = print,
    command: str | None = None,
) -> Path:
    """Train, attack and score on digits; write ``report.json`` and ``report.html`` to ``out``.

    Args:
        out: directory of the report.
        scale: how much work; default: the full demo.
        seed: of splits, initial weights, training and attacks.
        progress: show progress bars.
        say: receives each line of the printed summary.
        command: how the demo was called, for the report.

    Returns:
        The path of ``report.html``.
    """
    started = time.monotonic()
    scale = scale or Scale()
    rest, heldout = data.heldout_classes(data.digits("all"), HELD_OUT)
    train, calibration, test = data.split(rest, (0.6, 0.15, 0.25), seed=seed)
    data.check_disjoint(train, calibration, test)
    n_classes = rest.n_classes
    x, y = test.images()[: scale.test_examples], test.labels()[: scale.test_examples]

    recipe = replace(find("digits-madry"), epochs=scale.recipe_epochs, width=scale.width, steps=scale.pgd_steps)

    def fit(trainer: Trainer, network: nn.Module, stage: str) -> nn.Module:
        if progress:
            say(f"training: {stage}")
        trainer.fit(network, train, recipe.watched(calibration) if trainer.best else None)
        return network.eval()

    def plainly() -> Trainer:
        return Trainer(ClassifierObjective(), epochs=scale.epochs, batch_size=64, seed=seed, progress=progress)

    def by_recipe(make: Make) -> Trainer:
        return recipe.trainer(len(train), seed=seed, make=make, progress=progress)

    # Detached: the autoencoder losses cannot shrink the states, and the autoencoders learn to tell what is off.
    def fortified_loss(attack: Attack | None, clean_weight: float, loss: ClassificationLoss | None) -> Objective:
        weights: dict[str, Any] = {"clean_weight": clean_weight, "lambda_rec": 1.0, "lambda_adv": 1.0}
        return FortifiedObjective(attack, loss=loss, detach_states=True, **weights)

    def backbone(k: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed * 1000 + k)
            return convnet(1, n_classes, 8, width=scale.width)

    def fortified(network: nn.Module, k: int) -> FortifiedNetwork:
        with torch.random.fork_rng():
            torch.manual_seed(seed * 1000 + 100 + k)
            return fortify(network, LAYERS, example_input=x[:2])

    plain = fit(plainly(), backbone(0), "plain network")
    adversarial = fit(by_recipe(classifier), backbone(1), "adversarially trained network, by its recipe")
    joint = fortified(backbone(1), 1)  # the same initial weights as its unfortified twin
    fit(by_recipe(fortified_loss), joint, "fortified, adversarially trained network")
    afterwards = fortified(plain, 0)
    afterwards.fit_autoencoders(train, epochs=scale.epochs, batch_size=64, seed=seed, progress=progress)
    with torch.random.fork_rng():
        torch.manual_seed(seed * 1000 + 2)
        substitute = mlp(64, [128, 128], n_classes)
    fit(plainly(), substitute, "substitute of the black-box attacker")

    networks = {
        "plain": plain,
        "plain, fortified afterwards": afterwards.eval(),
        "adversarial": adversarial,
        "fortified adversarial": joint,
    }
    reports = {
        name: evaluate_robustness(
            network,
            x,
            y,
            eps=EPS,
            seed=seed,
            surrogate=substitute,
            sweep_examples=scale.sweep_examples,
            name=name,
            progress=progress,
        )
        for name, network in networks.items()
    }
    detection, guarded = [], []
    for name in ("plain, fortified afterwards", "fortified adversarial"):
        network = networks[name]
        detector = ReconstructionError(network, relative=True).fit(train).calibrate(calibration)
        populations = {
            "FGSM": FGSM(eps=EPS, seed=seed, early_stop=False)(network, x, y),
            "PGD": PGD(eps=EPS, seed=seed, early_stop=False)(network, x, y),
            f"held-out digits {HELD_OUT[0]} and {HELD_OUT[1]}": heldout.images(),
            "uniform noise": data.noise(len(x), tuple(x.shape[1:]), seed=seed).images(),
        }
        detection.append(evaluate_detection(detector, x, populations, network=name))
        few = slice(scale.guarded_examples)
        guarded.append(
            evaluate_detector_robustness(
                network,
                detector,
                x[few],
                y[few],
                eps=EPS,
                x_ood=heldout.images()[few],
                seed=seed,
                steps=scale.joint_steps,
                name=name,
                progress=progress,
            )
        )

    remarks = [
        f"Data: {data.digits('all').name}, {len(train)} training, {len(calibration)} calibration and {len(x)} test "
        f"images of 8x8 pixels; digits {HELD_OUT[0]} and {HELD_OUT[1]} held out of training. "
        f"The detectors are attacked on the first {scale.guarded_examples} test images.",
        "Does fortification help beyond adversarial training? Paired over the test images, one training run each:",
        *_verdicts(reports["adversarial"], reports["fortified adversarial"]),
    ]
    page = write_report(
        {
            "title": "robustgen demo: fortify, attack, score",
            "command": command,
            "seed": seed,
            "remarks": remarks,
            "environment": environment(),
            "wall_seconds": round(time.monotonic() - started, 1),
            "networks": [r.to_dict() for r in reports.values()],
            "detection": detection,
            "detector_robustness": [found.to_dict() for found in guarded],
        },
        out,
    )
    _summary(reports, detection, guarded, remarks, say)
    say(f"\n{time.monotonic() - started:.0f} s; report: {page}")
    return page


def _verdicts(baseline: RobustnessReport, fortified: RobustnessReport) -> list[str]:
    """Whether fortification helped, row by row, paired over the test images."""
    rows = {"clean": (baseline.clean, fortified.clean)}
    rows |= {k: (o.standing, fortified.outcomes[k].standing) for k, o in baseline.outcomes.items()}
    rows["worst case"] = (baseline.standing, fortified.standing)
    lines = []
    for name, (without, with_) in rows.items():
        gain, error = paired(with_.double() - without.double())
        verdict = "no measurable difference" if abs(gain) <= 2 * error else "helps" if gain > 0 else "hurts"
        lines.append(f"Fortification, {name}: {verdict} ({100 * gain:+.1f} points, standard error {100 * error:.1f}).")
    return lines


def _summary(
    reports: dict[str, RobustnessReport],
    detection: list[dict[str, Any]],
    guarded: list[DetectorRobustness],
    remarks: list[str],
    say: Callable[[str], None],
) -> None:
    labels = list(next(iter(reports.values())).outcomes)
    say(f"\naccuracy, %, Linf eps {EPS:g} (robust ones are upper bounds)")
    say(f"{'':<22}" + "".join(f"{name:>29}" for name in reports))
    say(f"{'clean':<22}" + "".join(f"{100 * r.clean_accuracy:>29.1f}" for r in reports.values()))
    for label in labels:
        standing = [r.outcomes[label].standing.double().mean().item() for r in reports.values()]
        say(f"{label:<22}" + "".join(f"{100 * s:>29.1f}" for s in standing))
    say(f"{'worst case':<22}" + "".join(f"{100 * r.robust_accuracy:>29.1f}" for r in reports.values()))
    for name, report in reports.items():
        for test in report.masking:
            if test.verdict == VIOLATED:
                say(f"masking test {test.verdict} on {name}: {test.name} ({test.detail})")
    say("\nreconstruction error against test images, AUROC (flagged at 5 % nominal false alarms)")
    for entry in detection:
        found = ", ".join(f"{k} {p['auroc']:.2f} ({p['flagged']:.0%})" for k, p in entry["populations"].items())
        say(f"  {entry['network']}: {found}; false alarms {entry['false_alarms']:.1%}")
    say("\nthe same detectors under attack, by one who does not know them and by one who does")
    for attacked in guarded:
        say(str(attacked))
    say("")
    for line in remarks[1:]:
        say(line)
