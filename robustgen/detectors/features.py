"""What a classifier makes of an input at one of its layers: one forward pass for the features and the output."""

from typing import Any

from torch import Tensor, nn

from robustgen.checks import nearest
from robustgen.model import output_tensor

__all__ = ["FeatureExtractor"]


class FeatureExtractor:
    """Features of a classifier, seen by a hook that is there for the length of a call.

    Args:
        model: the classifier.
        layer: name of the layer whose output the features are (see ``model.named_modules()``); None: the input of the
            ``nn.Linear`` that is called last.

    Raises:
        ValueError: no layer of that name, or no ``nn.Linear``.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> x = torch.randn(4, 2)
    >>> features, logits = FeatureExtractor(net)(x)
    >>> bool((features == net[:2](x)).all()), bool((logits == net(x)).all())
    (True, True)
    """

    def __init__(self, model: nn.Module, layer: str | None = None) -> None:
        modules = dict(model.named_modules())
        if layer is not None and layer not in modules:
            raise ValueError(f"the model has no layer {layer!r}; {nearest(layer, modules)}")
        self._model, self._layer = model, None if layer is None else modules[layer]
        self._linears = [m for m in modules.values() if isinstance(m, nn.Linear)]
        if layer is None and not self._linears:
            raise ValueError(f"{type(model).__name__} has no nn.Linear: name the layer of the features, layer=")

    def __call__(self, x: Tensor) -> tuple[Tensor, Any]:
        """Features (N, D) of x, maps (N, D, H, W) averaged over space, and the classifier's output.

        Raises:
            ValueError: features of another shape, or a layer that is not called.
        """
        seen: list[Tensor] = []
        if self._layer is None:
            hooks = [m.register_forward_pre_hook(lambda _, args: seen.append(_pooled(args[0]))) for m in self._linears]
        else:
            hooks = [
                self._layer.register_forward_hook(lambda _, __, output: seen.append(_pooled(output_tensor(output))))
            ]
        try:
            output = self._model(x)
        finally:
            for hook in hooks:
                hook.remove()
        if not seen:
            raise ValueError("the layer of the features is not called by the model: name another, layer=")
        return seen[-1], output


def _pooled(state: Tensor) -> Tensor:
    if state.ndim == 4:
        return state.mean((2, 3))
    if state.ndim != 2:
        raise ValueError(f"features must be (N, D) or maps (N, D, H, W), got {tuple(state.shape)}: name another layer=")
    return state.clone()  # an activation that works in place may follow
