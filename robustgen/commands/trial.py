"""One step of a training, on a copy: what cannot be trained is refused before anything is written."""

import copy

import torch
from torch import nn

from robustgen.commands.opening import device_of
from robustgen.data import ArrayDataset
from robustgen.detectors import ReconstructionError
from robustgen.fortified import FortifiedNetwork
from robustgen.model import naming_inputs
from robustgen.training import Batch, Objective
from robustgen.training.run import training_mode
from robustgen.turns import seeded, warnings_set_to

__all__ = ["try_autoencoders", "try_detector", "try_objective"]

_FEW = 4  # examples


def try_objective(network: nn.Module, objective: Objective, data: ArrayDataset, batch_size: int, seed: int) -> None:
    """Whatever the objective raises on a few of the data; ValueError for inputs that the network does not take."""
    few, device = data.take(min(_FEW, batch_size)), device_of(network)
    x, y = few.batch(torch.arange(len(few)))
    batch = Batch(x.to(device), None if y is None else y.to(device), torch.arange(len(few), device=device))
    with seeded(seed), warnings_set_to("ignore"):  # the training says it again
        copied = copy.deepcopy(network)
        with training_mode(copied), naming_inputs(x):
            objective(copied, batch, 0)["loss"].backward()


def try_autoencoders(network: FortifiedNetwork, data: ArrayDataset, batch_size: int, seed: int) -> None:
    """The same for autoencoders of a network that stays as it is."""
    few = data.take(min(_FEW, batch_size))
    with warnings_set_to("ignore"):
        copy.deepcopy(network).fit_autoencoders(few, epochs=1, batch_size=batch_size, seed=seed, progress=False)


def try_detector(network: FortifiedNetwork, data: ArrayDataset) -> None:
    """ValueError for a network of which no detector can be made: one that is stochastic in eval mode, for one."""
    few, copied = data.take(_FEW), copy.deepcopy(network).eval()
    with seeded(0), torch.no_grad():
        for autoencoder in copied.autoencoders():  # errors of an identity are rounding, the same for any state
            for weight in autoencoder.parameters():
                weight.add_(0.01 * torch.randn_like(weight))
    with warnings_set_to("ignore"):
        ReconstructionError(copied, relative=True).fit(few).calibrate(few)
