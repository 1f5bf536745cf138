"""Where fortified layers go: the names a user gives, or the rule behind "auto", checked on an example."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from robustgen.checks import nearest
from robustgen.fortified.layer import first_tensor
from robustgen.model import output_tensor, untouched

__all__ = ["Placement", "auto_layers", "call_model", "place"]

_NOT_HIDDEN = (nn.Module, nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin)
_ACTIVATION_MODULES = tuple(
    cls
    for cls in vars(nn.modules.activation).values()
    if isinstance(cls, type) and issubclass(cls, nn.Module) and cls not in _NOT_HIDDEN
)


@dataclass(frozen=True)
class Placement:
    """One layer to fortify: its name, the shape of its states and which dimension counts examples."""

    name: str
    kind: str  # "dense" or "conv"
    features: int
    batch_dim: int


def call_model(model: nn.Module, example: Any) -> Any:
    """Call a model with an example: a tensor, a tuple of positional or a dict of keyword arguments."""
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def _doubled(example: Any) -> Any:
    """The example twice over, along dimension 0 of each of its tensors."""
    if isinstance(example, dict):
        return {k: _doubled(v) for k, v in example.items()}
    if isinstance(example, tuple):
        return tuple(_doubled(v) for v in example)
    return torch.cat([example, example]) if isinstance(example, Tensor) and example.ndim else example


@contextmanager
def _watch(modules: dict[str, nn.Module]) -> Iterator[list[tuple[str, Any]]]:
    """Collect (name, output) of every call of these modules, in order."""
    calls: list[tuple[str, Any]] = []

    def watcher(name: str) -> Any:
        return lambda module, args, output: calls.append((name, output))

    handles = [module.register_forward_hook(watcher(name)) for name, module in modules.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _resolve(model: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    known = dict(model.named_modules(remove_duplicate=False))
    known.pop("")
    modules: dict[str, nn.Module] = {}
    for name in layers:
        if name not in known:
            raise ValueError(f"the model has no layer {name!r}; {nearest(name, known)}")
        same = next((other for other, module in modules.items() if module is known[name]), None)
        if same is not None:
            raise ValueError(f"layer {name!r} is the same module as {same!r}: name it once")
        modules[name] = known[name]
    return modules


def auto_layers(model: nn.Module, example: Any) -> tuple[str, ...]:
    """The rule behind ``layers="auto"``: the middle and the last hidden activation before the read-out.

    Candidates are the activation modules (nn.ReLU, nn.GELU, ...; no softmax) called before the last nn.Linear or
    convolution, in the order of their calls on ``example``. One that serves states of several widths is replaced by the
    block that holds it. In a network without any (it calls functions instead), every module with weights of its own
    and a floating-point output is a candidate. The last one is where off-manifold states are easiest to see, the
    middle one cleans before the damage is done (Lamb 2018, section 2.5).

    Raises:
        ValueError: no candidate: name the layers yourself.
    """
    modules = {name: m for name, m in model.named_modules() if name}
    with untouched(model), torch.no_grad(), _watch(modules) as calls:
        call_model(model, example)
    readouts = [k for k, (n, _) in enumerate(calls) if isinstance(modules[n], nn.Linear | nn.modules.conv._ConvNd)]
    before = calls[: readouts[-1]] if readouts else calls
    shapes: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for name, output in before:
        state = first_tensor(output)
        shapes[name].append(tuple(state.shape) if state is not None and state.is_floating_point() else ())
    order = list(dict.fromkeys(name for name, _ in before))

    def usable(name: str) -> bool:
        widths = {(len(s), _width(s, _is_last(calls, modules, name))) for s in shapes[name] if len(s) in (2, 3, 4)}
        return len(widths) == 1 and all(shapes[name])

    def stand_in(name: str) -> str | None:
        while name and not (name in shapes and usable(name)):
            name = name.rpartition(".")[0]
        return name or None

    found = dict.fromkeys(stand_in(n) for n in order if isinstance(modules[n], _ACTIVATION_MODULES))
    names = [n for n in found if n is not None]
    if not names:
        with_weights = [n for n in order if any(True for _ in modules[n].parameters(recurse=False))]
        names = [n for n in with_weights if usable(n)]
    if not names:
        raise ValueError("layers='auto' found no hidden layer to fortify; name the layers yourself")
    return tuple(dict.fromkeys((names[(len(names) - 1) // 2], names[-1])))


def _width(shape: tuple[int, ...], last: bool) -> int:
    return shape[1] if len(shape) == 4 and not last else shape[-1]


def _is_last(calls: list[tuple[str, Any]], modules: dict[str, nn.Module], name: str) -> bool:
    """Whether the features of a 4-D state are its last dimension, (N, H, W, C), rather than (N, C, H, W).

    They are where the last module with features called up to the layer's own first output is a Linear or LayerNorm
    over as many features as that dimension has.
    """
    features = None
    for other, output in calls:
        module = modules.get(other)
        if isinstance(module, nn.Linear):
            features = module.out_features
        elif isinstance(module, nn.LayerNorm):
            features = module.normalized_shape[-1]
        elif isinstance(module, nn.modules.conv._ConvNd | nn.modules.batchnorm._NormBase | nn.GroupNorm):
            features = None
        if other == name:
            state = first_tensor(output)
            return state is not None and state.ndim == 4 and features == state.shape[-1] != state.shape[1]
    return False


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
    everything = {name: m for name, m in model.named_modules() if name} | modules
    with untouched(model):
        with torch.enable_grad(), _watch(everything) as all_calls:
            n = len(output_tensor(call_model(model, example)))
        calls = [(name, output) for name, output in all_calls if name in modules]
        with torch.no_grad(), _watch(modules) as no_grad_calls:
            call_model(model, example)
        try:
            with torch.no_grad(), _watch(modules) as double_calls:
                doubles = len(output_tensor(call_model(model, _doubled(example)))) == 2 * n
        except (RuntimeError, ValueError, IndexError, TypeError):  # inputs that cannot simply be doubled
            doubles = False
    seen: dict[str, list[Any]] = defaultdict(list)
    for name, output in calls:
        seen[name].append(output)
    counts = [sum(1 for other, _ in c if other == name) for name in layers for c in (calls, no_grad_calls)]
    for k, name in enumerate(layers):
        with_grad, without = counts[2 * k], counts[2 * k + 1]
        if with_grad == 0 or without == 0:
            when = "" if with_grad == without else f" {'with' if with_grad == 0 else 'without'} grad"
            raise ValueError(f"layer {name!r} is never called as a module{when}, so it cannot be fortified")
    doubled = {name: first_tensor(output) for name, output in reversed(double_calls)} if doubles else {}
    return [
        _placement(name, seen[name], _is_last(all_calls, everything, name), doubled.get(name), n, batch_dim)
        for name in layers
    ]


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
        raise ValueError(f"layer {name!r} gives states of shape {shape}; supported: (N, D), (N, T, D), (N, C, H, W)")
    dense = state.ndim < 4 or last or shape[2:] == (1, 1)
    features = _width(shape, last)
    for other in states[1:]:
        if other is None or other.ndim != state.ndim or _width(tuple(other.shape), last) != features:
            shapes = [None if s is None else tuple(s.shape) for s in states]
            raise ValueError(f"layer {name!r} is called with states of different widths {shapes}; fortify another one")
    if batch_dim is None:
        dims = [d for d in range(1 if state.ndim == 4 else state.ndim - 1) if shape[d] == n]
        if doubled is not None and doubled.ndim == state.ndim:
            dims = [d for d in dims if doubled.shape[d] == 2 * n]
        if len(dims) != 1:
            raise ValueError(
                f"layer {name!r} gives states of shape {shape} for {n} inputs: "
                f"{'more than one dimension may count' if dims else 'no dimension counts'} the examples (pass "
                "batch_dim=, or fortify a layer that keeps them apart)"
            )
        batch_dim = dims[0]
    elif not 0 <= batch_dim < state.ndim - 1 or shape[batch_dim] != n:
        raise ValueError(f"batch_dim={batch_dim} does not fit layer {name!r}: its states are {shape} for {n} inputs")
    if state.ndim == 4 and batch_dim != 0:
        raise ValueError(f"layer {name!r} gives maps of shape {shape}; they must be (N, C, H, W)")
    return Placement(name, "dense" if dense else "conv", features, batch_dim)
