"""Table 4.8 in shape: likelihoods and energies before six kinds of images that were never trained on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustgen.data import ArrayDataset, noise
from robustgen.detectors import DensityOfStates, Detector, Likelihood
from robustgen.evaluation.metrics import weighted_aurocs
from robustgen.evaluation.sample_metrics import bootstrap
from robustgen.experiments.ahmed2017.compared_detectors import DETECTORS
from robustgen.experiments.ahmed2017.heldout_table import Make
from robustgen.experiments.experiment import Cell, Column, Kept, KeptOf, Row
from robustgen.experiments.training_cache import TrainingCache
from robustgen.experiments.xiao2022.recipes import XIAO_2022
from robustgen.experiments.xiao2022.unseen import DrawnFarOOD

__all__ = ["EXPERIMENT"]

RESAMPLES = 1000
OTHER = "other"
_COLUMNS = (
    "tilt-base",
    "tilt-base-typicality",
    "tilted",
    "tilted-energy",
    "tilted-dose",
    "glow",
    "glow-typicality",
    "tilted-glow",
    "tilted-glow-dose",
    "ebm",
    "jem",
    "energy",
    "noise-free",
    "noise-free-energy",
    "equilibrium",
    "nearest",
    "compressed-size",
)
_SETS = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}


def _midpoints(x: Tensor) -> Tensor:
    """Of each image and the one before it; neighbours are of any classes."""
    return ((x.int() + x.roll(1, 0).int()) // 2).to(x.dtype)


def _constant(x: Tensor) -> Tensor:
    return torch.arange(256, dtype=x.dtype).view(-1, 1, 1, 1).expand(-1, *x.shape[1:]).contiguous()


def _noise(x: Tensor) -> Tensor:
    channels, height, width = x.shape[1:]
    return noise(len(x), (channels, height, width)).x


# What is made of uint8 test images (N, C, H, W).
_KINDS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "midpoints": ("midpoints of two", _midpoints),
    "mirrored": ("mirrored", lambda x: x.flip(3)),
    "upside-down": ("upside down", lambda x: x.flip(2)),
    "constant": ("one level", _constant),
    "noise": ("uniform noise", _noise),
}
_TITLES = {OTHER: "the other set"} | {kind: title for kind, (title, _) in _KINDS.items()}


class _Table(DrawnFarOOD):
    name = "xiao-2022/tilted-unseen"
    title = "a VAE, its tilt and other energies before six kinds of unseen images (Table 4.8's question)"
    question = "Does an energy on top of a model find what its likelihood takes for normal, whatever it is?"
    finding = (
        "AUROC, trained on Fashion-MNIST: MNIST {fashion-mnist-other|tilt-base} by the VAE, "
        "{fashion-mnist-other|tilted} tilted; midpoints of two images {fashion-mnist-midpoints|tilt-base}, "
        "{fashion-mnist-midpoints|tilted}; images of one level {fashion-mnist-constant|tilt-base}, "
        "{fashion-mnist-constant|tilted}. With the energy beside the likelihood, not taken from it: "
        "{fashion-mnist-other|tilted-dose}, {fashion-mnist-midpoints|tilted-dose}, "
        "{fashion-mnist-constant|tilted-dose}. MNIST by Glow {fashion-mnist-other|glow}, so with its tilt "
        "{fashion-mnist-other|tilted-glow-dose}."
    )
    source = f"{XIAO_2022}, Table 4.8 asks it of CIFAR-10 and larger networks"
    metric = "AUROC in percent, the unseen images positive"
    rows = tuple(
        Row(key=f"{name}-{kind}", title=f"{title}, against {what}", data=(name, kind))
        for name, title in _SETS.items()
        for kind, what in _TITLES.items()
    )
    columns = tuple(Column(key, DETECTORS[key].title) for key in _COLUMNS)
    notes = (
        "Midpoints: the mean of two test images. Flips of a digit that is its own mirror image, or of a coat, are "
        "hardly anomalous. Images of one level: all 256, from black to white.",
        f"Intervals: 2.5th and 97.5th percentile over {RESAMPLES} bootstrap samples of normal and of unseen images; "
        "of the gain over the base, the same images for both.",
        "The density of the noise-free EBM is judged on 500 images of each. The classifier, and the classifier and "
        "energy in one, know the labels of the normal images.",
        "DoSE: the density of both numbers, each by itself, among held-back training images; the energy has a scale of "
        "its own, so that its difference to a likelihood of hundreds of nats hides it.",
        "How energies went in training is in the cells: where those of a tilt part (overlap near 0), f tells data from "
        "images of its base and is no log density.",
        "At scale `smoke`, digits against their negatives, in place of another set.",
    )

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        return super().settings(cell, scale) | {"resamples": RESAMPLES}

    def names(self, cell: Cell, scale: str) -> tuple[str, str]:
        name, kind = self.row(cell.row).data
        data, other = super().names(Cell(name, cell.column, cell.seed), scale)
        return data, other if kind == OTHER else kind

    def unseen(self, test: ArrayDataset, cell: Cell, cache: TrainingCache) -> ArrayDataset:
        kind = self.row(cell.row).data[1]
        if kind == OTHER:
            return super().unseen(test, cell, cache)
        return ArrayDataset(_KINDS[kind][1](test.x), name=kind, preprocessing=test.preprocessing)

    def evaluate(
        self, make: Make, train: ArrayDataset, test: ArrayDataset, cell: Cell, cache: TrainingCache
    ) -> dict[str, Any]:
        made: list[Detector] = []

        def making(images: ArrayDataset) -> Detector:
            made.append(make(images))
            return made[-1]

        found = super().evaluate(making, train, test, cell, cache)
        return found | {"further": _certainty(made[-1], test, self.unseen(test, cell, cache), cell.seed)}

    def conclusion(self, kept: Kept, kept_of: KeptOf) -> str:
        return " ".join(
            line
            for columns, what in (
                (("tilted", "tilted-glow"), "the tilted likelihood"),
                (("tilted-dose", "tilted-glow-dose"), "that likelihood beside the tilt's energy"),
            )
            if (line := _gains([record["numbers"] for record in kept.values() if record["column"] in columns], what))
        )


def _gains(found: list[dict[str, Any]], what: str) -> str:
    """In words."""
    if not found:
        return ""
    above = sum(numbers["lower end of the gain"]["value"] > 0 for numbers in found)
    below = sum(numbers["upper end of the gain"]["value"] < 0 for numbers in found)
    least, most = (end(numbers["gain over the base"]["value"] for numbers in found) for end in (min, max))
    return (
        f"By the 95 % interval of its gain, {what} is above the base's likelihood alone in {above} of {len(found)} "
        f"kinds of images, below it in {below}; gains are from {least:+.1f} to {most:+.1f} points."
    )


def _certainty(detector: Detector, test: ArrayDataset, unseen: ArrayDataset, seed: int) -> dict[str, float]:
    """Ends of the interval of the AUROC, and how far a tilt is above its base, in percent."""
    weights = bootstrap(len(unseen), len(test), RESAMPLES, seed)

    def aurocs(judge: Detector) -> "np.ndarray[Any, Any]":
        return 100 * weighted_aurocs(judge.score(test), judge.score(unseen), weights.data, weights.samples)

    own = aurocs(detector)
    found = _ends(own, "interval")
    if isinstance(detector, Likelihood | DensityOfStates) and hasattr(detector.model, "base"):
        gain = own - aurocs(Likelihood(detector.model.base).fit(test))
        found |= {"gain over the base": float(gain[0])} | _ends(gain, "gain")
    return found


def _ends(values: "np.ndarray[Any, Any]", name: str) -> dict[str, float]:
    """Of 95 % of the bootstrap draws, which stand behind the images as they are."""
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return {f"lower end of the {name}": float(low), f"upper end of the {name}": float(high)}


EXPERIMENT = _Table()
