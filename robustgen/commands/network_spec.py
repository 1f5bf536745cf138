"""Which network a command is about, by name, with weights, and which of its layers it fortifies; what run.json says."""

import importlib
import inspect
import os
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.commands.model_libraries import (
    is_of_library,
    normalization_of,
    of_library,
    own_weights,
    with_weights,
)
from robustgen.commands.run_info import stopped_early
from robustgen.examples import run_directory
from robustgen.files import load_state
from robustgen.fortified import FortifiedNetwork, fortify
from robustgen.model import Normalize
from robustgen.networks import build
from robustgen.training import load_checkpoint
from robustgen.weights import read_weights, unwrapped

__all__ = ["FortifySpec", "NetworkSpec", "import_model", "load_weights", "weights_inside"]


@dataclass(frozen=True)
class NetworkSpec:
    """Which network, and what a built-in one needs; on pixels in [0, 1], which ``mean`` and ``std`` normalise for it.

    Args:
        model: "convnet", "mlp", "resnet", a name of :mod:`~robustgen.commands.model_libraries`, or "module:function".
        outputs: logits of a library's network, where its weights have others than one for each class.
        mean, std: one number for all channels, or one for each.
    """

    model: str
    shape: tuple[int, ...] = ()
    n_classes: int = 2
    width: int | None = None
    activation: str = "relu"
    outputs: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @staticmethod
    def recorded(network: dict[str, Any]) -> "NetworkSpec":
        """What run.json says under "network"."""
        known: dict[str, Any] = {k: v for k, v in network.items() if k in NetworkSpec.__dataclass_fields__}
        known |= {k: tuple(v) for k, v in known.items() if isinstance(v, list)}
        return NetworkSpec(**known)

    def to_record(self) -> dict[str, Any]:
        """What run.json says of it."""
        return {k: v for k, v in asdict(self).items() if v is not None or k not in ("outputs", "mean", "std")}

    @property
    def is_code(self) -> bool:
        """Whether the name is of somebody's code, which runs when the network is built; a file may not name it."""
        return ":" in self.model and not is_of_library(self.model)

    def build(self) -> nn.Module:
        """A freshly initialised network, for a user who asked for it by this name."""
        return self._normalised(import_model(self.model)) if self.is_code else self.build_ours()

    def build_ours(self) -> nn.Module:
        """The network of this name, built in or a library's, from numbers and names alone; ValueError for another."""
        if is_of_library(self.model):
            return self._normalised(of_library(self.model, self.n_classes if self.outputs is None else self.outputs))
        ours = build(self.model, torch.zeros(1, *self.shape), self.n_classes, self.width, self.activation)
        return self._normalised(ours)

    def open(self, weights: Path | None) -> tuple[nn.Module, "NetworkSpec"]:
        """The network with the weights that the user names, or those that its name stands for, and what it then is.

        Raises:
            ValueError: weights that do not fit it.
        """
        if not is_of_library(self.model):
            network = self.build()
            if weights is not None:
                load_weights(self._inside(network), weights)
            return network, self
        if self.mean is None and (stated := normalization_of(self.model)) is not None:
            mean, std = (",".join(f"{value:g}" for value in values) for values in stated)
            pass_them = f"pass --mean {mean} --std {std}"
            warnings.warn(f"{self.model} was trained on normalised pixels: {pass_them}", stacklevel=2)
        tensors = own_weights(self.model) if weights is None else unwrapped(_tensors(weights), (), weights)
        if tensors is None:
            return self.build(), self
        network, outputs = with_weights(self.model, tensors, self.model if weights is None else weights)
        return self._normalised(network), replace(self, outputs=outputs)

    def _normalised(self, network: nn.Module) -> nn.Module:
        if self.mean is None or self.std is None:
            return network
        return nn.Sequential(OrderedDict(normalize=Normalize(self.mean, self.std), network=network))

    def _inside(self, network: nn.Module) -> nn.Module:
        """The network itself, of what :meth:`_normalised` made."""
        return network if self.mean is None else network.get_submodule("network")


def import_model(spec: str) -> nn.Module:
    """Call the function that ``module:function`` names, with no arguments; it returns the network.

    Raises:
        ValueError: the module or the function is not there, it needs arguments, or what it returns is not an nn.Module.
    """
    module_name, _, function = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"--model {spec}: cannot import {module_name!r} from here ({error})") from None
    build = getattr(module, function, None)
    if not callable(build):
        raise ValueError(f"--model {spec}: {module_name} has no function {function!r}")
    if needed := _needed_arguments(build):
        raise ValueError(f"--model {spec}: {function} needs arguments ({needed}): name a function that needs none")
    network = build()
    if not isinstance(network, nn.Module):
        raise ValueError(f"--model {spec}: returned {type(network).__name__}, not an nn.Module")
    return network


def _needed_arguments(function: Callable[..., Any]) -> str:
    """The names of the arguments without a default, as far as they are known."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return ""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return ", ".join(p.name for p in parameters if p.default is p.empty and p.kind not in several)


def load_weights(network: nn.Module, source: str | Path) -> None:
    """Load a file of weights, see :mod:`robustgen.weights`, or of a run's best or latest checkpoint."""
    load_state(network, unwrapped(_tensors(source), network.state_dict(), source), source)


def _tensors(source: str | Path) -> dict[str, Tensor]:
    """The tensors of a file of weights; of a run, those of its network without what normalises for it."""
    source = run_directory(Path(source))
    if not source.is_dir():
        return read_weights(source)
    tensors = load_checkpoint(source, best=True).model_state
    if line := stopped_early(source):
        warnings.warn(line, stacklevel=2)
    normalised = all(name.startswith("network.") for name in tensors)
    return weights_inside("network.", tensors) if normalised else tensors


def weights_inside(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the network inside another, by their own names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


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

    def fortified(self, network: nn.Module, example: Tensor) -> FortifiedNetwork:
        """The network with its autoencoders, untrained; ``example`` is some of its inputs (N, ...)."""
        return fortify(
            network,
            "auto" if self.layers == "auto" else [name for name in self.layers.split(",") if name],
            example_input=example,
            hidden=self.hidden,
            activation=self.activation,
            decoder_activation=self.decoder_activation,
            noise_std=self.noise_std,
            noise_at_test=self.noise_at_test,
            input_autoencoder=self.input_autoencoder,
            init=self.init,
        )
