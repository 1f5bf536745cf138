"""A trained model inside another: frozen there, and saved with it."""

import copy
import json
from collections.abc import Mapping
from typing import Any

from robustgen.checks import nearest
from robustgen.generative.base import GenerativeModel
from robustgen.generative.loading import model_classes
from robustgen.structure import SIZE, check_arguments, check_size, check_structure

__all__ = ["describe_model", "frozen_model"]

_DEPTH = 4  # models in models that a file may describe


def describe_model(model: GenerativeModel) -> dict[str, Any]:
    """What :func:`frozen_model` builds such a model from, JSON-able; its weights are elsewhere."""
    description: dict[str, Any] = json.loads(json.dumps({"model_class": type(model).__name__, "model": model.config}))
    return description


def frozen_model(model: "GenerativeModel | Mapping[str, Any]") -> GenerativeModel:
    """A copy of ``model`` in eval mode whose parameters do not train, or a new one as a description says.

    Raises:
        TypeError: neither a generative model nor a mapping.
        ValueError: a description of no such model.

    >>> from robustgen.generative import VAE
    >>> frozen_model(describe_model(VAE((1, 8, 8), latent_dim=3))).latent_dim
    3
    """
    if isinstance(model, GenerativeModel):
        return copy.deepcopy(model).eval().requires_grad_(False)
    if not isinstance(model, Mapping):
        raise TypeError(f"base must be a generative model, got {type(model).__name__}")
    return _described(model, "base").eval().requires_grad_(False)


def _described(description: Mapping[str, Any], source: str) -> GenerativeModel:
    if source.count(".") >= _DEPTH:
        raise ValueError(f"{source}: more models in models than {_DEPTH}")
    check_structure(dict(description), {"model_class": str, "model": {"shape?": [SIZE]}}, source)
    known, name = model_classes(), description["model_class"]
    if name not in known:
        raise ValueError(f"{source}: holds no generative model ({nearest(name, known)})")
    config = dict(description["model"])
    check_arguments(known[name], config, source, "model", whole=SIZE)
    check_size(config.get("shape", ()), source, "model.shape")
    if isinstance(inner := config.get("base"), Mapping):
        config["base"] = _described(inner, f"{source}.base")
    return known[name](**config)
