"""Loading a detector without knowing its class."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from robustgen.checks import nearest
from robustgen.detectors.base import Detector
from robustgen.files import read_json

__all__ = ["load"]


def load(directory: str | Path, *, model: nn.Module | Sequence[nn.Module]) -> Detector:
    """The detector that :meth:`Detector.save` wrote to ``directory``, of whichever public class it is.

    Args:
        model: the network that it was fitted on, or the sequence of them, with the same weights.

    Raises:
        FileNotFoundError, ValueError: as :meth:`Detector.load` does, or no such class in ``robustgen.detectors``.
    """
    room = importlib.import_module("robustgen.detectors")
    path = Path(directory) / "detector.json"
    name = read_json(path, {"detector": str})["detector"]
    known = [n for n in room.__all__ if isinstance(c := getattr(room, n), type) and issubclass(c, Detector)]
    known.remove("Detector")
    if name not in known:
        raise ValueError(f"{path}: unknown detector {name!r}; {nearest(name, known)}")
    detector_class: type[Detector] = getattr(room, name)
    return detector_class.load(directory, model=model)
