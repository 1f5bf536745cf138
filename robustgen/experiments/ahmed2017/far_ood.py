"""Far anomalies: Fashion-MNIST before models of MNIST, and MNIST before models of Fashion-MNIST."""

from dataclasses import replace
from typing import Any

from robustgen.data import ArrayDataset
from robustgen.evaluation import unseen_datasets
from robustgen.experiments.ahmed2017.compared_detectors import DETECTORS
from robustgen.experiments.ahmed2017.heldout_table import AHMED_2017, CALIBRATION, FPR, Budget, HeldoutTable, Make
from robustgen.experiments.ahmed2017.recipes import MNIST
from robustgen.experiments.experiment import Cell, Column, Row
from robustgen.experiments.training_cache import TrainingCache, shuffled

__all__ = ["EXPERIMENT", "FarOOD"]

_COLUMNS = (
    "vae",
    "pixelcnn",
    "dcgan",
    "wgan-gp",
    "ebm-dsm",
    "vae-reconstruction",
    "vae-regret",
    "vae-typicality",
    "vae-dose",
    "pixelcnn-ratio",
    "pixelcnn-complexity",
    "pixelcnn-typicality",
    "compressed-size",
    "brightness",
    "pca",
    "nearest",
    "distortion",
    "product-k5",
    "max-softmax",
    "energy",
)
_OTHER = {"mnist": "fashion-mnist", "fashion-mnist": "mnist", "digits": "digits in negative"}
BUDGETS = {"smoke": Budget("digits", 300, 150), "cpu": Budget("", 20_000), "full": Budget("")}


class FarOOD(HeldoutTable):
    """A subclass may state other columns, budgets and recipes."""

    name = "ahmed-2017/far-ood"
    title = "Fashion-MNIST against MNIST, both ways"
    question = "Which detector finds images of another data set, whichever of the two is the normal one?"
    finding = (
        "AUROC for Fashion-MNIST against MNIST, and the other way round: VAE {mnist|vae}, {fashion-mnist|vae}; "
        "PixelCNN {mnist|pixelcnn}, {fashion-mnist|pixelcnn}; squared error of the VAE "
        "{mnist|vae-reconstruction}, {fashion-mnist|vae-reconstruction}; nearest after distortion "
        "{mnist|distortion}, {fashion-mnist|distortion}."
    )
    source = f"Not in {AHMED_2017}"
    metric = "AUROC in percent, the other data set positive"
    value = "auroc"
    protocol = "unseen data set"
    rows: tuple[Row, ...] = (
        Row(key="mnist", title="trained on MNIST, against Fashion-MNIST"),
        Row(key="fashion-mnist", title="trained on Fashion-MNIST, against MNIST"),
    )
    columns = tuple(Column(key, DETECTORS[key].title) for key in _COLUMNS)
    budgets = BUDGETS
    recipes = MNIST
    levels = ()
    notes: tuple[str, ...] = (
        "The whole test set of both, 1,000 images of each for likelihood regret; flags at thresholds "
        "from a tenth of the training images. Both go through the same "
        "steps, which a fingerprint of their pixels enforces.",
        "At scale `smoke`, digits against their negatives.",
    )

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        data = self.names(cell, scale)
        return super().settings(cell, scale) | {"data": data[0], "heldout": data[1]}

    def names(self, cell: Cell, scale: str) -> tuple[str, str]:
        """Of the data that detectors are fitted to, and of the other."""
        data = self.budgets[scale].data or cell.row
        return data, _OTHER[data]

    def data(self, cell: Cell, scale: str, cache: TrainingCache) -> tuple[ArrayDataset, ArrayDataset]:
        b, name = self.budgets[scale], self.names(cell, scale)[0]
        return cache.images(name, "train", b.n_train), cache.images(name, "test", b.n_test)

    def evaluate(
        self, make: Make, train: ArrayDataset, test: ArrayDataset, cell: Cell, cache: TrainingCache
    ) -> dict[str, Any]:
        others = {"other": self.unseen(test, cell, cache)}
        found = unseen_datasets(make, train, test, others, seed=cell.seed, fpr=FPR, calibration=CALIBRATION)
        return found | found.pop("populations")["other"]

    def unseen(self, test: ArrayDataset, cell: Cell, cache: TrainingCache) -> ArrayDataset:
        """What stands against the images of ``test``, at most as many."""
        dataset = test.name.partition("/")[0]
        other = replace(test, x=255 - test.x) if dataset == "digits" else cache.images(_OTHER[dataset], "test")
        return shuffled(replace(other, name=_OTHER[dataset])).first(len(test))


EXPERIMENT = FarOOD()
