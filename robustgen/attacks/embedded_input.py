"""Attacks on networks that read symbols: the network seen as a function of its embedded inputs.

Perturbing word embeddings instead of words: Miyato, Dai and Goodfellow, "Adversarial Training Methods for
Semi-Supervised Text Classification", 2017, section 3.
"""

from typing import Any

import torch
from torch import Tensor, nn

from robustgen.layers import find_layer, uncompiled
from robustgen.model import output_tensor, untouched
from robustgen.turns import taking_turns

__all__ = ["EmbeddedInput"]


class EmbeddedInput(nn.Module):
    """A view of a model with an ``nn.Embedding`` that takes embedded sequences (N, T, E) instead of tokens (N, T).

    Any attack then runs in the embedding space, which is larger than the set of texts: what it finds need not be a
    text. ``PGD(eps=0.5, norm="L2", bounds=(-5, 5))(view, view.embed(tokens), y)``.

    The embedding's output is replaced by the input through a hook that is there during a call only; the model itself
    is shared, not copied. The model is called with placeholder tokens: it must use its tokens through this
    embedding alone, each in its place. One that makes a mask of them, or finds the last one by its symbol, is found out
    in the first call, by other placeholders, and refused. Of what ``torch.compile`` made, the network inside is called.

    Args:
        model: tokens (N, T) int64 -> logits (N, C), a fortified network for instance.
        layer: name of the embedding as in ``model.named_modules()``; the ``backbone.`` of a fortified network may be
            left out.

    Raises:
        TypeError: model is not an nn.Module, or the layer is not an nn.Embedding.
        ValueError: no such layer, or one inside a compiled part; at the call, an input that is not (N, T, E), a model
            that does not call the embedding, calls it with other tokens than it was given, or reads them otherwise.

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
        self.model = uncompiled(model)
        in_backbone = f"backbone.{layer}"
        within = in_backbone in dict(self.model.named_modules()) and not hasattr(self.model, layer.split(".")[0])
        self.layer = find_layer(self.model, in_backbone if within else layer)
        if not isinstance(found := self.model.get_submodule(self.layer), nn.Embedding):
            raise TypeError(f"layer {self.layer!r} is not an nn.Embedding but {type(found).__name__}")
        self._tokens_checked = False  # not known yet
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
        if len(e) and not self._tokens_checked:
            self._check_tokens(e[:2].detach())
            self._tokens_checked = True
        return self._given(self._placeholders(e), e)

    def _placeholders(self, e: Tensor) -> Tensor:
        """Tokens (N, T), not all the same, so that a model which transposes them is found out."""
        return (torch.arange(e.shape[0] * e.shape[1], device=e.device) % self.embedding.num_embeddings).view(
            e.shape[:2]
        )

    def _check_tokens(self, e: Tensor) -> None:
        """Raise where the output for ``e`` (N, T, E) depends on the tokens: a mask of padding, a mark of the end."""

        def answer(tokens: Tensor) -> Tensor:
            with untouched(self.model), torch.no_grad():
                return output_tensor(self._given(tokens, e))

        last, padding = self.embedding.num_embeddings - 1, self.embedding.padding_idx
        expected = answer(self._placeholders(e))
        for symbol in sorted({0, min(1, last), last, last if padding is None else padding}):
            tokens = self._placeholders(e)
            tokens[:, e.shape[1] // 2 :] = symbol  # as if it filled up a short sequence
            try:
                same = torch.allclose(answer(tokens), expected, rtol=1e-4, atol=1e-5)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, IndexError):  # of a sequence that is empty then
                same = False
            if not same:
                raise ValueError(
                    f"the model reads its tokens otherwise than through {self.layer!r}, such as for a mask of padding: "
                    "its output is no function of the embedded input alone; fix the mask in a wrapper around the model"
                )

    def _given(self, tokens: Tensor, e: Tensor) -> Any:
        """What the model returns for ``tokens`` (N, T) with ``e`` (N, T, E) in place of their embedding."""
        embedding, called = self.embedding, []

        def replace(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            called.append(True)
            if not args or not torch.equal(args[0], tokens):
                raise ValueError(f"the model does not hand its tokens (N, T) to {self.layer!r} as they are")
            return e

        with taking_turns(self.model):
            handle = embedding.register_forward_hook(replace, prepend=True)  # before a fortified layer's own hook
            try:
                output = self.model(tokens)
            finally:
                handle.remove()
        if not called:
            raise ValueError(f"the model did not call {self.layer!r}, so its output does not depend on the input")
        return output
