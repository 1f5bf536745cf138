"""The joint objective of fortified networks.

Lamb, "Generative Models: A Critical Review", 2018, section 2.5:
L = L_c(y) + L_c(y~) + lambda_rec * sum_k L_rec,k + lambda_adv * sum_k L_adv,k.
"""

from typing import Any

import torch
from torch import Tensor, nn

from robustgen.checks import plain_arguments
from robustgen.inputs import Inputs, call_model, mask_of
from robustgen.model import logits_of, naming_inputs
from robustgen.training import AdversarialObjective, ClassificationLoss, unwrap

__all__ = ["FortifiedObjective"]


class FortifiedObjective(AdversarialObjective):
    """Classification on clean and adversarial inputs plus the autoencoders' losses, for ``Trainer``.

    L_rec,k = mean over examples of ||D(E(h + n)) - h||^2 / (number of units); L_adv,k = the same from the adversarial
    state, its target being the CLEAN state. Both halves go through the network in one concatenated forward.
    Without an attack, x may be a dict of keyword arguments; states of padded sequences are averaged over the positions
    that their ``attention_mask`` lets count.

    Args:
        attack: makes the adversarial inputs from the network as it is at that step; None trains on clean inputs only
            (no L_c(y~), no L_adv). Every sample runs every step (its ``early_stop`` is ignored).
        lambda_rec, lambda_adv: 0 switches a loss off; both 0 leaves layers without any autoencoder loss.
        detach_states: the autoencoder losses train the autoencoders only, not the backbone.
        clean_weight: of L_c(y); 1 in the source, 0 trains on adversarial inputs only.
        label_smoothing: of both cross-entropies.
        loss: :class:`~robustgen.training.Trades` or :class:`~robustgen.training.Mart` in place of both cross-entropies.
        reduction: over the units of a state: "mean" (the source leaves the normalisation open), or "sum", for which a
            weight that suits one layer can let another, larger one collapse to zero, or "relative": the mean over the
            batch of ||D(E(h + n)) - h||^2 over that of ||h||^2, which shrinking states does not lower.

    Logged beside the losses, for each layer: the norm of the clean state and the relative error
    mean ||decoded - h||^2 / mean ||h||^2, since joint training can lower its losses by shrinking h.

    Raises:
        ValueError: a weight out of range, an unknown reduction; at the call, data without labels.
        TypeError: at the call, a network that is not fortified.
    """

    @plain_arguments
    def __init__(
        self,
        attack: Any = None,
        *,
        lambda_rec: float = 0.1,
        lambda_adv: float = 0.1,
        detach_states: bool = False,
        clean_weight: float = 1.0,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        loss: ClassificationLoss | None = None,
    ) -> None:
        super().__init__(attack, clean_weight, label_smoothing, loss)
        if not all(0 <= weight < float("inf") for weight in (lambda_rec, lambda_adv)):
            raise ValueError("lambda_rec and lambda_adv must be finite and >= 0")
        if reduction not in ("sum", "mean", "relative"):
            raise ValueError(f"reduction must be 'sum', 'mean' or 'relative', got {reduction!r}")
        self.lambda_rec, self.lambda_adv = lambda_rec, lambda_adv
        self.detach_states, self.reduction = detach_states, reduction

    def losses(self, model: nn.Module, x: Inputs, y: Tensor) -> dict[str, Tensor]:
        net: Any = unwrap(model)
        if not hasattr(net, "per_example"):
            raise TypeError(f"FortifiedObjective trains a FortifiedNetwork, not {type(net).__name__}")
        n, mask = len(y), mask_of(x)
        with naming_inputs(x):
            output, states = call_model(model, x, return_states=True, detach_states=self.detach_states)
        loss, logged = self.classification(logits_of(output), y)
        rec, adv = loss.new_zeros(()), loss.new_zeros(())
        for name, (state, decoded) in states.items():
            h, d = (v.to(torch.promote_types(v.dtype, torch.float32)) for v in (state, decoded))  # bfloat16 is coarse
            errors, squares = (net.per_example(name, v.square(), mask)[:n] for v in (d - h, h))  # (n, units)
            error, norm = errors.sum(1), squares.sum(1)  # (n,)
            scale = norm.mean().clamp(min=1e-12)
            unit = {"sum": 1, "mean": errors.shape[1], "relative": scale}[self.reduction]
            rec = rec + error.mean() / unit
            if self.attack is not None:
                moved = net.per_example(name, d)[n:] - net.per_example(name, h)[:n]
                adv = adv + moved.square().sum(1).mean() / unit
            logged[f"state_norm/{name}"] = norm.sqrt().mean()
            logged[f"relative_error/{name}"] = error.mean() / scale
        if self.lambda_rec:
            loss = loss + self.lambda_rec * rec
        if self.lambda_adv and self.attack is not None:
            loss = loss + self.lambda_adv * adv
        logged |= {"rec_loss": rec, "adv_rec_loss": adv}
        return {"loss": loss} | {name: value.detach() for name, value in logged.items()}

    def describe(self) -> dict[str, Any]:
        """Every setting, JSON-able."""
        own = ("lambda_rec", "lambda_adv", "detach_states", "reduction")
        return super().describe() | {name: getattr(self, name) for name in own}
