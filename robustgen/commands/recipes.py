"""Which recipe ``robustgen train`` follows, what the options change in it, and ``--list-recipes``."""

from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from robustgen.attacks import Attack
from robustgen.commands.data_spec import DataSpec
from robustgen.commands.network_spec import FortifySpec
from robustgen.data import ArrayDataset
from robustgen.data.load import canonical_name
from robustgen.files import read_json
from robustgen.fortified import FortifiedObjective
from robustgen.training import AWP, ClassificationLoss, Objective
from robustgen.training.recipes import RECIPES, Make, Recipe, find, fitting
from robustgen.training.recipes.recipe import classifier, not_used, uses

__all__ = ["chosen_recipe", "list_recipes", "makes", "measured", "option", "recipes_as_json", "settled"]

_ENTRY = {"clean": float, "robust": float, "n": int, "core_minutes": float, "seeds": int}


def measured() -> dict[str, dict[str, Any]]:
    """What each recipe gave: percent of ``n`` test images, clean and under the standard suite, and core-minutes.

    Of ``results/recipes``, which a test holds it against; a recipe that was not measured is not in it.
    """
    with resources.as_file(resources.files("robustgen.training.recipes") / "measured.json") as path:
        return dict(read_json(Path(path), {str: _ENTRY}))


def recipes_as_json() -> list[dict[str, Any]]:
    """Every recipe with its values and, under "measured", what it gave, or null."""
    found = measured()
    return [recipe.record() | {"measured": found.get(name)} for name, recipe in RECIPES.items()]


def list_recipes() -> str:
    """A table of all recipes."""
    found = measured()
    head = ("recipe", "data", "eps", "network", "epochs", "clean", "robust", "core-minutes")
    rows = [head]
    for name, recipe in RECIPES.items():
        about = (name, recipe.data, recipe.radius, f"{recipe.model} {recipe.width or ''}".strip(), str(recipe.epochs))
        if (numbers := found.get(name)) is None:
            rows.append((*about, "not measured", "", ""))
        else:
            rows.append(
                (*about, f"{numbers['clean']:.1f}", f"{numbers['robust']:.1f}", f"{numbers['core_minutes']:.0f}")
            )
    widths = [max(len(row[k]) for row in rows if row[5] != "not measured" or k < 5) for k in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append(
        "clean, robust: percent of test images, unattacked and under --suite standard (an upper bound); "
        "core-minutes: of training, on a CPU"
    )
    return "\n".join(lines)


def chosen_recipe(
    recipe: str | None,
    adversarial: str | None,
    attack: str,
    asked: Mapping[str, Any],
    data: DataSpec,
    dataset: ArrayDataset,
) -> tuple[Recipe, str]:
    """The recipe that --recipe names, or the one for a method and the data, and a line that says so.

    Without either it is plain defaults, which are said nothing of.

    Args:
        adversarial, attack: what --adversarial (or None) and --attack (or "none") say.
        asked: what the user's own options say, by the names of the recipe's values.

    Raises:
        ValueError: a recipe for other inputs or another method, or several that fit the data.
    """
    method = _method(recipe, adversarial, attack)
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
        return found.derived(name=settings, method="mart", beta=None), f"{settings}, not measured{about}"
    return found, f"recipe {found.name}{about}"


def settled(recipe: Recipe, line: str, asked: Mapping[str, Any]) -> tuple[Recipe, str]:
    """The recipe with what was asked for in place of its own values, and the line with what that changes.

    Raises:
        ValueError: a value that its method has no use for, or that is none.
    """
    first = asked.get("single_step_epochs", recipe.single_step_epochs)
    for name in asked:
        if not uses(name, recipe.method, first):
            raise ValueError(not_used(name, option(name), recipe.method))
    found = recipe.derived(**asked)
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


def _method(recipe: str | None, adversarial: str | None, attack: str) -> str | None:
    """The method of training that --adversarial or --attack names, None where neither does."""
    known = ("fast", "madry", "trades", "mart")
    if adversarial not in (None, *known):
        raise ValueError(f"unknown method {adversarial!r}; known: {', '.join(known)}")
    if attack == "none":
        return adversarial
    if recipe is not None or adversarial is not None:
        named = f"--adversarial {adversarial}" if recipe is None else "--recipe"
        raise ValueError(f"{named} chooses attack and loss: leave out --attack")
    if attack not in ("fgsm", "pgd"):
        raise ValueError(f"unknown attack {attack!r}; known: none, fgsm, pgd")
    return attack


def option(name: str) -> str:
    """The option of the command that a value of a recipe has."""
    return "--start" if name == "start_in_bounds" else f"--{name.replace('_', '-')}"


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
