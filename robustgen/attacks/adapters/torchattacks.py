"""Attacks of torchattacks.

Kim, "Torchattacks: A PyTorch Repository for Adversarial Attacks", 2020 (``pip install robustgen[torchattacks]``).
"""

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustgen.attacks.adapters.foreign import ForeignAttack
from robustgen.attacks.adapters.guest import Guest, naming_library
from robustgen.attacks.minimal_norm import MinimalNormAttack
from robustgen.checks import nearest

__all__ = ["TorchattacksAttack", "TorchattacksMinimalNormAttack"]

_RADII = ("eps", "max_epsilon")
_OURS = ("model", *_RADII, "norm", "seed")  # parameters that are not options: the adapter sets them


@dataclass(frozen=True, kw_only=True)
class _Torchattacks(ForeignAttack):
    norms: ClassVar[tuple[str, ...]] = ("Linf", "L2", "L1")

    attack: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "options", dict(self.options))
        known = self._parameters()
        for name in self.options:
            if name not in known or name in _OURS:
                raise ValueError(
                    f"torchattacks.{self.attack} has no option {name!r}; {nearest(name, self._option_names())}"
                )
        needed = [n for n, default in known.items() if default is inspect.Parameter.empty and n != "model"]
        for name in needed:
            if name not in self.options:
                raise ValueError(f"torchattacks.{self.attack} needs the option {name!r}")
        json.dumps(self.options)  # for the report; a TypeError says what is not JSON

    def _class(self) -> Callable[..., Any]:
        try:
            library = importlib.import_module("torchattacks")
        except ImportError as error:
            raise ImportError("torchattacks is not installed: pip install robustgen[torchattacks]") from error
        kinds = {name: kind for name, kind in vars(library).items() if inspect.isclass(kind)}
        if self.attack not in kinds or not issubclass(kinds[self.attack], library.attack.Attack):
            raise ValueError(f"torchattacks has no attack {self.attack!r}; {nearest(self.attack, sorted(kinds))}")
        return kinds[self.attack]

    def _parameters(self) -> dict[str, Any]:
        """Every parameter of the attack and its default."""
        return {name: p.default for name, p in inspect.signature(self._class()).parameters.items()}

    def _option_names(self) -> list[str]:
        return [name for name in self._parameters() if name not in _OURS]

    def _points(self, guest: Callable[..., Guest], x: Tensor, y: Tensor, eps: float) -> Any:
        low, high = self.bounds
        span = high - low
        shape = x.shape[1:] if x.ndim == 4 else (x[:1].numel(), 1, 1)  # it takes images only
        unit = (low, high) == (0.0, 1.0)

        def decode(u: Tensor) -> Tensor:
            z = u.reshape(len(u), *x.shape[1:])
            return z if unit else low + z * span

        u = (x if unit else ((x - low) / span).clamp(0, 1)).reshape(len(x), *shape)
        model = guest(decode)
        offered = {"norm": self.norm, "seed": self.seed, **dict.fromkeys(_RADII, eps / span)}
        known = self._parameters()
        given = {name: value for name, value in offered.items() if name in known} | dict(self.options)
        if "n_classes" in known and "n_classes" not in given:
            with torch.no_grad():
                given["n_classes"] = model(u[:1]).shape[1]
        with naming_library(f"torchattacks.{self.attack}", model):
            foreign = self._class()(model, **given)
        if self.targeted:
            if "targeted" not in foreign.supported_mode:
                raise ValueError(f"torchattacks.{self.attack} has no targeted mode")
            foreign.set_mode_targeted_by_label(quiet=True)
        with naming_library(f"torchattacks.{self.attack}", model):
            found = foreign(u.clone(), y)
        if not isinstance(found, Tensor) or found.shape != u.shape or found.dtype != u.dtype:
            return found
        found = found.detach()
        # Elements that it left alone are those of x, to the last bit.
        return torch.where((found == u).reshape(x.shape), x, decode(found))

    def _of(self) -> dict[str, Any]:
        defaults = {name: self._parameters()[name] for name in self._option_names() if name != "n_classes"}
        return (
            {"attack": f"torchattacks.{self.attack}", "version": version("torchattacks")} | defaults | {**self.options}
        )


@dataclass(frozen=True, kw_only=True)
class TorchattacksAttack(_Torchattacks):
    """An attack of torchattacks within eps.

    Args:
        attack: name of its class, such as "PGD" or "VMIFGSM".
        options: its own keyword arguments. eps, norm and seed are those of this object; n_classes, if it is not given,
            is the number of logits. torchattacks knows inputs in [0, 1] only: other bounds are mapped to that, and
            options in units of the input (alpha) are in units of their span. Inputs that are not (N, C, H, W) are shown
            to it as (N, D, 1, 1).

    The others are those of :class:`~robustgen.attacks.Attack`; what is checked, counted and not promised is said in
    :class:`~robustgen.attacks.adapters.foreign.ForeignAttack`.

    Raises:
        ImportError: torchattacks is not installed.
        TypeError: options that are not JSON-able.
        ValueError: unknown attack or option, an attack without an eps; at the call, targeted where it has no such mode.

    >>> attack = TorchattacksAttack(attack="VMIFGSM", eps=8 / 255, options={"steps": 20})  # doctest: +SKIP
    >>> result = attack.run(model, x, y)  # doctest: +SKIP
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not set(_RADII) & self._parameters().keys():
            raise ValueError(f"torchattacks.{self.attack} takes no eps: use TorchattacksMinimalNormAttack")


@dataclass(frozen=True, kw_only=True)
class TorchattacksMinimalNormAttack(MinimalNormAttack, _Torchattacks):
    """An attack of torchattacks that takes no eps, such as "CW" (L2), "DeepFool" (L2) or "EADL1" (L1).

    Args:
        attack, options: as in :class:`TorchattacksAttack`.
        norm: in which its points are measured; torchattacks is not told.

    The others are those of :class:`~robustgen.attacks.minimal_norm.MinimalNormAttack`; one point for each sample is
    considered, the one returned.

    Raises:
        ImportError: torchattacks is not installed.
        TypeError: options that are not JSON-able.
        ValueError: unknown attack or option, an attack with an eps; at the call, targeted where it has no such mode.
    """

    norms: ClassVar[tuple[str, ...]] = ("Linf", "L2", "L1", "L0")

    candidates: int = field(init=False, default=1)
    eot_samples: int = field(init=False, default=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if set(_RADII) & self._parameters().keys():
            raise ValueError(f"torchattacks.{self.attack} takes an eps: use TorchattacksAttack")
