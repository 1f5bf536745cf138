"""The networks of the chapter: what each is made of and how it is trained."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from robustgen.attacks import FGSM, PGD, Attack
from robustgen.counter_rng import derive_seed
from robustgen.data import ArrayDataset
from robustgen.experiments.training_cache import TrainingCache
from robustgen.fortified import (
    FortifiedObjective,
    HiddenMatchingNetwork,
    HiddenMatchingObjective,
    InputEncoding,
    fortify,
)
from robustgen.networks import build
from robustgen.training import Batch, ClassifierObjective

__all__ = ["FORTIFIED", "LAYERS", "Budget", "Recipe", "example_sets", "step_cost", "train_recipe", "training_step"]

# Where the activations of the convnet are; other networks are fortified at "auto".
LAYERS = {"first": ("1",), "middle": ("3",), "last": ("5",), "first and last": ("1", "5"), "all": ("1", "3", "5")}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of everything, at one scale.

    Attributes:
        data: the set's name; ``n_train`` images of it are trained on (0: all), from ``first`` on.
        network, width: see :func:`robustgen.networks.build`.
        epochs, batch_size, lr: of Adam, with :func:`~robustgen.experiments.training_cache.one_cycle`.
        train_steps: of PGD in training.
        n_test: test images that every attack sees (0: all); n_few: those for 10 restarts and for the sweeps over eps.
        steps, restarts: of PGD in evaluation.
    """

    data: str
    n_train: int
    network: str = "convnet"
    width: int = 16
    epochs: int = 6
    batch_size: int = 32
    lr: float = 2e-3
    train_steps: int = 5
    n_test: int = 0
    n_few: int = 1000
    steps: int = 40
    restarts: int = 10

    def __str__(self) -> str:
        return (
            f"{self.data}, {self.n_train or 'all'} training images, {self.network} of width {self.width}, "
            f"{self.epochs} epochs of Adam (batch {self.batch_size}, rate {self.lr:g}, one cycle), "
            f"PGD-{self.train_steps} where training uses PGD; {self.n_test or 'all'} test images, "
            f"{self.restarts} restarts on {self.n_few}"
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network and its training, as differences from a plainly trained ReLU network.

    Attributes:
        attack: of the training: "none", "fgsm" or "pgd", in an Linf ball of radius ``eps``.
        activation: of the network.
        encoding: of the input: "quantized", "one-hot" or "thermometer".
        layers: which are fortified: a key of ``LAYERS``, "auto", or "" for none.
        hidden, autoencoder_activation, noise_std, noise_at_test: of the autoencoders.
        lambda_rec, lambda_adv, reduction, detach_states: see :class:`robustgen.FortifiedObjective`.
        on_input: the autoencoder is on the input, its loss in ``layers``.
        matching: weight of adversarial hidden-state matching at ``layers``; 0: none.
        more_epochs: factor on the epochs of the budget, rounded up to whole ones.
        clean_weight: of the clean inputs' cross-entropy beside an attack.
    """

    attack: str = "none"
    eps: float = 0.0
    activation: str = "relu"
    encoding: str = ""
    layers: str = ""
    hidden: int | None = None
    autoencoder_activation: str = "leaky_relu"
    noise_std: float = 0.1
    noise_at_test: bool = False
    lambda_rec: float = 0.0
    lambda_adv: float = 0.0
    reduction: str = "mean"
    detach_states: bool = False
    on_input: bool = False
    matching: float = 0.0
    more_epochs: float = 1.0
    clean_weight: float = 1.0

    def against(self, attack: str, eps: float) -> "Recipe":
        """The same, trained against another attack."""
        return replace(self, attack=attack, eps=eps)

    def record(self) -> dict[str, Any]:
        """Everything that the recipe says and the defaults behind it, JSON-able.

        All fields, so that a changed default does not pass for the old one.
        """
        record = asdict(self)
        if self.clean_weight == 1:
            del record["clean_weight"]  # cells were kept before there was a choice
        if self.encoding:
            encoding = InputEncoding(self.encoding)
            record["encoding"] = [encoding.kind, encoding.levels, encoding.backward_width]
        if self.layers in LAYERS:
            record["layers"] = LAYERS[self.layers]
        return record


# The fortified network of the tables: one autoencoder on the last hidden layer, both losses.
FORTIFIED = Recipe(layers="last", lambda_rec=0.1, lambda_adv=0.1)


def example_sets(budget: Budget, cache: TrainingCache) -> tuple[ArrayDataset, ArrayDataset]:
    """Training and test images of ``budget``."""
    return cache.images(budget.data, "train", budget.n_train), cache.images(budget.data, "test", budget.n_test)


def train_recipe(
    recipe: Recipe, budget: Budget, seed: int, cache: TrainingCache, train: ArrayDataset
) -> tuple[nn.Module, list[dict[str, float]]]:
    """The trained network, in eval mode, and its training history.

    With the same seed, networks of the same shape begin at the same weights and see the same batches: rows of a table
    are paired.
    """
    network, objective = training_step(recipe, budget, seed, train.batch(torch.arange(2))[0], train.n_classes)
    epochs = math.ceil(budget.epochs * recipe.more_epochs - 1e-9)
    # All that the training depends on; sizes of the evaluation are not part of it, so scales of tables can share it.
    settings = recipe.record() | {
        "data": [budget.data, len(train)],
        "network": [budget.network, budget.width],
        "training": [epochs, budget.batch_size, budget.lr, budget.train_steps if recipe.attack == "pgd" else 0],
        "seed": seed,
    }
    cache.say(
        f"training: {recipe.attack} {recipe.eps:g}, {recipe.activation} {recipe.layers} {recipe.encoding}".rstrip()
    )
    history = cache.train(
        settings,
        network,
        objective,
        train,
        epochs=epochs,
        batch_size=budget.batch_size,
        lr=budget.lr,
        seed=seed,
    )
    return network, history


def training_step(recipe: Recipe, budget: Budget, seed: int, example: Tensor, n_classes: int) -> tuple[nn.Module, Any]:
    """An untrained network for inputs like ``example`` (N, ...), and the objective that trains it."""
    return _build(recipe, budget, seed, example, n_classes), _objective(recipe, _attack(recipe, budget))


def _build(recipe: Recipe, budget: Budget, seed: int, example: Tensor, n_classes: int) -> nn.Module:
    encoding = InputEncoding(recipe.encoding) if recipe.encoding else None
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, 0))
        seen = example if encoding is None else encoding(example)
        network = build(budget.network, seen, n_classes, budget.width, recipe.activation)
        if encoding is not None:
            return nn.Sequential(encoding, network)
        torch.manual_seed(derive_seed(seed, 1))  # autoencoders do not disturb what the network begins with
        if recipe.matching:
            return HiddenMatchingNetwork(network, LAYERS[recipe.layers][0], example_input=example)
        if recipe.layers or recipe.on_input:
            return fortify(
                network,
                _layers(recipe),
                example_input=example,
                hidden=recipe.hidden,
                activation=recipe.autoencoder_activation,
                noise_std=recipe.noise_std,
                noise_at_test=recipe.noise_at_test,
                input_autoencoder=recipe.on_input,
                init="random",  # as in the source
            )
    return network


def _layers(recipe: Recipe) -> str | tuple[str, ...]:
    return "auto" if recipe.layers == "auto" else LAYERS[recipe.layers] if recipe.layers else ()


def _attack(recipe: Recipe, budget: Budget) -> Attack | None:
    if recipe.attack == "none":
        return None
    if recipe.attack == "fgsm":
        return FGSM(eps=recipe.eps)
    return PGD(eps=recipe.eps, steps=budget.train_steps)


def _objective(recipe: Recipe, attack: Attack | None) -> Any:
    if recipe.matching:
        return HiddenMatchingObjective(attack, weight=recipe.matching)
    if recipe.layers or recipe.on_input:
        return FortifiedObjective(
            attack,
            lambda_rec=recipe.lambda_rec,
            lambda_adv=recipe.lambda_adv,
            reduction=recipe.reduction,
            detach_states=recipe.detach_states,
            clean_weight=recipe.clean_weight,
        )
    return ClassifierObjective(attack, recipe.clean_weight)


def step_cost(recipe: Recipe, budget: Budget, train: ArrayDataset) -> int:
    """Multiplications and additions of one training step on eight examples, its attack included."""
    x, y = train.batch(torch.arange(8))
    network, objective = training_step(recipe, budget, 0, x, train.n_classes)
    with _Counter() as counter, torch.random.fork_rng():
        objective(network, Batch(x, y, torch.arange(8)), 0)["loss"].backward()
    return counter.total


class _Counter(TorchDispatchMode):
    """Counts as torch's FlopCounterMode does, which cannot watch the gradients of an attack."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out
