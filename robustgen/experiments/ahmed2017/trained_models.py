"""The models of one training set, each trained when it is first asked for."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from robustgen import generative, networks
from robustgen.counter_rng import derive_seed
from robustgen.data import ArrayDataset, split
from robustgen.detectors import mutate
from robustgen.experiments.ahmed2017.recipes import Averaged, Perceiving, Recipe, Redrawn, Tilting
from robustgen.experiments.training_cache import TrainingCache
from robustgen.fingerprint import fingerprint
from robustgen.training import ClassifierObjective, ContrastiveObjective, Deformations, OnDeformed

__all__ = ["TrainedModels", "described", "with_defaults"]

VALIDATION = 0.1  # of the training images: loss curves, and detectors that have to be fitted on fresh images
SHARES = ("kl_warmup", "first_steps")  # options that a recipe may state as a share of all updates
LATER = {"chains": "persistent"}  # arguments younger than kept cells, at the values that leave those as they were
PROJECTION = 64  # dimensions in which contrastive features are compared in training
NETWORKS: dict[str, tuple[Callable[..., nn.Module], Any, float]] = {  # how it is built, its objective, learning rate
    "convnet": (networks.convnet, ClassifierObjective(), 1e-3),
    "deformed": (networks.encoder, OnDeformed(ClassifierObjective(), Deformations()), 2e-3),
    "contrastive": (networks.encoder, ContrastiveObjective(Deformations()), 2e-3),
}


def described(recipes: Mapping[str, Recipe], names: Collection[str]) -> dict[str, Any]:
    """JSON-able: all that the trainings called ``names`` depend on, but the data; "pixelcnn@2" is one of "pixelcnn"."""
    found: dict[str, Any] = {}
    asked = [recipes[name.partition("@")[0]] for name in names]
    bases = [recipe.base for recipe in asked if isinstance(recipe, Tilting)]
    bases += [recipe.trained for recipe in asked if isinstance(recipe, Redrawn)]
    for name in dict.fromkeys([*bases, *names]):
        recipe = recipes[name.partition("@")[0]]
        network = recipe.model in NETWORKS
        build = NETWORKS[recipe.model][0] if network else generative.model_classes()[recipe.model]
        found[name] = asdict(recipe) | {"options": with_defaults(build, recipe.options), "validation": VALIDATION}
        if network:
            _, objective, lr = NETWORKS[recipe.model]
            found[name] |= {"lr": lr, "objective": objective.describe(), "projection": PROJECTION}
        else:
            found[name]["optimizer"] = _optimizer(generative.model_classes()[recipe.model])
    return found


def _optimizer(kind: type[generative.GenerativeModel]) -> dict[str, Any]:
    if not isinstance(inspect.getattr_static(kind, "optimizer"), staticmethod):
        return {"name": f"that of {kind.__name__}, which differs between its parts"}
    optimizer = kind.optimizer([nn.Parameter(torch.zeros(1))])
    constants = {key: optimizer.defaults[key] for key in ("lr", "betas", "alpha") if key in optimizer.defaults}
    return {"name": type(optimizer).__name__, **constants}


def with_defaults(build: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` of a constructor and what it takes for the others, so that another default is another setting.

    >>> with_defaults(lambda model, k=3, layer=None: None, {"k": 5})
    {'k': 5, 'layer': None}
    """
    parameters = inspect.signature(build).parameters.values()
    found = {p.name: p.default for p in parameters if p.default is not p.empty} | dict(options)
    return {name: value for name, value in found.items() if name not in LATER or LATER[name] != value}


class TrainedModels:
    """Models by the names of their recipes.

    Trainings are found again by what they depend on, pixels included, so that cells and tables share them.

    Attributes:
        images: what all of it is made of.
        train, validation: the two parts of them.
        history: {"model: entry": one number an epoch}, of every training asked for.
    """

    def __init__(self, cache: TrainingCache, recipes: dict[str, Recipe], images: ArrayDataset, seed: int) -> None:
        self.cache, self.recipes, self.images, self.seed = cache, recipes, images, seed
        self.train, self.validation = split(images, (1 - VALIDATION, VALIDATION), seed, stratified=False)
        self.history: dict[str, list[float]] = {}

    def model(self, name: str) -> nn.Module:
        """The model of a recipe, "pixelcnn", or of an epoch that it keeps, "pixelcnn@2" of the second."""
        base, _, number = name.partition("@")
        recipe = self.recipes[base]
        if recipe.model in NETWORKS:
            return self._network(name, recipe)
        if isinstance(recipe, Redrawn):
            model = self.model(recipe.trained)
            for option, value in recipe.options.items():
                setattr(model, option, value)
            return model
        kind = generative.model_classes()[recipe.model]
        first = self.model(recipe.base) if isinstance(recipe, Tilting) else tuple(self.train.x.shape[1:])
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.seed, 0))
            model = kind(first, **self._options(recipe))
        if isinstance(recipe, Perceiving):
            model.perceive(self.model(recipe.perceives))
        train, val = (self._seen(part, recipe) for part in (self.train, self.validation))
        history, where = self.cache.fit_generative(
            self._settings(recipe, train),
            model,
            train,
            val,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            seed=self.seed,
            annealed=recipe.annealed,
            keep=recipe.keep,
            ema=recipe.ema if isinstance(recipe, Averaged) else None,
        )
        self._note(base, history)
        if not number:
            return model
        return kind.load(where / f"epoch-{recipe.keep[int(number) - 1]}").to(self.cache.device)

    def _options(self, recipe: Recipe) -> dict[str, Any]:
        options, updates = dict(recipe.options), recipe.epochs * math.ceil(len(self.train) / recipe.batch_size)
        return options | {key: round(options[key] * updates) for key in SHARES if 0 < options.get(key, 0) < 1}

    def _network(self, name: str, recipe: Recipe) -> nn.Module:
        build, objective, lr = NETWORKS[recipe.model]
        channels, *size = self.train.x.shape[1:]
        outputs = PROJECTION if recipe.model == "contrastive" else self.train.n_classes
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.seed, 0))
            network = build(channels, outputs, (size[0], size[1]), **recipe.options)
        history = self.cache.train(
            self._settings(recipe, self.train) | {"lr": lr, "objective": objective.describe()},
            network,
            objective,
            self.train,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            lr=lr,
            seed=self.seed,
        )
        self._note(name, history)
        return network

    def _settings(self, recipe: Recipe, train: ArrayDataset) -> dict[str, Any]:
        pixels = {"x": train.x} if train.y is None else {"x": train.x, "y": train.y}
        base = {"base": asdict(self.recipes[recipe.base])} if isinstance(recipe, Tilting) else {}
        settings = {"recipe": asdict(recipe), "data": fingerprint(pixels), "validation": VALIDATION, "seed": self.seed}
        return settings | base

    def _seen(self, part: ArrayDataset, recipe: Recipe) -> ArrayDataset:
        if not recipe.mutated:
            return part
        mutated = mutate(part.images(), recipe.mutated, seed=self.seed)
        return ArrayDataset(mutated, name=f"{part.name}, mutated")

    def _note(self, name: str, history: list[dict[str, float]]) -> None:
        for entry in dict.fromkeys(entry for row in history for entry in row):  # stages of a training differ in theirs
            if entry not in ("epoch", "step"):
                self.history[f"{name}: {entry}"] = [round(row[entry], 6) for row in history if entry in row]
