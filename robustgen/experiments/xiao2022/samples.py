"""Tables 3.1 and 3.3: samples of autoencoders with a density of their codes, by the same encoder and decoder."""

import math
import statistics
from typing import Any

from robustgen.experiments.experiment import Cell, Column, Experiment, Kept, KeptOf, Measurement, Row
from robustgen.experiments.training_cache import TrainingCache
from robustgen.experiments.xiao2022.quality import BUDGETS, TRAINING_IMAGES, measured_samples, settings_of
from robustgen.experiments.xiao2022.recipes import XIAO_2022

__all__ = ["EXPERIMENT", "SampleTable", "difference"]

_DATA = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
_VALUES = {
    "frechet": ("Frechet distance", "Frechet"),
    "recall": ("F8 (recall)", "F8, percent"),
    "precision": ("F1/8 (precision)", "F1/8, percent"),
}
_PUBLISHED = {  # FID, F8 and F1/8 on MNIST, then on Fashion-MNIST
    "vae": (28.2, None, None, 57.5, None, None),
    "wae-gan": (12.4, 98, 96, 31.5, 90, 83),
    "two-stage": (10.9, 98, 97, 26.1, 94, 84),
    "rae-gmm": (10.8, 99, 97, 25.1, 92, 92),
    "flow-prior": (28.3, None, None, 51.8, None, None),
    "flow-posterior": (26.7, None, None, 55.1, None, None),
    "glf": (8.2, 98, 98, 21.3, 93.2, 92),
    "glf-perceptual": (5.8, 99, 99, 10.3, 99, 98),
}
_TITLES = {
    "vae": "VAE",
    "wae-gan": "WAE-GAN",
    "two-stage": "two-stage VAE",
    "rae-gmm": "RAE + Gaussian mixture",
    "flow-prior": "VAE, flow prior",
    "flow-posterior": "VAE, flow posterior",
    "glf": "GLF",
    "glf-perceptual": "GLF, perceptual loss",
}
_ORDER = (("glf", "rae-gmm"), ("rae-gmm", "vae"), ("glf-perceptual", "glf"))  # the first has the better samples
_COLUMNS = tuple(f"{data}-{value}" for data in _DATA for value in _VALUES)


def _published(key: str) -> dict[str, float]:
    return {c: float(v) for c, v in zip(_COLUMNS, _PUBLISHED[key], strict=True) if v is not None}


class SampleTable(Experiment):
    """A model a row; the Frechet distance, recall and precision of its samples of two data sets.

    Attributes:
        order: pairs of rows of which the first is said to have the better samples.
    """

    n_classes = 0  # log C of a classifier says nothing of these losses
    order: tuple[tuple[str, str], ...] = ()
    metric = "Frechet distance in the features of a small classifier of ours, and precision and recall in percent"
    columns = tuple(
        Column(f"{data}-{key}", f"{name}: {title}")
        for data, name in _DATA.items()
        for key, (_, title) in _VALUES.items()
    )
    digits = 1

    def describe(self, scale: str) -> str:
        return BUDGETS[scale].describe()

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        return settings_of(cell.row, self._place(cell, scale)[0], scale)

    def _place(self, cell: Cell, scale: str) -> tuple[str, str]:
        data, _, value = cell.column.rpartition("-")
        return BUDGETS[scale].data or data, value

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        data, value = self._place(cell, scale)
        numbers, history = measured_samples(cell.row, data, scale, cell.seed, cache)
        found = numbers[_VALUES[value][0]]["value"]
        return Measurement(
            value=found if value == "frechet" else 100 * found,
            numbers=numbers,
            history=history if value == "frechet" else {},
        )

    def conclusion(self, kept: Kept, kept_of: KeptOf) -> str:
        said, titles = [], {row.key: row.title for row in self.rows}
        for data, name in _DATA.items():
            for better, worse in self.order:
                found = difference(kept, f"{data}-frechet", worse, better)
                if found is not None:
                    mean, error = found
                    verdict = "holds" if mean > 2 * error else "is turned round" if mean < -2 * error else "is open"
                    pair = f"{titles[better]} before {titles[worse]}"
                    said.append(f"{name}, {pair}: {verdict} ({mean:+.1f} ± {2 * error:.1f})")
        return "The published order: " + "; ".join(said) + ". ± is two standard errors over seeds." if said else ""


class _Table(SampleTable):
    name = "xiao-2022/table-3.1"
    title = "samples of autoencoders (Tables 3.1 and 3.3)"
    question = "Which density of the codes of one autoencoder gives the best samples?"
    finding = (
        "Frechet distance in our features (published: FID, another metric), on MNIST and Fashion-MNIST: "
        "GLF {glf|mnist-frechet}, {glf|fashion-mnist-frechet}; "
        "RAE with a mixture {rae-gmm|mnist-frechet}, {rae-gmm|fashion-mnist-frechet}; "
        "VAE {vae|mnist-frechet}, {vae|fashion-mnist-frechet}; "
        "images of the training set {training|mnist-frechet}, {training|fashion-mnist-frechet}."
    )
    source = f"{XIAO_2022}, Tables 3.1 and 3.3"
    rows = (
        *(Row(key=key, title=title, published=_published(key)) for key, title in _TITLES.items()),
        Row(key=TRAINING_IMAGES, title="training images", note="what perfect samples would get"),
        Row(
            key="glann",
            title="GLANN, perceptual loss",
            published={"mnist-frechet": 8.6, "fashion-mnist-frechet": 13.0},
            missing="quoted by the source from its paper; not a model of this library",
        ),
    )
    order = _ORDER
    notes = (
        "Published Frechet distances are FIDs, of Inception features of 10,000 images: another metric, whose numbers "
        "cannot be compared with ours, only their order. F8 and F1/8 are of other features too.",
        "Ours: features of one small classifier of all training images, the same for all models and seeds. The "
        "classifier of the perceptual loss is another one.",
        "Samples are expected images, as the source's decoders give them. GLF and the autoencoders beside it have the "
        "same encoder and decoder, optimizer, epochs and images.",
    )


def difference(kept: Kept, column: str, row: str, other: str) -> tuple[float, float] | None:
    """A row's number less that of another, and its standard error over seeds that both have; None below two."""
    values = {(r["row"], r["seed"]): r["value"] for r in kept.values() if r["column"] == column}
    pairs = [values[row, s] - values[other, s] for r, s in values if r == row and (other, s) in values]
    if len(pairs) < 2:
        return None
    return statistics.fmean(pairs), math.sqrt(statistics.variance(pairs) / len(pairs))


EXPERIMENT = _Table()
