"""Looking into a network: its layers by name, the calls of them in a forward pass, and what is where in a state."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustgen.checks import nearest
from robustgen.model import output_tensor

__all__ = [
    "Call",
    "check_hooks",
    "features_last",
    "find_layer",
    "first_tensor",
    "is_compiled",
    "logits_call",
    "uncompiled",
    "watching",
]

_WRAPPED = "_orig_mod"  # where torch.compile keeps the network


class Call(NamedTuple):
    """One call of a layer: its name, the first of its positional arguments (None without any), its output."""

    name: str
    given: Any
    output: Any


def uncompiled(model: nn.Module) -> nn.Module:
    """The network inside of what ``torch.compile`` returned; any other model as it is.

    Compiled code takes no notice of hooks that are put on layers after its first run: whoever looks into a network, or
    changes its states, calls the network itself.

    >>> net = nn.Linear(2, 2)
    >>> uncompiled(torch.compile(net)) is uncompiled(net) is net
    True
    """
    while isinstance(inner := getattr(model, _WRAPPED, None), nn.Module):
        model = inner
    return model


def is_compiled(model: nn.Module) -> bool:
    """Whether ``model`` runs other code than its layers': of torch.compile, .compile(), TorchScript or torch.export."""
    in_place = getattr(model, "_compiled_call_impl", None) is not None
    exported = isinstance(model, torch.fx.GraphModule) and "train" in vars(model)  # torch.export puts one that refuses
    return in_place or exported or hasattr(model, _WRAPPED) or isinstance(model, torch.jit.ScriptModule)


def check_hooks(model: nn.Module, layer: str = "") -> None:
    """ValueError where hooks on ``layer`` of an :func:`uncompiled` model would not be run, as in compiled code."""
    known, parts = dict(model.named_modules(remove_duplicate=False)), layer.split(".") if layer else []
    for name in (".".join(parts[:depth]) for depth in range(len(parts) + 1)):
        if name in known and is_compiled(known[name]):
            what = f"layer {name!r}" if name else f"this {type(known[name]).__name__}"
            raise ValueError(
                f"{what} is compiled, scripted or exported, and takes no notice of hooks on its layers: give the "
                "network as it was before (a copy.deepcopy of it undoes .compile())"
            )


def find_layer(model: nn.Module, layer: str) -> str:
    """The name in the :func:`uncompiled` network of the layer called so there, or in what was compiled.

    Raises:
        TypeError: ``layer`` is no string.
        ValueError: there is none, with the nearest names, or hooks on it would not be run.

    >>> find_layer(nn.Sequential(nn.Linear(2, 2)), "_orig_mod.0")
    '0'
    """
    if not isinstance(layer, str):
        raise TypeError(f"layer must be the name of a layer, a string, got {layer!r}")
    model, name = uncompiled(model), layer
    check_hooks(model)
    known = dict(model.named_modules(remove_duplicate=False))
    while name not in known and name.startswith(f"{_WRAPPED}."):
        name = name.removeprefix(f"{_WRAPPED}.")
    if not name or name not in known:
        known.pop("")
        raise ValueError(f"the model has no layer {layer!r}; {nearest(name, known)}")
    check_hooks(model, name)
    return name


@contextmanager
def watching(modules: Mapping[str, nn.Module]) -> Iterator[list[Call]]:
    """The calls of ``modules``, in the order in which they end, of the forward passes inside."""
    calls: list[Call] = []

    def watcher(name: str) -> Any:
        return lambda _, given, output: calls.append(Call(name, given[0] if given else None, output))

    handles = [module.register_forward_hook(watcher(name)) for name, module in modules.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def first_tensor(output: Any) -> Tensor | None:
    """The output itself, or the first item of a tuple or list, if it is a tensor.

    A nested one, in which ``nn.TransformerEncoder`` leaves out padding, is filled up with zeros.
    """
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        return None
    return output.to_padded_tensor(0.0) if output.is_nested else output


def logits_call(calls: Sequence[Call], output: object) -> Call | None:
    """The last of ``calls`` whose output is the logits in the model's ``output``; None where no layer gives them.

    The layer that is called last need not be the one: a gate's may be.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> with watching({"0": net[0], "2": net[2]}) as calls:
    ...     output = net(torch.ones(1, 3))
    >>> logits_call(calls, output).name
    '2'
    """
    logits = output_tensor(output)
    for call in reversed(calls):
        out = call.output
        if isinstance(out, Tensor) and not out.is_nested and out.shape == logits.shape and torch.equal(out, logits):
            return call
    return None


def features_last(calls: Sequence[Call], modules: Mapping[str, nn.Module], name: str) -> bool:
    """Whether features are the last dimension of the states of layer ``name``, and not the second.

    States (N, D), (N, T, D) and (N, H, W, C) against (N, C, L) and (N, C, H, W): the layer whose features they are, the
    last one called up to the layer's own first output, tells sequences from those of 1-D convolutions, and maps from
    those with channels last. Where the state has other sizes than that (it was transposed, say), it is a sequence or a
    map with channels second.

    Args:
        calls: of one pass, of all of ``modules``.
    """
    features, second, one_dimensional = 0, False, False
    for call in calls:
        module = modules.get(call.name)
        if (found := _features(module)) is not None:
            features, second = found
            one_dimensional = isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.BatchNorm1d | nn.InstanceNorm1d)
        if call.name == name:
            state = first_tensor(call.output)
            if state is None or state.ndim not in (3, 4):
                return True
            there, here = state.shape[1] == features, state.shape[-1] == features
            if state.ndim == 4:
                return not second and here and not there
            return not (second and there and (one_dimensional or not here))
    return True


def _features(module: nn.Module | None) -> tuple[int, bool] | None:
    """How many features a layer gives, and whether they are the second dimension; None for one without any."""
    if isinstance(module, nn.Linear):
        return module.out_features, False
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1], False
    if isinstance(module, nn.Embedding):
        return module.embedding_dim, False
    if isinstance(module, nn.MultiheadAttention):
        return module.embed_dim, False
    if isinstance(module, nn.RNNBase):
        return (module.proj_size or module.hidden_size) * (1 + module.bidirectional), False
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.out_channels, True
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return module.num_features, True
    if isinstance(module, nn.GroupNorm):
        return module.num_channels, True
    return None
