"""Whose turn it is: a model trained as one, or several players that take turns, each with its own optimizer."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from robustgen.structure import check_structure

__all__ = ["Players"]

_SOLE = ""  # the name of a model that is trained as one


class Players:
    """The optimizers of a run.

    A model whose ``players`` (a mapping of names to modules) is not empty trains the one that ``player_at(step)``
    names; the parameters of the others are frozen during that step. So a step is one batch and one update, and a GAN's
    alternating updates are nothing but an order of steps.

    Learning rates are those of ``make``, times what ``lr_factors`` of the model, a mapping, has for a player.

    Raises:
        ValueError: a parameter that requires a gradient and belongs to no player, or to two.
    """

    def __init__(self, model: nn.Module, make: Callable[[Iterable[nn.Parameter]], Optimizer]) -> None:
        modules: Mapping[str, nn.Module] = getattr(model, "players", None) or {}
        weights = [p for p in model.parameters() if p.requires_grad]
        if not weights:
            raise ValueError("no parameter of the model requires a gradient: there is nothing to train")
        self.model, self.several = model, bool(modules)
        self.parameters = {n: [p for p in m.parameters() if p.requires_grad] for n, m in modules.items()}
        if not modules:
            self.parameters = {_SOLE: weights}
        owned = [id(p) for parameters in self.parameters.values() for p in parameters]
        if sorted(owned) != sorted(map(id, weights)):
            raise ValueError("every parameter that is trained must belong to exactly one of the model's players")
        self.optimizers = {name: make(parameters) for name, parameters in self.parameters.items()}
        for name, factor in (getattr(model, "lr_factors", None) or {}).items():
            for group in self.optimizers[name].param_groups:
                group["lr"] *= factor
        self._base_lr: list[Any] = [group.get("lr") for group in self.groups]

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers; loading a state replaces them."""
        return [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]

    def at(self, step: int) -> str:
        """Who is trained at ``step``."""
        return self.model.player_at(step) if self.several else _SOLE

    def scale_lr(self, factor: float) -> None:
        """Set every learning rate to ``factor`` times what it began with."""
        for group, lr in zip(self.groups, self._base_lr, strict=True):
            group["lr"] = lr * factor

    @contextmanager
    def only(self, name: str) -> Iterator[None]:
        """Inside, no other player's parameters require a gradient."""
        others = [p for other, parameters in self.parameters.items() if other != name for p in parameters]
        try:
            for p in others:
                p.requires_grad_(False)
            yield
        finally:
            for p in others:
                p.requires_grad_(True)

    def named(self, name: str, scalars: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is logged of a step: entries say whose they are."""
        return {f"{name}_{key}": value for key, value in scalars.items()} if self.several else scalars

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def forget(self) -> None:
        """Begin anew: drop what the optimizers have gathered, such as means of gradients."""
        for optimizer in self.optimizers.values():
            optimizer.state.clear()

    def tensors(self) -> list[Tensor]:
        """What the optimizers keep."""
        states = [state for optimizer in self.optimizers.values() for state in optimizer.state.values()]
        return [v for state in states for v in state.values() if isinstance(v, Tensor)]

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs."""
        states = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return states if self.several else states[_SOLE]

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state`; ValueError for what is not the state of these optimizers."""
        for name, optimizer in self.optimizers.items():
            where = f"optimizer.{name}" if self.several else "optimizer"
            check_structure(state, {name: dict} if self.several else dict, "optimizer")
            _load(optimizer, state[name] if self.several else state, where)

    def describe(self) -> dict[str, Any]:
        """Every setting, JSON-able."""
        kinds = {name: type(optimizer).__name__ for name, optimizer in self.optimizers.items()}
        found: dict[str, Any] = {"optimizer": kinds if self.several else kinds[_SOLE]}
        for i, group in enumerate(self.groups):
            found |= {f"optimizer {k} of group {i}": v for k, v in group.items() if k != "params"}
        return found


def _load(optimizer: Optimizer, state: dict[str, Any], name: str) -> None:
    """Load a state that a file held: torch looks at neither the types nor the shapes in it."""
    kind = type(optimizer).__name__
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    structure = {"state": dict, "param_groups": [{"params": [range(len(parameters))]}]}
    check_structure(state, structure, name)
    if foreign := [k for k in state["state"] if type(k) is not int or k not in range(len(parameters))]:
        raise ValueError(f"{name}: state.{foreign[0]} is of no parameter")
    for number, kept in state["state"].items():
        check_structure(kept, dict, name, f"state.{number}")
    own = [dict(group) for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        raise ValueError(f"{name}: not the state of this {kind}") from None
    for i, (before, group) in enumerate(zip(own, optimizer.param_groups, strict=True)):
        if other := [k for k in before if k != "params" and _form(before[k]) != _form(group.get(k))]:
            raise ValueError(f"{name}: param_groups[{i}].{other[0]} is not what this {kind} keeps")
    for kept in optimizer.state.values():
        for key, value in kept.items():
            if key == "step" and not 0 <= float(value) < float("inf"):
                raise ValueError(f"{name}: a step is {float(value):g}")
    alike = {(k, type(v)) for kept in optimizer.state.values() for k, v in kept.items()}
    for p, kept in optimizer.state.items():
        if kept and {(k, type(v)) for k, v in kept.items()} != alike:
            raise ValueError(f"{name}: parts of the state are missing")
        if any(isinstance(v, Tensor) and v.shape != p.shape and v.numel() != 1 for v in kept.values()):
            raise ValueError(f"{name}: a tensor of the state has not the shape of its parameter")


def _form(setting: Any) -> Any:
    """Of what kind a setting of an optimizer is; fractions must also keep their sign, and stay on their side of 1."""
    if isinstance(setting, tuple | list):
        return [_form(item) for item in setting]
    if isinstance(setting, bool) or not isinstance(setting, int | float):
        return type(setting)
    return setting >= 0, setting < 1
