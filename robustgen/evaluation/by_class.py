"""Accuracy by class and the confusion matrix under attack, read off the outcomes of a network in ``report.json``."""

from collections import Counter
from typing import Any, NamedTuple

__all__ = ["ClassAccuracy", "Confusion", "accuracy_by_class", "class_name", "confusion"]


class ClassAccuracy(NamedTuple):
    """Of the ``n`` examples of a class, how many are right without attack, and under every attack."""

    name: str
    n: int
    clean: int
    standing: int


class Confusion(NamedTuple):
    """``counts[i][j]``: examples of the class ``names[i]`` that the network takes for ``columns[j]``.

    The columns are the names and, where an example has no answer, "none".
    """

    names: list[str]
    columns: list[str]
    counts: list[list[int]]


def class_name(network: dict[str, Any], k: int | None) -> str:
    """The name of label ``k``, its number where the report has none; None is no class."""
    names = network.get("class_names") or ()
    return "none" if k is None else names[k] if 0 <= k < len(names) else str(k)


def accuracy_by_class(network: dict[str, Any]) -> list[ClassAccuracy]:
    """In the order of the labels; empty where the report lacks the outcomes of examples.

    >>> outcomes = {"labels": [0, 0, 1], "clean_correct": [True, True, False]}
    >>> outcomes["broken_by"] = {"PGD": [True, False, True]}
    >>> accuracy_by_class({"class_names": ["cat", "dog"], "per_example": outcomes})
    [ClassAccuracy(name='cat', n=2, clean=2, standing=1), ClassAccuracy(name='dog', n=1, clean=0, standing=0)]
    """
    outcomes = network.get("per_example", {})
    if not {"labels", "clean_correct", "broken_by"} <= outcomes.keys():
        return []
    n, clean, standing = Counter[int](), Counter[int](), Counter[int]()
    for label, right, *fell in zip(
        outcomes["labels"], outcomes["clean_correct"], *outcomes["broken_by"].values(), strict=True
    ):
        n[label] += 1
        clean[label] += right
        standing[label] += right and not any(fell)
    return [ClassAccuracy(class_name(network, k), n[k], clean[k], standing[k]) for k in sorted(n)]


def confusion(network: dict[str, Any], which: str = "worst_case") -> Confusion | None:
    """What the network takes the examples for: "clean", or in the "worst_case", where the first attack that succeeded
    on an example counts. None where the report does not say.

    >>> outcomes = {"labels": [0, 0, 1], "predicted": {"clean": [0, 0, 0], "worst_case": [0, 1, None]}}
    >>> confusion({"class_names": ["cat", "dog"], "per_example": outcomes})
    Confusion(names=['cat', 'dog'], columns=['cat', 'dog', 'none'], counts=[[1, 1, 0], [0, 0, 1]])
    """
    outcomes = network.get("per_example", {})
    if not {"labels", "predicted"} <= outcomes.keys():
        return None
    pairs = Counter(zip(outcomes["labels"], outcomes["predicted"][which], strict=True))
    classes: list[int | None] = sorted({k for pair in pairs for k in pair if k is not None})
    columns = [*classes, None] if any(predicted is None for _, predicted in pairs) else classes
    return Confusion(
        [class_name(network, k) for k in classes],
        [class_name(network, k) for k in columns],
        [[pairs[true, predicted] for predicted in columns] for true in classes],
    )
