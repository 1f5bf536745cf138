"""Reconstruction errors of a fortified recurrent layer at every time step, on given sequences and on generated ones.

Lamb, "Generative Models: A Critical Review", 2018, section 2.7.1 and table 2.7: the error of a language model that
runs freely over its error under teacher forcing tells how far its states have drifted from those it was trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustgen.checks import check_ids, check_positive, nearest
from robustgen.counter_rng import uniform
from robustgen.fortified.layer import FortifiedLayer, Tape, recording
from robustgen.fortified.network import FortifiedNetwork
from robustgen.model import output_tensor, untouched

__all__ = ["FreeRun", "free_run", "recurrent_layer", "step_errors", "traced"]


def step_errors(
    net: FortifiedNetwork, *inputs: Any, layer: str | None = None, relative: bool = False, seed: int = 0
) -> Tensor:
    """Mean squared reconstruction error for each example and time step, teacher-forced: float64 (N, T).

    The network reads ``inputs`` (tokens (N, T), say) in one call of its backbone, in eval mode and without gradient;
    it is left as it was.

    Args:
        net: a fortified network with a fortified nn.LSTM, nn.GRU or nn.RNN (batch or sequence first), or a cell that
            its backbone calls once a step.
        layer: which of ``net.layers``; may be None where there is only one.
        relative: divide by the mean square of the state at that step.
        seed: of the noise, for a network with ``noise_at_test``.

    Raises:
        TypeError: net is no fortified network.
        ValueError: an unknown layer, none named where there are several, one that reads the future (bidirectional), or
            whose states have no time steps.

    >>> from robustgen.fortified import fortify
    >>> from robustgen.recurrent_networks import CharLM
    >>> tokens = torch.zeros(2, 5, dtype=torch.int64)
    >>> net = fortify(CharLM("lstm", units=8), ["rnn"], example_input=tokens)
    >>> step_errors(net, tokens).shape
    torch.Size([2, 5])
    """
    watched = recurrent_layer(net, layer)
    with untouched(net, seed), torch.no_grad():
        return traced(net, watched, inputs, relative)[1]


def recurrent_layer(net: FortifiedNetwork, layer: str | None) -> FortifiedLayer:
    """The fortified layer called ``layer`` (None: the only one); raises as :func:`step_errors` does."""
    if not isinstance(net, FortifiedNetwork):
        raise TypeError(f"a FortifiedNetwork is needed (see fortify), got {type(net).__name__}")
    known = {found.name: found for found in net.fortified_layers if found.autoencoder is not None}
    if not known:
        raise ValueError("the network has no fortified hidden layer, only an autoencoder on its input")
    if layer is None and len(known) > 1:
        raise ValueError(f"the network has several fortified layers, name one: {', '.join(map(repr, known))}")
    name = next(iter(known)) if layer is None else layer
    if name not in known:
        raise ValueError(f"unknown layer {name!r}; {nearest(name, known)}")
    if getattr(net.backbone.get_submodule(name), "bidirectional", False):
        raise ValueError(f"layer {name!r} is bidirectional: its state at a step depends on the steps to come")
    return known[name]


def traced(net: FortifiedNetwork, layer: FortifiedLayer, inputs: Sequence[Any], relative: bool) -> tuple[Any, Tensor]:
    """What the backbone returns for ``inputs``, and the errors of ``layer``, float64 (N, T), T steps in this call."""
    tape = Tape()
    token = recording.set(tape)
    try:
        output = net.backbone(*inputs)
    finally:
        recording.reset(token)
    calls = [_errors(layer, state, decoded, relative) for own, state, decoded in tape.entries if own is layer]
    if not calls:
        raise ValueError(f"the network did not call {layer.name!r} on this input")
    return output, torch.cat(calls, dim=1)


def _errors(layer: FortifiedLayer, state: Tensor, decoded: Tensor, relative: bool) -> Tensor:
    """Errors of one call, (N, t): t steps of a recurrent layer (N, t, D) or (t, N, D), one of a cell (N, D)."""
    if state.ndim not in (2, 3):
        raise ValueError(f"layer {layer.name!r} gives states of shape {tuple(state.shape)}, without time steps")
    state, decoded = state.double(), decoded.double()
    error = (decoded - state).square().mean(-1)
    if relative:
        error = error / state.square().mean(-1).clamp(min=1e-12)
    return error[:, None] if error.ndim == 1 else error.movedim(layer.batch_dim, 0)


@dataclass(frozen=True, eq=False)
class FreeRun:
    """What a language model wrote and how well its states were reconstructed meanwhile.

    Attributes:
        tokens: int64 (N, n_steps), the model's own symbols.
        errors: float64 (N, n_steps), the error of the state after reading each of them.
    """

    tokens: Tensor
    errors: Tensor


def free_run(
    net: FortifiedNetwork,
    prompt: Tensor,
    n_steps: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    ids: Tensor | None = None,
    layer: str | None = None,
    relative: bool = False,
) -> FreeRun:
    """Let a fortified language model go on from a prompt by its own samples.

    Random numbers are keyed by (seed, id, step): what a row draws does not depend on the batch. The network is in eval
    mode, without gradient, and is left as it was. The errors on true text to compare with are those of
    ``step_errors(net, text)[:, P:]``.

    Args:
        net: its backbone maps (tokens, state) to (logits (N, T, C), state), as
            :class:`~robustgen.recurrent_networks.CharLM` does.
        prompt: int64 (N, P), P >= 1, read from the initial state.
        n_steps: symbols to write, at least 1.
        temperature: the logits are divided by it, > 0.
        seed: of the samples, and of the noise of a network with ``noise_at_test`` (which is drawn for the batch).
        ids: int64 (N,), what the draws are keyed by; default ``arange(N)``.
        layer, relative: as of :func:`step_errors`.

    Raises:
        TypeError: prompt is not int64, or the backbone does not return (logits, state).
        ValueError: n_steps or temperature out of range, a prompt that is not (N, P), NaN logits, or as
            :func:`step_errors`.

    >>> from robustgen.fortified import fortify
    >>> from robustgen.recurrent_networks import CharLM
    >>> prompt = torch.zeros(2, 5, dtype=torch.int64)
    >>> run = free_run(fortify(CharLM("gru", units=8), ["rnn"], example_input=prompt), prompt, 3)
    >>> run.tokens.shape, run.errors.shape
    (torch.Size([2, 3]), torch.Size([2, 3]))
    """
    watched = recurrent_layer(net, layer)
    if not isinstance(prompt, Tensor) or prompt.dtype != torch.int64:
        raise TypeError("prompt must be an int64 tensor (N, P) of symbols")
    if prompt.ndim != 2 or not prompt.shape[1]:
        raise ValueError(f"prompt must be (N, P) with P >= 1, got shape {tuple(prompt.shape)}")
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps}")
    check_positive(temperature=temperature)
    ids = check_ids(ids, len(prompt), prompt.device)
    tokens, errors = [], []
    with untouched(net, seed), torch.no_grad():
        logits, state = _language_model(traced(net, watched, (prompt,), relative)[0])
        for step in range(n_steps):
            tokens.append(_sample(logits[:, -1], temperature, uniform(seed, ids, (1,), (step,), torch.float64)))
            output, error = traced(net, watched, (tokens[-1], state), relative)
            logits, state = _language_model(output)
            errors.append(error)
    return FreeRun(torch.cat(tokens, dim=1), torch.cat(errors, dim=1))


def _language_model(output: Any) -> tuple[Tensor, Any]:
    if not isinstance(output, tuple | list) or len(output) != 2:
        raise TypeError(f"the backbone must return (logits, state), got {type(output).__name__}")
    logits = output_tensor(output)
    if logits.ndim != 3:
        raise ValueError(f"the backbone must return logits (N, T, C), got shape {tuple(logits.shape)}")
    return logits, output[1]


def _sample(logits: Tensor, temperature: float, u: Tensor) -> Tensor:
    """Symbols (N, 1) by inversion: the first whose cumulative probability exceeds ``u`` (N, 1)."""
    if not bool(logits.isfinite().all()):
        raise ValueError("the language model returns NaN or Inf logits")
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
    below = (cumulative <= u * cumulative[:, -1:]).sum(-1, keepdim=True)
    return below.clamp(max=logits.shape[1] - 1)  # rounding must not lead past the last symbol
