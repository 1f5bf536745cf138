"""Attacks on networks that read symbols: the network seen as a function of its embedded inputs.

Perturbing word embeddings instead of words: Miyato, Dai and Goodfellow, "Adversarial Training Methods for
Semi-Supervised Text Classification", 2017, section 3.
"""

from typing import Any

import torch
from torch import Tensor, nn

from robustgen.checks import nearest

__all__ = ["EmbeddedInput"]


class EmbeddedInput(nn.Module):
    """A view of a model with an ``nn.Embedding`` that takes embedded sequences (N, T, E) instead of tokens (N, T).

    Any attack then runs in the embedding space, which is larger than the set of texts: what it finds need not be a
    text. ``PGD(eps=0.5, norm="L2", bounds=(-5, 5))(view, view.embed(tokens), y)``.

    The embedding's output is replaced by the input through a hook that is there during a call only; the model itself
    is shared, not copied. The model is called with placeholder tokens: it must use its tokens through this
    embedding alone (no masks made from them), each in its place.

    Args:
        model: tokens (N, T) int64 -> logits (N, C), a fortified network for instance.
        layer: name of the embedding as in ``model.named_modules()``; the ``backbone.`` of a fortified network may be
            left out.

    Raises:
        TypeError: model is not an nn.Module, or the layer is not an nn.Embedding.
        ValueError: no such layer; at the call, an input that is not (N, T, E), a model that does not call the embedding
            or calls it with other tokens than it was given.

    >>> from robustgen.recurrent_networks import TextClassifier
    >>> model = TextClassifier("lstm", units=8, n_classes=3).eval()
    >>> tokens, view = torch.tensor([[1, 2, 3], [4, 5, 6]]), EmbeddedInput(model)
    >>> view.embed(tokens).shape, torch.equal(view(view.embed(tokens)), model(tokens))
    (torch.Size([2, 3, 27]), True)
    """

    def __init__(self, model: nn.Module, layer: str = "embedding") -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"EmbeddedInput needs an nn.Module, got {type(model).__name__}")
        known = {name: module for name, module in model.named_modules() if name}
        name = layer if layer in known else f"backbone.{layer}"
        if name not in known:
            raise ValueError(f"the model has no layer {layer!r}; {nearest(layer, known)}")
        if not isinstance(known[name], nn.Embedding):
            raise TypeError(f"layer {name!r} is not an nn.Embedding but {type(known[name]).__name__}")
        self.model, self.layer = model, name
        self.training = model.training  # each submodule of the model keeps its own flag

    @property
    def embedding(self) -> nn.Embedding:
        """The embedding whose output the inputs stand for."""
        module = self.model.get_submodule(self.layer)
        assert isinstance(module, nn.Embedding)
        return module

    def embed(self, tokens: Tensor) -> Tensor:
        """The embedded sequences (N, T, E) of ``tokens`` (N, T) int64, without gradient."""
        with torch.no_grad():
            return self.embedding.forward(tokens)  # past any hook: a fortified embedding decodes what it is given

    def forward(self, e: Tensor) -> Any:
        """What the model returns for embedded sequences ``e`` (N, T, E)."""
        embedding = self.embedding
        if e.ndim != 3 or e.shape[2] != embedding.embedding_dim:
            raise ValueError(f"embedded input must be (N, T, {embedding.embedding_dim}), got shape {tuple(e.shape)}")
        # not all the same, so that a model which transposes its tokens is found out
        tokens = (torch.arange(e.shape[0] * e.shape[1], device=e.device) % embedding.num_embeddings).view(e.shape[:2])
        called = []

        def replace(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            called.append(True)
            if not args or not torch.equal(args[0], tokens):
                raise ValueError(f"the model does not hand its tokens (N, T) to {self.layer!r} as they are")
            return e

        handle = embedding.register_forward_hook(replace, prepend=True)  # before a fortified layer's own hook
        try:
            output = self.model(tokens)
        finally:
            handle.remove()
        if not called:
            raise ValueError(f"the model did not call {self.layer!r}, so its output does not depend on the input")
        return output
