"""Where fortified layers go: the names a user gives, or the rule behind "auto", checked on an example."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from robustgen.inputs import call_model
from robustgen.layers import Call, features_last, find_layer, first_tensor, watching
from robustgen.model import output_tensor, untouched
from robustgen.progress import bar

__all__ = ["Placement", "auto_layers", "place"]

_NOT_HIDDEN = (nn.Module, nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin)
_ACTIVATION_MODULES = tuple(
    cls
    for cls in vars(nn.modules.activation).values()
    if isinstance(cls, type) and issubclass(cls, nn.Module) and cls not in _NOT_HIDDEN
)


_NORMS = (nn.LayerNorm, nn.RMSNorm)
_NEVER_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus)


@dataclass(frozen=True)
class Placement:
    """One layer to fortify: its name, the shape of its states and which dimension counts examples.

    ``kind``: "conv" of maps (N, C, H, W), "positions" of states (N, C, L), "dense" of features in the last dimension.
    ``nonnegative``: the states are what an nn.ReLU, or another module that gives nothing negative, gave: the layer is
    one, or ends in one. States that are not negative on the example alone may be so by chance.
    """

    name: str
    kind: str
    features: int
    batch_dim: int
    nonnegative: bool = False


@contextmanager
def _showing_passes(modules: Sequence[nn.Module], n: int) -> Iterator[None]:
    """A bar of ``n`` passes of a model, by the calls of its modules that have ended."""
    with bar("placement of fortified layers", n * len(modules)) as shown:

        def ended(*_: object) -> None:
            shown.update()

        hooks = [] if shown.disable else [module.register_forward_hook(ended) for module in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _doubled(example: Any) -> Any:
    """The example twice over, along dimension 0 of each of its tensors."""
    if isinstance(example, dict):
        return {k: _doubled(v) for k, v in example.items()}
    if isinstance(example, tuple):
        return tuple(_doubled(v) for v in example)
    return torch.cat([example, example]) if isinstance(example, Tensor) and example.ndim else example


def _resolve(model: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    modules: dict[str, nn.Module] = {}
    for layer in layers:
        module = model.get_submodule(name := find_layer(model, layer))
        same = next((other for other, known in modules.items() if known is module), None)
        if same is not None:
            raise ValueError(f"layer {layer!r} is the same module as {same!r}: name it once")
        modules[name] = module
    return modules


def auto_layers(model: nn.Module, example: Any) -> tuple[str, ...]:
    """The rule behind ``layers="auto"``: the middle and the last hidden activation before the read-out.

    In a transformer the candidates are its blocks: two or more modules of one class and parent that hold a layer norm
    and give states (N, T, D) of one width. In other networks they are the activation modules (nn.ReLU, nn.GELU, ...; no
    softmax) called before the last nn.Linear or convolution, in the order of their calls on ``example``. One that
    serves states of several widths is replaced by the block that holds it. In a network without any (it calls functions
    instead), every module with weights of its own and a floating-point output is a candidate. The last one is where
    off-manifold states are easiest to see, the middle one cleans before the damage is done (Lamb 2018, section 2.5).

    It costs one call of the model on ``example``.

    Raises:
        ValueError: no candidate: name the layers yourself.
    """
    modules = {name: m for name, m in model.named_modules() if name}
    with untouched(model), torch.no_grad(), watching(modules) as calls, _showing_passes([*modules.values()], 1):
        call_model(model, example)
    readouts = [k for k, c in enumerate(calls) if isinstance(modules[c.name], nn.Linear | nn.modules.conv._ConvNd)]
    before = calls[: readouts[-1]] if readouts else calls
    shapes: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for call in before:
        state = first_tensor(call.output)
        shapes[call.name].append(tuple(state.shape) if state is not None and state.is_floating_point() else ())
    order = list(dict.fromkeys(call.name for call in before))

    def usable(name: str) -> bool:
        last = features_last(calls, modules, name)
        widths = {(len(s), _width(s, last)) for s in shapes[name] if len(s) in (2, 3, 4)}
        return len(widths) == 1 and all(shapes[name])

    def stand_in(name: str) -> str | None:
        while name and not (name in shapes and usable(name)):
            name = name.rpartition(".")[0]
        return name or None

    names = _blocks([n for n in order if len(shapes[n][0]) == 3 and usable(n)], modules)
    if not names:
        found = dict.fromkeys(stand_in(n) for n in order if isinstance(modules[n], _ACTIVATION_MODULES))
        names = [n for n in found if n is not None]
    if not names:
        with_weights = [n for n in order if any(True for _ in modules[n].parameters(recurse=False))]
        names = [n for n in with_weights if usable(n)]
    if not names:
        raise ValueError("layers='auto' found no hidden layer to fortify; name the layers yourself")
    return tuple(dict.fromkeys((names[(len(names) - 1) // 2], names[-1])))


def _blocks(names: list[str], modules: dict[str, nn.Module]) -> list[str]:
    """Those of ``names`` that are blocks of a transformer, none of them inside of another."""
    alike: dict[tuple[str, type[nn.Module]], list[str]] = defaultdict(list)
    for name in names:
        if any(isinstance(m, _NORMS) for m in modules[name].modules()) and not isinstance(modules[name], _NORMS):
            alike[name.rpartition(".")[0], type(modules[name])].append(name)
    blocks = [name for name in names if any(len(group) > 1 and name in group for group in alike.values())]
    return [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]


def _width(shape: tuple[int, ...], last: bool) -> int:
    return shape[-1 if last else 1]


def place(model: nn.Module, layers: Sequence[str], example: Any, batch_dim: int | None) -> list[Placement]:
    """Check that every layer gives states that can be fortified, by calling the model on ``example``.

    The model is called with and without grad (fused fast paths skip hooks in one of them) and on the example twice
    over: the dimension of a state that doubles is the one that counts examples.

    Raises:
        ValueError: unknown layer (with the nearest names), one named twice, never called, called only with or only
            without grad, whose output is not a tensor or a tuple whose first item is one, of an unsupported shape, or
            whose examples cannot be told apart.
    """
    modules = _resolve(model, layers)
    layers = list(modules)  # as the network itself calls them
    everything = {name: m for name, m in model.named_modules() if name} | modules
    with untouched(model), _showing_passes([*everything.values()], 3):
        with torch.enable_grad(), watching(everything) as all_calls:
            n = len(output_tensor(call_model(model, example)))
        calls = [call for call in all_calls if call.name in modules]
        with torch.no_grad(), watching(modules) as no_grad_calls:
            call_model(model, example)
        try:
            with torch.no_grad(), watching(modules) as double_calls:
                doubles = len(output_tensor(call_model(model, _doubled(example)))) == 2 * n
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):  # one that cannot simply be doubled
            doubles = False
    rectifiers = {n for n, m in everything.items() if isinstance(m, _NEVER_NEGATIVE) and not m._forward_hooks}
    seen: dict[str, list[Any]] = defaultdict(list)
    for call in calls:
        seen[call.name].append(call.output)
    counts = [sum(1 for call in c if call.name == name) for name in layers for c in (calls, no_grad_calls)]
    for k, name in enumerate(layers):
        with_grad, without = counts[2 * k], counts[2 * k + 1]
        if with_grad == 0 or without == 0:
            when = "" if with_grad == without else f" {'with' if with_grad == 0 else 'without'} grad"
            raise ValueError(f"layer {name!r} is never called as a module{when}, so it cannot be fortified")
    doubled = {call.name: first_tensor(call.output) for call in reversed(double_calls)} if doubles else {}
    found = [
        _placement(name, seen[name], features_last(all_calls, everything, name), doubled.get(name), n, batch_dim)
        for name in layers
    ]
    return [replace(p, nonnegative=_is_nonnegative(all_calls, rectifiers, p.name)) for p in found]


def _is_nonnegative(calls: Sequence[Call], rectifiers: set[str], name: str) -> bool:
    """Whether each output of layer ``name`` is the very tensor that one of the ``rectifiers`` has given before."""
    given: list[Tensor] = []
    for call in calls:
        state = first_tensor(call.output)
        if state is not None and call.name in rectifiers:
            given.append(state)
        if call.name == name and not any(state is known for known in given):
            return False
        if call.name == name and state is not None and not bool((state >= 0).all()):
            return False  # some module has worked in place on what a ReLU gave
    return True


def _placement(
    name: str, outputs: list[Any], last: bool, doubled: Tensor | None, n: int, batch_dim: int | None
) -> Placement:
    states = [first_tensor(output) for output in outputs]
    state = states[0]
    if state is None or not state.is_floating_point():
        inner = outputs[0][0] if isinstance(outputs[0], tuple | list) and outputs[0] else outputs[0]
        what = type(inner).__name__ if not isinstance(inner, Tensor) else f"a tensor of {inner.dtype}"
        hint = " (pad the sequence before the RNN instead of packing it)" if isinstance(inner, PackedSequence) else ""
        raise ValueError(
            f"layer {name!r} gives {what}; a fortified layer needs a float tensor or a tuple whose first item is "
            f"one{hint}"
        )
    shape = tuple(state.shape)
    if state.ndim not in (2, 3, 4):
        raise ValueError(
            f"layer {name!r} gives states of shape {shape}; supported: (N, D), (N, T, D), (N, C, L), (N, C, H, W)"
        )
    batch_first = state.ndim == 4 or (state.ndim == 3 and not last)
    kind = "dense" if last or shape[2:] in ((), (1, 1)) else {3: "positions", 4: "conv"}[state.ndim]
    features = _width(shape, last)
    for other in states[1:]:
        if other is None or other.ndim != state.ndim or _width(tuple(other.shape), last) != features:
            shapes = [None if s is None else tuple(s.shape) for s in states]
            raise ValueError(f"layer {name!r} is called with states of different widths {shapes}; fortify another one")
    if batch_dim is None:
        dims = [d for d in range(1 if batch_first else state.ndim - 1) if shape[d] == n]
        if doubled is not None and doubled.ndim == state.ndim:
            dims = [d for d in dims if doubled.shape[d] == 2 * n]
        if len(dims) != 1:
            alone = f"; the model takes no {2 * n} of them to tell" if doubled is None and dims else ""
            raise ValueError(
                f"layer {name!r} gives states of shape {shape} for {n} inputs: "
                f"{'more than one dimension may count' if dims else 'no dimension counts'} the examples (pass "
                f"batch_dim=, or fortify a layer that keeps them apart){alone}"
            )
        batch_dim = dims[0]
    elif not 0 <= batch_dim < state.ndim - 1 or shape[batch_dim] != n:
        raise ValueError(f"batch_dim={batch_dim} does not fit layer {name!r}: its states are {shape} for {n} inputs")
    if batch_first and batch_dim != 0:
        raise ValueError(f"layer {name!r} gives states of shape {shape}; they must be (N, C, L) or (N, C, H, W)")
    return Placement(name, kind, features, batch_dim)
