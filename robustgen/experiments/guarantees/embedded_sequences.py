"""A recurrent classifier of text, certified in its embedding space: trained on noise there, or not."""

from typing import Any

import torch

from robustgen.attacks import EmbeddedInput
from robustgen.counter_rng import derive_seed
from robustgen.data import split_text
from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row, epochs_of
from robustgen.experiments.guarantees.certified_accuracy import SMOOTHING
from robustgen.experiments.guarantees.smoothed_networks import Certified, OnNoise, certificates
from robustgen.experiments.lamb2018.recurrent_classifier import LENGTH, next_symbols
from robustgen.experiments.lamb2018.table_2_7 import PARTS, symbols
from robustgen.experiments.training_cache import TrainingCache
from robustgen.fortified import smooth
from robustgen.recurrent_networks import TextClassifier
from robustgen.training import ClassifierObjective

__all__ = ["EXPERIMENT"]

SIGMA = 0.5
RADII = (0.25, 0.5, 1.0)
TRAINING: dict[str, Any] = {"batch_size": 64, "lr": 3e-3}
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"text": "made-up sentences", "units": 32, "epochs": 4, "n_test": 20, "n": 200},
    "cpu": {"text": "tinyshakespeare", "units": 128, "epochs": 5, "n_test": 250, "n": 2000},
    "full": {"text": "tinyshakespeare", "units": 512, "epochs": 20, "n_test": 1000, "n": 10_000},
}


class _Table(Experiment):
    name = "guarantees/embedded-sequences"
    title = "an LSTM on text: certified accuracy in its embedding space"
    question = "Can the answers of a recurrent network on text be proved to stand changes of its embeddings?"
    finding = (
        "Certified accuracy at L2 radius 0.5 and 1 in embedding space: trained plainly {plain|r0.5}, {plain|r1}; on "
        "noise {noise-trained|r0.5}, {noise-trained|r1}."
    )
    source = f"no counterpart; the method: {SMOOTHING}"
    metric = "certified accuracy on test sequences, percent, a lower bound"
    rows = (Row(key="plain", title="plain"), Row(key="noise-trained", title="trained on noise"))
    columns = tuple(Column(f"r{r:g}", f"L2 {r:g}") for r in RADII)
    digits = 1
    notes = (
        "The task: forty symbols, and whether a vowel, a consonant or a space comes next. The embedding is that of the "
        "plain network in both rows. A change of one symbol for another moves it by the distance of their embeddings, "
        "of which the least and the median stand among the numbers: a certificate of a smaller radius says nothing of "
        "other texts, only of other embeddings.",
        "Noise of 0.5 in each element; each certificate holds with probability 0.999.",
    )

    def describe(self, scale: str) -> str:
        s = SCALES[scale]
        return (
            f"{s['text']}, {LENGTH} symbols, an LSTM of {s['units']} units, {s['epochs']} epochs, and as many on "
            f"noise; {s['n_test']} test sequences, {s['n']:,} draws"
        )

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        more = {"kind": cell.row, "sigma": SIGMA, "radii": RADII, "length": LENGTH, "parts": PARTS}
        return SCALES[scale] | TRAINING | more

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        s, seed = SCALES[scale], cell.seed
        blocks = split_text(symbols(s["text"], cache), PARTS, block=LENGTH + 1, seed=derive_seed(seed, 0))
        (train, y_train), _, (test, y) = (next_symbols(part) for part in blocks)
        test, y = test[: s["n_test"]].to(cache.device), y[: s["n_test"]].to(cache.device)
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(seed, 1))
            classifier = TextClassifier("lstm", s["units"], n_classes=3).to(cache.device)
        settings = {"text classifier": "lstm", "seed": seed, "length": LENGTH, "parts": PARTS} | s | TRAINING
        common: dict[str, Any] = {"epochs": s["epochs"], "seed": seed, **TRAINING}
        history = cache.train(settings, classifier, ClassifierObjective(), (train, y_train), **common)
        view = EmbeddedInput(classifier).eval()
        with torch.no_grad():
            embedded, e = view.embed(train.to(cache.device)), view.embed(test)
        if cell.row == "noise-trained":
            noisy = OnNoise(SIGMA)
            history += cache.train(settings | noisy.describe(), view, noisy, (embedded, y_train), **common)
        model = smooth(view, SIGMA, seed=derive_seed(seed, 2), bounds=None)
        found = settings | {"certificates of": cell.row, "sigma": SIGMA}
        report, core_minutes = certificates(model, e, y, found, cache, n=s["n"], name=cell.row)
        codes = classifier.embedding.weight.detach()
        apart = torch.pdist(codes)
        sizes = {"least distance of two symbols": apart.min().item(), "median distance": apart.median().item()}
        radius = dict(zip((c.key for c in self.columns), RADII, strict=True))[cell.column]
        return Certified(report, epochs_of(history), sizes, core_minutes).measurement(radius, RADII)


EXPERIMENT = _Table()
