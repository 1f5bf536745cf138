"""Pieces of an evaluation, each made once: in a directory they are kept, and a killed evaluation reads them again."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from robustgen.files import load_tensors, save_tensors

__all__ = ["Keep", "Make", "anew", "kept_in"]

Make: TypeAlias = Callable[[], dict[str, Tensor]]
Keep: TypeAlias = Callable[[str, Collection[str], Make], dict[str, Tensor]]  # name, its tensors, how to make them


def anew(name: str, tensors: Collection[str], make: Make) -> dict[str, Tensor]:
    """What ``make`` makes; nothing is kept."""
    return make()


def kept_in(directory: Path) -> Keep:
    """What was made under a name is kept in ``directory``, which must belong to one evaluation."""

    def keep(name: str, tensors: Collection[str], make: Make) -> dict[str, Tensor]:
        path = directory / f"{name}.safetensors"
        if not path.exists():
            save_tensors(path, make())
        found = load_tensors(path)
        if found.keys() != set(tensors):
            raise ValueError(f"{path}: holds {', '.join(found) or 'nothing'}, not {', '.join(tensors)}")
        return found

    return keep
