"""``robustgen train --list-recipes``: the recipes, what they gave where it was measured, and what that cost."""

from importlib import resources
from pathlib import Path
from typing import Any

from robustgen.files import read_json
from robustgen.training.recipes import RECIPES

__all__ = ["list_recipes", "measured", "recipes_as_json"]

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
