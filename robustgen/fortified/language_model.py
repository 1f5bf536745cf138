"""The objective of a fortified language model: the next symbol, and the autoencoders' reconstructions.

Lamb, "Generative Models: A Critical Review", 2018, section 2.7.1 (the setting of table 2.7): no adversarial loss.
"""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.model import naming_inputs
from robustgen.training import Batch, class_loss, unwrap

__all__ = ["LanguageModelObjective"]


class LanguageModelObjective:
    """mean_t NLL(x_{t+1} | x_{<=t}) + lambda_rec * sum_k mean_t mean_units (D(E(h_t + n)) - h_t)^2, for ``Trainer``.

    Teacher forcing: the network reads the true symbols. Data are windows of symbols, int64 (N, T + 1), without
    labels: ``Trainer(LanguageModelObjective()).fit(net, windows(symbols, T + 1))``. The network returns logits
    (N, T, C), or a tuple that begins with them.

    Args:
        lambda_rec: 0 switches the reconstruction loss off.
        detach_states: the reconstruction loss trains the autoencoders only, not the states that they see. (The NLL,
            which passes through the autoencoders, trains both either way.)

    Logged: ``nll`` in nats, ``bits_per_character``, ``rec_loss``, and for each layer the relative error
    mean (decoded - h)^2 / mean h^2, since joint training can lower its loss by shrinking h.

    Raises:
        ValueError: a lambda_rec out of range; at the call, windows that are not (N, T + 1), logits that are not
            (N, T, C), or a symbol outside [0, C).
        TypeError: at the call, a network that is not fortified, or data that are not int64.
    """

    def __init__(self, *, lambda_rec: float = 0.1, detach_states: bool = False) -> None:
        if not 0 <= lambda_rec < math.inf:
            raise ValueError(f"lambda_rec must be a finite number >= 0, got {lambda_rec}")
        self.lambda_rec, self.detach_states = lambda_rec, detach_states

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        if not hasattr(unwrap(model), "per_example"):
            raise TypeError(f"LanguageModelObjective trains a FortifiedNetwork, not {type(unwrap(model)).__name__}")
        if batch.x.dtype != torch.int64:
            raise TypeError(f"LanguageModelObjective needs windows of int64 symbols, got {batch.x.dtype}")
        if batch.x.ndim != 2 or batch.x.shape[1] < 2:
            raise ValueError(f"windows of symbols must be (N, T + 1) with T >= 1, got {tuple(batch.x.shape)}")
        read, target = batch.x[:, :-1], batch.x[:, 1:]
        with naming_inputs(read):
            logits, states = model(read, return_states=True, detach_states=self.detach_states)
        if logits.ndim != 3 or logits.shape[:2] != read.shape:
            raise ValueError(f"a language model returns logits (N, T, C); got {tuple(logits.shape)} for {read.shape}")
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bfloat16 is too coarse for a loss
        nll = class_loss(logits.flatten(0, 1), target.flatten(), 0.0)
        squares, norms = defaultdict(list), defaultdict(list)  # a cell makes one entry a step: layer, layer#2, ...
        for name, (state, decoded) in states.items():
            h, d = (v.to(torch.promote_types(v.dtype, torch.float32)) for v in (state, decoded))
            squares[name.split("#")[0]].append((d - h).square().mean())
            norms[name.split("#")[0]].append(h.detach().square().mean())
        errors = {name: torch.stack(values).mean() for name, values in squares.items()}
        rec = torch.stack(list(errors.values())).sum()
        loss = nll + self.lambda_rec * rec if self.lambda_rec else nll
        logged = {"nll": nll, "bits_per_character": nll / math.log(2), "rec_loss": rec}
        for name, error in errors.items():
            logged[f"relative_error/{name}"] = error / torch.stack(norms[name]).mean().clamp(min=1e-12)
        return {"loss": loss} | {name: value.detach() for name, value in logged.items()}

    def describe(self) -> dict[str, Any]:
        """Every setting, JSON-able."""
        return {
            "objective": "LanguageModelObjective",
            "lambda_rec": self.lambda_rec,
            "detach_states": self.detach_states,
        }
