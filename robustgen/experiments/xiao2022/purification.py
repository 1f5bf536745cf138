"""Classifiers behind diffusion models, under attacks that know of these and under ones that do not."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from robustgen.commands.opening import load_run
from robustgen.evaluation import RandomDefenceReport, random_defence
from robustgen.experiments.ahmed2017.trained_models import TrainedModels, described
from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row, counted
from robustgen.experiments.training_cache import TrainingCache
from robustgen.experiments.xiao2022.quality import BUDGETS as TRAINED_ON
from robustgen.experiments.xiao2022.recipes import RECIPES
from robustgen.fortified import purify
from robustgen.generative import GenerativeModel
from robustgen.inputs import evenly_spaced

__all__ = ["EXPERIMENT"]


@dataclass(frozen=True, kw_only=True)
class _Budget:
    """The threat, images, and what an attack may cost; how deep each purifier goes, and in how many steps back."""

    data: str
    eps: float
    n: int
    steps: int
    eot: int
    draws: int
    k: int
    depths: tuple[tuple[str, int, int], ...]


_BUDGETS = {
    "smoke": _Budget(
        data="digits",
        eps=0.15,
        n=10,
        steps=2,
        eot=2,
        draws=4,
        k=2,
        depths=(("ddpm-unclipped", 5, 2), ("ddgan-4", 1, 1)),
    ),
    "cpu": _Budget(
        data="mnist",
        eps=0.3,
        n=100,
        steps=40,
        eot=8,
        draws=30,
        k=10,
        depths=(("ddpm-unclipped", 250, 5), ("ddgan-4", 1, 1)),
    ),
}
_BUDGETS["full"] = replace(
    _BUDGETS["cpu"], n=1000, eot=20, draws=100, depths=(("ddpm-unclipped", 250, 50), ("ddgan-4", 1, 1))
)
_NETWORKS = {"plain": "plain network", "robust": "adversarially trained network"}
_PURIFIERS = {"ddpm-unclipped": "DDPM", "ddgan-4": "DDGAN"}


class _Table(Experiment):
    name = "xiao-2022/purification"
    title = "classifiers behind diffusion models, attacked"
    question = "What does a diffusion before a network take away from an attack that knows of it, and may try again?"
    finding = (
        "Accuracy under Linf 0.3 on MNIST. Adversarially trained network: alone {robust-ddgan|alone}; behind a DDGAN "
        "{robust-ddgan|oblivious} under an attack that does not know of it, {robust-ddgan|adaptive} under those that "
        "do, {robust-ddgan|all} where the attacker has ten tries. Plain network: alone {plain-ddgan|alone}, behind the "
        "DDGAN {plain-ddgan|adaptive}."
    )
    source = "the method: Nie et al., 2022; its evaluation: Lee and Kim, 2023, and Lucas et al., 2023"
    metric = "accuracy on test images, percent; under attack an upper bound"
    rows = tuple(
        Row(key=f"{network}-{model.lower()}", title=f"{title}, behind a {model}", data=(network, purifier))
        for network, title in _NETWORKS.items()
        for purifier, model in _PURIFIERS.items()
    )
    columns = (
        Column("clean", "clean, one draw"),
        Column("oblivious", "attack on the network alone"),
        Column("adaptive", "worst attack, one draw"),
        Column("vote", "worst attack, vote of k draws"),
        Column("all", "worst attack, all of k draws right"),
        Column("seed", "draws of one known seed"),
        Column("alone-clean", "network alone, clean"),
        Column("alone", "network alone, attacked"),
    )
    seeds = 1
    digits = 1
    notes = (
        "All of k: the attacker submits the same image k times and needs one wrong answer. One seed: the draws are "
        "known, the defence is a fixed network. Network alone: the worst of all points that the attacks found.",
        "Attacks through the whole chain: PGD and APGD, gradients averaged over draws; and PGD with the identity for "
        "the gradient of the chain. An attack with more steps or draws can lower the numbers.",
        "The adversarially trained network is the one that comes with the package (`example:mnist`, TRADES at 0.3).",
    )

    def describe(self, scale: str) -> str:
        b = _BUDGETS[scale]
        deep = ", ".join(f"{_PURIFIERS[name]} to step {depth}, {steps} back" for name, depth, steps in b.depths)
        return (
            f"{b.data}, Linf {b.eps:g}, {b.n} test images; {deep}; attacks of {b.steps} steps, {b.eot} draws a "
            f"gradient; {b.draws} draws a verdict, k = {b.k}"
        )

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        network, purifier = self.row(cell.row).data
        names = (purifier, "classifier") if network == "plain" else (purifier,)
        trained = {"trained on": asdict(TRAINED_ON[scale]), "recipes": described(RECIPES[scale], names)}
        return asdict(_BUDGETS[scale]) | trained | {"network": network, "purifier": purifier}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        report, minutes = self._ledger(cell, scale, cache)
        oblivious = next(row for row in report.rows.values() if row.kind == "oblivious")
        values = {
            "clean": report.rows["clean"].right.double().mean(1),
            "oblivious": oblivious.right.double().mean(1),
            "adaptive": report.worst.right.double().mean(1),
            "vote": report.worst.vote.double(),
            "all": report.worst.all_right,
            "seed": report.fixed.double(),
            "alone-clean": report.undefended_clean.double(),
            "alone": report.undefended.double(),
        }
        numbers = {f"{key}, one draw": row.one_draw for key, row in report.rows.items()}
        numbers |= {name: value.mean().item() for name, value in values.items()} | {"core-minutes": minutes}
        return Measurement(value=100 * values[cell.column].mean().item(), numbers=counted(numbers, len(report.y)))

    def _ledger(self, cell: Cell, scale: str, cache: TrainingCache) -> tuple[RandomDefenceReport, float]:
        b, (network, purifier) = _BUDGETS[scale], self.row(cell.row).data
        train = cache.drawn(b.data, "train", TRAINED_ON[scale].n_train)
        trained = TrainedModels(cache, RECIPES[scale], train, cell.seed)
        robust = load_run(Path(f"example:{b.data}"))[0].to(cache.device)
        classifier = trained.model("classifier") if network == "plain" else robust
        model = trained.model(purifier)
        assert isinstance(model, GenerativeModel)
        depth, steps = next((depth, steps) for name, depth, steps in b.depths if name == purifier)
        test = cache.images(b.data, "test")
        x, y = cache.put(test.subset(evenly_spaced(len(test), b.n)))
        started = time.process_time()
        report = random_defence(
            purify(classifier.eval(), model.eval(), depth=depth, steps=steps),
            x,
            y,
            eps=b.eps,
            k=b.k,
            draws=b.draws,
            eot=b.eot,
            steps=b.steps,
            attacks=("pgd", "apgd", "bpda"),
            run_dir=cache.folder(self.settings(cell, scale) | {"seed": cell.seed}),
            resume=True,
            progress=cache.progress,
            name=self.row(cell.row).title,
        )
        return report, (time.process_time() - started) / 60


EXPERIMENT = _Table()
