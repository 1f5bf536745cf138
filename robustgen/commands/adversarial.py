"""Which recipe ``robustgen train`` follows, and what the user's own options change in it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from robustgen.attacks import FGSM, PGD, Attack
from robustgen.commands.data_spec import DataSpec
from robustgen.commands.fortify_spec import FortifySpec
from robustgen.data import ArrayDataset
from robustgen.data.load import canonical_name
from robustgen.fortified import FortifiedObjective
from robustgen.training import AWP, ClassificationLoss, Objective
from robustgen.training.recipes import Make, Recipe, find, fitting
from robustgen.training.recipes.recipe import classifier

__all__ = ["chosen_recipe", "makes", "settled", "training_attack"]


def chosen_recipe(
    recipe: str | None, method: str | None, asked: Mapping[str, Any], data: DataSpec, dataset: ArrayDataset
) -> tuple[Recipe, str]:
    """The recipe that --recipe names, or the one for ``method`` and the data, and a line that says so.

    Without either it is plain defaults, which are said nothing of.

    Args:
        asked: what the user's own options say, by the names of the recipe's values.

    Raises:
        ValueError: a recipe for other inputs or another method, or several that fit the data.
    """
    trained_by = find(recipe).method if recipe is not None else method
    if "beta" in asked and trained_by not in ("trades", "mart"):
        raise ValueError("--beta weighs the second term of --adversarial trades or mart")
    if "clean_weight" in asked and trained_by not in ("fgsm", "pgd"):
        chosen = f"--recipe {recipe}" if recipe is not None else f"--adversarial {method}"
        raise ValueError(
            "--clean-weight weighs the clean half of an adversarial loss: pass an attack (--attack fgsm or pgd)"
            if trained_by is None
            else f"{chosen} chooses attack and loss: leave out --attack and --clean-weight"
        )
    shape, name = tuple(dataset.x.shape[1:]), canonical_name(data.source or "")
    if recipe is not None:
        found = find(recipe)
        if method not in (None, found.method):
            raise ValueError(f"--recipe {recipe} trains by {found.method}: leave out --adversarial {method}")
        if found.shape != shape and "model" not in asked:
            inputs = " x ".join(map(str, found.shape))
            raise ValueError(f"--recipe {recipe} is for inputs {inputs}, {dataset.name} has {_size(shape)}")
        about = "" if name == found.data else f", which is for {found.data}, on {dataset.name}"
        return found, f"recipe {recipe}{about}"
    if method is None:
        return Recipe(), ""
    if method in ("fgsm", "pgd"):
        return Recipe(method=method), ""
    if asked.get("norm", "Linf") != "Linf":
        return Recipe(method=method), f"no recipe is for {asked['norm']}: plain settings, not tuned"
    fit = fitting(method, name, shape, dataset.n_classes)
    if not fit:
        return Recipe(method=method), (
            f"no recipe is for inputs {_size(shape)} in {dataset.n_classes} classes: plain settings, not tuned "
            "(robustgen train --list-recipes)"
        )
    if len(fit) > 1:
        raise ValueError(f"several recipes fit {dataset.name}: pass --recipe {' or '.join(r.name for r in fit)}")
    found = fit[0]
    about = "" if name == found.data else f", by shape and classes of {dataset.name}"
    if method == "mart":
        settings = f"mart with the settings of {found.name}"
        return replace(found, name=settings, method="mart", beta=None), f"{settings}, not measured{about}"
    return found, f"recipe {found.name}{about}"


def settled(recipe: Recipe, line: str, asked: Mapping[str, Any]) -> tuple[Recipe, str]:
    """The recipe with what was asked for in place of its own values, and the line with what that changes."""
    found = replace(recipe, **asked)
    changes = {k: (mine, its) for k, (mine, its) in found.differences(recipe).items() if k in asked}
    if not line or not recipe.name or not changes:
        return found, line
    own = ", ".join(
        f"{name.replace('_', ' ')} {_short(mine)} (recipe: {_short(its)})" for name, (mine, its) in changes.items()
    )
    return replace(found, name=f"{recipe.name}, changed"), f"{line}; your own: {own}"


def makes(fortified: FortifySpec | None, awp: float | None) -> Make:
    """How an objective is put together: for a plain or a fortified network, with perturbed weights or without."""

    def make(attack: Attack | None, clean_weight: float, loss: ClassificationLoss | None) -> Objective:
        if fortified is None:
            objective = classifier(attack, clean_weight, loss)
        else:
            objective = FortifiedObjective(
                attack,
                lambda_rec=fortified.lambda_rec,
                lambda_adv=fortified.lambda_adv,
                detach_states=fortified.detach_states,
                clean_weight=clean_weight,
                loss=loss,
            )
        return objective if awp is None else AWP(objective, gamma=awp)

    return make


def training_attack(name: str, eps: float, norm: str, steps: int, seed: int) -> Attack:
    """The attack "fgsm" or "pgd" as training has it: every sample runs every step."""
    common: dict[str, Any] = {"eps": eps, "norm": norm, "seed": seed, "early_stop": False}
    return FGSM(**common) if name == "fgsm" else PGD(**common, steps=steps)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
