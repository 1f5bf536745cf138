"""A recurrent classifier, attacked in its embedding space, and the detector on its hidden states.

No counterpart in the source, which fortifies one recurrent network and attacks none. The task is made from the text of
table 2.7: forty symbols, and the question what comes next: a vowel, a consonant or a space.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from robustgen.attacks import FGSM, PGD, Attack, EmbeddedInput, NoiseSearch
from robustgen.counter_rng import derive_seed
from robustgen.data import encode, split_text
from robustgen.detectors import ReconstructionError
from robustgen.evaluation.metrics import auroc, fpr_at_tpr
from robustgen.experiments.experiment import (
    Cell,
    Column,
    Experiment,
    Measurement,
    Row,
    counted,
    epochs_of,
)
from robustgen.experiments.lamb2018.table_2_7 import PARTS, symbols
from robustgen.experiments.training_cache import TrainingCache
from robustgen.fortified import fortify
from robustgen.recurrent_networks import TextClassifier
from robustgen.training import ClassifierObjective

__all__ = ["EXPERIMENT", "LENGTH", "next_symbols"]

LENGTH = 40
BALLS = {"linf": ("Linf", 0.1), "l2": ("L2", 1.0)}
BOUNDS = (-10.0, 10.0)  # wider than any embedding that training makes
FPR = 0.05
SIZES = {"autoencoder": 5000, "calibration": 1000}  # sequences
TRAINING: dict[str, Any] = {"batch_size": 64, "lr": 3e-3}
AUTOENCODER: dict[str, Any] = {"batch_size": 128, "lr": 1e-3}
SCALES = {
    "smoke": {"text": "made-up sentences", "units": 32, "epochs": 4, "n_test": 100, "steps": 3},
    "cpu": {"text": "tinyshakespeare", "units": 128, "epochs": 10, "n_test": 1000, "steps": 40},
    "full": {"text": "tinyshakespeare", "units": 512, "epochs": 30, "n_test": 2000, "steps": 40},
}


class _Recurrent(Experiment):
    name = "lamb-2018/recurrent-classifier"
    n_classes = 3
    title = "a recurrent classifier attacked in embedding space, and its detector"
    question = "Do autoencoders on the states of a recurrent classifier detect attacks on its embeddings?"
    finding = (
        "LSTM: accuracy {lstm|linf|clean} clean, {lstm|linf} under PGD in Linf. AUROC of the detector against it "
        "{lstm|linf|AUROC, PGD}, against PGD in L2 {lstm|l2|AUROC, PGD}; 0.5 is chance."
    )
    source = "no counterpart in the source"
    metric = "accuracy under PGD in embedding space, %"
    columns = tuple(Column(key, f"{norm}, eps {eps:g}") for key, (norm, eps) in BALLS.items())
    rows = (
        Row(key="lstm", title="LSTM, fortified afterwards", data="lstm"),
        Row(key="gru", title="GRU, fortified afterwards", data="gru"),
    )
    notes = ("AUROC and FPR95: relative reconstruction error of the hidden states, real inputs against attacked ones.",)

    def describe(self, scale: str) -> str:
        s = SCALES[scale]
        return f"{s['text']}, {LENGTH} symbols, {s['units']} units, {s['epochs']} epochs, {s['n_test']} test sequences"

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        attacks = {name: attack.describe() for name, attack in _attacks(cell.column, SCALES[scale]).items()}
        more = {"row": cell.row, "attacks": attacks, "length": LENGTH, "parts": PARTS, "fpr": FPR, "sizes": SIZES}
        return SCALES[scale] | TRAINING | more | {"autoencoder": AUTOENCODER}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        s: dict[str, Any] = SCALES[scale]
        blocks = split_text(symbols(s["text"], cache), PARTS, block=LENGTH + 1, seed=derive_seed(cell.seed, 0))
        (train, y_train), (calibration, _), (test, y) = (next_symbols(part) for part in blocks)
        test, y = test[: s["n_test"]].to(cache.device), y[: s["n_test"]].to(cache.device)
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(cell.seed, 1))
            classifier = TextClassifier(self.row(cell.row).data, s["units"], n_classes=self.n_classes)
        training = (
            {"recurrent classifier": cell.row, "seed": cell.seed, "length": LENGTH, "parts": PARTS} | s | TRAINING
        )
        objective = ClassifierObjective()
        history = cache.train(
            training, classifier, objective, (train, y_train), epochs=s["epochs"], seed=cell.seed, **TRAINING
        )
        view = EmbeddedInput(classifier)
        e_train, e_calibration, e = (
            view.embed(tokens.to(cache.device))
            for tokens in (train[: SIZES["autoencoder"]], calibration[: SIZES["calibration"]], test)
        )
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(cell.seed, 2))
            net = fortify(view, ["model.rnn"], example_input=e[:2], init="random")
        net.fit_autoencoders((e_train,), epochs=s["epochs"], seed=cell.seed, progress=cache.progress, **AUTOENCODER)
        net.eval()
        detector = ReconstructionError(net, relative=True).fit((e_train,)).calibrate(e_calibration)

        numbers = {"clean": 100 * _share(net(e).argmax(1) == y)}
        numbers["clean, before fortifying"] = 100 * _share(view(e).argmax(1) == y)
        numbers["false alarms, %"] = 100 * _share(detector.flag(e, fpr=FPR))
        scores = detector.score(e).double()
        for name, attack in _attacks(cell.column, s).items():
            numbers[name] = 100 * _share(~attack.run(net, e, y).success)
            attacked = detector.score(replace(attack, early_stop=False)(net, e, y)).double()
            numbers[f"AUROC, {name}"] = auroc(scores, attacked)
            numbers[f"FPR95, {name}"] = fpr_at_tpr(scores, attacked)
        return Measurement(
            value=numbers["PGD"],
            numbers=counted(numbers, len(e)),
            history=epochs_of(history),
        )


def _attacks(column: str, s: dict[str, Any]) -> dict[str, Attack]:
    norm, eps = BALLS[column]
    common: dict[str, Any] = {"eps": eps, "norm": norm, "bounds": BOUNDS}
    return {"noise": NoiseSearch(**common), "FGSM": FGSM(**common), "PGD": PGD(**common, steps=s["steps"])}


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()


def next_symbols(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Windows (N, LENGTH) and what follows each: 0 a consonant, 1 a vowel, 2 a space."""
    following = blocks[:, -1]
    y = torch.isin(following, encode("aeiou")).long()
    return blocks[:, :-1], torch.where(following == 0, 2, y)


EXPERIMENT = _Recurrent()
