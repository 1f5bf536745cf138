"""What a command is about: data, a network, and a run directory that remembers both.

A run directory holds ``run.json`` (data, network and options), the trainer's checkpoints and metrics and, for a
fortified network, a calibrated detector.
"""

import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustgen.data import ArrayDataset, load, require_nonempty
from robustgen.data.folder import folder_parts
from robustgen.data.load import canonical_name
from robustgen.detectors import ReconstructionError
from robustgen.files import load_state, load_tensors, read_json, write_json
from robustgen.fortified import FortifiedNetwork
from robustgen.locks import alone
from robustgen.networks import build
from robustgen.training import latest_checkpoint, load_checkpoint

__all__ = [
    "CALIBRATION",
    "DataSpec",
    "FortifySpec",
    "NetworkSpec",
    "by_class_name",
    "claim",
    "data_for",
    "device_of",
    "import_model",
    "is_first",
    "load_run",
    "load_weights",
    "move",
    "open_network",
    "saved_detector",
]

CALIBRATION = 0.1  # share of the training data that is kept from training, for the detector's thresholds


@dataclass(frozen=True)
class DataSpec:
    """Which data: a name or a path, where named sets are kept, at most ``limit`` examples."""

    source: str
    root: str | None = None
    download: bool = False
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
        return found

    def has_test_part(self) -> bool:
        """Whether there is a test set beside the training set: so for named sets and folders that hold both."""
        return canonical_name(self.source) is not None or "test" in folder_parts(self.source)

    def is_same_source(self, other: "DataSpec") -> bool:
        """Whether both read the same files."""
        names = canonical_name(self.source), canonical_name(other.source)
        return names[0] == names[1] if any(names) else Path(self.source).resolve() == Path(other.source).resolve()


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
class NetworkSpec:
    """Which network: "convnet", "mlp", "resnet" or "module:function"; what the built-in ones need."""

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
    activation: str = "leaky_relu"
    decoder_activation: str = "linear"
    input_autoencoder: bool = False
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
    found, wanted = read_json(path), json.loads(json.dumps(info))
    for side in (found, wanted):  # what a resumed run may change; the trainer refuses fewer epochs
        side.pop("command", None)
        side["training"].pop("epochs")
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


def load_weights(network: nn.Module, source: str | Path) -> None:
    """Load a .safetensors file, or the latest checkpoint of a run directory, into ``network``."""
    source = Path(source)
    tensors = load_checkpoint(source).model_state if source.is_dir() else load_tensors(source)
    load_state(network, tensors, source)


def load_run(run: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network that ``robustgen train`` wrote to ``run``, in eval mode, and its run.json."""
    if not (run / "run.json").is_file() or latest_checkpoint(run) is None:
        raise FileNotFoundError(f"{run}: no finished robustgen run here")
    info = read_json(run / "run.json")
    if "generative" in info:
        held = info["generative"]["model"]
        raise ValueError(f"{run} holds a {held}, not a classifier: see robustgen score --checkpoint")
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


def saved_detector(run: Path, network: nn.Module) -> ReconstructionError:
    """The detector that ``robustgen train`` saved beside a fortified network.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(network, FortifiedNetwork):
        raise ValueError(f"{run} has no detector: its network is not fortified")
    if not (run / "detector" / "detector.json").is_file():
        raise ValueError(f"{run} has no detector: its training was not finished, or its noise stays on at test")
    return ReconstructionError.load(run / "detector", model=network)


def data_for(data: DataSpec, info: dict[str, Any]) -> DataSpec:
    """The data to evaluate on: those asked for, or the test part of what the run was trained on.

    Raises:
        ValueError: none asked for and no run, or the run's own training data.
    """
    if not info:
        if not data.source:
            raise ValueError("pass --data NAME or PATH")
        return data
    recorded = DataSpec(info["data"]["source"], info["data"]["root"])
    chosen = replace(data, source=data.source or recorded.source, root=data.root or recorded.root)
    if chosen.is_same_source(recorded) and not recorded.has_test_part():
        raise ValueError(f"the run was trained on all of {recorded.source}: pass --data with other inputs")
    return chosen


def move(network: nn.Module, device: str | None) -> None:
    """Move a network to the device that was asked for, if any; ValueError where there is none of that name."""
    try:
        if device is not None:
            network.to(device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from None


def device_of(network: nn.Module) -> torch.device:
    first = next(network.parameters(), None)
    return torch.device("cpu") if first is None else first.device
