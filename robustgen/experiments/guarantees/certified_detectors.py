"""Detectors with a bound: what is left of them when anomalies get the lowest score that a change can give them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from robustgen.counter_rng import derive_seed
from robustgen.data import ArrayDataset, heldout_classes, split
from robustgen.detectors import (
    Detector,
    Mahalanobis,
    MaxLogit,
    MaxSoftmax,
    MeanBrightness,
    NearestNeighbour,
    PCAResidual,
    SmoothedDetector,
)
from robustgen.evaluation.metrics import auroc, weighted_aurocs
from robustgen.experiments.experiment import (
    Cell,
    Column,
    Experiment,
    Kept,
    KeptOf,
    Measurement,
    Row,
    counted,
    epochs_of,
)
from robustgen.experiments.guarantees.smoothed_networks import OnNoise
from robustgen.experiments.training_cache import TrainingCache, shuffled
from robustgen.fingerprint import fingerprint
from robustgen.lipschitz import lipschitz_encoder
from robustgen.networks import build
from robustgen.training import ClassifierObjective, ContrastiveObjective, Deformations

__all__ = ["EXPERIMENT"]

RADII = (0.0, 0.5, 1.0, 1.5, 2.0)
OF_DIGITS, OF_SETS = 0.5, 1.0  # radius of the table's number
FPR, CALIBRATION, RESAMPLES = 0.05, 0.1, 400
OTHER = {"mnist": "fashion-mnist", "fashion-mnist": "mnist"}
COMPONENTS, NEIGHBOUR, SHRINKAGE, SIGMA, FEATURES = 150, 5, 0.1, 1.0, 32
TRAINING: dict[str, Any] = {"batch_size": 128, "lr": 2e-3}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Images (0: all), epochs of the encoders and classifiers, their hidden features, draws of smoothed scores."""

    n_train: int
    n_test: int
    epochs: int
    hidden: tuple[int, ...]
    draws: int
    components: int = COMPONENTS
    network: str = "strided"


BUDGETS = {
    "smoke": Budget(n_train=300, n_test=60, epochs=3, hidden=(32,), draws=100, components=16),
    "cpu": Budget(n_train=0, n_test=1000, epochs=2, hidden=(256, 256), draws=500),
    "full": Budget(n_train=0, n_test=0, epochs=30, hidden=(512, 512), draws=1000),
}
SHARPNESS = 3.0  # what 1-Lipschitz logits are multiplied by in training
Made: TypeAlias = "tuple[Detector, dict[str, list[float]]]"


@dataclass(frozen=True)
class _Maker:
    """Makes an unfitted detector of normal images."""

    train: ArrayDataset
    budget: Budget
    seed: int
    cache: TrainingCache

    def nearest(self) -> Made:
        return NearestNeighbour(), {}

    def neighbour(self) -> Made:
        return NearestNeighbour(k=NEIGHBOUR), {}

    def brightness(self) -> Made:
        return MeanBrightness(), {}

    def pca(self) -> Made:
        return PCAResidual(components=self.budget.components, root=True), {}

    def mahalanobis(self) -> Made:
        with torch.random.fork_rng():
            network = nn.Linear(
                self.train.x[0].numel(), self.train.n_classes
            )  # features are its inputs: no weight counts
        return Mahalanobis(network, shrinkage=SHRINKAGE, root=True), {}

    def contrastive(self) -> Made:
        encoder, history = self._trained("contrastive", ContrastiveObjective(Deformations()))
        return NearestNeighbour(encoder), history

    def labelled(self) -> Made:
        classifier, history = self._trained("labelled", ClassifierObjective())
        return MaxLogit(classifier[:-1]), history

    def smoothed_pca(self) -> Made:
        return SmoothedDetector(self.pca()[0], SIGMA, self.budget.draws, seed=derive_seed(self.seed, 3)), {}

    def smoothed_softmax(self) -> Made:
        network, history = self._trained("noise-trained", OnNoise(SIGMA))
        flat = nn.Sequential(nn.Unflatten(1, self.train.x.shape[1:]), network)
        return SmoothedDetector(MaxSoftmax(flat), SIGMA, self.budget.draws, seed=derive_seed(self.seed, 3)), history

    def _trained(self, kind: str, objective: Any) -> tuple[Any, dict[str, list[float]]]:
        b, images = self.budget, self.train
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.seed, 0))
            if kind == "noise-trained":
                network: nn.Module = build(b.network, images.batch(torch.arange(2))[0], images.n_classes)
            else:
                n_outputs = images.n_classes if kind == "labelled" else FEATURES
                network = lipschitz_encoder(images.x[0].numel(), b.hidden, n_outputs)
            if kind == "labelled":
                network = nn.Sequential(*network, _Sharper())
        assert images.y is not None
        settings = {"kind": kind, "budget": [b.epochs, b.hidden, b.network], "seed": self.seed}
        settings |= TRAINING | {
            "sharpness": SHARPNESS,
            "data": fingerprint({"x": images.x, "y": images.y}),
            "objective": objective.describe(),
        }
        history = self.cache.train(settings, network, objective, images, epochs=b.epochs, seed=self.seed, **TRAINING)
        return network, epochs_of(history)


class _Sharper(nn.Module):
    """Logits times ``SHARPNESS``."""

    def forward(self, logits: Tensor) -> Tensor:
        return SHARPNESS * logits


DETECTORS: dict[str, tuple[str, Callable[[_Maker], Made]]] = {
    "brightness": ("mean brightness", _Maker.brightness),
    "nearest": ("nearest neighbour, pixels", _Maker.nearest),
    "neighbour": (f"neighbour {NEIGHBOUR}, pixels", _Maker.neighbour),
    "pca": ("root of the PCA residual", _Maker.pca),
    "mahalanobis": ("root of Mahalanobis, pixels", _Maker.mahalanobis),
    "contrastive": ("nearest, 1-Lipschitz contrastive encoder", _Maker.contrastive),
    "labelled": ("max logit, 1-Lipschitz classifier", _Maker.labelled),
    "smoothed-pca": ("smoothed PCA residual", _Maker.smoothed_pca),
    "smoothed-softmax": ("smoothed max-softmax", _Maker.smoothed_softmax),
}


_OF_DIGITS = tuple(key for key in DETECTORS if key != "contrastive" and not key.startswith("smoothed"))  # quick ones


class _Table(Experiment):
    name = "guarantees/certified-detectors"
    title = "alarms that no change of the anomaly can take back"
    question = "How well do detectors with a bound tell anomalies that an attacker may move by some L2 distance?"
    finding = (
        "Certified AUROC at L2 radius 1, Fashion-MNIST against MNIST and the other way round: nearest neighbour "
        "{mnist|nearest}, {fashion-mnist|nearest}; root of the PCA residual {mnist|pca}, {fashion-mnist|pca}."
    )
    source = "no published numbers; smoothed scores: Chiang et al., 2020"
    metric = (
        f"certified AUROC, percent, every anomaly at the lowest score that a change can give it: at L2 radius "
        f"{OF_SETS:g} for another data set, {OF_DIGITS:g} for a digit held out"
    )
    rows = (
        Row(key="mnist", title="MNIST, against Fashion-MNIST"),
        Row(key="fashion-mnist", title="Fashion-MNIST, against MNIST"),
        *(Row(key=str(digit), title=f"MNIST without {digit}, against it", columns=_OF_DIGITS) for digit in range(10)),
    )
    columns = tuple(Column(key, title) for key, (title, _) in DETECTORS.items())
    seeds = 1
    digits = 1
    notes = (
        "Normal images keep their own scores; they are not attacked. Thresholds come from a tenth of the training "
        "images. Bounds hold for every change, those of smoothed scores with probability 0.999 for each image.",
        "The 1-Lipschitz classifier and the smoothed one know the labels of the normal classes; nothing else does. By "
        "how much its logits are multiplied in training was chosen on the held-out 7.",
        "Intervals: 2.5th and 97.5th percentile over bootstrap samples of normal and of anomalous images.",
    )

    def describe(self, scale: str) -> str:
        b = BUDGETS[scale]
        return f"{b.n_train or 'all'} training images, {b.n_test or 'all'} test images of each kind, {b.epochs} epochs"

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        constants: dict[str, Any] = {
            "fpr": FPR,
            "calibration": CALIBRATION,
            "resamples": RESAMPLES,
            "components": COMPONENTS,
        }
        constants |= {"neighbour": NEIGHBOUR, "shrinkage": SHRINKAGE, "sigma": SIGMA, "features": FEATURES}
        constants |= {"sharpness": SHARPNESS, "deformations": Deformations().describe()}
        sizes: dict[str, Any] = asdict(BUDGETS[scale]) | TRAINING
        return sizes | constants | {"radii": RADII, "radius": _radius(cell), "against": OTHER.get(cell.row, cell.row)}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        b = BUDGETS[scale]
        train, normal, anomalies = _images(cell.row, b, scale, cache)
        train, held_back = split(train, (1 - CALIBRATION, CALIBRATION), cell.seed)
        detector, history = DETECTORS[cell.column][1](_Maker(train, b, cell.seed, cache))
        detector.fit(train.images().flatten(1), train.labels()).calibrate(held_back.images().flatten(1))
        scores = detector.score(normal).double()
        calibration = detector.calibration
        numbers: dict[str, dict[str, float]] = {}
        lowest: dict[float, Tensor] = {}
        for radius in RADII:
            low = detector.score_bounds(anomalies, radius, "L2")[0] if radius else detector.score(anomalies).double()
            lowest[radius] = low = low.clamp(min=-1e30)  # where nothing is excluded
            numbers |= counted({f"AUROC at {radius:g}": 100 * auroc(scores, low)}, len(scores) + len(low))
            flagged = 100 * calibration.flag(low, FPR).double().mean().item()
            numbers |= counted({f"flagged at {radius:g}": flagged}, len(low))
        low, high = _interval(scores, lowest[_radius(cell)], cell.seed)
        numbers |= counted({"lower end of the interval": low, "upper end of the interval": high}, len(scores))
        numbers |= counted({"false alarms": 100 * calibration.flag(scores, FPR).double().mean().item()}, len(scores))
        if (slope := detector.lipschitz()) is not None:
            numbers |= counted({"Lipschitz constant": slope}, 1)
        return Measurement(value=numbers[f"AUROC at {_radius(cell):g}"]["value"], numbers=numbers, history=history)

    def conclusion(self, kept: Kept, kept_of: KeptOf) -> str:
        said = []
        for row, radii in {"mnist": (1.0, 2.0), "fashion-mnist": (1.0,), "1": (0.5,)}.items():
            of_row = [record for record in kept.values() if record["row"] == row]
            for radius in radii if of_row else ():
                name = f"AUROC at {radius:g}"
                best = max(of_row, key=lambda record: record["numbers"][name]["value"])
                found = f"{self.row(row).title}: {DETECTORS[best['column']][0]} {best['numbers'][name]['value']:.1f}"
                ends = [best["numbers"][f"{end} end of the interval"]["value"] for end in ("lower", "upper")]
                own = radius == _radius(Cell(row, best["column"], 0))
                said.append(f"{found} at {radius:g}" + (f" ({ends[0]:.1f} to {ends[1]:.1f})" if own else ""))
        return f"The best at a radius, chosen after the fact: {'; '.join(said)}." if said else ""


def _radius(cell: Cell) -> float:
    return OF_SETS if cell.row in OTHER else OF_DIGITS


def _images(row: str, b: Budget, scale: str, cache: TrainingCache) -> tuple[ArrayDataset, Tensor, Tensor]:
    """Normal training images, normal test images and anomalies, (N, D) each."""
    name = "digits" if scale == "smoke" else row if row in OTHER else "mnist"
    train, test = cache.images(name, "train", b.n_train), shuffled(cache.images(name, "test"))
    if row not in OTHER:
        (train, _), (test, other) = heldout_classes(train, [row]), heldout_classes(test, [row])
    elif name == "digits":
        other = replace(test, x=255 - test.x)
    else:
        other = shuffled(cache.images(OTHER[row], "test"))
    few = b.n_test or len(test)
    return train, *(part.first(min(few, len(part))).images().flatten(1).to(cache.device) for part in (test, other))


def _interval(normal: Tensor, anomalous: Tensor, seed: int) -> tuple[float, float]:
    """95 % of the AUROC, in percent, by bootstrap."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 4))

    def weights(n: int) -> Tensor:
        drawn = torch.randint(n, (RESAMPLES, n), generator=generator)
        return torch.zeros(RESAMPLES, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape).double())

    of_anomalous, of_normal = weights(len(anomalous)), weights(len(normal))
    found = torch.from_numpy(weighted_aurocs(normal, anomalous, of_normal, of_anomalous))
    low, high = (100 * found.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))).tolist()
    return low, high


EXPERIMENT = _Table()
