"""How a network is opened: of a run, of a library, or of the user's own code; and the device that it is on."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustgen.commands.model_libraries import is_of_library, own_weights
from robustgen.commands.network_spec import NetworkSpec, weights_inside
from robustgen.commands.run_info import TEXT, read_info, stopped_early
from robustgen.detectors import ReconstructionError
from robustgen.examples import run_directory
from robustgen.files import load_state
from robustgen.fortified import FortifiedNetwork
from robustgen.training import Checkpoint, latest_checkpoint, load_checkpoint
from robustgen.turns import seeded
from robustgen.weights import rebuild

__all__ = ["device_of", "load_run", "move", "open_network", "saved_detector", "usable_device"]


def load_run(run: Path, model: str | None = None, trust: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """The network that ``robustgen train`` wrote to ``run``, in eval mode, and its run.json.

    Args:
        model: "module:function", what the user says the network is, whatever run.json says.
        trust: import the code that run.json names; without it only built-in networks come from the file.

    Raises:
        FileNotFoundError: no finished run there.
        ValueError: damaged files, a run of another kind of model, or one of code that nobody but the file has named.
    """
    named, run = run, run_directory(run)
    if not (run / "run.json").is_file() or latest_checkpoint(run) is None:
        raise FileNotFoundError(f"{run}: no finished robustgen run here")
    info, path = read_info(run), run / "run.json"
    if TEXT in info:
        raise ValueError(f"{run} holds a model of text, not a classifier: see robustgen sample, and score --run")
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
    _check_best(checkpoint, info, path)
    if line := stopped_early(named):
        warnings.warn(line, stacklevel=2)
    fortified = info["fortify"] is not None
    tensors = weights_inside("backbone.", checkpoint.model_state) if fortified else checkpoint.model_state
    if spec.is_code:
        with seeded(None):
            network = spec.build()
        load_state(network, tensors, checkpoint.path)
    else:
        network = rebuild(spec.build_ours, tensors, settings=path, weights=checkpoint.path)
    return (FortifiedNetwork.load(checkpoint.path, model=network) if fortified else network).eval(), info


def _check_best(checkpoint: Checkpoint, info: dict[str, Any], path: Path) -> None:
    """ValueError where a checkpoint is not of the epoch that run.json, at ``path``, calls the best."""
    best = info.get("best")
    resumed = len(checkpoint.training_state.get("history", [])) > info["training"]["epochs"]  # and is not finished
    if best is not None and checkpoint.step != best["step"] and not resumed:
        raise ValueError(
            f"{path}: the best epoch is {best['epoch']}, at step {best['step']}; {checkpoint.path} is of step "
            f"{checkpoint.step}"
        )


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
