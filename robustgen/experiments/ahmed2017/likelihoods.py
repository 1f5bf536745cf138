"""Likelihoods of test images under models of all classes: Tables 2.1 and 2.2, Figure 2.4, and the trainings' losses."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from robustgen.data import ArrayDataset
from robustgen.detectors import Likelihood
from robustgen.experiments.ahmed2017.heldout_table import AHMED_2017, Budget
from robustgen.experiments.ahmed2017.recipes import MNIST, Recipe
from robustgen.experiments.ahmed2017.trained_models import TrainedModels, described
from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row, counted
from robustgen.experiments.training_cache import TrainingCache
from robustgen.generative.pixels import bits_per_dim

__all__ = ["BUDGETS", "FIGURE_2_4", "TABLE_2_1", "TABLE_2_2", "TRAININGS", "measured", "trained_on"]

BUDGETS = {
    "smoke": Budget("digits", 300, 100),
    "cpu": Budget("mnist", 20_000, 5_000),
    "full": Budget("mnist"),
}


def trained_on(
    budget: Budget, recipes: Mapping[str, Recipe], cache: TrainingCache, seed: int
) -> tuple[TrainedModels, ArrayDataset]:
    """Models of a budget's training images, and its test images."""
    train = cache.images(budget.data, "train", budget.n_train)
    test = cache.drawn(budget.data, "test", budget.n_test)  # those in front of the file are the easier ones
    return TrainedModels(cache, dict(recipes), train, seed), test


def measured(model: Any, test: Tensor, importance_samples: int = 0) -> tuple[float, dict[str, dict[str, float]]]:
    """The mean of -log p(x) in nats, and everything else that a cell keeps.

    Args:
        importance_samples: K of the importance-weighted bound; 0: the model's own log-likelihood or bound.
    """
    detector = Likelihood(model, importance_samples or None).fit(test[:2])
    with torch.no_grad():
        nll = detector.score(test).double()
        numbers = {
            "nats": nll.mean().item(),
            "standard error over images": nll.std().item() / math.sqrt(len(nll)),
            "bits a dimension": bits_per_dim(nll.mean(), model.dimensions).item(),
        }
        if hasattr(model, "elbo_terms"):
            terms = [model.elbo_terms(x) for x in test.split(256)]
            reconstruction, kl = (torch.cat(parts).double().mean().item() for parts in zip(*terms, strict=True))
            numbers |= {"bound, nats": kl - reconstruction, "-log p(x|z), nats": -reconstruction, "KL, nats": kl}
    return numbers["nats"], counted(numbers, len(test))


#: K of the importance-weighted estimate and test images it is measured on; the source takes 5,000 samples.
IMPORTANCE = {"smoke": (5, 50), "cpu": (100, 1_000), "full": (5_000, 10_000)}
_EXACT, _LATENT = ("nll",), ("nll", "bound")
_ELSEWHERE = "named by the source for comparison; not a model of this library"


class _BinarisedMNIST(Experiment):
    name = "ahmed-2017/table-2.1"
    title = "likelihood of binarised MNIST"
    question = "How likely are test images of MNIST under each generative model?"
    finding = (
        "Nats, lower is better: VAE, a bound, {vae|bound}; IAF-VAE {iaf-vae|nll}; PixelCNN {pixelcnn-plain|nll}; "
        "Gated PixelCNN {pixelcnn|nll}; Gated PixelVAE {pixelvae|nll}."
    )
    source = f"{AHMED_2017}, Table 2.1"
    metric = "-log p(x) of test images in nats: exact or importance-weighted, and the bound (-ELBO)"
    rows = (
        Row(key="vae", title="convolutional VAE", published={"bound": 87.41}, columns=_LATENT),
        Row(key="iaf-vae", title="IAF-VAE", published={"nll": 79.88}, columns=_LATENT),
        Row(key="pixelcnn-plain", title="PixelCNN", published={"nll": 81.30}, columns=_EXACT),
        Row(key="pixelrnn", title="PixelRNN (here: Row LSTM)", published={"nll": 79.20}, columns=_EXACT),
        Row(key="pixelcnn", title="Gated PixelCNN", published={"nll": 80.10}, columns=_EXACT),
        Row(
            key="pixelvae",
            title="Gated PixelVAE",
            published={"nll": 79.48, "bound": 80.02},
            columns=_LATENT,
            note="without gates the source has a bound of 80.64",
        ),
        Row(
            key="pixelvae-bias",
            title="Gated PixelVAE without upsampling",
            published={"nll": 78.96, "bound": 79.58},
            columns=_LATENT,
        ),
        Row(key="draw", title="DRAW", published={"bound": 80.97}, missing=_ELSEWHERE),
        Row(key="discrete-vae", title="Discrete VAE", published={"nll": 81.01}, missing=_ELSEWHERE),
        Row(key="vlae", title="VLAE", published={"nll": 79.03}, missing=_ELSEWHERE),
    )
    columns = (Column("nll", "exact or importance-weighted"), Column("bound", "bound"))
    seeds = 1
    notes = (
        "Binarization: ours is stochastic, a pixel of brightness x is 1 with probability x, drawn anew in each "
        "training step and once for each test image. The source has the fixed draw of Salakhutdinov and Murray, of the "
        "same distribution; its models saw a single draw in training.",
        "Importance-weighted estimates at scale `cpu` are of 100 samples a test image, on 1,000 test images; the "
        "source has 5,000 samples.",
    )

    def describe(self, scale: str) -> str:
        k, n = IMPORTANCE[scale]
        return f"{BUDGETS[scale].describe()}; {k} importance samples on {n} test images"

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        b = BUDGETS[scale]
        recipe = described(MNIST[scale], (cell.row,))
        importance = IMPORTANCE[scale] if self._weighted(cell) else None
        return {"data": b.data, "n_train": b.n_train, "n_test": b.n_test, "importance": importance, "recipes": recipe}

    def _weighted(self, cell: Cell) -> bool:
        return cell.column == "nll" and self.row(cell.row).columns == _LATENT

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        trained, test = trained_on(BUDGETS[scale], MNIST[scale], cache, cell.seed)
        model = trained.model(cell.row)
        k, n = IMPORTANCE[scale] if self._weighted(cell) else (0, len(test))
        value, numbers = measured(model, cache.put(test)[0][:n], k)
        return Measurement(value=value, numbers=numbers, history=trained.history)


TABLE_2_1 = _BinarisedMNIST()


_IMAGENET = "needs ImageNet at 64x64 and weeks of accelerators; another data set would be another table"


class _ImageNet(Experiment):
    name = "ahmed-2017/table-2.2"
    title = "likelihood of ImageNet at 64x64"
    question = "How likely are images of ImageNet at 64x64 under each generative model?"
    finding = "Bits a dimension: Gated PixelCNN {pixelcnn|val}, hierarchical PixelVAE {pixelvae|val}."
    source = f"{AHMED_2017}, Table 2.2"
    metric = "bits a dimension (the source prints no unit), validation and training"
    rows = (
        Row(key="draw", title="Convolutional DRAW", published={"val": 4.10, "train": 4.04}, missing=_ELSEWHERE),
        Row(key="real-nvp", title="Real NVP", published={"val": 4.01, "train": 3.93}, missing=_ELSEWHERE),
        Row(key="pixelrnn", title="PixelRNN", published={"val": 3.63, "train": 3.57}, missing=_IMAGENET),
        Row(key="pixelcnn", title="Gated PixelCNN", published={"val": 3.57, "train": 3.48}, missing=_IMAGENET),
        Row(key="pixelvae", title="Hierarchical PixelVAE", published={"val": 3.62, "train": 3.55}, missing=_IMAGENET),
    )
    columns = (Column("val", "validation"), Column("train", "training"))
    seeds = 1

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        raise NotImplementedError(_IMAGENET)

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        raise NotImplementedError(_IMAGENET)


TABLE_2_2 = _ImageNet()


_LAYERS = (0, 1, 2, 4)


class _AutoregressiveLayers(Experiment):
    name = "ahmed-2017/figure-2.4"
    title = "PixelVAE and PixelCNN by the number of autoregressive layers"
    question = "What do autoregressive layers in the decoder do to the likelihood of a VAE?"
    finding = (
        "Bound in nats, lower is better: {0-layers|pixelvae} without such layers, {1-layers|pixelvae} with one, "
        "{2-layers|pixelvae} with two, {4-layers|pixelvae} with four; a Gated PixelCNN of four layers "
        "{4-layers|pixelcnn}."
    )
    source = f"{AHMED_2017}, Figure 2.4 (curves without printed numbers)"
    metric = "-log p(x) of test images in nats, a bound for PixelVAE; below, its reconstruction and KL"
    rows = tuple(
        Row(
            key=f"{n}-layers",
            title=f"{n} layer{'' if n == 1 else 's'}",
            data=n,
            columns=None if n else ("pixelvae",),
            note="" if n else "a VAE",
        )
        for n in _LAYERS
    )
    columns = (Column("pixelvae", "PixelVAE"), Column("pixelcnn", "Gated PixelCNN"))
    seeds = 1
    notes = (
        "The source finds the largest drop of both the bound and the KL from none to one layer, and PixelVAE far ahead "
        "of a PixelCNN with as few layers. Every layer but the first is 3x3 at scale `cpu`.",
    )

    def describe(self, scale: str) -> str:
        return BUDGETS[scale].describe()

    def _recipes(self, cell: Cell, scale: str) -> dict[str, Recipe]:
        recipe = MNIST[scale][cell.column]
        layers = self.row(cell.row).data
        # GatedPixelCNN counts those that follow its first one.
        options = {**recipe.options, "layers": layers - 1 if cell.column == "pixelcnn" else layers}
        return {cell.column: replace(recipe, options=options, keep=())}

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        b, recipes = BUDGETS[scale], described(self._recipes(cell, scale), (cell.column,))
        return {"data": b.data, "n_train": b.n_train, "n_test": b.n_test, "recipes": recipes}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        trained, test = trained_on(BUDGETS[scale], self._recipes(cell, scale), cache, cell.seed)
        value, numbers = measured(trained.model(cell.column), cache.put(test)[0])
        return Measurement(value=value, numbers=numbers, history=trained.history)


FIGURE_2_4 = _AutoregressiveLayers()


_BITS = "in nats, of 8-bit pixels: not to be compared with those of binary ones"
_ROWS = {
    "vae": ("convolutional VAE", ""),
    "iaf-vae": ("IAF-VAE", ""),
    "pixelvae": ("PixelVAE", ""),
    "pixelvae-bias": ("PixelVAE without upsampling", ""),
    "hierarchical-pixelvae": ("hierarchical PixelVAE", ""),
    "pixelcnn-plain": ("PixelCNN", ""),
    "pixelcnn": ("Gated PixelCNN", ""),
    "pixelrnn": ("PixelRNN, Row LSTM", ""),
    "pixelcnn++": ("PixelCNN++", _BITS),
    "dcgan": ("DCGAN", "the discriminator's; both players' losses move as they please"),
    "lsgan": ("LSGAN", "the discriminator's, squared"),
    "wgan-gp": ("WGAN-GP", "the critic's: an estimate of minus the Wasserstein distance"),
    "ebm": ("EBM, Langevin", "the difference of two energies, near 0 throughout"),
    "ebm-dsm": ("EBM, score matching", "of denoising score matching, without its constant"),
}


class _Trainings(Experiment):
    name = "ahmed-2017/trainings"
    title = "validation losses in training"
    question = "Did the generative models finish their training?"
    finding = (
        "Validation loss in nats, first and last epoch: VAE {vae|first}, {vae|last}; Gated PixelCNN "
        "{pixelcnn|first}, {pixelcnn|last}; PixelVAE {pixelvae|first}, {pixelvae|last}."
    )
    source = f"Not in {AHMED_2017}"
    metric = "loss of the validation images after the epoch; -ELBO or -log p in nats where nothing else is said"
    rows = tuple(Row(key=key, title=title, note=note) for key, (title, note) in _ROWS.items())
    columns = (Column("first", "first epoch"), Column("last", "last epoch"))
    seeds = 1
    notes = (
        "A tenth of the training images is for validation. The cells' files hold all epochs, of both losses and of "
        "their parts.",
    )

    def describe(self, scale: str) -> str:
        return BUDGETS[scale].describe()

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        b = BUDGETS[scale]
        return {"data": b.data, "n_train": b.n_train, "recipes": described(MNIST[scale], (cell.row,))}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        trained, _ = trained_on(BUDGETS[scale], MNIST[scale], cache, cell.seed)
        trained.model(cell.row)
        losses = trained.history[f"{cell.row}: val_loss"]
        return Measurement(value=losses[0 if cell.column == "first" else -1], numbers={}, history=trained.history)


TRAININGS = _Trainings()
