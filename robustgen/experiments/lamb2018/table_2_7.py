"""Table 2.7: reconstruction error of a fortified language model that runs freely, over that under teacher forcing.

The source gives three ratios without a spread. Here both errors are taken on the same prompts, and beside the ratios
stand controls: real text against real text (no drift: 1), shuffled letters, other temperatures, and what a
:class:`~robustgen.fortified.SequenceMonitor` makes of them.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustgen.counter_rng import derive_seed, uniform
from robustgen.data import babble, encode, load_text, normalise, split_text, windows
from robustgen.experiments.experiment import (
    LAMB_2018,
    Cell,
    Column,
    Experiment,
    Measurement,
    Row,
    counted,
    epochs_of,
)
from robustgen.experiments.training_cache import TrainingCache
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
PARTS = (0.7, 0.15, 0.15)  # of the text: training, calibration of the monitor, test
TEMPERATURES = (0.5, 1.0, 1.5)
FPR = 0.05
TRAINING: dict[str, Any] = {"batch_size": 32, "lr": 4e-3, "clip_norm": 1.0}
JOINT = LanguageModelObjective(lambda_rec=0.1)
DETACHED = LanguageModelObjective(lambda_rec=1.0, detach_states=True)
SCALES = {
    "smoke": {"text": "made-up sentences", "units": 32, "epochs": 4, "window": 58, "n_prompts": 40},
    "cpu": {"text": "tinyshakespeare", "units": 256, "epochs": 5, "window": 116, "n_prompts": 0},
    "full": {"text": "tinyshakespeare", "units": 1000, "epochs": 20, "window": 116, "n_prompts": 0},
}


def symbols(text: str, cache: TrainingCache) -> Tensor:
    """The text of a scale as symbols (T,)."""
    if text == "tinyshakespeare":
        return load_text(cache.text())
    return encode(normalise(babble(70_000)))


class _Table(Experiment):
    name = "lamb-2018/table-2.7"
    title = "drift of a free-running language model"
    question = "Do the reconstruction errors of a fortified language model rise when it reads its own samples?"
    finding = (
        "Ratio to the errors on real text, where 1 is no drift: {lstm|50} after 50 steps, {lstm|180} after 180, "
        "{lstm|300} after 300."
    )
    source = f"{LAMB_2018}, Table 2.7 (Text8)"
    metric = f"error when sampling / error under teacher forcing, mean of the {NEAR} steps up to the column's"
    digits = 3
    columns = tuple(Column(str(k), f"{k} sampling steps") for k in (50, 180, 300))
    rows = (
        Row(
            key="lstm",
            title="LSTM, fortified at the output",
            published={"50": 1.03, "180": 1.12, "300": 1.34},
            note="published on Text8 with 1000 units",
            data=({"rnn": "lstm"}, JOINT),
        ),
        Row(
            key="lstm-detached",
            title="LSTM, detached states",
            note="the autoencoder's loss trains the autoencoder alone",
            data=({"rnn": "lstm"}, DETACHED),
        ),
        Row(
            key="lstm-recurrent",
            title="LSTM cell, decoded state fed back",
            note="the caption's reading of the placement",
            data=({"rnn": "lstm", "stepwise": True}, JOINT),
        ),
        Row(key="gru", title="GRU, fortified at the output", data=({"rnn": "gru"}, JOINT)),
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
        s: dict[str, Any] = SCALES[scale]
        measured = {"column": cell.column, "prompt": PROMPT, "steps": STEPS, "near": NEAR, "temperatures": TEMPERATURES}
        return self._training(cell, s) | measured | {"fpr": FPR}

    def _training(self, cell: Cell, s: dict[str, Any]) -> dict[str, Any]:
        """All that the trained network depends on."""
        options, objective = self.row(cell.row).data
        return s | TRAINING | {"network": options, "objective": objective.describe(), "parts": PARTS, "seed": cell.seed}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        s: dict[str, Any] = SCALES[scale]
        text = symbols(s["text"], cache)
        parts = split_text(text, PARTS, block=PROMPT + STEPS, seed=derive_seed(cell.seed, 0))
        net, history = self._trained(cell, s, parts[0], cache)
        upto = int(cell.column)
        calibration, test = (part[:, : PROMPT + upto].to(cache.device) for part in parts[1:])
        test = test[: s["n_prompts"] or len(test)]
        prompt, n, half = test[:, :PROMPT], len(test), len(test) // 2
        runs = {t: free_run(net, prompt, upto, temperature=t, seed=cell.seed) for t in TEMPERATURES}
        shuffled = torch.cat([prompt, _shuffled(test[:, PROMPT:], cell.seed)], 1)
        forced, scrambled = (step_errors(net, tokens)[:, PROMPT:] for tokens in (test, shuffled))
        last = slice(-NEAR, None)
        free = runs[1.0].errors
        numbers = {
            "ratio at the step": _ratio(free[:, last], forced[:, last]),
            "standard error of it, over prompts": _ratio_error(free[:, last], forced[:, last]),
            "ratio up to the step": _ratio(free, forced),
            "shuffled letters": _ratio(scrambled[:, last], forced[:, last]),
        }
        numbers |= {f"temperature {t:g}": _ratio(r.errors[:, last], forced[:, last]) for t, r in runs.items() if t != 1}
        monitor = SequenceMonitor(net, calibration, fpr=FPR)
        written = torch.cat([prompt, runs[1.0].tokens], 1)
        for name, tokens in {"real text": test, "its own samples": written, "shuffled letters": shuffled}.items():
            numbers[f"monitor flags {name}, %"] = 100 * _flagged(monitor, tokens)
        numbers["bits per character"] = _bits(net, test)
        real = {"real over other real text": _ratio(forced[:half, last], forced[half : 2 * half, last])}
        return Measurement(
            value=numbers["ratio at the step"],
            numbers=counted(numbers, n) | counted(real, half),
            history=epochs_of(history),
        )

    def _trained(
        self, cell: Cell, s: dict[str, Any], train: Tensor, cache: TrainingCache
    ) -> tuple[FortifiedNetwork, list[dict[str, float]]]:
        options, objective = self.row(cell.row).data
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(cell.seed, 1))
            net = fortify(CharLM(units=s["units"], **options), ["rnn"], example_input=train[:2, :4], init="random")
        history = cache.train(
            {"table": self.name} | self._training(cell, s),
            net,
            objective,
            windows(train, s["window"]),
            epochs=s["epochs"],
            seed=cell.seed,
            **TRAINING,
        )
        return net, history


def _bits(net: FortifiedNetwork, tokens: Tensor) -> float:
    """Bits per character on these sequences (N, T), teacher-forced."""
    with torch.no_grad():
        logits = net(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item() / math.log(2)


def _ratio(free: Tensor, forced: Tensor) -> float:
    return (free.mean() / forced.mean()).item()


def _ratio_error(free: Tensor, forced: Tensor) -> float:
    """Standard error of the ratio of means over prompts (the delta method on paired means)."""
    a, b = free.mean(1), forced.mean(1)
    residual = a - b * (a.mean() / b.mean())
    return (residual.std() / math.sqrt(len(a)) / b.mean()).item()


def _shuffled(tokens: Tensor, seed: int) -> Tensor:
    """The same symbols (N, T) in an order drawn for each row."""
    order = uniform(derive_seed(seed, 2), torch.arange(len(tokens), device=tokens.device), (tokens.shape[1],)).argsort(
        1
    )
    return tokens.gather(1, order)


def _flagged(monitor: SequenceMonitor, tokens: Tensor) -> float:
    """Share of the sequences that the monitor flags at some step."""
    monitor.reset()
    state, drift = None, tokens.new_full((len(tokens),), -1)
    for t in range(tokens.shape[1]):
        reading = monitor.step(tokens[:, t : t + 1], state)
        state, drift = reading.output[1], reading.drift_step
    return (drift >= 0).double().mean().item()


EXPERIMENT = _Table()
