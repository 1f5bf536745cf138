"""What a command is about: data, a network, and a run directory that remembers both.

A run directory holds ``run.json`` (data, network and options), the trainer's checkpoints and metrics and, for a
fortified network, a calibrated detector.
"""

import importlib
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustgen.data import ArrayDataset, heldout_classes, load, require_nonempty
from robustgen.files import load_state, load_tensors, read_json
from robustgen.fortified import FortifiedNetwork
from robustgen.networks import build
from robustgen.training import latest_checkpoint, load_checkpoint

__all__ = [
    "CALIBRATION",
    "DataSpec",
    "FortifySpec",
    "NetworkSpec",
    "device_of",
    "import_model",
    "in_distribution",
    "load_run",
    "load_weights",
    "open_network",
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


def device_of(network: nn.Module) -> torch.device:
    first = next(network.parameters(), None)
    return torch.device("cpu") if first is None else first.device
