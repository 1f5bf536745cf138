"""What ``robustgen train``, ``attack`` and ``score`` do; ``cli.py`` parses and prints.

A run directory holds ``run.json`` (data, network and options), the trainer's checkpoints and metrics and, for a
fortified network, a calibrated detector.
"""

import csv
import importlib
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustgen.attacks import FGSM, PGD, Attack
from robustgen.data import ArrayDataset, heldout_classes, load, noise, require_nonempty, split
from robustgen.detectors import ReconstructionError
from robustgen.evaluation import RobustnessReport, evaluate_detection, evaluate_robustness
from robustgen.files import load_state, load_tensors, read_json, write_bytes, write_json
from robustgen.fortified import FortifiedNetwork, FortifiedObjective, fortify
from robustgen.model import evaluating, logits_of
from robustgen.networks import build
from robustgen.training import ClassifierObjective, Trainer, latest_checkpoint, load_checkpoint

__all__ = [
    "DataSpec",
    "FortifySpec",
    "NetworkSpec",
    "attack_network",
    "compare_populations",
    "in_distribution",
    "open_detector",
    "score_inputs",
    "train_network",
    "write_rows",
]

CALIBRATION = 0.1  # share of the training data that is kept from training, for the detector's thresholds


@dataclass(frozen=True)
class DataSpec:
    """Which data: a name or a path, where named sets are kept, classes left out, at most ``limit`` examples."""

    source: str
    root: str | None = None
    download: bool = False
    hold_out: tuple[str, ...] = ()
    limit: int | None = None

    def read(self, part: str, shape: tuple[int, ...] | None = None) -> ArrayDataset:
        """Read the "train" or "test" part; images of a folder are read with the channels of ``shape`` (C, H, W)."""
        channels = shape[0] if shape is not None and len(shape) == 3 and shape[0] in (1, 3) else None
        found = load(self.source, split=part, root=self.root, download=self.download, channels=channels, n=self.limit)
        require_nonempty(found)
        if shape is not None and tuple(found.x.shape[1:]) != shape:
            raise ValueError(
                f"{found.name} holds inputs of shape {tuple(found.x.shape[1:])}, the network takes {shape}"
            )
        return found if not self.hold_out else self._parted(found)[0]

    def read_held_out(self, part: str) -> ArrayDataset:
        """The classes that :meth:`read` leaves out."""
        if not self.hold_out:
            raise ValueError(f"no class of {self.source} was held out")
        return self._parted(replace(self, hold_out=()).read(part))[1]

    def _parted(self, dataset: ArrayDataset) -> tuple[ArrayDataset, ArrayDataset]:
        dataset.labels()  # a clear error where there are none
        numbers = [int(c) if c.isdecimal() and c not in dataset.classes else c for c in self.hold_out]
        return heldout_classes(dataset, numbers)


@dataclass(frozen=True)
class NetworkSpec:
    """Which network: "convnet", "mlp" or "module:function"; what the built-in ones need."""

    model: str
    shape: tuple[int, ...]
    n_classes: int
    width: int | None = None
    activation: str = "relu"

    def build(self) -> nn.Module:
        """A freshly initialised network."""
        if ":" in self.model:
            return import_model(self.model)
        return build(self.model, torch.zeros(1, *self.shape), self.n_classes, self.width, self.activation)


@dataclass(frozen=True)
class FortifySpec:
    """Which layers to fortify and how; see :func:`robustgen.fortify` and :class:`robustgen.FortifiedObjective`."""

    layers: str
    hidden: int | None = None
    noise_std: float = 0.1
    noise_at_test: bool = False
    lambda_rec: float = 0.1
    lambda_adv: float = 0.1
    detach_states: bool = False
    freeze_backbone: bool = False


def import_model(spec: str) -> nn.Module:
    """Call the function that ``module:function`` names, with no arguments; it returns the network.

    Raises:
        ValueError: the module or the function is not there, or what it returns is not an nn.Module.
    """
    module_name, _, function = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"--model {spec}: cannot import {module_name!r} from here ({error})") from None
    if not callable(getattr(module, function, None)):
        raise ValueError(f"--model {spec}: {module_name} has no function {function!r}")
    network = getattr(module, function)()
    if not isinstance(network, nn.Module):
        raise ValueError(f"--model {spec}: returned {type(network).__name__}, not an nn.Module")
    return network


def load_weights(network: nn.Module, source: str | Path) -> None:
    """Load a .safetensors file, or the latest checkpoint of a run directory, into ``network``."""
    source = Path(source)
    tensors = load_checkpoint(source).model_state if source.is_dir() else load_tensors(source)
    load_state(network, tensors, source)


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
    seed: int = 0,
    device: str | None = None,
    resume: bool = False,
    progress: bool = True,
    command: str | None = None,
) -> dict[str, Any]:
    """Train a classifier, plain, adversarially or fortified, and write it to ``run``; returns what to print."""
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
        "training": {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed},
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
    device = _device_of(network)
    with evaluating(network), torch.no_grad():
        for rows in torch.arange(len(dataset)).split(batch_size):
            hits += int((logits_of(network(dataset.batch(rows)[0].to(device))).argmax(1).cpu() == y[rows]).sum())
    return hits / len(dataset)


def _device_of(network: nn.Module) -> torch.device:
    first = next(network.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def load_run(run: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network that ``robustgen train`` wrote to ``run``, in eval mode, and its run.json."""
    if not (run / "run.json").is_file() or latest_checkpoint(run) is None:
        raise FileNotFoundError(f"{run}: no finished robustgen run here")
    info = read_json(run / "run.json")
    spec = NetworkSpec(**info["network"] | {"shape": tuple(info["network"]["shape"])})
    with torch.random.fork_rng():
        network = spec.build()
    if info["fortify"] is not None:
        return FortifiedNetwork.load(run, model=network).eval(), info
    load_weights(network, run)
    return network.eval(), info


def open_network(run: Path | None, model: str | None, weights: Path | None) -> tuple[nn.Module, dict[str, Any]]:
    """The network that --run, or --model and --weights, name; run.json, or nothing for a network that is not ours."""
    if (run is None) == (model is None):
        raise ValueError("say which network: --run DIR, or --model module:function with --weights FILE")
    if run is not None:
        if weights is not None:
            raise ValueError("--weights goes with --model; a --run has its own")
        return load_run(run)
    assert model is not None
    if ":" not in model:
        raise ValueError(f"--model {model}: a network of your own is module:function")
    network = import_model(model)
    if weights is not None:
        load_weights(network, weights)
    return network.eval(), {}


def attack_network(
    *,
    run: Path | None,
    model: str | None,
    weights: Path | None,
    data: DataSpec | None,
    eps: float,
    norm: str = "Linf",
    suite: str = "quick",
    part: str = "test",
    surrogate: Path | None = None,
    masking_tests: bool = True,
    batch_size: int = 250,
    seed: int = 0,
    device: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    command: str | None = None,
) -> tuple[RobustnessReport, Path | None]:
    """Attack a trained network on a data set; returns the report and, with ``out``, where its page is."""
    network, info = open_network(run, model, weights)
    chosen = in_distribution(data, info)
    dataset = chosen.read(part, tuple(info["network"]["shape"]) if info else None)
    substitute = None if surrogate is None else load_run(surrogate)[0]
    for module in (network, substitute):
        if module is not None and device is not None:
            module.to(device)
    where = _device_of(network)
    report = evaluate_robustness(
        network,
        dataset.images().to(where),
        dataset.labels().to(where),
        suite=suite,
        eps=eps,
        norm=norm,
        ids=dataset.ids.to(where),
        run_dir=out,
        resume=resume,
        seed=seed,
        surrogate=substitute,
        masking_tests=masking_tests,
        batch_size=batch_size,
        name=f"{run or model} on {dataset.name}",
        progress=progress,
    )
    return report, None if out is None else report.save(out, command=command)


def in_distribution(data: DataSpec | None, info: dict[str, Any]) -> DataSpec:
    """The data asked for; by default, and for classes held out, those of the run."""
    recorded = DataSpec(**info["data"] | {"hold_out": tuple(info["data"]["hold_out"]), "limit": None}) if info else None
    if data is None or not data.source:
        if recorded is None:
            raise ValueError("pass --data NAME or PATH")
        limit, root = (None, None) if data is None else (data.limit, data.root)
        return DataSpec(recorded.source, root or recorded.root, hold_out=recorded.hold_out, limit=limit)
    if recorded is not None and recorded.source == data.source and not data.hold_out:
        return DataSpec(data.source, data.root or recorded.root, data.download, recorded.hold_out, data.limit)
    return data


def open_detector(
    *,
    run: Path | None,
    model: str | None,
    weights: Path | None,
    fit_data: DataSpec | None = None,
    layers: str = "auto",
    epochs: int = 3,
    batch_size: int = 128,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> tuple[ReconstructionError, tuple[int, ...] | None, dict[str, Any]]:
    """A fitted, calibrated detector, the shape of its inputs (None: unknown) and run.json.

    A run of a fortified network has its detector. For another network, autoencoders are fitted on ``fit_data`` and
    calibrated on a tenth of it that was kept back.
    """
    network, info = open_network(run, model, weights)
    shape: tuple[int, ...] | None = tuple(info["network"]["shape"]) if info else None
    if run is not None and isinstance(network, FortifiedNetwork):
        if device is not None:
            network.to(device)
        return ReconstructionError.load(run / "detector", model=network), shape, info
    if fit_data is None:
        raise ValueError("this network has no detector: pass --fit-data, in-distribution inputs to fit one on")
    known = fit_data.read("train", shape)
    shape = tuple(known.x.shape[1:])
    train, calibration = split(known, (1 - CALIBRATION, CALIBRATION), seed=seed, stratified=known.y is not None)
    names = layers if layers == "auto" else layers.split(",")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fortified = fortify(network, names, example_input=train.batch(torch.arange(2))[0])
    if device is not None:
        fortified.to(device)
    fortified.fit_autoencoders(train, epochs=epochs, batch_size=batch_size, seed=seed, progress=progress)
    return ReconstructionError(fortified.eval(), relative=True).fit(train).calibrate(calibration), shape, info


def score_inputs(detector: ReconstructionError, dataset: ArrayDataset, fpr: float = 0.05) -> list[dict[str, Any]]:
    """One dict for each input: input (file or id), score, p_value and flag."""
    where = _device_of(detector.net)
    rows = []
    for chosen in torch.arange(len(dataset)).split(1000):
        scores = detector.score(dataset.batch(chosen)[0].to(where))
        p, flags = detector.calibration.p_value(scores), detector.calibration.flag(scores, fpr)
        for k, score, p_value, flag in zip(chosen.tolist(), scores.tolist(), p.tolist(), flags.tolist(), strict=True):
            source = dataset.sources[k] if dataset.sources else int(dataset.ids[k])
            rows.append({"input": source, "score": score, "p_value": p_value, "flag": flag})
    return rows


def compare_populations(
    detector: ReconstructionError,
    known: DataSpec,
    others: dict[str, DataSpec],
    *,
    part: str,
    shape: tuple[int, ...] | None,
    name: str,
    fpr: float = 0.05,
    eps: float = 0.3,
    norm: str = "Linf",
    seed: int = 0,
) -> dict[str, Any]:
    """How well the detector tells ``known`` from other populations; see :func:`evaluate_detection`.

    A population is a data set or one of "noise" (uniform), "fgsm" and "pgd" (of the labelled inputs of ``known``) and
    "heldout" (the classes that the run left out of ``known``).
    """
    where = _device_of(detector.net)
    dataset = known.read(part, shape)
    x = dataset.images()
    populations = {}
    for label, spec in others.items():
        if label == "noise":
            populations["uniform noise"] = noise(len(x), tuple(x.shape[1:]), seed=seed).images().to(where)
        elif label in ("fgsm", "pgd"):
            attack = training_attack(label, eps, norm, 40, seed)
            assert attack is not None
            rows = torch.arange(len(x)).split(250)
            found = [attack(detector.net, x[i].to(where), dataset.labels()[i], ids=dataset.ids[i]) for i in rows]
            populations[f"{label.upper()}, {norm} eps {eps:g}"] = torch.cat(found)
        elif label == "heldout":
            left_out = known.read_held_out(part)
            populations[f"held-out {', '.join(known.hold_out)}"] = left_out.images().to(where)
        else:
            other = spec.read(part, shape)
            populations[other.name] = other.images().to(where)
    return evaluate_detection(detector, x.to(where), populations, network=name, fpr=fpr)


def write_rows(rows: list[dict[str, Any]], out: Path | None) -> None:
    """Write one line an input: JSON lines where the file is named .jsonl, else CSV; to stdout without a file."""
    if out is not None and out.suffix == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    if out is None:
        sys.stdout.write(text)
    else:
        write_bytes(out, text.encode())
