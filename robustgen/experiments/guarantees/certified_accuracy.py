"""Networks trained on noise, and plain ones behind a denoiser: MNIST behind noise of 0.5, then other noise and data."""

import math
import statistics
from dataclasses import replace
from typing import Any

from robustgen.experiments.experiment import Cell, Column, Experiment, Kept, KeptOf, Measurement, Row, counted
from robustgen.experiments.guarantees.smoothed_networks import Budget, certified
from robustgen.experiments.training_cache import TrainingCache

__all__ = ["BEHIND_DIFFUSIONS", "ELSEWHERE", "EXPERIMENT", "SMOOTHING"]

SMOOTHING = "Cohen, Rosenfeld and Kolter, 2019; denoised smoothing: Salman et al., 2020"
SIGMA = 0.5
RADII = (0.25, 0.5, 0.75, 1.0)
AGAINST = "noise-trained"
BUDGETS = {
    "smoke": Budget(data="digits", epochs=10, denoiser_epochs=10, denoiser={"width": 4, "levels": 2}, n_test=10, n=200),
    "cpu": Budget(data="mnist", denoiser={"width": 11, "patch": 2}, n_test=250, n=2000),
    "full": Budget(data="mnist", epochs=10, denoiser_epochs=20, denoiser={"width": 11}, n_test=1000, n=10_000),
}
_MORE_DRAWS = replace(BUDGETS["cpu"], n_test=100, n=10_000)
_CIFAR: dict[str, Any] = {
    "data": "cifar10-jpeg",
    "network": "resnet8",
    "epochs": 8,
    "denoiser_epochs": 4,
    "lr": 1e-3,
    "n": 1000,
}
_OTHERS = {  # by the row's first word: noise, and the budget at scale cpu
    "mnist-0.25": (0.25, _MORE_DRAWS),
    "mnist-0.5": (0.5, _MORE_DRAWS),
    "mnist-1": (1.0, _MORE_DRAWS),
    "fashion-mnist-0.25": (0.25, replace(BUDGETS["cpu"], data="fashion-mnist")),
    "cifar10-0.25": (0.25, replace(BUDGETS["cpu"], n_test=200, **_CIFAR)),
}
_KINDS = {"plain": "plain", "noise-trained": "trained on noise", "denoised": "plain, behind a denoiser"}


class _Table(Experiment):
    name = "guarantees/certified-accuracy"
    title = "MNIST: certified accuracy behind noise of 0.5"
    question = "Is an untouched network behind a denoiser provably more robust than one that was trained on noise?"
    finding = (
        "Certified accuracy at L2 radius 0.5 and 1: plain network {plain|r0.5}, {plain|r1}; trained on noise "
        "{noise-trained|r0.5}, {noise-trained|r1}; plain behind a fortified input {autoencoder|r0.5}, "
        "{autoencoder|r1}; plain behind a denoiser {denoised|r0.5}, {denoised|r1}."
    )
    source = f"the method: {SMOOTHING}; neither has this table"
    metric = "certified accuracy on test images, percent, a lower bound"
    rows = (
        Row(key="plain", title="plain"),
        Row(key="noise-trained", title="trained on noise"),
        Row(key="autoencoder", title="plain, fortified at the input"),
        Row(key="denoised", title="plain, behind a denoiser"),
    )
    columns = tuple(Column(f"r{r:g}", f"L2 {r:g}") for r in RADII)
    digits = 1
    notes = (
        "Each certificate holds with probability 0.999, by 100 votes that choose a class and 2,000 others that bound "
        "its share (Clopper and Pearson). Images are evenly spaced over the test set, the same in every row.",
        "The network behind the denoiser, and behind the autoencoder, is that of the first row with its weights. "
        "Training on noise has as many epochs as plain network and denoiser together.",
        "The denoiser is a U-Net trained on the squared error without labels; the autoencoder, one hidden layer with "
        "tied weights, is trained on the same noise, and adds none of its own where the smoothing does.",
    )

    def describe(self, scale: str) -> str:
        b = BUDGETS[scale]
        return (
            f"{b.data}, all training images, {b.network} of width {b.width}, {b.epochs} epochs, and "
            f"{b.denoiser_epochs} of what goes before it; {b.n_test} test images, {b.n:,} draws"
        )

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        return BUDGETS[scale].record() | {"kind": cell.row, "sigma": SIGMA, "radii": RADII, "against": AGAINST}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        budget = BUDGETS[scale]
        radius = dict(zip((c.key for c in self.columns), RADII, strict=True))[cell.column]
        found = certified(cell.row, SIGMA, budget, cell.seed, cache)
        measured = found.measurement(radius, RADII)
        if cell.row in ("plain", AGAINST):
            return measured
        other = certified(AGAINST, SIGMA, budget, cell.seed, cache)
        pair = found.report.certified(radius), other.report.certified(radius)
        paired = {"certified here alone": pair[0] & ~pair[1], "trained on noise alone": ~pair[0] & pair[1]}
        counts = counted({name: float(hits.sum()) for name, hits in paired.items()}, len(pair[0]))
        return Measurement(value=measured.value, numbers=dict(measured.numbers) | counts, history=measured.history)

    def conclusion(self, kept: Kept, kept_of: KeptOf) -> str:
        said = []
        for key, title in (("denoised", "Denoised"), ("autoencoder", "Fortified")):
            difference = compared(self.living(kept), key, "r1")
            if difference is not None:
                mean, error = difference
                verdict = "above" if mean > 2 * error else "below" if mean < -2 * error else "no difference"
                said.append(f"{title} less trained on noise at radius 1: {mean:+.1f} ± {2 * error:.1f} ({verdict}).")
        return " ".join(said) + (" ± is two standard errors over images and seeds." if said else "")


def compared(kept: Kept, row: str, column: str) -> tuple[float, float] | None:
    """A row's certified accuracy less that of training on noise, in points, and its standard error; None without cells.

    The images are the same for every seed, so that their part of the error does not shrink with seeds.
    """
    differences, variances = [], []
    for record in kept.values():
        if (record["row"], record["column"]) != (row, column):
            continue
        here, there = (record["numbers"][k] for k in ("certified here alone", "trained on noise alone"))
        n, won, lost = here["n"], here["value"], there["value"]
        differences.append(100 * (won - lost) / n)
        variances.append(100**2 * (won + lost - (won - lost) ** 2 / n) / n / max(1, n - 1))
    if not differences:
        return None
    of_seeds = statistics.variance(differences) / len(differences) if len(differences) > 1 else 0.0
    return statistics.fmean(differences), math.sqrt(statistics.fmean(variances) + of_seeds)


class _Elsewhere(Experiment):
    name = "guarantees/other-noise"
    title = "certified accuracy with other noise, more draws and other data"
    question = "What do less and more noise prove, on MNIST and on other images?"
    finding = (
        "Certified accuracy behind a denoiser at L2 radius 0.25: MNIST with noise of 0.25, 0.5 and 1 "
        "{mnist-0.25-denoised|r0.25}, {mnist-0.5-denoised|r0.25}, {mnist-1-denoised|r0.25}; Fashion-MNIST "
        "{fashion-mnist-0.25-denoised|r0.25}; CIFAR-10 (JPEG) {cifar10-0.25-denoised|r0.25}."
    )
    source = f"the method: {SMOOTHING}; neither has this table"
    metric = "certified accuracy on test images, percent, a lower bound"
    rows = tuple(
        Row(key=f"{place}-{kind}", title=f"{place.rpartition('-')[0]}, noise {sigma:g}: {title}", data=(place, kind))
        for place, (sigma, _) in _OTHERS.items()
        for kind, title in _KINDS.items()
    )
    columns = tuple(Column(f"r{r:g}", f"L2 {r:g}") for r in (*RADII, 2.0))
    seeds = 1
    digits = 1
    notes = (
        "MNIST: 10,000 draws for each of 100 images; Fashion-MNIST 2,000 for 250, CIFAR-10 1,000 for 200. The largest "
        "radius that so many draws can prove is among the numbers of each cell.",
    )

    def _budget(self, cell: Cell, scale: str) -> tuple[str, float, Budget]:
        place, kind = self.row(cell.row).data
        sigma, budget = _OTHERS[place]
        return kind, sigma, budget if scale == "cpu" else BUDGETS[scale]

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        kind, sigma, budget = self._budget(cell, scale)
        return budget.record() | {"kind": kind, "sigma": sigma}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        kind, sigma, budget = self._budget(cell, scale)
        radius = float(cell.column.removeprefix("r"))
        return certified(kind, sigma, budget, cell.seed, cache).measurement(radius, (*RADII, 2.0))


class _Diffusions(Experiment):
    name = "guarantees/diffusion-denoisers"
    title = "MNIST: certified accuracy behind diffusion models"
    question = "Does a diffusion model, of all noise at once, prove more than a denoiser of one level of noise?"
    finding = (
        "Certified accuracy of the plain network at L2 radius 0.5, noise of 0.5 and of 1: behind a denoiser "
        "{0.5-denoised|r0.5}, {1-denoised|r0.5}; behind a DDPM {0.5-ddpm|r0.5}, {1-ddpm|r0.5}; behind a DDGAN "
        "{0.5-ddgan|r0.5}, {1-ddgan|r0.5}."
    )
    source = "the method: Carlini et al., 2023, who have CIFAR-10 and ImageNet with far larger models"
    metric = "certified accuracy on test images, percent, a lower bound"
    rows = tuple(
        Row(key=f"{sigma:g}-{kind}", title=f"noise {sigma:g}: {title}", data=(sigma, kind))
        for sigma in (0.5, 1.0)
        for kind, title in (("denoised", "behind a denoiser"), ("ddpm", "behind a DDPM"), ("ddgan", "behind a DDGAN"))
    )
    columns = tuple(Column(f"r{r:g}", f"L2 {r:g}") for r in (*RADII, 2.0))
    seeds = 1
    digits = 1
    notes = (
        "The plain network is the same throughout. The U-Nets have the same width, and as many epochs; a denoiser has "
        "one level of noise to learn, a diffusion model all of them. A DDGAN of four steps has none at the noise of 1: "
        "the nearest is taken.",
    )

    describe = _Table.describe

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        sigma, kind = self.row(cell.row).data
        return BUDGETS[scale].record() | {"kind": kind, "sigma": sigma}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        sigma, kind = self.row(cell.row).data
        radii = (*RADII, 2.0)
        return certified(kind, sigma, BUDGETS[scale], cell.seed, cache).measurement(
            float(cell.column.removeprefix("r")), radii
        )


EXPERIMENT, ELSEWHERE, BEHIND_DIFFUSIONS = _Table(), _Elsewhere(), _Diffusions()
