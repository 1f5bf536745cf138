"""Recipes: settings with which a classifier becomes robust, for four data sets and each method."""

from robustgen.checks import nearest
from robustgen.training.recipes.offered import OFFERED
from robustgen.training.recipes.recipe import METHODS, Make, Recipe

__all__ = ["METHODS", "RECIPES", "Make", "Recipe", "find", "fitting"]

#: Every recipe by name.
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in OFFERED}


def find(name: str) -> Recipe:
    """The recipe called ``name``; ValueError for another, with the nearest.

    >>> find("mnist-fast").eps
    0.3
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; {nearest(name, RECIPES)}")
    return RECIPES[name]


def fitting(method: str, data: str | None, shape: tuple[int, ...], n_classes: int) -> list[Recipe]:
    """The recipes of a method for a named data set or, where it has none, for inputs and classes like these.

    "mart" takes the recipes of "trades".

    >>> [recipe.name for recipe in fitting("madry", None, (1, 28, 28), 10)]
    ['mnist-madry', 'fashion-mnist-madry']
    """
    of = "trades" if method == "mart" else method
    usual = [recipe for recipe in RECIPES.values() if recipe.name == f"{recipe.data}-{of}"]
    named = [recipe for recipe in usual if recipe.data == data]
    return named or [recipe for recipe in usual if (recipe.shape, recipe.n_classes) == (shape, n_classes)]
