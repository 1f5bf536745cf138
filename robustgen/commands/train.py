"""``robustgen train``: a classifier, plain, adversarial, fortified, or fortified afterwards."""

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustgen.checks import check_integers, check_positive
from robustgen.commands.adversarial import AdversarialSpec
from robustgen.commands.data_spec import DataSpec
from robustgen.commands.network_spec import NetworkSpec
from robustgen.commands.runs import (
    FortifySpec,
    claim,
    device_of,
    is_first,
    move,
    parts,
)
from robustgen.commands.trial import try_autoencoders, try_detector, try_objective
from robustgen.data import ArrayDataset
from robustgen.detectors import ReconstructionError
from robustgen.files import write_json
from robustgen.fortified import FortifiedNetwork, fortify
from robustgen.model import evaluating, logits_of, naming_inputs
from robustgen.training import Objective, Trainer
from robustgen.training.collapse import COLLAPSED
from robustgen.turns import seeded

__all__ = ["train_network"]


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
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    adversarial: AdversarialSpec | None = None,
    fortified: FortifySpec | None = None,
    hold_out: tuple[str, ...] = (),
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
    check_integers(epochs=epochs, batch_size=batch_size)
    check_positive(lr=lr)
    adversarial = adversarial or AdversarialSpec()
    if schedule not in _SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; known: {', '.join(_SCHEDULES)}")
    if fortified is not None and fortified.freeze_backbone:
        if weights is None:
            raise ValueError("--freeze-backbone keeps a pretrained network as it is: pass its --weights")
        if adversarial.attack is not None or schedule != "constant":
            raise ValueError(
                "--freeze-backbone trains the autoencoders alone: leave out --attack, --adversarial and --schedule"
            )
    objective = adversarial.objective(fortified)
    whole = data.read("train")
    whole.labels()  # a clear error where there are none
    # The same tenth for every seed, so that fortifying a network of ours afterwards calibrates on data new to it.
    rest, train, calibration = parts(whole, hold_out, labelled=True)
    spec = NetworkSpec(model, tuple(rest.x.shape[1:]), rest.n_classes, width, activation, mean=mean, std=std)
    with seeded(seed):
        network, spec = spec.open(weights)
        if fortified is not None:
            network = _fortify(network, fortified, train.batch(torch.arange(2))[0])
    move(network, device)
    info = {
        "format": 1,
        "data": data.record(),
        "classes": list(rest.classes),
        "held_out": [name for name in whole.classes if name not in rest.classes],
        "network": spec.to_record(),
        "fortify": None if fortified is None else asdict(fortified) | {"chosen": list(network.layers)},
        "attack": None if adversarial.attack is None else adversarial.attack.describe(),
        "clean_weight": adversarial.clean_weight,
        "adversarial": adversarial.extras(),
        "training": {"epochs": epochs, "batch_size": batch_size, "lr": lr, "schedule": schedule, "seed": seed},
        "command": command,
    }
    common: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "progress": progress}
    common |= {"run_dir": run, "resume": resume}
    frozen = fortified is not None and fortified.freeze_backbone
    _try(network, fortified, objective, train, batch_size=batch_size, n_classes=spec.n_classes, seed=seed)
    with claim(run, info, resume):  # only now: what is refused above leaves nothing
        if isinstance(network, FortifiedNetwork) and frozen:
            history = network.fit_autoencoders(train, lr=lr, **common)
        else:
            adam = partial(torch.optim.Adam, lr=lr)
            common |= {"schedule": _SCHEDULES[schedule], "device": device, "guard": adversarial.guard}
            trainer = Trainer(objective, optimizer=adam, **common)
            history = trainer.fit(network, train)
        if not is_first():
            return {}
        if history[-1].get(COLLAPSED):
            info[COLLAPSED] = True
        write_json(run / "run.json", info)  # of a resumed run: its new number of epochs
        network.eval()
        found: dict[str, Any] = {"run": str(run), "epochs": len(history)} | {
            k: v for k, v in history[-1].items() if k not in ("epoch", "step")
        }
        found["held-back accuracy"] = accuracy(network, calibration)
        if isinstance(network, FortifiedNetwork) and fortified is not None:
            found["layers"] = list(network.layers)
            if fortified.noise_at_test:
                found["detector"] = "none: the noise stays on at test, scores would depend on the draw"
            else:
                detector = ReconstructionError(network, relative=True).fit(train).calibrate(calibration)
                detector.save(run / "detector")
        return found


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


def _fortify(network: nn.Module, spec: FortifySpec, example: torch.Tensor) -> FortifiedNetwork:
    return fortify(
        network,
        "auto" if spec.layers == "auto" else [name for name in spec.layers.split(",") if name],
        example_input=example,
        hidden=spec.hidden,
        activation=spec.activation,
        decoder_activation=spec.decoder_activation,
        noise_std=spec.noise_std,
        noise_at_test=spec.noise_at_test,
        input_autoencoder=spec.input_autoencoder,
        init=spec.init,
    )


def accuracy(network: nn.Module, dataset: ArrayDataset, batch_size: int = 500) -> float:
    """Share of a labelled data set that is classified correctly."""
    y, hits = dataset.labels(), 0
    device = device_of(network)
    with evaluating(network), torch.no_grad():
        for rows in torch.arange(len(dataset)).split(batch_size):
            hits += int((logits_of(network(dataset.batch(rows)[0].to(device))).argmax(1).cpu() == y[rows]).sum())
    return hits / len(dataset)
