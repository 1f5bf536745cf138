"""Loading a detector without knowing its class."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from robustgen.checks import nearest
from robustgen.detectors.base import Detector
from robustgen.files import read_json

__all__ = ["detector_classes", "load"]


def detector_classes() -> dict[str, type[Detector]]:
    """Every public detector by the name of its class and by those that it had before.

    >>> detector_classes()["FeaturesTimesDistortion"].__name__
    'FeatureTimesImageDistance'
    """
    room = importlib.import_module("robustgen.detectors")
    public = [getattr(room, name) for name in room.__all__]
    kinds = [c for c in public if isinstance(c, type) and issubclass(c, Detector) and c is not Detector]
    return {name: kind for kind in kinds for name in (kind.__name__, *kind.former_names)}


def load(directory: str | Path, *, model: nn.Module | Sequence[nn.Module]) -> Detector:
    """The detector that :meth:`Detector.save` wrote to ``directory``, of whichever public class it is.

    Args:
        model: the network that it was fitted on, or the sequence of them, with the same weights.

    Raises:
        FileNotFoundError, ValueError: as :meth:`Detector.load` does, or no such class in ``robustgen.detectors``.
    """
    path = Path(directory) / "detector.json"
    name = read_json(path, {"detector": str})["detector"]
    known = detector_classes()
    if name not in known:
        raise ValueError(f"{path}: unknown detector {name!r}; {nearest(name, known)}")
    return known[name].load(directory, model=model)
