"""Loading a generative model without knowing its class."""

import importlib
from pathlib import Path

from robustgen.checks import nearest
from robustgen.generative.base import GenerativeModel
from robustgen.training import load_checkpoint

__all__ = ["load", "model_classes"]


def model_classes() -> dict[str, type[GenerativeModel]]:
    """Every public model by the name of its class."""
    room = importlib.import_module("robustgen.generative")
    classes = [getattr(room, name) for name in room.__all__]
    return {
        c.__name__: c
        for c in classes
        if isinstance(c, type) and issubclass(c, GenerativeModel) and c is not GenerativeModel
    }


def load(directory: str | Path) -> GenerativeModel:
    """The model that :meth:`GenerativeModel.save` or a training left in ``directory``, in eval mode on the CPU.

    Args:
        directory: of the model, or of the run.

    Raises:
        FileNotFoundError, ValueError: as :meth:`GenerativeModel.load` does, or no such class here.
    """
    name = load_checkpoint(directory).config.get("model_class")
    known = model_classes()
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{directory}: holds no generative model ({nearest(str(name), known)})")
    return known[name].load(directory)
