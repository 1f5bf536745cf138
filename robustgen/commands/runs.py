"""What a run is: a directory with ``run.json`` (data, network, settings and options), checkpoints and metrics.

A fortified network's has a calibrated detector too.
"""

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustgen.commands.data_spec import DataSpec
from robustgen.commands.network_spec import NetworkSpec
from robustgen.commands.opening import device_of
from robustgen.commands.run_info import read_info, recorded_data
from robustgen.commands.settings import resumed_settings
from robustgen.data import ArrayDataset, split
from robustgen.data.splits import heldout_classes
from robustgen.examples import run_directory
from robustgen.files import write_json
from robustgen.locks import alone
from robustgen.model import evaluating, logits_of, naming_inputs
from robustgen.structure import check_structure, differences
from robustgen.training import latest_checkpoint
from robustgen.turns import seeded

__all__ = [
    "CALIBRATION",
    "by_class_name",
    "check_classes",
    "claim",
    "data_for",
    "is_first",
    "kept_by_run",
    "parts",
    "remembered_options",
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


def check_classes(network: nn.Module, dataset: ArrayDataset) -> None:
    """ValueError where labels cannot be numbered as a network that is not ours numbers its outputs.

    So where there are more classes than outputs; or fewer, and they have names: the first of those that are here need
    not be its output 0. Numbers are believed.
    """
    x = dataset.batch(torch.arange(min(2, len(dataset))))[0].to(device_of(network))
    with seeded(None), evaluating(network), torch.no_grad(), naming_inputs(x):
        outputs = logits_of(network(x)).shape[1]
    named = not all(name.isdecimal() for name in dataset.classes)
    if dataset.n_classes <= outputs and not (named and dataset.n_classes < outputs):
        return
    shown = ", ".join(dataset.classes[:3]) + (", ..." if dataset.n_classes > 3 else "")
    raise ValueError(
        f"{dataset.name} has {dataset.n_classes} classes ({shown}), the network has {outputs}: labels would be of "
        "other classes; pass inputs of all its classes, or an .npz file whose labels are its numbers ("
        "data.load_folder with classes=, data.save_npz)"
    )


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
        for name in ("command", "options", "best", "held_back"):
            side.pop(name, None)
        side["training"].pop("epochs")
        if side.get("fortify"):  # a run that says nothing of it is from before there was a choice
            side["fortify"] = {"init": "random"} | side["fortify"]
        side["data"] = {k: v for k, v in side["data"].items() if k not in ("root", "download")}
    if different := differences({name: found.get(name) for name in wanted}, wanted):
        raise ValueError(f"{run} holds a run with other settings: {'; '.join(different)}; take another --run")


def remembered_options(run: Path, asked: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The options that a run was begun with, and those that are asked for now, which go before them; settings of its
    model (``--set``) are added to those of its beginning.

    Args:
        known: the options that a run remembers; others in the file are not looked at.

    Raises:
        ValueError: a damaged run.json, one that contradicts itself, or one that names code as its network: only the
            user may; a setting of the model, or a base, that was another one.
    """
    if not (run / "run.json").is_file():
        return dict(asked)
    path, info = run / "run.json", read_info(run)
    check_structure(info, {"options?": dict}, path)
    kept = {name: value for name, value in info.get("options", {}).items() if name in known}
    scalar = (str | int | float | bool | None, [str])
    check_structure(kept, {str: scalar}, path, "options")
    text = dict.fromkeys(("data?", "data_root?", "model?", "weights?", "fortify?", "generative?", "base?"), str)
    check_structure(kept, text | {"set_?": [str]}, path, "options")
    model = kept.get("model")
    if model is not None and "model" not in asked and NetworkSpec(str(model)).is_code:
        raise ValueError(f"{path}: names code as its network, {model!r}: if it is yours, pass --model {model}")
    network = info.get("network", {})
    for name in ("model", "width", "activation"):  # nothing is built that the run does not hold
        if name in kept and network and kept[name] != network.get(name):
            raise ValueError(f"{path}: options.{name} is {kept[name]!r}, network.{name} {network.get(name)!r}")
    merged = kept | dict(asked)
    if "set_" in kept and "set_" in asked:
        merged["set_"] = resumed_settings(run, kept["set_"], asked["set_"])
    if "base" in kept and "base" in asked and Path(kept["base"]).resolve() != Path(asked["base"]).resolve():
        raise ValueError(
            f"{run} was begun with --base {kept['base']}, not {asked['base']}: leave --base out, or take another --run"
        )
    return merged


def data_for(data: DataSpec, info: dict[str, Any]) -> DataSpec:
    """The data to evaluate on: those asked for, or the test part of what the run was trained on.

    Raises:
        ValueError: the run's own training data.
    """
    if not info:
        return data
    recorded, chosen = recorded_data(info), training_data_for(data, info)
    if chosen.is_same_source(recorded) and not recorded.has_test_part():
        raise ValueError(f"the run was trained on all of {recorded.source}: pass --data with other inputs")
    return chosen


def training_data_for(data: DataSpec, info: dict[str, Any]) -> DataSpec:
    """The data to train on: those asked for, or those that another run was trained on."""
    recorded = recorded_data(info)
    chosen = replace(data, source=recorded.source) if data.source is None else data
    return chosen.rooted(recorded).read_like(recorded.images)


def kept_by_run(data: DataSpec, run: Path) -> DataSpec:
    """The data, named sets where those of the run were, unless another folder is given; as they are without a run."""
    run = run_directory(run)
    return data.rooted(recorded_data(read_info(run))) if (run / "run.json").is_file() else data


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
