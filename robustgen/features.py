"""What a classifier makes of an input at one of its layers: one forward pass for the features and the output."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustgen.inputs import Inputs, call_model, count, mask_of, mean_over_positions, rows
from robustgen.layers import (
    Call,
    check_hooks,
    features_last,
    find_layer,
    first_tensor,
    logits_call,
    uncompiled,
    watching,
)
from robustgen.model import output_tensor

__all__ = ["FeatureExtractor"]


class FeatureExtractor:
    """Features of a classifier, seen by a hook that is there for the length of a call.

    Without a ``layer`` they are the input of the ``nn.Linear`` whose output is the logits, whichever is called last.
    Where no layer's output is the logits (scaled ones, log-probabilities), they are that of the last ``nn.Linear`` on
    vectors with an output of the logits' shape, or else on vectors, or else of the last one.

    Features of several places are averaged over all of them: maps (N, C, H, W), sequences (N, T, D) of tokens and
    (N, C, L) of 1-D convolutions. Where a network reads its class from one token, as transformers do, the input of its
    last layer is that token by itself. Which dimension holds what is found once, in the first call. Inputs that are a
    dict with an ``attention_mask`` (N, T) have sequences averaged over the positions that count, of which there must be
    T: see :mod:`robustgen.inputs`.

    Args:
        model: the classifier; of what ``torch.compile`` made, the network inside is called.
        layer: name of the layer whose output the features are (see ``model.named_modules()``); None: as said above.

    Raises:
        ValueError: no layer of that name, one inside a part that is compiled or scripted by itself, or no
            ``nn.Linear``.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> x = torch.randn(4, 2)
    >>> features, logits = FeatureExtractor(net)(x)
    >>> bool((features == net[:2](x)).all()), bool((logits == net(x)).all())
    (True, True)
    """

    def __init__(self, model: nn.Module, layer: str | None = None) -> None:
        self._model = uncompiled(model)
        self._place: _Place | None = None
        self._layer = None if layer is None else find_layer(model, layer)
        if layer is None:
            check_hooks(self._model)
            if not any(isinstance(m, nn.Linear) for m in self._model.modules()):
                raise ValueError(
                    f"{type(self._model).__name__} has no nn.Linear: name the layer of the features, layer="
                )

    def __call__(self, x: Inputs) -> tuple[Tensor, Any]:
        """Features (N, D) of x and the classifier's output.

        Raises:
            ValueError: features of another shape than those named above, or a layer that is not called.
        """
        if self._place is None:
            self._place = self._find(x)
        place, seen = self._place, []
        mask = mask_of(x)

        def keep(state: object) -> None:
            seen.append(_pooled(first_tensor(state), place, mask))

        module = self._model.get_submodule(place.layer)
        if place.given:
            hook = module.register_forward_pre_hook(lambda _, args: keep(args[0]))
        else:
            hook = module.register_forward_hook(lambda _, __, output: keep(output))
        try:
            output = call_model(self._model, x)
        finally:
            hook.remove()
        if not seen:
            raise ValueError(_NOT_CALLED)
        return seen[-1], output

    def place(self, x: Inputs) -> tuple[str, bool]:
        """Name of the layer and whether its input is meant, not its output; found with x (N, ...) if not before."""
        if self._place is None:
            self._place = self._find(x)
        return self._place.layer, self._place.given

    @torch.no_grad()
    def _find(self, x: Inputs, n: int = 2) -> "_Place":
        """Where the features are, from a pass of ``n`` of the inputs x (N, ...)."""
        modules = dict(self._model.named_modules(remove_duplicate=False))
        with watching(modules) as calls:
            output = output_tensor(call_model(self._model, rows(x, torch.arange(n) % count(x))))
        if self._layer is None:
            call = _read_out([c for c in calls if isinstance(modules[c.name], nn.Linear)], output)
            state, last = (None if call is None else first_tensor(call.given)), True
        else:
            call = next((c for c in reversed(calls) if c.name == self._layer), None)
            state, last = (
                (None if call is None else first_tensor(call.output)),
                features_last(calls, modules, self._layer),
            )
        if call is None or state is None:
            raise ValueError(_NOT_CALLED)
        of_examples = [d for d in range(2 if state.ndim == 3 and last else 1) if state.shape[d] == n]
        if len(of_examples) == 2 and n == 2:  # two steps, or two examples
            return self._find(x, 3)
        if state.ndim not in (2, 3, 4) or not of_examples:
            raise ValueError(
                f"features must be (N, D), (N, T, D), (N, C, L) or (N, C, H, W), got {tuple(state.shape)} for {n} "
                "inputs: name another layer="
            )
        feature = state.ndim - 1 if last else 1
        over = tuple(d for d in range(state.ndim) if d not in (of_examples[0], feature))
        return _Place(call.name, self._layer is None, of_examples[0], over)


class _Place(NamedTuple):
    """The layer, whether features are its input, which dimension counts examples, and which are averaged over."""

    layer: str
    given: bool
    examples: int
    over: tuple[int, ...]


def _read_out(calls: list[Call], output: Tensor) -> Call | None:
    """Which of the calls of linear layers makes the logits, or comes nearest to it; None without any."""
    if (found := logits_call(calls, output)) is not None:
        return found
    on_vectors = [c for c in calls if isinstance(c.given, Tensor) and c.given.ndim == 2]
    alike = [c for c in on_vectors if c.output.shape == output.shape]
    return next((c[-1] for c in (alike, on_vectors, calls) if c), None)


def _pooled(state: Tensor | None, place: _Place, mask: Tensor | None) -> Tensor:
    if state is None or state.ndim != 2 + len(place.over):
        got = type(state).__name__ if state is None else tuple(state.shape)
        raise ValueError(f"features of {2 + len(place.over)} dimensions are needed, as in the first call; got {got}")
    state = state.to(torch.promote_types(state.dtype, torch.float32), copy=True)  # what follows may work in place
    if len(place.over) == 1:
        return mean_over_positions(state, mask, place.examples, place.over[0])
    return state.mean(place.over) if place.over else state


_NOT_CALLED = "the layer of the features is not called by the model: name another, layer="
