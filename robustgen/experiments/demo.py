"""The demo: the three jobs on scikit-learn's handwritten digits, in under three minutes on two CPU cores."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
from torch import Tensor, nn

from robustgen import data
from robustgen.attacks import FGSM, PGD, Attack
from robustgen.detectors import Detector, ReconstructionError
from robustgen.evaluation import (
    DetectorRobustness,
    RobustnessReport,
    evaluate_detection,
    evaluate_detector_robustness,
    evaluate_robustness,
    write_report,
)
from robustgen.evaluation.masking import VIOLATED, paired
from robustgen.evaluation.report_pictures import encode_picture
from robustgen.evaluation.summary import short_percent
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
ATTACKED: dict[str, type[Attack]] = {"FGSM": FGSM, "PGD": PGD}  # the detectors are shown what these find
PLAIN, AFTERWARDS, ADVERSARIAL, FORTIFIED = (
    "plain",
    "plain, fortified afterwards",
    "adversarial",
    "fortified adversarial",
)
SHOWN = 3  # inputs of each population
FPR = 0.05
LINE = 100  # characters of a line that is printed


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
    epochs=30,
    recipe_epochs=12,
    width=8,
    pgd_steps=2,
    test_examples=20,
    sweep_examples=20,
    guarded_examples=10,
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
        PLAIN: plain,
        AFTERWARDS: afterwards.eval(),
        ADVERSARIAL: adversarial,
        FORTIFIED: joint,
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
            class_names=rest.classes,
            progress=progress,
        )
        for name, network in networks.items()
    }
    detection, guarded, shown = [], [], []
    for name in (AFTERWARDS, FORTIFIED):
        network = networks[name]
        detector = ReconstructionError(network, relative=True).fit(train).calibrate(calibration)
        populations = {
            **{name: kind(eps=EPS, seed=seed, early_stop=False)(network, x, y) for name, kind in ATTACKED.items()},
            f"held-out digits {HELD_OUT[0]} and {HELD_OUT[1]}": heldout.images(),
            "uniform noise": data.noise(len(x), tuple(x.shape[1:]), seed=seed).images(),
        }
        detection.append(evaluate_detection(detector, x, populations, network=name))
        shown = _shown(detector, {"ordinary digits": x} | populations)
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
    ]
    story = _story(reports, detection, guarded, shown)
    page = write_report(
        {
            "title": "robustgen demo: a network, how it falls, how it is guarded",
            "command": command,
            "seed": seed,
            "story": story,
            "remarks": remarks,
            "environment": environment(),
            "wall_seconds": round(time.monotonic() - started, 1),
            "networks": [r.to_dict() for r in reports.values()],
            "detection": detection,
            "detector_robustness": [found.to_dict() for found in guarded],
        },
        out,
    )
    for k, step in enumerate(story, 1):
        say(f"\n{k}. {step['title']}")
        say(fill(step["text"], LINE, initial_indent="   ", subsequent_indent="   "))
    _say_accuracies(reports, say)
    say(f"\n{time.monotonic() - started:.0f} s; all numbers, pictures and tests: {page}")
    return page


def _shown(detector: Detector, populations: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The first inputs of each population with their scores, as a report shows them."""
    rows = []
    for name, inputs in populations.items():
        few = inputs[:SHOWN]
        found = zip(few, detector.score(few), detector.p_value(few), detector.flag(few, FPR), strict=True)
        rows += [
            {"input": name, "score": float(s), "p_value": float(p), "flag": bool(f), "picture": encode_picture(one)}
            for one, s, p, f in found
        ]
    return rows


def _story(
    reports: dict[str, RobustnessReport],
    detection: list[dict[str, Any]],
    guarded: list[DetectorRobustness],
    shown: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """What the numbers say, step by step: title and text, and the network or the inputs whose pictures belong to it."""
    plain, adversarial, fortified = (reports[name] for name in (PLAIN, ADVERSARIAL, FORTIFIED))
    (seen, attacked) = next(
        (entry, found) for entry, found in zip(detection, guarded, strict=True) if entry["network"] == FORTIFIED
    )
    called = {name: f"digits under {name}" if name in ATTACKED else name for name in seen["populations"]}
    flagged = ", ".join(f"{short_percent(p['flagged'])} of {called[name]}" for name, p in seen["populations"].items())
    rates = attacked.to_dict()
    kept = rates["clean"]["correct_and_unflagged"]["value"]
    left = rates["worst_case"]["guarded_accuracy"]["value"]
    violated = [
        f"{test.name} ({name})" for name, r in reports.items() for test in r.masking if test.verdict == VIOLATED
    ]
    tests = f" Not every test of the attacks holds: {'; '.join(violated)}." if violated else ""
    return [
        {
            "title": "A network",
            "text": f"A small convolutional network learns all handwritten digits but {HELD_OUT[0]} and {HELD_OUT[1]}. "
            f"It reads {short_percent(plain.clean_accuracy)} of {len(plain.y)} that it has not seen.",
        },
        {
            "title": "How it falls",
            "text": f"Let an attacker who knows the network change each pixel by at most {EPS:g} of its range. "
            f"The network then reads {short_percent(plain.robust_accuracy)} of them.",
            "pictures_of": PLAIN,
        },
        {
            "title": "How it is guarded",
            "text": f"Trained on attacked digits, it reads {short_percent(adversarial.robust_accuracy)} under the same "
            f"attacks and {short_percent(adversarial.clean_accuracy)} without; with fortified layers as well, "
            f"{short_percent(fortified.robust_accuracy)} and {short_percent(fortified.clean_accuracy)}. "
            f"{_gain(adversarial, fortified)} Robust accuracies are upper bounds.{tests}",
        },
        {
            "title": "What is flagged",
            "text": f"The fortified layers also score how unlike the training digits an input is. They flag {flagged}; "
            f"and {short_percent(seen['false_alarms'])} of ordinary digits, where "
            f"{short_percent(seen['fpr'])} were allowed. Of {len(attacked.y)} digits {short_percent(kept)} are right "
            f"and pass; under attack, by one who knows the detector or not, {short_percent(left)} are right or "
            "flagged.",
            "inputs": shown,
        },
    ]


def _gain(baseline: RobustnessReport, fortified: RobustnessReport) -> str:
    """Whether fortification helped beyond adversarial training, paired over the test images, in a sentence."""
    rows = {"clean": (baseline.clean, fortified.clean)}
    rows |= {k: (o.standing, fortified.outcomes[k].standing) for k, o in baseline.outcomes.items()}
    rows["worst case"] = (baseline.standing, fortified.standing)
    gains = {name: paired(with_.double() - without.double()) for name, (without, with_) in rows.items()}
    measured = {name: found for name, found in gains.items() if abs(found[0]) > 2 * found[1]}
    largest, error = max(gains.values(), key=lambda found: abs(found[0]))
    if not measured:
        return (
            f"Of one training run each, the fortified layers make no measurable difference in any of {len(rows)} rows "
            f"(at most {100 * largest:+.1f} points, standard error {100 * error:.1f})."
        )
    found = ", ".join(
        f"{name} {100 * gain:+.1f} points (standard error {100 * error:.1f})"
        for name, (gain, error) in measured.items()
    )
    rest = len(rows) - len(measured)
    return (
        f"Of one training run each, the fortified layers change: {found}; no measurable difference in the other {rest} "
        "rows."
    )


def _say_accuracies(reports: dict[str, RobustnessReport], say: Callable[[str], None]) -> None:
    say(f"\naccuracy, %, Linf eps {EPS:g} (robust ones are upper bounds)")
    heads = {name: name.split(", ")[-1] for name in reports}
    widths = {name: len(head) + 3 for name, head in heads.items()}
    rows = {"clean": [r.clean_accuracy for r in reports.values()]}
    for label in next(iter(reports.values())).outcomes:
        rows[label] = [r.outcomes[label].standing.double().mean().item() for r in reports.values()]
    rows["worst case"] = [r.robust_accuracy for r in reports.values()]
    say(f"{'':<14}" + "".join(f"{head:>{widths[name]}}" for name, head in heads.items()))
    for label, shares in rows.items():
        say(f"{label:<14}" + "".join(f"{100 * s:>{w}.1f}" for s, w in zip(shares, widths.values(), strict=True)))
