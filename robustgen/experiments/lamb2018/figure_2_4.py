"""Figure 2.4: how far reconstruction errors rise under attack, by capacity of the autoencoder and by where it is.

The figure plots RE(adversarial) / RE(clean) and says that the ratio stays up in hidden space while it falls to zero in
input space as capacity shrinks. As defined it cannot fall to zero (a constant autoencoder gives about one), so what
counts is the ratio beside that of random noise of the same norm, and the AUROC beside both.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.attacks import FGSM, PGD, Attack
from robustgen.counter_rng import derive_seed, normal
from robustgen.data import ArrayDataset
from robustgen.evaluation.metrics import auroc
from robustgen.experiments.experiment import (
    LAMB_2018,
    Cell,
    Column,
    Experiment,
    Measurement,
    Row,
    counted,
    epochs_of,
)
from robustgen.experiments.training_cache import TrainingCache
from robustgen.fortified import FortifiedNetwork, FortifiedObjective, fortify
from robustgen.networks import mlp
from robustgen.training import ClassifierObjective

__all__ = ["EXPERIMENT", "noise_of_same_norm"]

EPS = 0.1
SPACES = {"input": "0", "hidden 1": "2", "hidden 2": "4"}  # nn.Flatten's output is the input
ATTACKS: dict[str, Attack] = {"FGSM": FGSM(eps=EPS, early_stop=False), "PGD": PGD(eps=EPS, early_stop=False)}
NETWORK: dict[str, Any] = {"batch_size": 128, "lr": 2e-3}
AUTOENCODER: dict[str, Any] = {"batch_size": 128, "lr": 1e-3}
JOINT: dict[str, Any] = {"lambda_rec": 1.0}
SCALES = {
    "smoke": {"data": "digits", "n_train": 200, "n_test": 40, "units": 16, "epochs": 2},
    "cpu": {"data": "mnist", "n_train": 20_000, "n_test": 2000, "units": 256, "epochs": 5},
    "full": {"data": "mnist", "n_train": 60_000, "n_test": 10_000, "units": 256, "epochs": 20},
}


class _Figure(Experiment):
    name = "lamb-2018/figure-2.4"
    title = "reconstruction error under attack, by capacity and space"
    question = "Do reconstruction errors rise under attack, and more in hidden layers than at the input?"
    finding = (
        "Error under FGSM over the clean one, autoencoders of 512 units fitted afterwards: input "
        "{input-afterwards|512}, first hidden layer {hidden-1-afterwards|512}; under noise of the same norm "
        "{input-afterwards|512|ratio, same-norm noise (FGSM)} and {hidden-1-afterwards|512|ratio, same-norm noise "
        "(FGSM)}. First hidden layer trained jointly: {hidden-1-joint|512}."
    )
    source = f"{LAMB_2018}, Figure 2.4"
    metric = f"mean reconstruction error under FGSM at eps {EPS:g} over the clean one"
    columns = tuple(Column(f"{k}", f"{k} units") for k in (2, 8, 32, 128, 512, 2048))
    rows = tuple(
        Row(key=f"{space.replace(' ', '-')}-{mode}", title=f"{space}, {how}", data=(space, mode))
        for mode, how in (("afterwards", "autoencoder fitted to a trained network"), ("joint", "trained jointly"))
        for space in SPACES
    )
    notes = (
        "The figure prints no numbers, and not whether networks were trained first; both ways are measured.",
        'A space tells adversarial inputs from noise only where "ratio" and "AUROC" exceed their "same-norm noise".',
        "Afterwards: the attack sees the original network, so all capacities face the same inputs. Jointly: it sees "
        "the fortified one.",
    )

    def describe(self, scale: str) -> str:
        s = SCALES[scale]
        return (
            f"{s['data']}, {s['n_train']} training and {s['n_test']} test images, two hidden layers of {s['units']} "
            f"ReLUs, {s['epochs']} epochs for the network and as many for the autoencoder"
        )

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        attacks = {name: attack.describe() for name, attack in ATTACKS.items()}
        row = {"row": cell.row, "layer": SPACES[self.row(cell.row).data[0]], "capacity": int(cell.column)}
        return (
            SCALES[scale] | row | {"attacks": attacks, "network": NETWORK, "autoencoder": AUTOENCODER, "joint": JOINT}
        )

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        s: dict[str, Any] = SCALES[scale]
        space, mode = self.row(cell.row).data
        train = cache.images(s["data"], "train", s["n_train"])
        x, y = cache.put(cache.images(s["data"], "test", s["n_test"]))
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(cell.seed, 0))
            plain = mlp(x[0].numel(), [s["units"]] * 2, train.n_classes)
        if mode == "afterwards":
            net, history = self._afterwards(plain, space, cell, s, train, cache)
            attacked: nn.Module = net.unfortified().eval()
        else:
            net, history = self._jointly(plain, space, cell, s, train, cache)
            attacked = net
        numbers = _measured(net, attacked, SPACES[space], x, y, cell.seed)
        return Measurement(value=numbers["ratio, FGSM"], numbers=counted(numbers, len(x)), history=epochs_of(history))

    def _afterwards(
        self, plain: nn.Module, space: str, cell: Cell, s: dict[str, Any], train: ArrayDataset, cache: TrainingCache
    ) -> tuple[FortifiedNetwork, list[dict[str, float]]]:
        training = {"figure 2.4": "plain", "seed": cell.seed, "network": NETWORK} | s
        objective = ClassifierObjective()
        cache.train(training, plain, objective, train, epochs=s["epochs"], seed=cell.seed, **NETWORK)
        net = _fortified(plain, space, cell, train)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # narrow autoencoders change predictions: that is the figure
            options = {"epochs": s["epochs"], "seed": cell.seed, "progress": cache.progress}
            history = net.fit_autoencoders(train, **options, **AUTOENCODER)
        return net.eval(), history

    def _jointly(
        self, plain: nn.Module, space: str, cell: Cell, s: dict[str, Any], train: ArrayDataset, cache: TrainingCache
    ) -> tuple[FortifiedNetwork, list[dict[str, float]]]:
        net = _fortified(plain, space, cell, train)
        training = {"figure 2.4": cell.row, "capacity": cell.column, "seed": cell.seed, "network": NETWORK} | JOINT | s
        objective = FortifiedObjective(**JOINT)
        return net, cache.train(training, net, objective, train, epochs=s["epochs"], seed=cell.seed, **NETWORK)


def _fortified(plain: nn.Module, space: str, cell: Cell, train: ArrayDataset) -> FortifiedNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(cell.seed, 1))
        example = train.batch(torch.arange(2))[0]
        return fortify(plain, SPACES[space], example_input=example, hidden=int(cell.column), init="random")


def _measured(
    net: FortifiedNetwork, attacked: nn.Module, layer: str, x: Tensor, y: Tensor, seed: int
) -> dict[str, float]:
    clean, h = _errors(net, layer, x)
    numbers = {"accuracy, %": 100 * (net(x).argmax(1) == y).double().mean().item()}
    numbers |= {"relative error, clean": (clean.mean() / h.square().mean()).item()}
    for name, attack in ATTACKS.items():
        x_adv = attack(attacked, x, y)
        inputs = {name: x_adv, f"same-norm noise ({name})": noise_of_same_norm(x, x_adv - x, seed)}
        for what, z in inputs.items():
            errors, moved = _errors(net, layer, z)
            numbers[f"ratio, {what}"] = (errors.mean() / clean.mean()).item()
            numbers[f"AUROC, {what}"] = auroc(clean, errors)
            shift = (moved - h).square().mean(1)  # so that a network that merely amplifies does not pass for a model
            numbers[f"rise per shift of the state, {what}"] = ((errors - clean).mean() / shift.mean()).item()
    return numbers


def _errors(net: FortifiedNetwork, layer: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction error (N,) and state (N, D) at ``layer``, the state being the fortified network's own."""
    with torch.no_grad():
        _, states = net(x, return_states=True)
        state, decoded = states[layer]
        return (decoded - state).square().mean(1).double(), state.double()


def noise_of_same_norm(x: Tensor, delta: Tensor, seed: int) -> Tensor:
    """x plus Gaussian noise, within [0, 1], whose L2 norm is that of ``delta``, for each example.

    The bounds cut some of the noise off, so its length is found by bisection; where they leave no room for so long a
    perturbation, it is the longest that they do.

    >>> x = torch.rand(4, 9); delta = 0.2 * torch.randn(4, 9)
    >>> z = noise_of_same_norm(x, delta, seed=0)
    >>> torch.allclose((z - x).norm(dim=1), delta.norm(dim=1), rtol=1e-4), float(z.min()) >= 0
    (True, True)
    """
    wanted = delta.flatten(1).norm(dim=1)
    direction = normal(seed, torch.arange(len(x), device=x.device), tuple(x.shape[1:])).to(x)
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, 1e3)
    for _ in range(60):
        middle = (low + high) / 2
        z = (x + middle.reshape(-1, *(1,) * (x.ndim - 1)) * direction).clamp(0, 1)
        short = (z - x).flatten(1).norm(dim=1) < wanted
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return z


EXPERIMENT = _Figure()
