"""Scores of flows and latent flows before images of another data set, and before a digit that was held out."""

from typing import Any

from robustgen.data import ArrayDataset
from robustgen.experiments.ahmed2017.compared_detectors import DETECTORS
from robustgen.experiments.ahmed2017.far_ood import FarOOD
from robustgen.experiments.ahmed2017.heldout_table import Budget, HeldoutTable
from robustgen.experiments.experiment import Cell, Column, Row
from robustgen.experiments.training_cache import TrainingCache
from robustgen.experiments.xiao2022.recipes import RECIPES, XIAO_2022

__all__ = [
    "DIFFUSIONS",
    "FAR_OOD",
    "HELD_OUT",
    "HELD_OUT_BY_DIFFUSIONS",
    "HELD_OUT_BY_ENERGIES",
    "TILTED",
    "DrawnFarOOD",
]

_COLUMNS = (
    "glow",
    "real-nvp",
    "flow-prior",
    "glf-latent",
    "glf-reconstruction",
    "glf-sum",
    "classifier-flow",
    "mahalanobis",
)
_FAR = {"smoke": Budget("digits", 300, 150), "cpu": Budget("", 20_000, 2_000), "full": Budget("")}
_DIGITS = {"smoke": Budget("digits", 300, 150), "cpu": Budget("mnist", 20_000, 5_000), "full": Budget("mnist")}
_DRAWN = {"training images": "drawn"}
_TILTED = ("tilt-base", "tilted", "tilted-energy", "ebm", "nearest", "compressed-size")
_DIFFUSIONS = ("ddpm", "ddpm-reconstruction", "ddpm-lift-map", "ddpm-scores", "ddpm-nearest", "ddgan", "nearest")
_ENERGIES = ("tilt-base", "tilted", "tilted-energy", "tilted-dose", "ebm", "jem")
_HELD_OUT = ("glf-latent", "glf-reconstruction", "glf-sum", "real-nvp")


def _drawn(table: HeldoutTable, name: str, scale: str, cache: TrainingCache) -> tuple[ArrayDataset, ArrayDataset]:
    """Training and test images drawn from all of them, not spaced over the file."""
    b = table.budgets[scale]
    return cache.drawn(name, "train", b.n_train), cache.drawn(name, "test", b.n_test)


class DrawnFarOOD(FarOOD):
    """Of training and test images that are drawn from all of them."""

    name = "xiao-2022/far-ood"
    title = "flows and latent flows: Fashion-MNIST against MNIST, both ways"
    question = "Do scores of flows and latent flows find images of another data set, whichever is the normal one?"
    finding = (
        "AUROC for Fashion-MNIST against MNIST, and the other way round: Glow {mnist|glow}, {fashion-mnist|glow}; "
        "GLF's codes and reconstruction together {mnist|glf-sum}, {fashion-mnist|glf-sum}; flow of a classifier's "
        "states {mnist|classifier-flow}, {fashion-mnist|classifier-flow}; Mahalanobis distance of the same states "
        "{mnist|mahalanobis}, {fashion-mnist|mahalanobis}."
    )
    source = f"Not in {XIAO_2022}"
    columns = tuple(Column(key, DETECTORS[key].title) for key in _COLUMNS)
    recipes = RECIPES
    budgets = _FAR

    def data(self, cell: Cell, scale: str, cache: TrainingCache) -> tuple[ArrayDataset, ArrayDataset]:
        return _drawn(self, self.names(cell, scale)[0], scale, cache)

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        return super().settings(cell, scale) | _DRAWN


class _HeldOut(HeldoutTable):
    name = "xiao-2022/held-out-digits"
    title = "flows and latent flows: a digit of MNIST held out"
    question = "Do scores of flows and latent flows find the digit that was left out of the training?"
    finding = (
        "Mean AUPR over the ten digits, chance 10: GLF's codes {mean|glf-latent}, its reconstruction "
        "{mean|glf-reconstruction}, both {mean|glf-sum}; RealNVP {mean|real-nvp}."
    )
    source = f"Not in {XIAO_2022}"
    rows = tuple(Row(key=str(k), title=str(k)) for k in range(10))
    columns = tuple(Column(key, DETECTORS[key].title) for key in _HELD_OUT)
    recipes = RECIPES
    budgets = _DIGITS

    def data(self, cell: Cell, scale: str, cache: TrainingCache) -> tuple[ArrayDataset, ArrayDataset]:
        return _drawn(self, self.budgets[scale].data, scale, cache)

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        return super().settings(cell, scale) | _DRAWN


class _Tilted(DrawnFarOOD):
    name = "xiao-2022/tilted-far-ood"
    title = "a VAE and its tilt: Fashion-MNIST against MNIST, both ways (Table 4.8's question)"
    question = "Does an energy on top of a model find what its likelihood takes for normal?"
    finding = (
        "AUROC for Fashion-MNIST against MNIST, and the other way round: VAE {mnist|tilt-base}, "
        "{fashion-mnist|tilt-base}; tilted {mnist|tilted}, {fashion-mnist|tilted}; the energy alone "
        "{mnist|tilted-energy}, {fashion-mnist|tilted-energy}; nearest training image {mnist|nearest}, "
        "{fashion-mnist|nearest}."
    )
    source = f"{XIAO_2022}, Table 4.8 asks it of CIFAR-10 and larger networks"
    columns = tuple(Column(key, DETECTORS[key].title) for key in _TILTED)


class _HeldOutByEnergies(_HeldOut):
    name = "xiao-2022/tilted-held-out"
    title = "a VAE, its tilt and other energies: a digit of MNIST held out"
    question = "Does an energy on top of a model find the digit that was left out of the training?"
    finding = (
        "Mean AUPR over the ten digits, chance 10: VAE {mean|tilt-base}, tilted {mean|tilted}, the energy alone "
        "{mean|tilted-energy}, likelihood and energy side by side {mean|tilted-dose}; energy of images {mean|ebm}."
    )
    columns = tuple(Column(key, DETECTORS[key].title) for key in _ENERGIES)
    notes = ("The energy with labels knows those of the trained digits.",)


class _Diffusions(DrawnFarOOD):
    name = "xiao-2022/diffusion-far-ood"
    title = "diffusion models: Fashion-MNIST against MNIST, both ways"
    question = "Do scores of diffusion models find images of another data set, whichever is the normal one?"
    finding = (
        "AUROC for Fashion-MNIST against MNIST, and the other way round: DDPM's bound {mnist|ddpm}, "
        "{fashion-mnist|ddpm}; reconstructions from four depths {mnist|ddpm-reconstruction}, "
        "{fashion-mnist|ddpm-reconstruction}; lifted and mapped back {mnist|ddpm-lift-map}, "
        "{fashion-mnist|ddpm-lift-map}; its steps at several levels of noise {mnist|ddpm-scores}, "
        "{fashion-mnist|ddpm-scores}; nearest training image in its states {mnist|ddpm-nearest}, "
        "{fashion-mnist|ddpm-nearest}."
    )
    source = f"Not in {XIAO_2022}"
    columns = tuple(Column(key, DETECTORS[key].title) for key in _DIFFUSIONS)


class _HeldOutByDiffusions(_HeldOut):
    name = "xiao-2022/diffusion-held-out"
    title = "diffusion models: a digit of MNIST held out"
    question = "Do scores of diffusion models find the digit that was left out of the training?"
    finding = (
        "Mean AUPR over the ten digits, chance 10: DDPM's bound {mean|ddpm}, reconstructions from four depths "
        "{mean|ddpm-reconstruction}, lifted and mapped back {mean|ddpm-lift-map}, its steps at several levels of noise "
        "{mean|ddpm-scores}; nearest training image in its states {mean|ddpm-nearest}, in pixels {mean|nearest}."
    )
    columns = tuple(Column(key, DETECTORS[key].title) for key in _DIFFUSIONS if key != "ddgan")
    notes = ("Which states, and at what noise, was chosen by trials on the digits 0 to 3 of these cells.",)


FAR_OOD, HELD_OUT, TILTED = DrawnFarOOD(), _HeldOut(), _Tilted()
HELD_OUT_BY_ENERGIES = _HeldOutByEnergies()
DIFFUSIONS, HELD_OUT_BY_DIFFUSIONS = _Diffusions(), _HeldOutByDiffusions()
