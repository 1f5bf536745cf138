"""One batch under attack: the only place that queries the model, counts queries and keeps what was found."""

import warnings
from collections.abc import Callable

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

    Kept is the point of lowest margin; with a ``length`` (perturbations (n, ...) -> (n,)), for attacks that look for
    the nearest point, the shortest success that is not farther than ``ball.eps``, and x itself where there is none.
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
        length: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model, self.x, self.y, self.ids, self.ball = model, x, y, ids, ball
        self.targeted, self.early_stop, self.votes = targeted, early_stop, votes
        self.best_x = x.clone()
        self.length = length
        self.lowest = torch.full_like(y, float("inf"), dtype=torch.float64)  # margin or length of best_x
        self.solved, self.firm = torch.zeros_like(y, dtype=torch.bool), torch.zeros_like(y, dtype=torch.bool)
        self.forwards, self.backwards = torch.zeros_like(y), torch.zeros_like(y)
        self._check_clean(self._first_look())
        if early_stop or length is not None:  # what is solved from the start takes no work; no other point is nearer
            everyone = torch.arange(len(y), device=x.device)
            logits = self.logits(everyone, x)
            self._check_clean(logits)
            self.solved = self._majority_fooled(everyone, x)[0] if self.stochastic else self._fooled(everyone, logits)
            if length is not None:
                self.lowest[self.solved] = 0.0
                self.firm = self.solved.clone()

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
        logits, (direction,) = self._differentiate(
            i, z, lambda logits: [LOSSES[loss](logits, self.y[i], self.targeted)], samples
        )
        return logits, direction

    def rival_gradients(self, i: Tensor, z: Tensor, rivals: Tensor, samples: int = 1) -> tuple[Tensor, Tensor]:
        """Logits (n, C) at ``z`` and the gradients (n, k, ...) of the logits of ``rivals`` (n, k) less that of y.

        A rival of -1 is the class that is highest at ``z``, y apart. One forward and k backward passes; the mean of
        ``samples`` such.
        """
        logits, gradients = self._differentiate(
            i, z, lambda logits: list((-self.gaps(i, logits, rivals)).unbind(1)), samples
        )
        return logits, torch.stack(gradients, 1)

    def gaps(self, i: Tensor, logits: Tensor, rivals: Tensor) -> Tensor:
        """How far each of ``rivals`` (n, k) is behind y, (n, k); -1 as in :meth:`rival_gradients`."""
        own = self.y[i, None]
        top = logits.detach().scatter(1, own, float("-inf")).argmax(1, keepdim=True)
        return logits.gather(1, own) - logits.gather(1, torch.where(rivals < 0, top, rivals))

    def _differentiate(
        self, i: Tensor, z: Tensor, values: Callable[[Tensor], list[Tensor]], samples: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Mean logits (n, C) and the mean gradient (n, ...) of each of ``values(logits)``, (n,) every one."""
        total_logits: Tensor | None = None
        totals: list[Tensor] = []
        self.forwards[i] += samples
        for _ in range(samples):
            with torch.enable_grad():
                leaf = z.detach().clone().requires_grad_(True)
                logits = logits_of(self.model(leaf))
                if not logits.requires_grad:
                    raise ValueError("the model's logits do not depend on x through differentiable operations")
                ascents = [value.sum() for value in values(logits)]
                gradients = [
                    torch.autograd.grad(a, leaf, allow_unused=True, retain_graph=k < len(ascents))[0]
                    for k, a in enumerate(ascents, 1)
                ]
            self.backwards[i] += len(ascents)
            if any(g is None for g in gradients):
                raise ValueError("the model's logits do not depend on x through differentiable operations")
            totals = [t + g for t, g in zip(totals, gradients, strict=True)] if totals else gradients
            total_logits = logits.detach() if total_logits is None else total_logits + logits.detach()
        if not all(bool(t.isfinite().all()) for t in totals):
            warnings.warn(
                "the model's gradient is NaN or Inf for some inputs; they cannot be attacked by it",
                stacklevel=2,
            )
            totals = [torch.where(t.isfinite(), t, 0.0) for t in totals]
        assert total_logits is not None
        return total_logits / samples, totals

    def record(self, i: Tensor, z: Tensor, logits: Tensor) -> Tensor:
        """Keep ``z`` where it is the best so far or solves a sample; returns which rows stay active.

        With a stochastic model a sample stops once most of some fresh draws are fooled; :meth:`finish` judges it. An
        attack that looks for the nearest point has never found it: all its rows stay.
        """
        if self.length is not None:
            return self._record_nearest(i, z, logits)
        found = self._fooled(i, logits)
        rank = margin(logits, self.y[i], self.targeted)
        if self.stochastic and self.early_stop and bool(found.any()):
            hit = found.nonzero().squeeze(1)
            found[hit], rank[hit], _ = self._majority_fooled(i[hit], z[hit])
        better = (rank < self.lowest[i]) | (found & ~self.solved[i])
        self._keep(i[better], z[better], rank[better])
        self.solved[i] |= found
        return ~found if self.early_stop else torch.ones_like(found)

    def _record_nearest(self, i: Tensor, z: Tensor, logits: Tensor) -> Tensor:
        """Keep ``z`` where it fools and is nearer than what is kept; with a stochastic model, firm successes first.

        Of many points near the boundary that are put to the vote, the nearest to win it are those that were lucky, and
        they fail the vote of :meth:`finish`. Those that fooled nearly all draws (8 of 9) take precedence over them.
        """
        assert self.length is not None
        rank = self.length(z.double() - self.x[i].double())
        nearer, firm = rank < self.lowest[i], torch.ones_like(self.firm[i])
        found = self.fools(i, logits) & (rank <= self.ball.eps[i]) & (nearer | ~self.firm[i])
        if self.stochastic and bool(found.any()):
            hit = found.nonzero().squeeze(1)
            found[hit], _, firm[hit] = self._majority_fooled(i[hit], z[hit])
            found &= torch.where(firm == self.firm[i], nearer, firm)
        self._keep(i[found], z[found], rank[found])
        self.solved[i] |= found
        self.firm[i] |= found & firm
        return torch.ones_like(found)

    def _keep(self, i: Tensor, z: Tensor, rank: Tensor) -> None:
        self.best_x[i], self.lowest[i] = z, rank.to(self.lowest.dtype)

    def fools(self, i: Tensor, logits: Tensor) -> Tensor:
        """Which rows these logits solve, bool (n,).

        The nearest point is on the decision boundary, where the last bits of the logits decide, which differ from one
        batch size to the next: there, a success must show in more than rounding error.
        """
        fooled = self._fooled(i, logits)
        if self.length is None:
            return fooled
        noise = self.rounding(logits)
        return fooled & (margin(logits, self.y[i], self.targeted) < -noise)

    def rounding(self, logits: Tensor) -> Tensor:
        """What rounding may change in the difference of two logits (N, C), up to a safe factor, (N,)."""
        size = 16 * torch.finfo(logits.dtype).eps * logits.abs().amax(1)
        return torch.where(size.isfinite(), size, 0.0)

    def finish(self) -> None:
        """The verdict on a stochastic model: one vote of fresh draws on every sample's best point.

        The votes on the way only say when to stop: of many, one is bound to be lucky.
        """
        if self.stochastic:
            self.solved = self._majority_fooled(torch.arange(len(self.y), device=self.x.device), self.best_x)[0]
            if self.length is not None:
                self.best_x[~self.solved] = self.x[~self.solved]

    def _fooled(self, i: Tensor, logits: Tensor) -> Tensor:
        return fooled(logits, self.y[i], self.targeted)

    def _majority_fooled(self, i: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether most of ``votes`` fresh draws are fooled, their mean margin, whether over four fifths are."""
        count, distance = torch.zeros_like(i), torch.zeros(len(i), dtype=z.dtype, device=z.device)
        for _ in range(self.votes):
            logits = self.logits(i, z)
            count += self._fooled(i, logits)
            distance += margin(logits, self.y[i], self.targeted).to(z.dtype) / self.votes
        return 2 * count > self.votes, distance, 5 * count > 4 * self.votes

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
