"""Attacks of foolbox.

Rauber, Zimmermann, Bethge and Brendel, "Foolbox Native: Fast adversarial attacks to benchmark the robustness of machine
learning models in PyTorch, TensorFlow, and JAX", 2020 (``pip install robustgen[foolbox]``).
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, ClassVar

from torch import Tensor

from robustgen.attacks.adapters.foreign import ForeignAttack
from robustgen.attacks.adapters.guest import Guest, naming_library
from robustgen.attacks.minimal_norm import MinimalNormAttack

__all__ = ["FoolboxAttack", "FoolboxMinimalNormAttack"]

_P = {"Linf": math.inf, "L2": 2, "L1": 1, "L0": 0}


@dataclass(frozen=True, kw_only=True)
class _Foolbox(ForeignAttack):
    norms: ClassVar[tuple[str, ...]] = ("Linf", "L2", "L1")

    attack: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        base = _library().attacks.base
        kind, name = self._innermost(), type(self.attack).__name__
        if isinstance(kind, base.MinimizationAttack):
            if not isinstance(self, MinimalNormAttack):
                raise ValueError(f"foolbox's {name} takes no eps: use FoolboxMinimalNormAttack")
        elif not isinstance(kind, base.FixedEpsilonAttack):
            raise TypeError(f"attack must be an attack of foolbox with a distance, got {name}")
        elif isinstance(self, MinimalNormAttack):
            raise ValueError(f"foolbox's {name} takes an eps: use FoolboxAttack")
        try:
            p = self.attack.distance.p
        except ValueError:  # foolbox asks for a distance only where it clips to one
            return
        if p != _P[self.norm]:
            raise ValueError(f"foolbox's {name} is an attack in L{p}, norm is {self.norm!r}")

    def _innermost(self) -> Any:
        attack, repeated = self.attack, _library().attacks.base.Repeated
        while isinstance(attack, repeated):
            attack = attack.attack
        return attack

    def _points(self, guest: Callable[..., Guest], x: Tensor, y: Tensor, eps: float) -> Any:
        foolbox = _library()
        bounds = tuple(x.new_tensor(b).item() for b in self.bounds)  # as rounded as x, which it compares with them
        # Its default device is the first GPU, wherever x is.
        hired = guest()
        model = foolbox.PyTorchModel(hired, bounds=bounds, device=x.device)
        criteria = foolbox.criteria
        criterion = criteria.TargetedMisclassification if self.targeted else criteria.Misclassification
        with naming_library(f"foolbox.{type(self.attack).__name__}", hired):
            _, points, _ = self.attack(model, x, criterion(y), epsilons=eps if math.isfinite(eps) else None)
        return points

    def _of(self) -> dict[str, Any]:
        return _described(self.attack) | {"version": version("foolbox")}


@dataclass(frozen=True, kw_only=True)
class FoolboxAttack(_Foolbox):
    """An attack of foolbox within eps.

    Args:
        attack: the object, such as ``foolbox.attacks.LinfPGD(steps=20)``; also ``.repeat(5)`` of it.
        norm: that of the object.

    The others are those of :class:`~robustgen.attacks.Attack`; what is checked, counted and not promised is said in
    :class:`~robustgen.attacks.adapters.foreign.ForeignAttack`.

    Raises:
        ImportError: foolbox is not installed.
        TypeError: not an attack of foolbox with a distance (as SpatialAttack is not).
        ValueError: one that takes no eps, another norm; at the call, targeted where the attack has no such mode.

    >>> attack = FoolboxAttack(attack=foolbox.attacks.L2PGD(steps=20), norm="L2", eps=0.5)  # doctest: +SKIP
    >>> result = attack.run(model, x, y)  # doctest: +SKIP
    """


@dataclass(frozen=True, kw_only=True)
class FoolboxMinimalNormAttack(MinimalNormAttack, _Foolbox):
    """An attack of foolbox that looks for the nearest adversarial input, such as ``foolbox.attacks.L2FMNAttack()``.

    Args:
        attack: the object; it runs without a limit (foolbox's ``epsilons=None``).
        norm: that of the object.

    The others are those of :class:`~robustgen.attacks.minimal_norm.MinimalNormAttack`; one point for each sample is
    considered, the one returned.

    Raises:
        ImportError: foolbox is not installed.
        TypeError: not an attack of foolbox with a distance.
        ValueError: one that takes an eps, another norm; at the call, targeted where the attack has no such mode.
    """

    norms: ClassVar[tuple[str, ...]] = ("Linf", "L2", "L1", "L0")

    candidates: int = field(init=False, default=1)
    eot_samples: int = field(init=False, default=1)


def _library() -> Any:
    try:
        return importlib.import_module("foolbox")
    except ImportError as error:
        raise ImportError("foolbox is not installed: pip install robustgen[foolbox]") from error


def _described(attack: Any) -> dict[str, Any]:
    """Name and hyperparameters of a foolbox attack, which may hold others, as JSON-able values."""
    settings = {name.strip("_"): _plain(value) for name, value in vars(attack).items()}
    return (
        {"attack": f"foolbox.{type(attack).__name__}"}
        | {f: v for f, v in settings.items() if f != "attack"}
        | ({"of": settings["attack"]} if "attack" in settings else {})
    )


def _plain(value: Any) -> Any:
    if isinstance(value, _library().attacks.base.Attack):
        return _described(value)
    finite = isinstance(value, float) and math.isfinite(value)
    return value if finite or value is None or isinstance(value, bool | int | str) else repr(value)
