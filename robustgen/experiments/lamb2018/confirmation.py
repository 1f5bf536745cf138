"""Is the best fortified network of the sweep really more robust than adversarial training with the same compute?

Five fresh seeds, paired: both networks begin at the same weights and see the same batches. The plain network trains
for as many more epochs as its steps are cheaper (rounded up), counted in multiplications, so that machines and
neighbours do not matter. Judged on test images, under PGD with restarts.
"""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from robustgen.experiments.experiment import (
    Cell,
    Column,
    Experiment,
    Kept,
    KeptOf,
    Measurement,
    Row,
    accuracies,
    counted,
    epochs_of,
)
from robustgen.experiments.lamb2018.attack_suite import describe_attack_suite, masking_tests, run_attack_suite
from robustgen.experiments.lamb2018.classifier_tables import SURROGATE, surrogate
from robustgen.experiments.lamb2018.recipes import Budget, Recipe, example_sets, step_cost, train_recipe
from robustgen.experiments.lamb2018.sweep import EPS, PLAIN, SCALES
from robustgen.experiments.training_cache import TrainingCache

__all__ = ["EXPERIMENT"]

FRESH = 100  # the sweep's seeds begin at 0
# What `best` chose from the kept cells of the sweep; a test holds it to that.
CHOSEN = replace(PLAIN, layers="last", lambda_rec=3.0, lambda_adv=3.0, noise_std=0.0)


PAIRS = (
    ("fortified", "adversarial"),
    ("fortified", "adversarial-only"),
    ("fortified-only", "adversarial-only"),
    ("fortified", "no-loss"),
    ("no-loss", "adversarial"),
)


class _Confirmation(Experiment):
    name = "lamb-2018/confirmation"
    title = "the best setting of the sweep on five fresh seeds, against adversarial training with the same compute"
    question = "Is the best fortified network of the sweep more robust than adversarial training with the same compute?"
    finding = (
        "Under PGD: adversarial training {adversarial|pgd}, fortified {fortified|pgd}, adversarial training on "
        "adversarial inputs alone {adversarial-only|pgd}. Without an attack: {adversarial|pgd|clean}, "
        "{fortified|pgd|clean} and {adversarial-only|pgd|clean}."
    )
    source = "no counterpart in the source, which reports one run of each"
    metric = f"accuracy under PGD with restarts at eps {EPS:g} on test images, %"
    columns = (Column("pgd", "PGD with restarts"),)
    seeds = 5
    rows = (
        Row(key="adversarial", title="adversarial training, same compute", data=PLAIN),
        Row(
            key="adversarial-only",
            title="adversarial training on adversarial inputs alone, same compute",
            note="whether fortification does more than to trade clean for robust accuracy",
            data=replace(PLAIN, clean_weight=0.0),
        ),
        Row(
            key="no-loss",
            title="layers without autoencoder losses",
            data=replace(CHOSEN, lambda_rec=0.0, lambda_adv=0.0),
        ),
        Row(key="fortified", title="fortified", data=CHOSEN),
        Row(
            key="fortified-only",
            title="fortified, cross-entropy on adversarial inputs alone",
            note="the same control on this side",
            data=replace(CHOSEN, clean_weight=0.0),
        ),
    )

    def describe(self, scale: str) -> str:
        return str(self.budget(scale))

    def budget(self, scale: str) -> Budget:
        """The sweep's, with all test images for every attack, restarts included."""
        budget = SCALES[scale]
        return budget if scale == "smoke" else replace(budget, n_test=0, n_few=10_000)

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        budget = self.budget(scale)
        return {
            "recipe": self.row(cell.row).data.record(),
            "budget": asdict(budget),
            "compute": CHOSEN.record(),
            "attacks": describe_attack_suite((EPS,), budget),
            "surrogate": SURROGATE.record(),
        }

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        budget, seed = self.budget(scale), FRESH + cell.seed
        train, test = example_sets(budget, cache)
        recipe: Recipe = self.row(cell.row).data
        x, y = cache.put(test)
        more = step_cost(CHOSEN, budget, train) / step_cost(recipe, budget, train)
        recipe = replace(recipe, more_epochs=more)
        net, history = train_recipe(recipe, budget, seed, cache, train)
        standing = run_attack_suite(
            net,
            x,
            y,
            eps=(EPS,),
            budget=budget,
            surrogate=surrogate(budget, seed, cache, train),
            progress=cache.progress,
            title=cell.name,
        )
        numbers = accuracies(standing) | counted({"epochs": float(len(history))}, 1)
        return Measurement(
            value=numbers[f"PGD restarts {EPS:g}"]["value"],
            numbers=numbers,
            verdicts=[test.to_dict() for test in masking_tests(standing, (EPS,))],
            history=epochs_of(history),
        )

    def remarks(self, kept: Kept, kept_of: KeptOf) -> str:
        """The paired comparison, number by number."""
        parts = []
        for row, other in PAIRS:
            lines = compared(*({c["seed"]: c["numbers"] for c in kept.values() if c["row"] == r} for r in (row, other)))
            if lines:
                title = f"{self.row(row).title}, less {self.row(other).title}"
                parts.append(f"{title}; in points, paired by seed (mean ± standard error):\n\n{lines}")
        return "\n\n".join(parts)


def compared(one: Mapping[int, Any], two: Mapping[int, Any]) -> str:
    """Number by number, the mean difference between two rows, paired by seed, in Markdown."""
    seeds = sorted(one.keys() & two.keys())
    if len(seeds) < 2:
        return ""
    lines = []
    for name in one[seeds[0]]:
        if name == "epochs":
            continue
        gains = [one[s][name]["value"] - two[s][name]["value"] for s in seeds]
        mean, error = statistics.fmean(gains), statistics.stdev(gains) / len(gains) ** 0.5
        verdict = "no" if abs(mean) <= 2 * error else "yes, better" if mean > 0 else "yes, worse"
        lines.append(f"- {name}: {mean:+.2f} ± {error:.2f}, {verdict}")
    return "\n".join(lines)


EXPERIMENT = _Confirmation()
