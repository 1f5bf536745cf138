"""Table 4.1: each MNIST digit held out in turn, and what the likelihoods of the others' models make of it."""

from typing import Any

from robustgen.data import ArrayDataset
from robustgen.experiments.ahmed2017.compared_detectors import DETECTORS, NOT_GENERATIVE
from robustgen.experiments.ahmed2017.heldout_table import (
    AHMED_2017,
    Budget,
    HeldoutTable,
    correlations_by_sign,
    means_over_rows,
    published_correlation,
)
from robustgen.experiments.ahmed2017.recipes import MNIST
from robustgen.experiments.experiment import Cell, Column, Kept, KeptOf, Row
from robustgen.experiments.training_cache import TrainingCache

__all__ = ["EXPERIMENT", "PUBLISHED"]

_OF_ALL = "-of-all"  # columns whose models or neighbours are of the whole training set at each scale
_NAMES = ("vae", "pixelcnn", "pixelvae", "dcgan")
PUBLISHED = {
    "0": (40.20, 31.31, 40.89, 44.16),
    "1": (5.98, 5.98, 6.08, 6.00),
    "2": (65.37, 42.60, 56.12, 14.40),
    "3": (36.86, 36.31, 38.33, 12.92),
    "4": (34.49, 19.74, 19.09, 7.38),
    "5": (38.56, 26.29, 28.12, 9.75),
    "6": (38.13, 23.76, 33.16, 9.68),
    "7": (10.13, 8.33, 11.75, 7.17),
    "8": (57.64, 50.57, 54.85, 12.87),
    "9": (11.09, 12.49, 11.50, 8.23),
}
_COLUMNS = (
    *_NAMES,
    "ebm",
    "ebm-dsm",
    "wgan-gp",
    "vae-of-all",
    "vae-draws",
    "vae-iw",
    "vae-reconstruction",
    "vae-regret",
    "vae-typicality",
    "vae-complexity",
    "vae-dose",
    "pixelcnn-ratio",
    "pixelcnn-complexity",
    "pixelcnn-typicality",
    "pixelcnn-waic",
    *NOT_GENERATIVE,
    "nearest-of-all",
    "distortion-k1",  # and what else the selection chose
    "product-k5",
    "product-k50",
    "deformed-distortion-k5",
)
BUDGETS = {"smoke": Budget("digits", 300, 150), "cpu": Budget("mnist", 20_000), "full": Budget("mnist")}


class _Table(HeldoutTable):
    name = "ahmed-2017/table-4.1"
    title = "a digit of MNIST held out"
    question = "Which detector finds the digit of MNIST that was left out of the training?"
    finding = (
        "Mean AUPR over the ten digits, and the worst digit: VAE {mean|vae}, {worst|vae}; DCGAN {mean|dcgan}, "
        "{worst|dcgan}; nearest training image {mean|nearest}, {worst|nearest}; contrastive features times "
        "distortion {mean|contrastive-distortion}, {worst|contrastive-distortion}; with labels, features of a "
        "classifier of deformed images times distortion {mean|deformed-distortion}, {worst|deformed-distortion}. "
        "Chance is 10."
    )
    source = f"{AHMED_2017}, Table 4.1"
    rows = tuple(
        Row(key=digit, title=f"digit {digit}", published=dict(zip(_NAMES, numbers, strict=True)))
        for digit, numbers in PUBLISHED.items()
    )
    columns = tuple(Column(key, DETECTORS[key].title) for key in _COLUMNS)
    budgets = BUDGETS
    recipes = MNIST
    notes = (
        "Ten trainings for each model, each without one digit. A tenth of the other images is kept for thresholds, and "
        "of the rest a tenth for validation, but where pixels are compared: models see 81 % of the nine digits' "
        "images, pixel neighbours 90 %. Models of binary images binarise every pixel at random, "
        "Bernoulli(x): anew in each training step, by one fixed draw an image in scores, or several where it says so. "
        "Adversarial and energy-based models, and all that works on pixels, see grey levels.",
        "Adversarial columns are the last epoch of one training, whose players' losses still swing.",
        "Classifiers know the labels of the nine trained digits; nothing else does.",
        "An area below the prevalence says that held-out digits look more normal than trained ones: everything "
        "measured (below) has the areas for the other sign too.",
        "Likelihood regret and 100 importance samples are measured on 1,000 images, drawn from all; WAIC is that of "
        "three epochs of one training.",
        "A threshold from some 1,800 images is uncertain: false alarms (below) vary by half a point (standard "
        "deviation) about 5 %, and together, as the ten trainings share most of these images.",
        "Which detector and which constants to take is measured without the tested digit in `ahmed-2017/selection`.",
        "The source prints one run a cell, without a spread, and no training length.",
    )

    def remarks(self, kept: Kept, kept_of: KeptOf) -> str:
        means, other = (means_over_rows(kept, number, len(PUBLISHED)) for number in ("AUPR", "AUPR, other sign"))
        if "nearest" not in means:
            return ""
        lines = []
        for said, beats in (("above", True), ("not above", False)):
            found = [key for key in means if key != "nearest" and (means[key] > means["nearest"]) == beats]
            names = ", ".join(f"{DETECTORS[key].title} {means[key]:.1f}" for key in found)
            lines.append(f"- {said} the nearest training image, mean {means['nearest']:.1f}: {names or 'none'}")
        flipped = [f"{DETECTORS[key].title} {other[key]:.1f}" for key in means if other[key] > means[key]]
        lines.append(f"- better with the other sign: {', '.join(flipped) or 'none'}")
        return "\n".join(["Means over the ten digits, of columns that are complete:", "", *lines, *_signs(kept)])

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        return super().settings(cell, scale) | ({"n_train": 0} if cell.column.endswith(_OF_ALL) else {})

    def data(self, cell: Cell, scale: str, cache: TrainingCache) -> tuple[ArrayDataset, ArrayDataset]:
        train, test = super().data(cell, scale, cache)
        return cache.images(self.budgets[scale].data, "train") if cell.column.endswith(_OF_ALL) else train, test


def _signs(kept: Kept) -> list[str]:
    published = {name: {row: numbers[i] for row, numbers in PUBLISHED.items()} for i, name in enumerate(_NAMES)}
    lines = [published_correlation(published, name, "dcgan") for name in _NAMES[:3]]
    lines += [line for name in _NAMES for line in correlations_by_sign(kept, published, name, name)]
    lines += correlations_by_sign(kept, published, "wgan-gp", "dcgan")
    return ["", "Which sign the source's columns have, by rank correlations:", "", *lines]


EXPERIMENT = _Table()
