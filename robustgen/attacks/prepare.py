"""A copy of a model that gives the same logits faster, for searches.

Batch norm in eval mode is an affine map of each channel; behind a convolution or a linear layer it is folded into its
weights (Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam and Kalenichenko, "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference", 2018, equation 14). Which layer is in front of which batch norm is
seen from the tensors that they pass on in one forward, so the model need not be traced and hooks stay where they are.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from robustgen.layers import is_compiled
from robustgen.model import Model, logits_of

__all__ = ["TOLERANCE", "Prepared", "prepare"]

TOLERANCE = 1e-4  # by which logits of the copy may differ, in units of the largest logit or of 1 if that is less


@dataclass(frozen=True)
class Prepared:
    """A model to search on, and what was done to it.

    Attributes:
        model: x -> logits; the original itself where nothing could be done.
        steps: what was done, for the record: "folded 20 batch norms", "channels_last", "bfloat16", or why nothing was.
    """

    model: Model
    steps: tuple[str, ...]


def prepare(model: Model, x: Tensor, *, precision: str = "float32") -> Prepared:
    """Fold batch norms into the layers before them, set convolutions' layout to channels-last; in eval mode, frozen.

    The copy is used only where its logits at ``x`` (n, ...) agree with the model's to :data:`TOLERANCE` (before
    bfloat16, if asked for). A layer with a hook of its own, one that is called more than once, one whose output goes
    elsewhere too (found by trying each where the whole does not agree), and a batch norm in train mode or without
    running statistics are left as they are. The layout is that of models with something folded or several convolutions.
    Where neither is to be done the model is left whole; a plain function and a compiled network always.

    Call it where the model is in eval mode with its parameters frozen.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 2)).eval()
    >>> with torch.no_grad():
    ...     found = prepare(net, torch.rand(2, 1, 5, 5))
    >>> found.steps
    ('folded 1 batch norm', 'channels_last')
    """
    if not isinstance(model, nn.Module):
        return Prepared(model, ("none: not an nn.Module",))
    folded = _folded(model, x)
    done = folded.steps if folded.model is not model else ()
    if precision == "bfloat16":
        return Prepared(_Autocast(folded.model, x.device.type), (*done, "bfloat16"))
    return folded


def _folded(model: nn.Module, x: Tensor) -> Prepared:
    if is_compiled(model):  # it takes no notice of hooks, and is fast already
        return Prepared(model, ("none: compiled",))
    try:
        pairs, own = _pairs(model, x)
        convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
        relay = x.ndim == 4 and convolutions > (0 if pairs else 1)
        if not pairs and not relay:
            return Prepared(model, ("none: no batch norm to fold, no convolutions",))
        changed = _changed(model, pairs, relay, x, own)
        if changed is None and len(pairs) > 1:  # the outputs of some go elsewhere too, around a block for instance
            pairs = [pair for pair in pairs if _changed(model, [pair], False, x, own) is not None]
            changed = _changed(model, pairs, relay, x, own) if pairs or relay else None
    except Exception as error:  # whatever a model of the user's raises when it is copied: then it is searched as it is
        return Prepared(model, (f"none: {type(error).__name__} on copying",))
    if changed is None:
        return Prepared(model, ("none: the copy gives other logits",))
    folded = (f"folded {len(pairs)} batch norm{'s' if len(pairs) > 1 else ''}",) if pairs else ()
    return Prepared(changed, (*folded, *(("channels_last",) if relay else ())))


def _changed(model: nn.Module, pairs: list[tuple[str, str]], relay: bool, x: Tensor, own: Tensor) -> nn.Module | None:
    """A frozen copy with ``pairs`` folded, with ``relay`` channels-last; None if its logits at x are not ``own``."""
    changed = copy.deepcopy(model)
    for layer, norm in pairs:
        _fold(changed, layer, norm)
    if relay:
        changed = changed.to(memory_format=torch.channels_last)
    changed.requires_grad_(False)
    with torch.no_grad():
        found = logits_of(changed(x))
    scale = own.abs().max().clamp(min=1)
    return changed if bool(((found - own).abs() <= TOLERANCE * scale).all()) else None


class _Autocast:
    """The model under autocast; inputs and logits are float32, so that the points it is asked about are exact."""

    def __init__(self, model: Model, device: str) -> None:
        self.model, self.device = model, device

    def __call__(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device, dtype=torch.bfloat16):
            return logits_of(self.model(x)).float()


def _pairs(model: nn.Module, x: Tensor) -> tuple[list[tuple[str, str]], Tensor]:
    """Names of (layer, batch norm that takes its output), and the logits, from one forward at ``x`` (n, ...)."""
    made: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept, so that no id is used twice
    calls: dict[str, int] = {}
    found: list[tuple[str, str]] = []
    shared = _shared_tensors(model)

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(module, nn.Conv2d | nn.Linear):
                made[id(output)] = (name, output)
            elif args and id(args[0]) in made:
                found.append((made[id(args[0])][0], name))

        return hook

    eligible = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if _foldable(module) and not any(id(p) in shared for p in module.parameters())
    }
    handles = [module.register_forward_hook(watch(name)) for name, module in eligible.items()]
    try:
        with torch.no_grad():
            logits = logits_of(model(x))
    finally:
        for handle in handles:
            handle.remove()
    fits = {"Conv2d": nn.BatchNorm2d, "Linear": nn.BatchNorm1d}
    pairs = [
        (layer, norm)
        for layer, norm in found
        if calls[layer] == calls[norm] == 1 and isinstance(eligible[norm], fits[type(eligible[layer]).__name__])
    ]
    return pairs, logits


def _shared_tensors(model: nn.Module) -> set[int]:
    """Parameters that more than one module, or one module under two names, holds."""
    seen: set[int] = set()
    shared: set[int] = set()
    for _, module in model.named_modules(remove_duplicate=False):
        for p in module.parameters(recurse=False):
            (shared if id(p) in seen else seen).add(id(p))
    return shared


def _foldable(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(hooks):
        return False
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
        return not module.training and module.running_mean is not None
    return type(module) in (nn.Conv2d, nn.Linear) and not hasattr(module, "parametrizations")


def _fold(model: nn.Module, layer: str, norm: str) -> None:
    before, after = model.get_submodule(layer), model.get_submodule(norm)
    fuse = fuse_conv_bn_weights if isinstance(before, nn.Conv2d) else fuse_linear_bn_weights
    before.weight, before.bias = fuse(
        before.weight, before.bias, after.running_mean, after.running_var, after.eps, after.weight, after.bias
    )
    owner, _, name = norm.rpartition(".")
    setattr(model.get_submodule(owner), name, nn.Identity())
