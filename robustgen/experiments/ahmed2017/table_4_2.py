"""Table 4.2: categories of CIFAR-10 held out, and whether the source's PixelCNN++ column has the sign of the others."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import torch

from robustgen.data import ArrayDataset
from robustgen.experiments.ahmed2017.compared_detectors import DETECTORS
from robustgen.experiments.ahmed2017.heldout_table import (
    AHMED_2017,
    Budget,
    HeldoutTable,
    correlations_by_sign,
    published_correlation,
)
from robustgen.experiments.ahmed2017.recipes import COLOUR
from robustgen.experiments.experiment import Cell, Column, Kept, KeptOf, Row
from robustgen.experiments.training_cache import TrainingCache

__all__ = ["EXPERIMENT", "PUBLISHED", "halved"]

_NAMES = ("iaf-vae", "pixelcnn++", "pixelvae", "dcgan")
PUBLISHED = {
    "airplane": (5.19, 30.39, 6.95, 10.46),
    "automobile": (28.83, 8.40, 14.11, 12.00),
    "bird": (7.48, 11.46, 9.83, 11.38),
    "cat": (8.57, 9.79, 9.23, 10.47),
    "deer": (24.60, 7.41, 11.48, 8.37),
    "dog": (9.71, 9.00, 8.63, 11.32),
    "frog": (60.30, 6.74, 17.21, 12.73),
    "horse": (18.78, 7.88, 10.64, 10.57),
    "ship": (5.36, 15.63, 6.88, 13.14),
    "truck": (21.96, 8.36, 11.45, 12.50),
}
WHOLE = ("airplane", "automobile", "frog")  # where the source's columns differ most: measured in all columns
BUDGETS = {
    "smoke": Budget("digits", 300, 100),
    "cpu": Budget("cifar10-jpeg", 10_000, 4_000),
    "full": Budget("cifar10-jpeg"),
}
SIZE = {"smoke": 8, "cpu": 16, "full": 32}
_SANITY = ("compressed-size", "brightness", "pca", "nearest")


def halved(dataset: ArrayDataset) -> ArrayDataset:
    """Images of half the height and width, means of 2x2 pixels, rounded to 8 bits.

    >>> from robustgen.data import digits
    >>> halved(digits("test"))
    ArrayDataset('digits/test', 359 x (1, 4, 4) uint8, 10 classes)
    """
    means = torch.nn.functional.avg_pool2d(dataset.x.float(), 2).round().to(torch.uint8)
    return replace(dataset, x=means, preprocessing=(*dataset.preprocessing, "means of 2x2 pixels"))


class _Table(HeldoutTable):
    name = "ahmed-2017/table-4.2"
    title = "a category of CIFAR-10 held out"
    question = "Does a generative model find the category of CIFAR-10 that was left out of the training?"
    finding = (
        "Mean AUPR over the ten categories: PixelCNN++ {mean|pixelcnn++}, nearest training image {mean|nearest}, "
        "compressed size alone {mean|compressed-size}. Chance is 10. IAF-VAE on the frog: {frog|iaf-vae}."
    )
    source = f"{AHMED_2017}, Table 4.2"
    rows = tuple(
        Row(
            key=category,
            title=category,
            published=dict(zip(_NAMES, numbers, strict=True)),
            columns=None if category in WHOLE else ("pixelcnn++", *_SANITY),
        )
        for category, numbers in PUBLISHED.items()
    )
    columns = tuple(Column(key, DETECTORS[key].title) for key in (*_NAMES, *_SANITY))
    budgets = BUDGETS
    recipes = COLOUR
    notes = (
        "At scale `cpu`: JPEG copies of the images, in which what compression did is part of the pixels, reduced to "
        "16x16 by means of 2x2 pixels, in training and test alike. PixelCNN++ is measured on all categories, the other "
        "models on the three where the source's columns differ most.",
        "IAF-VAE and PixelCNN++ take mixtures of discretised logistics, PixelVAE a softmax.",
    )

    def data(self, cell: Cell, scale: str, cache: TrainingCache) -> tuple[ArrayDataset, ArrayDataset]:
        train, test = super().data(cell, scale, cache)
        if scale == "smoke":
            names = tuple(PUBLISHED)  # digits, called by the categories
            return replace(train, classes=names), replace(test, classes=names)
        return (halved(train), halved(test)) if SIZE[scale] == 16 else (train, test)

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        return super().settings(cell, scale) | {"size": SIZE[scale]}

    def remarks(self, kept: Kept, kept_of: KeptOf) -> str:
        published = {name: {row: numbers[i] for row, numbers in PUBLISHED.items()} for i, name in enumerate(_NAMES)}
        lines = [published_correlation(published, a, b) for a, b in combinations(_NAMES[:3], 2)]
        for theirs in _NAMES[:2]:
            lines += correlations_by_sign(kept, published, "pixelcnn++", theirs)
        return "\n".join(["Which sign the source's PixelCNN++ column has, by rank correlations:", "", *lines])


EXPERIMENT = _Table()
