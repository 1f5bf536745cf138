"""Small recurrent networks on symbols (N, T): a language model and a classifier of sequences."""

from typing import Any

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers, nearest

__all__ = ["CharLM", "TextClassifier"]

_LAYERS: dict[str, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
_CELLS: dict[str, type[nn.RNNCellBase]] = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}


class CharLM(nn.Module):
    """A one-layer character language model: tokens (N, T) -> (logits (N, T, C), state), logits[:, t] for symbol t + 1.

    Its modules are ``embedding``, ``rnn`` and ``out``; fortify ``rnn``. With ``stepwise`` it is a cell called once a
    step, whose output is both read out and fed back: fortified, the decoded state goes into the next step too. Without
    it, the decoded states are read out and the recurrence keeps its own. The two readings are those of Lamb,
    "Generative Models: A Critical Review", 2018, section 2.7.1 and table 2.7 (an LSTM of 1000 units on Text8).

    Args:
        rnn: "lstm", "gru" or "rnn" (tanh).
        units: of the hidden state.
        n_symbols: C, the size of the alphabet.
        embedding: width of the embedding; None means C, as wide as a one-hot code.
        stepwise: an nn.LSTMCell (GRUCell, RNNCell) in a loop instead of an nn.LSTM (GRU, RNN).

    Raises:
        ValueError: an unknown ``rnn``, a number below 1; at the call, tokens that are not (N, T) with T >= 1.
        TypeError: at the call, tokens that are not int64.

    >>> lm = CharLM("gru", units=8)
    >>> logits, state = lm(torch.zeros(2, 5, dtype=torch.int64))
    >>> logits.shape, lm(torch.zeros(2, 1, dtype=torch.int64), state)[0].shape
    (torch.Size([2, 5, 27]), torch.Size([2, 1, 27]))
    """

    def __init__(
        self,
        rnn: str = "lstm",
        units: int = 1000,
        n_symbols: int = 27,
        embedding: int | None = None,
        stepwise: bool = False,
    ) -> None:
        super().__init__()
        width = n_symbols if embedding is None else embedding
        check_integers(units=units, n_symbols=n_symbols, embedding=width)
        self.stepwise = stepwise
        self.embedding = nn.Embedding(n_symbols, width)
        self.rnn = _kind(_CELLS, rnn)(width, units) if stepwise else _kind(_LAYERS, rnn)(width, units, batch_first=True)
        self.out = nn.Linear(units, n_symbols)

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits (N, T, C) after each of ``tokens`` (N, T) int64, and the state to go on from (None: the start)."""
        embedded = self.embedding(_checked(tokens))
        if not self.stepwise:
            h, state = self.rnn(embedded, state)
            return self.out(h), state
        outputs = []
        for x in embedded.unbind(1):
            state = self.rnn(x, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return self.out(torch.stack(outputs, dim=1)), state


class TextClassifier(nn.Module):
    """Classifies sequences: tokens (N, T) -> logits (N, n_classes), read from the output of the last step.

    From the output and not from the final state, so that a fortified ``rnn`` acts on the decision. Sequences of one
    batch are equally long: there is no padding symbol.

    Args:
        rnn, units, n_symbols, embedding: as of :class:`CharLM`.
        n_classes: of the classifier.

    Raises:
        TypeError, ValueError: as :class:`CharLM` does.

    >>> TextClassifier("lstm", units=8, n_classes=3)(torch.zeros(2, 5, dtype=torch.int64)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        rnn: str = "lstm",
        units: int = 128,
        n_symbols: int = 27,
        n_classes: int = 2,
        embedding: int | None = None,
    ) -> None:
        super().__init__()
        width = n_symbols if embedding is None else embedding
        check_integers(units=units, n_symbols=n_symbols, embedding=width)
        self.embedding = nn.Embedding(n_symbols, width)
        self.rnn = _kind(_LAYERS, rnn)(width, units, batch_first=True)
        self.out = nn.Linear(units, n_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        h, _ = self.rnn(self.embedding(_checked(tokens)))
        return self.out(h[:, -1])


def _kind(known: dict[str, Any], name: str) -> Any:
    if str(name) not in known:
        raise ValueError(f"unknown recurrent layer {name!r}; {nearest(str(name), known)}")
    return known[name]


def _checked(tokens: Tensor) -> Tensor:
    if tokens.dtype != torch.int64:
        raise TypeError(f"tokens must be int64, got {tokens.dtype}")
    if tokens.ndim != 2 or not tokens.shape[1]:
        raise ValueError(f"tokens must be (N, T) with T >= 1, got shape {tuple(tokens.shape)}")
    return tokens
