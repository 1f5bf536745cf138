"""``robustgen train``: a classifier, plain, adversarial, fortified, or fortified afterwards."""

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustgen.attacks import FGSM, PGD, Attack
from robustgen.commands.runs import CALIBRATION, DataSpec, FortifySpec, NetworkSpec, device_of, load_weights
from robustgen.data import ArrayDataset, split
from robustgen.detectors import ReconstructionError
from robustgen.files import write_json
from robustgen.fortified import FortifiedNetwork, FortifiedObjective, fortify
from robustgen.model import evaluating, logits_of
from robustgen.training import ClassifierObjective, Trainer

__all__ = ["train_network", "training_attack"]


def cosine(progress: float) -> float:
    """Learning-rate factor from 1 down to 0 (Loshchilov and Hutter, "SGDR", 2017, equation 5, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


_SCHEDULES: dict[str, Callable[[float], float] | None] = {"constant": None, "cosine": cosine}


def train_network(
    *,
    run: Path,
    data: DataSpec,
    model: str,
    width: int | None = None,
    activation: str = "relu",
    weights: Path | None = None,
    attack: Attack | None = None,
    clean_weight: float = 1.0,
    fortified: FortifySpec | None = None,
    epochs: int = 10,
    batch_size: int = 128,
    lr: float = 1e-3,
    schedule: str = "constant",
    seed: int = 0,
    device: str | None = None,
    resume: bool = False,
    progress: bool = True,
    command: str | None = None,
) -> dict[str, Any]:
    """Train a classifier, plain, adversarially or fortified, and write it to ``run``; returns what to print."""
    if schedule not in _SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; known: {', '.join(_SCHEDULES)}")
    whole = data.read("train")
    whole.labels()  # a clear error where there are none
    if (run / "run.json").exists() and not resume:
        raise ValueError(f"{run} already holds a run: pass --resume or another --run")
    train, calibration = split(whole, (1 - CALIBRATION, CALIBRATION), seed=seed)
    shape = tuple(whole.x.shape[1:])
    spec = NetworkSpec(model, shape, whole.n_classes, width, activation)
    if fortified is not None and fortified.freeze_backbone and weights is None:
        raise ValueError("--freeze-backbone keeps a pretrained network as it is: pass its --weights")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = spec.build()
        if weights is not None:
            load_weights(network, weights)
        if fortified is not None:
            layers = fortified.layers if fortified.layers == "auto" else fortified.layers.split(",")
            network = fortify(
                network,
                layers,
                example_input=train.batch(torch.arange(2))[0],
                hidden=fortified.hidden,
                noise_std=fortified.noise_std,
                noise_at_test=fortified.noise_at_test,
            )
    if device is not None:
        network.to(device)
    info = {
        "format": 1,
        "data": asdict(data),
        "network": asdict(spec),
        "fortify": None if fortified is None else asdict(fortified) | {"chosen": list(network.layers)},
        "attack": None if attack is None else attack.describe(),
        "clean_weight": clean_weight,
        "training": {"epochs": epochs, "batch_size": batch_size, "lr": lr, "schedule": schedule, "seed": seed},
        "command": command,
    }
    write_json(run / "run.json", info)
    common: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "progress": progress}
    if isinstance(network, FortifiedNetwork) and fortified is not None and fortified.freeze_backbone:
        if attack is not None:
            raise ValueError("--freeze-backbone trains the autoencoders alone, on clean inputs: leave out --attack")
        history = network.fit_autoencoders(train, lr=lr, run_dir=run, resume=resume, **common)
    else:
        trainer = Trainer(
            _objective(attack, clean_weight, fortified),
            optimizer=partial(torch.optim.Adam, lr=lr),
            schedule=_SCHEDULES[schedule],
            run_dir=run,
            resume=resume,
            device=device,
            **common,
        )
        history = trainer.fit(network, train, val=None)
    network.eval()
    found: dict[str, Any] = {"run": str(run), "epochs": len(history)} | {
        k: v for k, v in history[-1].items() if k not in ("epoch", "step")
    }
    found["held-back accuracy"] = accuracy(network, calibration)
    if isinstance(network, FortifiedNetwork):
        ReconstructionError(network, relative=True).fit(train).calibrate(calibration).save(run / "detector")
        found["layers"] = list(network.layers)
    return found


def _objective(attack: Attack | None, clean_weight: float, fortified: FortifySpec | None) -> Callable[..., Any]:
    if fortified is None:
        return ClassifierObjective(attack, clean_weight)
    return FortifiedObjective(
        attack,
        lambda_rec=fortified.lambda_rec,
        lambda_adv=fortified.lambda_adv,
        detach_states=fortified.detach_states,
        clean_weight=clean_weight,
    )


def training_attack(name: str, eps: float, norm: str, steps: int, seed: int) -> Attack | None:
    """The attack inside adversarial training: "none", "fgsm" or "pgd"."""
    common: dict[str, Any] = {"eps": eps, "norm": norm, "seed": seed, "early_stop": False}
    known = {"none": None, "fgsm": lambda: FGSM(**common), "pgd": lambda: PGD(**common, steps=steps)}
    if name not in known:
        raise ValueError(f"unknown attack {name!r}; known: {', '.join(known)}")
    make = known[name]
    return None if make is None else make()


def accuracy(network: nn.Module, dataset: ArrayDataset, batch_size: int = 500) -> float:
    """Share of a labelled data set that is classified correctly."""
    y, hits = dataset.labels(), 0
    device = device_of(network)
    with evaluating(network), torch.no_grad():
        for rows in torch.arange(len(dataset)).split(batch_size):
            hits += int((logits_of(network(dataset.batch(rows)[0].to(device))).argmax(1).cpu() == y[rows]).sum())
    return hits / len(dataset)
