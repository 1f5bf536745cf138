"""``robustgen train``: a classifier, plain, adversarial, fortified, or fortified afterwards."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustgen.commands.data_spec import DataSpec
from robustgen.commands.network_spec import FortifySpec, NetworkSpec
from robustgen.commands.opening import device_of, move
from robustgen.commands.recipes import chosen_recipe, makes, option, settled
from robustgen.commands.runs import claim, is_first, parts
from robustgen.commands.trial import try_autoencoders, try_detector, try_objective
from robustgen.data import ArrayDataset, noise
from robustgen.detectors import Detector, ReconstructionError
from robustgen.files import load_state, write_json
from robustgen.fortified import FortifiedNetwork
from robustgen.model import evaluating, logits_of, naming_inputs
from robustgen.training import Objective, load_checkpoint
from robustgen.training.collapse import COLLAPSED
from robustgen.training.metrics import best_row
from robustgen.training.recipes.recipe import BEST, Recipe
from robustgen.turns import seeded

__all__ = ["train_network", "warn_of_a_wrong_way"]

_OF_FROZEN = {"model", "width", "activation", "epochs", "batch_size", "lr"}  # with --freeze-backbone


def train_network(
    *,
    run: Path,
    data: DataSpec,
    recipe: str | None = None,
    adversarial: str | None = None,
    attack: str = "none",
    asked: Mapping[str, Any] | None = None,
    weights: Path | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    awp: float | None = None,
    fortified: FortifySpec | None = None,
    hold_out: tuple[str, ...] = (),
    seed: int = 0,
    device: str | None = None,
    resume: bool = False,
    progress: bool = True,
    command: str | None = None,
    options: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train a classifier, plain, adversarially or fortified, and write it to ``run``; returns what to print.

    Args:
        recipe, adversarial, attack: see :func:`~robustgen.commands.recipes.chosen_recipe`.
        asked: values of the :class:`~robustgen.training.recipes.Recipe` that go before its own.
        options: of the command, for a resumed one to remember.
        say: receives which recipe is followed and, of adversarial training, a line each epoch.
    """
    asked = dict(asked or {})
    whole = data.read("train")
    whole.labels()  # a clear error where there are none
    # The same tenth for every seed, so that fortifying a network of ours afterwards calibrates on data new to it.
    rest, train, held_back = parts(whole, hold_out, labelled=True)
    chosen, line = settled(*chosen_recipe(recipe, adversarial, attack, asked, data, whole), asked)
    _check_options(chosen, asked, awp, fortified, weights)
    if chosen.adversarial and len(held_back) < 2:
        raise ValueError(
            f"{rest.name}: 1 example is kept from training, and one has to choose the epoch, another to be judged by: "
            "pass more data, or a larger --limit"
        )
    watched = chosen.watched(held_back) if chosen.adversarial else None
    # What has chosen an epoch, of this network or of the one that it begins with, calibrates no detector.
    calibration = held_back if watched is None and weights is None else chosen.unwatched(held_back)
    make = makes(fortified, awp)
    shape, n_classes = tuple(rest.x.shape[1:]), rest.n_classes
    spec = NetworkSpec(chosen.model, shape, n_classes, chosen.width, chosen.activation, mean=mean, std=std)
    with seeded(seed):
        network, spec = spec.open(weights)
        if fortified is not None:
            network = fortified.fortified(network, train.batch(torch.arange(2))[0])
    move(network, device)
    info: dict[str, Any] = {
        "format": 1,
        "data": data.record(),
        "classes": list(rest.classes),
        "held_out": [name for name in whole.classes if name not in rest.classes],
        "network": spec.to_record(),
        "fortify": None if fortified is None else asdict(fortified) | {"chosen": list(network.layers)},
        "training": chosen.record() | {"seed": seed, "awp": awp},
        "command": command,
        "options": dict(options or {}),
    }
    if watched is not None:
        info["held_back"] = {"choose_the_epoch": len(watched), "calibrate": len(calibration)}
    frozen = fortified is not None and fortified.freeze_backbone
    objective = chosen.objective(len(train), seed=seed, make=make)
    _try(network, fortified, objective, train, batch_size=chosen.batch_size, n_classes=n_classes, seed=seed)
    if watched is not None and progress and is_first():
        say(f"{line}; the best epoch is chosen on {_images(watched)}".removeprefix("; "))
    with claim(run, info, resume):  # only now: what is refused above leaves nothing
        if isinstance(network, FortifiedNetwork) and frozen:
            history = network.fit_autoencoders(
                train,
                lr=chosen.lr,
                epochs=chosen.epochs,
                batch_size=chosen.batch_size,
                seed=seed,
                progress=progress,
                run_dir=run,
                resume=resume,
            )
        else:
            common: dict[str, Any] = {"run_dir": run, "resume": resume, "progress": progress, "device": device}
            if watched is not None:
                common["after_epoch"] = partial(_say_epoch, say if progress else None)
            trainer = chosen.trainer(len(train), seed=seed, make=make, **common)
            history = trainer.fit(network, train, watched)
        if not is_first():
            return {}
        found: dict[str, Any] = {"run": str(run)} | ({"training": line} if line else {}) | {"epochs": len(history)}
        kept: Mapping[str, float] = history[-1]  # the epoch of the network that one gets
        if watched is not None:
            kept = best_row(history, BEST)
            checkpoint = load_checkpoint(run, best=True)
            load_state(network, checkpoint.model_state, checkpoint.path)
            info["best"] = {name: kept[name] for name in ("epoch", "step", BEST)}
            found |= {"best epoch": kept["epoch"], "chosen on": _images(watched)}
        found |= {name: value for name, value in kept.items() if name not in ("epoch", "step")}
        if kept.get(COLLAPSED):
            info[COLLAPSED] = True
        write_json(run / "run.json", info)  # of a resumed run: its new number of epochs
        network.eval()
        found["held-back accuracy"] = accuracy(network, calibration)
        if isinstance(network, FortifiedNetwork) and fortified is not None:
            found["layers"] = list(network.layers)
            if fortified.noise_at_test:
                found["detector"] = "none: the noise stays on at test, scores would depend on the draw"
            else:
                detector = ReconstructionError(network, relative=True).fit(train).calibrate(calibration)
                detector.save(run / "detector")
                warn_of_a_wrong_way(
                    detector,
                    shape,
                    "train for more epochs with --detach-states, or fortify the trained network with --weights and "
                    "--freeze-backbone",
                )
                found["detector"] = f"calibrated on {len(calibration)} held-back images"
        return found


def warn_of_a_wrong_way(detector: Detector, shape: tuple[int, ...], remedy: str) -> None:
    """Warn where uniform noise scores as more usual than the images that the detector was calibrated on."""
    if len(shape) != 3:  # columns of a table have no common range to draw noise in
        return
    strange = detector.score(noise(100, shape, seed=0).images().to(device_of(detector.model)))
    if float(strange.median()) < float(detector.calibration.scores.median()):
        warnings.warn(
            f"the detector points the wrong way: it takes uniform noise for more usual than the data; {remedy}",
            stacklevel=2,
        )


def _check_options(
    recipe: Recipe,
    asked: Mapping[str, Any],
    awp: float | None,
    fortified: FortifySpec | None,
    weights: Path | None,
) -> None:
    """ValueError for options that do not go together."""
    if awp is not None and not recipe.adversarial:
        raise ValueError("--awp goes with adversarial training: pass --adversarial, --recipe or --attack")
    if fortified is not None and fortified.freeze_backbone:
        if weights is None:
            raise ValueError("--freeze-backbone keeps a pretrained network as it is: pass its --weights")
        if recipe.adversarial:
            raise ValueError(
                "--freeze-backbone trains the autoencoders alone: leave out --attack, --adversarial and --recipe"
            )
        for name in asked.keys() - _OF_FROZEN:
            raise ValueError(f"--freeze-backbone trains the autoencoders by Adam, at --lr: leave out {option(name)}")
    if fortified is not None and not recipe.adversarial and fortified.lambda_adv != FortifySpec.lambda_adv:
        raise ValueError("--lambda-adv is of adversarial training, this training is plain")


def _images(watched: ArrayDataset) -> str:
    """On what the best epoch is chosen."""
    n = len(watched)
    few = f" (few: a standard error of up to {50 / n**0.5:.0f} points)" if n < 100 else ""
    return f"{n} held-back image{'s' * (n != 1)}{few}"


def _say_epoch(say: Callable[[str], None] | None, model: nn.Module, history: list[dict[str, float]]) -> None:
    """One line an epoch: how the network stands on inputs that it is not trained on."""
    if say is None:
        return
    row = history[-1]
    best = " (best so far)" if best_row(history, BEST) is row else ""
    say(f"epoch {row['epoch']}: of held-back images {row['val_accuracy']:.1%} right, {row[BEST]:.1%} under PGD{best}")


def _try(
    network: nn.Module,
    fortified: FortifySpec | None,
    objective: Objective,
    data: ArrayDataset,
    *,
    batch_size: int,
    n_classes: int,
    seed: int,
) -> None:
    """A step of everything that is to come; see :mod:`robustgen.commands.trial`."""
    x = data.batch(torch.arange(min(2, len(data))))[0].to(device_of(network))
    with seeded(None), evaluating(network), torch.no_grad(), naming_inputs(x):
        found = logits_of(network(x)).shape[1]
    if found < n_classes:
        raise ValueError(f"{data.name} has {n_classes} classes, the network has {found}")
    if isinstance(network, FortifiedNetwork) and fortified is not None and fortified.freeze_backbone:
        try_autoencoders(network, data, batch_size, seed)
    else:
        try_objective(network, objective, data, batch_size, seed)
    if isinstance(network, FortifiedNetwork) and fortified is not None and not fortified.noise_at_test:
        try_detector(network, data)


def accuracy(network: nn.Module, dataset: ArrayDataset, batch_size: int = 500) -> float:
    """Share of a labelled data set that is classified correctly."""
    y, hits = dataset.labels(), 0
    device = device_of(network)
    with evaluating(network), torch.no_grad():
        for rows in torch.arange(len(dataset)).split(batch_size):
            hits += int((logits_of(network(dataset.batch(rows)[0].to(device))).argmax(1).cpu() == y[rows]).sum())
    return hits / len(dataset)
