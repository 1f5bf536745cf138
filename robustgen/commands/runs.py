"""What a command is about: data, a network, and a run directory that remembers both.

A run directory holds ``run.json`` (data, network and options), the trainer's checkpoints and metrics and, for a
fortified network, a calibrated detector.
"""

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustgen.commands.data_spec import DataSpec
from robustgen.commands.model_libraries import is_of_library, own_weights
from robustgen.commands.network_spec import NetworkSpec, load_weights, weights_inside
from robustgen.commands.run_info import read_info, recorded_data
from robustgen.data import ArrayDataset, split
from robustgen.data.splits import heldout_classes
from robustgen.detectors import ReconstructionError
from robustgen.examples import run_directory
from robustgen.files import load_state, write_json
from robustgen.fortified import FortifiedNetwork
from robustgen.locks import alone
from robustgen.rebuilding import rebuild
from robustgen.structure import check_structure
from robustgen.training import latest_checkpoint, load_checkpoint
from robustgen.turns import seeded

__all__ = [
    "CALIBRATION",
    "FortifySpec",
    "NetworkSpec",
    "by_class_name",
    "claim",
    "data_for",
    "device_of",
    "is_first",
    "load_run",
    "load_weights",
    "move",
    "open_network",
    "parts",
    "remembered_options",
    "saved_detector",
    "usable_device",
]

CALIBRATION = 0.1  # share of the training data that is kept from training, for the detector's thresholds


def by_class_name(dataset: ArrayDataset, info: dict[str, Any]) -> tuple[ArrayDataset, ArrayDataset]:
    """A labelled data set as a run numbers its classes, and apart the examples of classes that the run held out.

    Raises:
        ValueError: no labels, or a class that the run does not know.
    """
    y, classes, held_out = dataset.labels(), info["classes"], info["held_out"]
    present = [dataset.classes[k] for k in y.unique().tolist()]
    unknown = [name for name in present if name not in classes and name not in held_out]
    if unknown:
        raise ValueError(f"{dataset.name} has classes that the run was not trained on: {', '.join(unknown)}")
    number = torch.tensor([classes.index(name) if name in classes else -1 for name in dataset.classes])
    known, left_out = (dataset.subset(rows.nonzero().squeeze(1)) for rows in (number[y] >= 0, number[y] < 0))
    return replace(known, y=number[known.labels()], classes=tuple(classes)), left_out


@dataclass(frozen=True)
class FortifySpec:
    """Which layers to fortify and how; see :func:`robustgen.fortify` and :class:`robustgen.FortifiedObjective`."""

    layers: str
    init: str | None = None
    hidden: int | None = None
    activation: str = "leaky_relu"
    decoder_activation: str = "linear"
    input_autoencoder: bool = False
    noise_std: float = 0.1
    noise_at_test: bool = False
    lambda_rec: float = 0.1
    lambda_adv: float = 0.1
    detach_states: bool = False
    freeze_backbone: bool = False


def is_first() -> bool:
    """Whether this is the process that writes and prints: under torchrun one does."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def claim(run: Path, info: dict[str, Any], resume: bool) -> Iterator[None]:
    """Hold the run directory, and write run.json where there is none; by the first process.

    Raises:
        ValueError: the directory holds another run.
        BlockingIOError: another process is writing there.
    """
    if not is_first():
        yield
        return
    with alone(run, wait=False):
        _remember(run, info, resume)
        yield


def _remember(run: Path, info: dict[str, Any], resume: bool) -> None:
    path = run / "run.json"
    if not path.exists():
        if latest_checkpoint(run) is not None:
            raise ValueError(f"{run} holds a training without run.json: take another --run")
        write_json(path, info)
        return
    if not resume:
        raise ValueError(f"{run} already holds a run: pass --resume or another --run")
    found, wanted = read_info(run), json.loads(json.dumps(info))
    info["command"] = found.get("command")  # the one that began the run says more than "--resume"
    for side in (found, wanted):  # what a resumed run may change; the trainer refuses fewer epochs
        for name in ("command", "options", "best"):
            side.pop(name, None)
        side["training"].pop("epochs")
        if side.get("fortify"):  # a run that says nothing of it is from before there was a choice
            side["fortify"] = {"init": "random"} | side["fortify"]
        side["data"] = {k: v for k, v in side["data"].items() if k not in ("root", "download")}
    different = [
        f"{name} was {_short(found.get(name))}, now {_short(wanted[name])}"
        for name in wanted
        if found.get(name) != wanted[name]
    ]
    if different:
        raise ValueError(f"{run} holds a run with other settings: {'; '.join(different)}; take another --run")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 150 else f"{text[:150]}..."


def remembered_options(run: Path, asked: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The options that a run was begun with, and those that are asked for now, which go before them.

    Args:
        known: the options that a run remembers; others in the file are not looked at.

    Raises:
        ValueError: a damaged run.json, one that contradicts itself, or one that names code as its network: only the
            user may.
    """
    if not (run / "run.json").is_file():
        return dict(asked)
    path, info = run / "run.json", read_info(run)
    check_structure(info, {"options?": dict}, path)
    kept = {name: value for name, value in info.get("options", {}).items() if name in known}
    scalar = (str | int | float | bool | None, [str])
    check_structure(kept, {str: scalar}, path, "options")
    text = dict.fromkeys(("data?", "data_root?", "model?", "weights?", "fortify?", "generative?"), str)
    check_structure(kept, text, path, "options")
    model = kept.get("model")
    if model is not None and "model" not in asked and NetworkSpec(str(model)).is_code:
        raise ValueError(f"{path}: names code as its network, {model!r}: if it is yours, pass --model {model}")
    network = info.get("network", {})
    for name in ("model", "width", "activation"):  # nothing is built that the run does not hold
        if name in kept and network and kept[name] != network.get(name):
            raise ValueError(f"{path}: options.{name} is {kept[name]!r}, network.{name} {network.get(name)!r}")
    return kept | dict(asked)


def load_run(run: Path, model: str | None = None, trust: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """The network that ``robustgen train`` wrote to ``run``, in eval mode, and its run.json.

    Args:
        model: "module:function", what the user says the network is, whatever run.json says.
        trust: import the code that run.json names; without it only built-in networks come from the file.

    Raises:
        FileNotFoundError: no finished run there.
        ValueError: damaged files, a run of a generative model, or one of code that nobody but the file has named.
    """
    run = run_directory(run)
    if not (run / "run.json").is_file() or latest_checkpoint(run) is None:
        raise FileNotFoundError(f"{run}: no finished robustgen run here")
    info, path = read_info(run), run / "run.json"
    if "generative" in info:
        held = info["generative"]["model"]
        raise ValueError(f"{run} holds a {held}, not a classifier: see robustgen score --checkpoint")
    spec = NetworkSpec.recorded(info["network"])
    spec = replace(spec, model=spec.model if model is None else _of_others(model))
    if spec.is_code and model is None and not trust:
        raise ValueError(
            f"{path}: names code as its network, {spec.model!r}, and a file may not have code run: if you trust it, "
            "pass --trust, or for a --run name it with --model"
        )
    checkpoint = load_checkpoint(run, best=True)
    fortified = info["fortify"] is not None
    tensors = weights_inside("backbone.", checkpoint.model_state) if fortified else checkpoint.model_state
    if spec.is_code:
        with seeded(None):
            network = spec.build()
        load_state(network, tensors, checkpoint.path)
    else:
        network = rebuild(spec.build_ours, tensors, settings=path, weights=checkpoint.path)
    return (FortifiedNetwork.load(checkpoint.path, model=network) if fortified else network).eval(), info


def _of_others(model: str) -> str:
    if ":" not in model:
        libraries = "torchvision:NAME, timm:NAME or hf:FOLDER"
        raise ValueError(f"--model {model}: a network of your own is module:function, one of a library {libraries}")
    return model


def open_network(
    run: Path | None,
    model: str | None,
    weights: Path | None,
    trust: bool = False,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The network that --run, or --model and --weights, name; run.json, or nothing for a network that is not ours.

    With --run, --model is the code of the run's network. ``mean`` and ``std`` are of a network that takes normalised
    inputs; see :class:`NetworkSpec`.
    """
    if run is None and model is None:
        raise ValueError("say which network: --run DIR, or --model module:function with --weights FILE")
    if run is not None:
        if weights is not None:
            raise ValueError("--weights goes with --model; a --run has its own")
        if mean is not None:
            raise ValueError("--mean and --std go with --model; a --run has its own")
        return load_run(run, model, trust)
    assert model is not None
    with seeded(None):
        network, _ = NetworkSpec(_of_others(model), mean=mean, std=std).open(weights)
    if is_of_library(model) and weights is None and own_weights(model) is None:
        raise ValueError(f"--model {model} has learned nothing: pass its --weights FILE")
    return network.eval(), {}


def saved_detector(run: Path, network: nn.Module) -> ReconstructionError:
    """The detector that ``robustgen train`` saved beside a fortified network.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(network, FortifiedNetwork):
        raise ValueError(f"{run} has no detector: its network is not fortified")
    run = run_directory(run)
    if not (run / "detector" / "detector.json").is_file():
        raise ValueError(f"{run} has no detector: its training was not finished, or its noise stays on at test")
    return ReconstructionError.load(run / "detector", model=network)


def data_for(data: DataSpec, info: dict[str, Any]) -> DataSpec:
    """The data to evaluate on: those asked for, or the test part of what the run was trained on.

    Raises:
        ValueError: the run's own training data.
    """
    if not info:
        return data
    recorded = recorded_data(info)
    chosen = replace(data, source=recorded.source) if data.source is None else data
    if chosen.root is None and not chosen.download:  # nothing is fetched to where a file says
        chosen = replace(chosen, root=recorded.root)
    chosen = chosen.read_like(recorded.images)
    if chosen.is_same_source(recorded) and not recorded.has_test_part():
        raise ValueError(f"the run was trained on all of {recorded.source}: pass --data with other inputs")
    return chosen


def parts(
    whole: ArrayDataset, hold_out: Sequence[str], labelled: bool = False
) -> tuple[ArrayDataset, ArrayDataset, ArrayDataset]:
    """What is left of the training data, what of it is trained on, and what is kept back, the same for every seed.

    Raises:
        ValueError: an unknown class, or too few examples; with ``labelled`` also no labels, or those of one class.
    """
    rest = whole
    if hold_out:
        numbers = [int(c) if c.isdecimal() and c not in whole.classes else c for c in hold_out]
        rest, _ = heldout_classes(whole, numbers)
    train, held_back = split(rest, (1 - CALIBRATION, CALIBRATION), seed=0, stratified=rest.y is not None)
    if not len(held_back):
        examples = "1 example leaves" if len(rest) == 1 else f"{len(rest)} examples leave"
        raise ValueError(f"{rest.name}: {examples} no tenth to keep from training: pass more data, or a larger --limit")
    if labelled and len(found := train.labels().unique()) < 2:
        only = ", ".join(repr(train.classes[k]) for k in found.tolist())
        raise ValueError(f"{rest.name}: all examples to train on are of the class {only}; a classifier needs two")
    return rest, train, held_back


def move(network: nn.Module, device: str | None) -> None:
    """Move a network to the device that was asked for, if any; ValueError where it is none to compute on."""
    if device is not None:
        network.to(usable_device(device))


def usable_device(device: str) -> torch.device:
    """The device called ``device``; ValueError where there is none of that name, or one that computes nothing."""
    if device.startswith("meta"):
        raise ValueError(f"--device {device}: it holds no numbers and computes nothing; pass cpu, cuda, ...")
    try:
        torch.ones((), device=device).item()
    except (AssertionError, ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"--device {device}: {reason}") from None
    return torch.device(device)


def device_of(network: nn.Module) -> torch.device:
    first = next(network.parameters(), None)
    return torch.device("cpu") if first is None else first.device
