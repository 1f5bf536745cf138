"""Table 2.7: reconstruction error of a fortified language model that runs freely, over that under teacher forcing.

The source gives three ratios without a spread. Here both errors are taken on the same prompts, and beside the ratios
stand controls: real text against real text (no drift: 1), shuffled letters, other temperatures, and what a
:class:`~robustgen.fortified.SequenceMonitor` makes of them.
"""

import math
from typing import Any

import torch
from torch import Tensor

from robustgen.counter_rng import derive_seed, uniform
from robustgen.data import babble, encode, load_text, normalise, split_text, windows
from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row
from robustgen.experiments.lamb2018.classifier_table import epochs_of
from robustgen.experiments.workshop import Workshop
from robustgen.fortified import (
    FortifiedNetwork,
    LanguageModelObjective,
    SequenceMonitor,
    fortify,
    free_run,
    step_errors,
)
from robustgen.recurrent_networks import CharLM

__all__ = ["EXPERIMENT", "symbols"]

PROMPT, STEPS, NEAR = 50, 300, 20  # NEAR: steps that "at K" averages over
SCALES = {
    "smoke": {"text": "made-up sentences", "units": 32, "epochs": 4, "window": 58, "n_prompts": 40},
    "cpu": {"text": "tinyshakespeare", "units": 256, "epochs": 8, "window": 116, "n_prompts": 0},
    "full": {"text": "tinyshakespeare", "units": 1000, "epochs": 20, "window": 116, "n_prompts": 0},
}


def symbols(text: str, workshop: Workshop) -> Tensor:
    """The text of a scale as symbols (T,)."""
    if text == "tinyshakespeare":
        return load_text(workshop.text())
    return encode(normalise(babble(70_000)))


class _Table(Experiment):
    name = "lamb-2018/table-2.7"
    title = "drift of a free-running language model"
    source = 'Lamb, "Generative Models: A Critical Review", 2018, Table 2.7 (Text8)'
    metric = f"error when sampling / error under teacher forcing, mean of the {NEAR} steps up to the column's"
    digits = 3
    columns = tuple(Column(str(k), f"{k} sampling steps") for k in (50, 180, 300))
    rows = (
        Row(
            key="lstm",
            title="LSTM, fortified at the output",
            published={"50": 1.03, "180": 1.12, "300": 1.34},
            note="published on Text8 with 1000 units",
            data={"rnn": "lstm"},
        ),
        Row(
            key="lstm-detached",
            title="LSTM, detached states",
            note="the autoencoder's loss trains the autoencoder alone",
            data={"rnn": "lstm", "detach_states": True},
        ),
        Row(
            key="lstm-recurrent",
            title="LSTM cell, decoded state fed back",
            note="the caption's reading of the placement",
            data={"rnn": "lstm", "stepwise": True},
        ),
        Row(key="gru", title="GRU, fortified at the output", data={"rnn": "gru"}),
    )
    notes = (
        "Not Text8 but another, smaller text in its 27 symbols; the scales name it.",
        "The spread over prompts is the standard error of the ratio in each cell.",
    )

    def describe(self, scale: str) -> str:
        s = SCALES[scale]
        return (
            f"{s['text']}, one layer of {s['units']} units, {s['epochs']} epochs on windows of {s['window']} symbols, "
            f"prompts of {PROMPT} symbols"
        )

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        return SCALES[scale] | {"row": self.row(cell.row).data, "column": cell.column, "prompt": PROMPT, "near": NEAR}

    def measure(self, cell: Cell, scale: str, workshop: Workshop) -> Measurement:
        s: dict[str, Any] = SCALES[scale]
        text = symbols(s["text"], workshop)
        parts = split_text(text, (0.7, 0.15, 0.15), block=PROMPT + STEPS, seed=derive_seed(cell.seed, 0))
        train, calibration, test = parts
        test = test[: s["n_prompts"] or len(test)]
        net, history = self._train(cell, s, train, workshop)
        upto = int(cell.column)
        forced = step_errors(net, test)[:, PROMPT:]
        runs = {t: free_run(net, test[:, :PROMPT], STEPS, temperature=t, seed=cell.seed) for t in (0.5, 1.0, 1.5)}
        free = runs[1.0].errors
        at, until = slice(max(0, upto - NEAR), upto), slice(0, upto)
        shuffled = torch.cat([test[:, :PROMPT], _shuffled(test[:, PROMPT:], cell.seed)], 1)
        scrambled = step_errors(net, shuffled)[:, PROMPT:]
        half = len(test) // 2
        numbers = {"ratio at the step": _ratio(free[:, at], forced[:, at])}
        numbers["standard error of it, over prompts"] = _ratio_error(free[:, at], forced[:, at])
        numbers["ratio up to the step"] = _ratio(free[:, until], forced[:, until])
        numbers["temperature 0.5"] = _ratio(runs[0.5].errors[:, at], forced[:, at])
        numbers["temperature 1.5"] = _ratio(runs[1.5].errors[:, at], forced[:, at])
        numbers["shuffled letters"] = _ratio(scrambled[:, at], forced[:, at])
        numbers["real over real text"] = _ratio(forced[:half, at], forced[half : 2 * half, at])
        monitor = SequenceMonitor(net, calibration, fpr=0.05)
        for name, tokens in {
            "real text": test,
            "its own samples": _joined(test, runs[1.0].tokens),
            "shuffled": shuffled,
        }.items():
            numbers[f"monitor flags {name}, %"] = 100 * _flagged(monitor, tokens[:, : PROMPT + upto])
        numbers["bits per character"] = history[-1]["bits_per_character"]
        return Measurement(
            value=numbers["ratio at the step"],
            numbers={k: {"value": v, "n": len(test)} for k, v in numbers.items()},
            history=epochs_of(history),
        )

    def _train(
        self, cell: Cell, s: dict[str, Any], train: Tensor, workshop: Workshop
    ) -> tuple[FortifiedNetwork, list[dict[str, float]]]:
        options = dict(self.row(cell.row).data)
        detach = options.pop("detach_states", False)
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(cell.seed, 1))
            net = fortify(CharLM(units=s["units"], **options), ["rnn"], example_input=train[:2, :4])
        training = {"table 2.7": self.row(cell.row).data, "seed": cell.seed} | s
        history = workshop.train(
            training,
            net,
            LanguageModelObjective(lambda_rec=1.0 if detach else 0.1, detach_states=detach),
            windows(train, s["window"]),
            epochs=s["epochs"],
            batch_size=32,
            lr=4e-3,
            seed=cell.seed,
            clip_norm=1.0,
        )
        return net, history


def _ratio(free: Tensor, forced: Tensor) -> float:
    return (free.mean() / forced.mean()).item()


def _ratio_error(free: Tensor, forced: Tensor) -> float:
    """Standard error of the ratio of means over prompts (the delta method on paired means)."""
    a, b = free.mean(1), forced.mean(1)
    residual = a - b * (a.mean() / b.mean())
    return (residual.std() / math.sqrt(len(a)) / b.mean()).item()


def _shuffled(tokens: Tensor, seed: int) -> Tensor:
    """The same symbols (N, T) in an order drawn for each row."""
    order = uniform(derive_seed(seed, 2), torch.arange(len(tokens)), (tokens.shape[1],)).argsort(1)
    return tokens.gather(1, order)


def _joined(test: Tensor, written: Tensor) -> Tensor:
    return torch.cat([test[:, :PROMPT], written], 1)


def _flagged(monitor: SequenceMonitor, tokens: Tensor) -> float:
    """Share of the sequences that the monitor flags at some step."""
    monitor.reset()
    state, drift = None, torch.full((len(tokens),), -1)
    for t in range(tokens.shape[1]):
        reading = monitor.step(tokens[:, t : t + 1], state)
        state, drift = reading.output[1], reading.drift_step
    return (drift >= 0).double().mean().item()


EXPERIMENT = _Table()
