"""One batch under attack: the only place that queries the model, counts queries and keeps what was found."""

import warnings

import torch
from torch import Tensor

from robustgen.attacks.ball import Ball
from robustgen.attacks.losses import LOSSES, fooled, margin
from robustgen.model import Model, logits_of, naming_inputs, warn_if_probabilities

__all__ = ["Problem"]


class Problem:
    """Inputs, labels and the best perturbation so far. Rows are addressed by index tensors ``i`` (n,) of int64.

    ``x`` (N, ...), ``y`` (N,), ``ids`` (N,), ``ball`` (where to search), ``best_x``, ``solved`` (N,), ``forwards`` and
    ``backwards`` (N,): queries of the model for each sample (a first look at four clean inputs is not counted).
    """

    def __init__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        ball: Ball,
        *,
        targeted: bool,
        early_stop: bool,
        votes: int,
    ) -> None:
        self.model, self.x, self.y, self.ids, self.ball = model, x, y, ids, ball
        self.targeted, self.early_stop, self.votes = targeted, early_stop, votes
        self.best_x = x.clone()
        self.best_margin = torch.full_like(y, 0, dtype=x.dtype).fill_(float("inf"))
        self.solved = torch.zeros_like(y, dtype=torch.bool)
        self.forwards, self.backwards = torch.zeros_like(y), torch.zeros_like(y)
        self._check_clean(self._first_look())
        if early_stop:  # what is solved from the start takes no work
            everyone = torch.arange(len(y), device=x.device)
            logits = self.logits(everyone, x)
            self._check_clean(logits)
            self.solved = self._majority_fooled(everyone, x)[0] if self.stochastic else self._fooled(everyone, logits)

    def active(self) -> Tensor:
        """The rows still to work on: those not solved, or all with ``early_stop=False``."""
        if self.early_stop:
            return (~self.solved).nonzero().squeeze(1)
        return torch.arange(len(self.y), device=self.x.device)

    def logits(self, i: Tensor, z: Tensor) -> Tensor:
        """The model's logits (n, C) at ``z``, without gradient."""
        self.forwards[i] += 1
        return self._query(z)

    def _query(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            logits = logits_of(self.model(z))
        if len(logits) != len(z):
            raise ValueError(f"the model returned {len(logits)} rows of logits for {len(z)} inputs")
        return logits

    def gradient(self, i: Tensor, z: Tensor, loss: str, samples: int = 1) -> tuple[Tensor, Tensor]:
        """Logits (n, C) at ``z`` and the direction (n, ...) that raises ``loss``, each a mean of ``samples`` passes.

        The mean over fresh draws is expectation over transformation (Athalye, Engstrom, Ilyas and Kwok, "Synthesizing
        Robust Adversarial Examples", 2018), which a stochastic network needs.
        """
        self.forwards[i] += samples
        self.backwards[i] += samples
        total_logits, total = None, torch.zeros_like(z)
        for _ in range(samples):
            with torch.enable_grad():
                leaf = z.detach().clone().requires_grad_(True)
                logits = logits_of(self.model(leaf))
                if not logits.requires_grad:
                    raise ValueError("the model's logits do not depend on x through differentiable operations")
                ascent = LOSSES[loss](logits, self.y[i], self.targeted).sum()
                (gradient,) = torch.autograd.grad(ascent, leaf, allow_unused=True)
            if gradient is None:
                raise ValueError("the model's logits do not depend on x through differentiable operations")
            total += gradient
            total_logits = logits.detach() if total_logits is None else total_logits + logits.detach()
        if not bool(total.isfinite().all()):
            warnings.warn(
                "the model's gradient is NaN or Inf for some inputs; they cannot be attacked by it",
                stacklevel=2,
            )
            total = torch.where(total.isfinite(), total, 0.0)
        assert total_logits is not None
        return total_logits / samples, total

    def record(self, i: Tensor, z: Tensor, logits: Tensor) -> Tensor:
        """Keep ``z`` where its margin is the lowest so far or it solves a sample; returns which rows stay active.

        With a stochastic model a sample stops once most of some fresh draws are fooled; :meth:`finish` judges it.
        """
        found = self._fooled(i, logits)
        distance = margin(logits, self.y[i], self.targeted)
        if self.stochastic and self.early_stop and bool(found.any()):
            hit = found.nonzero().squeeze(1)
            found[hit], distance[hit] = self._majority_fooled(i[hit], z[hit])
        better = (distance < self.best_margin[i]) | (found & ~self.solved[i])
        self.best_x[i[better]] = z[better]
        self.best_margin[i[better]] = distance[better].to(self.best_margin.dtype)
        self.solved[i] |= found
        return ~found if self.early_stop else torch.ones_like(found)

    def finish(self) -> None:
        """The verdict on a stochastic model: one vote of fresh draws on every sample's best point.

        The votes on the way only say when to stop: of many, one is bound to be lucky.
        """
        if self.stochastic:
            self.solved = self._majority_fooled(torch.arange(len(self.y), device=self.x.device), self.best_x)[0]

    def _fooled(self, i: Tensor, logits: Tensor) -> Tensor:
        return fooled(logits, self.y[i], self.targeted)

    def _majority_fooled(self, i: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Whether most of ``votes`` fresh draws are fooled, and their mean margin."""
        count, distance = torch.zeros_like(i), torch.zeros(len(i), dtype=z.dtype, device=z.device)
        for _ in range(self.votes):
            logits = self.logits(i, z)
            count += self._fooled(i, logits)
            distance += margin(logits, self.y[i], self.targeted).to(z.dtype) / self.votes
        return 2 * count > self.votes, distance

    def _first_look(self) -> Tensor:
        """Query a few clean inputs twice, uncounted: does the model take them, is it stochastic? Their logits."""
        few = self.x[:4]
        with naming_inputs(few):
            first = self._query(few)
        # Two passes of a deterministic model may still differ in the last bits (atomics on a GPU).
        self.stochastic = not torch.allclose(first, self._query(few), rtol=1e-5, atol=1e-6, equal_nan=True)
        return first

    def _check_clean(self, logits: Tensor) -> None:
        bad = int((~logits.isfinite().all(1)).sum())
        if bad:
            raise ValueError(f"the model returns NaN or Inf logits for {bad} of {len(logits)} clean inputs")
        top = int(self.y.max())
        if top >= logits.shape[1]:
            raise ValueError(f"y has label {top}, outside [0, {logits.shape[1]}), the model's classes")
        warn_if_probabilities(logits)
