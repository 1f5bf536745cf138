"""The recipe ``cifar10-resnet18`` within a given time: epochs that fit are chosen beforehand, then it is attacked.

The learning rate's schedule covers exactly the epochs that are chosen. A training that was stopped goes on, with the
epochs that it began with. Data: ``cifar10-jpeg``, a folder of images, or ``cifar10``, in the data root; in a rehearsal
the embedded digits.
"""

import copy
import time
from dataclasses import replace
from typing import Any

import torch
from accelerator_task import Skipped, Task
from torch import nn

from robustgen.attacks import PGD
from robustgen.data import ArrayDataset, load, split
from robustgen.evaluation import evaluate_robustness
from robustgen.files import read_json, write_json
from robustgen.training.recipes import Recipe, find

__all__ = ["train_and_attack"]

TRAINING = 0.7  # of the time that is left; the attacks have the rest
AUTOATTACK = 30.0  # seconds below which the standard suite is not begun
N_TEST = 500
_REPORTED = (
    "threat_model",
    "notes",
    "unfinished",
    "clean_accuracy",
    "worst_case_accuracy",
    "attacks",
    "seed",
)  # no image


def train_and_attack(task: Task) -> None:
    """Note the history of the training, then accuracy under PGD-50, then under the standard suite if there is time."""
    recipe, train, test = _recipe_and_data(task)
    if task.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # what is verified in float32 is verified in float32
    train, held_back = split(train, (0.99, 0.01), seed=0, stratified=True)
    network = recipe.network(seed=0).to(task.device, memory_format=torch.channels_last)

    work = task.work / "cifar10-resnet18"
    if not (plan := work / "plan.json").is_file():
        write_json(plan, _plan(recipe, network, train, held_back, task, seconds=TRAINING * task.left()))
    planned = read_json(plan, {"epochs": int})
    recipe = replace(recipe, epochs=planned["epochs"])
    about = {"recipe": recipe.record(), "precision of training": "bfloat16", "plan": planned, "data": train.name}
    about |= {"n_train": len(train), "n_test": len(test)}
    resumed = (work / "run").exists()
    task.note(f"{recipe.epochs} epochs planned", **about, resumed=resumed)

    started = time.monotonic()
    trainer = _trainer(recipe, train, task, run_dir=work / "run", resume=True)
    history = trainer.fit(network, train, held_back)
    took = {"seconds of this training": round(time.monotonic() - started, 1)}
    task.note(f"trained for {recipe.epochs} epochs, not attacked", history=history, **took)

    network.eval()
    x, y = test.images().to(task.device), test.labels().to(task.device)
    common: dict[str, Any] = {"eps": recipe.eps, "masking_tests": False, "batch_size": N_TEST, "name": recipe.name}
    pgd = PGD(eps=recipe.eps, steps=50, step_size=recipe.eps / 4, restarts=2 if task.smoke else 10)
    first = evaluate_robustness(network, x, y, attacks={"PGD-50": pgd}, **common)
    line = (
        f"{recipe.epochs} epochs, clean {100 * first.clean_accuracy:.1f} %, PGD-50 {100 * first.robust_accuracy:.1f} %"
    )
    task.note(
        f"{line}; standard suite not finished",
        **{"clean accuracy": first.clean_accuracy, "accuracy under PGD-50": first.robust_accuracy},
        **{"attack PGD-50": pgd.describe(), "suite finished": False},
    )
    if not task.smoke and task.left() < AUTOATTACK:
        return
    suite = "quick" if task.smoke else "standard"
    more: dict[str, Any] = {"run_dir": work / "attacked", "resume": True, "max_minutes": task.left() / 60}
    more |= {"precision": "bfloat16"} if task.device.type == "cuda" else {}
    report = evaluate_robustness(network, x, y, suite=suite, **common, **more)
    task.note(
        f"{line}, {suite} suite {100 * report.robust_accuracy:.1f} %{' (not finished)' if report.unfinished else ''}",
        **{"suite": suite, "suite finished": not report.unfinished, "accuracy under the suite": report.robust_accuracy},
        **{"report": {name: value for name, value in report.to_dict().items() if name in _REPORTED}},
    )


def _recipe_and_data(task: Task) -> tuple[Recipe, ArrayDataset, ArrayDataset]:
    """The recipe, training images and test images."""
    recipe = find("cifar10-resnet18")
    if task.smoke:
        recipe = replace(recipe, data="digits", shape=(1, 8, 8), width=4, steps=2, batch_size=64, augment=False)
        return recipe, load("digits", split="train").take(512), load("digits", split="test").take(40)
    if task.data_root is None:
        raise Skipped("no --data-root")
    folder = task.data_root / "cifar10-jpeg"
    source: dict[str, Any] = {"source": folder} if folder.is_dir() else {"source": "cifar10", "root": task.data_root}
    try:
        test = load(**source, split="test")
        every = torch.arange(N_TEST) * len(test) // N_TEST  # evenly spaced: files are sorted by class
        return recipe, load(**source, split="train"), test.subset(every)
    except FileNotFoundError:
        raise Skipped("neither cifar10-jpeg nor cifar10 in --data-root") from None


def _trainer(recipe: Recipe, train: ArrayDataset, task: Task, **options: Any) -> Any:
    """Validation is the objective itself: what it costs can be foreseen. The last epoch counts, its rate ends at 0."""
    options |= {"precision": "bfloat16", "device": task.device, "progress": False, "val_objective": None, "best": None}
    return recipe.trainer(len(train), **options)


def _plan(
    recipe: Recipe, network: nn.Module, train: ArrayDataset, held_back: ArrayDataset, task: Task, seconds: float
) -> dict[str, Any]:
    """How many epochs fit into ``seconds``, from a few steps of a copy of the network."""
    started = time.monotonic()

    def timed(steps: int, val: ArrayDataset | None) -> float:
        few = train.take(steps * recipe.batch_size)
        begun = time.monotonic()
        _trainer(replace(recipe, epochs=1), few, task).fit(copy.deepcopy(network), few, val)
        return time.monotonic() - begun

    few = 4 if task.smoke else 8
    timed(few, held_back)  # the first steps choose kernels
    step = timed(3 * few, None) / (3 * few)
    validation = max(0.0, timed(few, held_back) - few * step)
    epoch = recipe.batches(len(train)) * step + validation
    left = seconds - (time.monotonic() - started)
    most = 2 if task.smoke else 200
    return {
        "epochs": max(1, min(most, int(0.95 * left / epoch))),
        "seconds for training": round(seconds, 1),
        "seconds of a step": step,
        "seconds of a validation": validation,
    }
