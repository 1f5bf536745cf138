"""Tells, while a recurrent network generates, when its states have left those it knows from real sequences.

The signal is that of Lamb, "Generative Models: A Critical Review", 2018, section 2.7.1. Its calibration is split
conformal (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005) with the running maximum as the
score, which makes one p-value hold at all steps at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustgen.calibration import ConformalCalibration
from robustgen.counter_rng import derive_seed
from robustgen.fortified.autoencoder import warn_of_identities
from robustgen.fortified.network import FortifiedNetwork
from robustgen.fortified.recurrent import recurrent_layer, traced
from robustgen.model import untouched

__all__ = ["Reading", "SequenceMonitor"]

_CALIBRATION, _STEP = 1, 2  # random streams


@dataclass(frozen=True, eq=False)
class Reading:
    """One step of the monitored sequences.

    Attributes:
        output: what the backbone returned, e.g. (logits, state).
        error: float64 (N,), reconstruction error of this step's state.
        p_value: float64 (N,), how unusual the sequence has been at its worst so far; it never rises. 1 until
            ``window`` steps have been seen.
        drift_step: int64 (N,), the first step (counted from 0 at the reset) with p_value <= fpr, -1 while there is
            none.
    """

    output: Any
    error: Tensor
    p_value: Tensor
    drift_step: Tensor


class SequenceMonitor:
    """Watches the reconstruction errors of a fortified recurrent layer, one time step a call.

    The statistic is the mean of the last ``window`` errors, and a sequence's score its largest value so far. A p-value
    ranks that score among the scores of the calibration sequences over their whole length T, the horizon. Hence
    P(a teacher-forced sequence is ever flagged within T steps) <= fpr, as an average over draws of the calibration set,
    where it is exchangeable with the calibration sequences: drawn from the same source in the same way, begun in the
    same initial state, and not used in training. Beyond the horizon nothing is promised, so that a step is refused.

    Only high errors count: text that a network finds easy, such as a loop of one word, lowers its errors and is not
    flagged. Autoencoders that were trained jointly with a small weight need not reconstruct and see little; train them
    with ``detach_states=True`` where the monitor matters.

    The network is called in eval mode and without gradient and is left as it was; a module's own buffers included, so
    that a recurrent state must be an input and an output of the backbone.

    Args:
        net: a fortified network with a fortified nn.LSTM, nn.GRU or nn.RNN (batch or sequence first), or a cell that
            its backbone calls once a step.
        calibration: teacher-forced sequences as the backbone takes them: tokens (n, T), or a tuple of tensors, its
            positional inputs; n counts along the first dimension.
        layer: which of ``net.layers``; may be None where there is only one.
        window: steps that the errors are averaged over; short ones react sooner, long ones see fainter drift.
        relative: errors relative to the mean square of the state.
        fpr: false-alarm rate of ``drift_step``; 1 / fpr - 1 calibration sequences are needed.
        batch_size: calibration sequences read at once.
        seed: of the noise of a network with ``noise_at_test``.

    Attributes:
        horizon: T.
        calibration: the :class:`~robustgen.calibration.ConformalCalibration` of the scores.

    Raises:
        TypeError: net is no fortified network, or calibration holds no tensors.
        ValueError: no such layer, sequences shorter than the window, too few for ``fpr``, NaN errors; at a step, more
            than one time step, another batch size than since the reset, or a step beyond the horizon.

    >>> from robustgen.fortified import fortify
    >>> from robustgen.recurrent_networks import CharLM
    >>> tokens = torch.randint(27, (20, 12), generator=torch.Generator().manual_seed(0))
    >>> net = fortify(CharLM("lstm", units=8), ["rnn"], example_input=tokens, init="random")
    >>> monitor, state = SequenceMonitor(net, tokens, window=4), None
    >>> for t in range(4):
    ...     reading = monitor.step(tokens[:2, t : t + 1], state)
    ...     logits, state = reading.output
    >>> reading.error.shape, reading.drift_step
    (torch.Size([2]), tensor([-1, -1]))
    """

    def __init__(
        self,
        net: FortifiedNetwork,
        calibration: Tensor | Sequence[Tensor],
        *,
        layer: str | None = None,
        window: int = 20,
        relative: bool = False,
        fpr: float = 0.05,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        for name, value in {"window": window, "batch_size": batch_size}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self._layer = recurrent_layer(net, layer)
        if self._layer.autoencoder is not None:
            warn_of_identities([self._layer.autoencoder])
        self.net, self.layer = net, self._layer.name
        self.window, self.relative, self.fpr, self.seed = window, relative, fpr, seed
        errors = self._calibration_errors(calibration, batch_size)
        self.horizon = errors.shape[1]
        if self.horizon < window:
            raise ValueError(f"calibration sequences of {self.horizon} steps are shorter than the window of {window}")
        means = _mean([errors[:, j : self.horizon - window + 1 + j] for j in range(window)])
        self.calibration = ConformalCalibration(means.amax(1))
        self.calibration.threshold(fpr)  # raises where fpr cannot be had from so few
        self._sequences = 0
        self.reset()

    def _calibration_errors(self, calibration: Tensor | Sequence[Tensor], batch_size: int) -> Tensor:
        inputs = (calibration,) if isinstance(calibration, Tensor) else tuple(calibration)
        if not all(isinstance(x, Tensor) for x in inputs):
            raise TypeError("calibration must be a tensor of sequences, or a tuple of tensors")
        if not inputs or not len(inputs[0]):
            raise ValueError("there are no calibration sequences")
        device = next(self.net.parameters()).device
        errors = []
        for k, parts in enumerate(zip(*(x.split(batch_size) for x in inputs), strict=True)):
            with untouched(self.net, derive_seed(self.seed, _CALIBRATION, k)), torch.no_grad():
                errors.append(traced(self.net, self._layer, [x.to(device) for x in parts], self.relative)[1])
            if len(errors[-1]) != len(parts[0]):
                raise ValueError(f"{len(parts[0])} calibration sequences gave errors for {len(errors[-1])} examples")
        return torch.cat(errors)

    def reset(self) -> None:
        """Begin new sequences: the next step is step 0."""
        self._sequences += 1
        self._step = 0
        self._last: list[Tensor] = []  # the last `window` errors, each (N,)
        self._score: Tensor | None = None
        self._drift: Tensor | None = None

    def step(self, *inputs: Any) -> Reading:
        """Run the backbone on ``inputs``, one time step of N sequences, and read the monitor; see :class:`Reading`."""
        if self._step >= self.horizon:
            raise ValueError(
                f"the monitor was calibrated on sequences of {self.horizon} steps: reset() it to begin a new sequence, "
                "or calibrate it on longer ones"
            )
        seed = derive_seed(self.seed, _STEP, self._sequences, self._step)
        with untouched(self.net, seed), torch.no_grad():
            output, errors = traced(self.net, self._layer, inputs, self.relative)
        if errors.shape[1] != 1:
            raise ValueError(f"one time step a call: layer {self.layer!r} made {errors.shape[1]}")
        error = errors[:, 0]
        score = torch.full_like(error, -torch.inf) if self._score is None else self._score
        if len(score) != len(error):
            raise ValueError(f"{len(score)} sequences until now, {len(error)} in this step: reset() between batches")
        last = [*self._last, error][-self.window :]
        if len(last) == self.window:
            score = torch.maximum(score, _mean(last))
        p_value = self.calibration.p_value(score)
        drift = torch.full_like(error, -1, dtype=torch.int64) if self._drift is None else self._drift
        drifted = (drift < 0) & self.calibration.flag(score, self.fpr)
        drift = torch.where(drifted, self._step, drift)
        self._last, self._score, self._drift = last, score, drift  # only now: a step that raised did not happen
        self._step += 1
        return Reading(output, error, p_value, drift)


def _mean(parts: Sequence[Tensor]) -> Tensor:
    """The mean of equally shaped tensors, summed in their order: bitwise the same step by step and all at once."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total / len(parts)
