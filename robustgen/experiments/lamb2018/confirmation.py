"""Is the best fortified network of the sweep really more robust than adversarial training with the same compute?

Five fresh seeds, paired: both networks begin at the same weights and see the same batches. The plain network trains
for as many more epochs as its steps are cheaper, counted in multiplications, so that machines and neighbours do not
matter. Judged on test images, under PGD with restarts.
"""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row
from robustgen.experiments.lamb2018.battery import run_battery
from robustgen.experiments.lamb2018.classifier_table import epochs_of, surrogate
from robustgen.experiments.lamb2018.recipes import Budget, Recipe, example_sets, train_recipe, training_step
from robustgen.experiments.lamb2018.sweep import EPS, PLAIN, SCALES
from robustgen.experiments.workshop import Workshop
from robustgen.training import Batch

__all__ = ["EXPERIMENT"]

FRESH = 100  # the sweep's seeds begin at 0
# The setting that the sweep chose (results/lamb-2018/sweep/cpu.json).
CHOSEN = replace(PLAIN, layers="last", lambda_rec=0.3, lambda_adv=0.3, noise_std=0.1)


class _Confirmation(Experiment):
    name = "lamb-2018/confirmation"
    title = "the best setting of the sweep on five fresh seeds, against adversarial training with the same compute"
    source = "no counterpart in the source, which reports one run of each"
    metric = f"accuracy under PGD with restarts at eps {EPS:g} on test images, %"
    columns = (Column("pgd", "PGD with restarts"),)
    seeds = 5
    rows = (
        Row(key="adversarial", title="adversarial training, same compute", data=PLAIN),
        Row(
            key="no-loss",
            title="layers without autoencoder losses",
            data=replace(CHOSEN, lambda_rec=0.0, lambda_adv=0.0),
        ),
        Row(key="fortified", title="fortified", data=CHOSEN),
    )

    def describe(self, scale: str) -> str:
        return str(self.budget(scale))

    def budget(self, scale: str) -> Budget:
        """The sweep's, with all test images."""
        return replace(SCALES[scale], n_test=SCALES[scale].n_test if scale == "smoke" else 0)

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        return {
            "recipe": self.row(cell.row).data.record(),
            "budget": asdict(self.budget(scale)),
            "compute": CHOSEN.record(),
        }

    def measure(self, cell: Cell, scale: str, workshop: Workshop) -> Measurement:
        budget, seed = self.budget(scale), FRESH + cell.seed
        train, test = example_sets(budget, workshop)
        recipe: Recipe = self.row(cell.row).data
        x, y = train.batch(torch.arange(8))
        assert y is not None
        batch = Batch(x, y, torch.arange(8))
        chosen, own = (step_cost(r, budget, batch, train.n_classes) for r in (CHOSEN, recipe))
        recipe = replace(recipe, more_epochs=chosen / own)
        net, history = train_recipe(recipe, budget, seed, workshop, train)
        battery = run_battery(
            net,
            test.images(),
            test.labels(),
            eps=(EPS,),
            budget=budget,
            surrogate=surrogate(budget, seed, workshop, train),
            progress=workshop.progress,
            title=cell.name,
        )
        numbers = battery.numbers() | {"epochs": {"value": float(len(history)), "n": 1}}
        return Measurement(
            value=numbers[f"PGD restarts {EPS:g}"]["value"],
            numbers=numbers,
            verdicts=battery.verdict_records(),
            history=epochs_of(history),
        )

    def remarks(self, kept: Mapping[str, dict[str, Any]]) -> str:
        """The paired comparison, number by number."""
        by_row = {r: {c["seed"]: c for c in kept.values() if c["row"] == r} for r in ("adversarial", "fortified")}
        seeds = sorted(by_row["adversarial"].keys() & by_row["fortified"].keys())
        if len(seeds) < 2:
            return ""
        lines = [
            "Fortified less plain, paired over seeds, in points (mean, standard error; more than two of them?):",
            "",
        ]
        for name in by_row["fortified"][seeds[0]]["numbers"]:
            if name == "epochs":
                continue
            gains = [
                by_row["fortified"][s]["numbers"][name]["value"] - by_row["adversarial"][s]["numbers"][name]["value"]
                for s in seeds
            ]
            mean, error = statistics.fmean(gains), statistics.stdev(gains) / len(gains) ** 0.5
            verdict = "no" if abs(mean) <= 2 * error else "yes, better" if mean > 0 else "yes, worse"
            lines.append(f"- {name}: {mean:+.2f} ± {error:.2f}, {verdict}")
        return "\n".join(lines)


def step_cost(recipe: Recipe, budget: Budget, batch: Batch, n_classes: int) -> int:
    """Multiplications and additions of one training step on ``batch``, its attack included."""
    network, objective = training_step(recipe, budget, 0, batch.x, n_classes)
    with _Counter() as counter, torch.random.fork_rng():
        objective(network, batch, 0)["loss"].backward()
    return counter.total


class _Counter(TorchDispatchMode):
    """Counts as torch's FlopCounterMode does, which cannot watch the gradients of an attack."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


EXPERIMENT = _Confirmation()
