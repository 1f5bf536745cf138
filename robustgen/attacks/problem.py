"""One batch under attack: its samples, where to search, what was found, and the two rules of what is kept."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor

from robustgen.attacks.ball import Ball
from robustgen.attacks.losses import fooled, margin, rounding
from robustgen.attacks.queries import Oracle, Query
from robustgen.model import warn_if_probabilities

__all__ = ["LowestMargin", "Nearest", "Problem"]


class Problem(ABC):
    """Inputs, labels and the best perturbation so far. Rows are addressed by index tensors ``i`` (n,) of int64.

    ``x`` (N, ...), ``y`` (N,), ``ids`` (N,), ``ball`` (where to search), ``best_x``, ``solved`` (N,), ``rank`` (N,) of
    best_x (lower is better). A subclass says what is better in :meth:`record`. Searches ask the model by yielding
    what :meth:`logits`, :meth:`gradient` or :meth:`rival_gradients` return. ``length``, perturbations (n, ...) -> (n,),
    is None where searches stay within ``ball.eps`` by themselves; else only points that do count.
    """

    length: Callable[[Tensor], Tensor] | None = None

    def __init__(
        self,
        oracle: Oracle,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        ball: Ball,
        *,
        targeted: bool,
        early_stop: bool,
        votes: int,
    ) -> None:
        self.oracle, self.x, self.y, self.ids, self.ball = oracle, x, y, ids, ball
        self.targeted, self.early_stop, self.votes = targeted, early_stop, votes
        self.best_x = x.clone()
        self.rank = torch.full_like(y, float("inf"), dtype=torch.float64)
        self.solved = torch.zeros_like(y, dtype=torch.bool)
        self.known = torch.zeros_like(self.solved)  # whose clean logits are
        self.clean = oracle.first.new_empty(len(y), oracle.first.shape[1])
        self._check_clean(oracle.first)

    @property
    def everyone(self) -> Tensor:
        return torch.arange(len(self.y), device=self.x.device)

    def begin(self) -> None:
        """Find out which samples are solved as they are: they take no work. Needless where all do."""
        if self.early_stop:
            self._judge_clean()

    def _judge_clean(self) -> None:
        self.clean = self.oracle.verdict(self.everyone, self.x)
        self._check_clean(self.clean)
        self.known[:] = True
        if self.oracle.stochastic:
            unanimous = self._vote(self.everyone, self.x)[0] == 1
            self.solved = self._again(unanimous, self.everyone, self.x)
        else:
            self.solved = self._fooled(self.everyone, self.clean)

    def active(self) -> Tensor:
        """The rows still to work on: those not solved, or all with ``early_stop=False``."""
        return (~self.solved).nonzero().squeeze(1) if self.early_stop else self.everyone

    def logits(self, i: Tensor, z: Tensor) -> Query:
        """Asks for the logits (n, C) at ``z``, without gradient."""
        return Query(i, z, self.y[i], i[:, None], ("logits",))

    def verdict(self, i: Tensor, z: Tensor) -> Query:
        """Asks for the logits (n, C) at ``z`` of the model itself, even where searches are answered by a copy."""
        return Query(i, z, self.y[i], i[:, None], ("verdict",))

    def gradient(self, i: Tensor, z: Tensor, loss: str, samples: int = 1, towards: Tensor | None = None) -> Query:
        """Asks for logits (n, C) at ``z`` and the direction (n, ...) that raises ``loss``, means of ``samples`` passes.

        The mean over fresh draws is expectation over transformation (Athalye, Engstrom, Ilyas and Kwok, "Synthesizing
        Robust Adversarial Examples", 2018), which a stochastic network needs. ``towards`` (n,): classes to reach, in
        place of what the problem is about.
        """
        targeted = self.targeted or towards is not None
        y = self.y[i] if towards is None else towards
        return Query(i, z, y, i[:, None], ("gradient", loss, targeted, samples))

    def joint_gradients(self, i: Tensor, z: Tensor, loss: str, samples: int = 1) -> Query:
        """For outputs (n, C + 1), logits and a score: asks for them at ``z`` and for two directions (n, 2, ...).

        The first raises ``loss`` of the logits, the second lowers the score.
        """
        return Query(i, z, self.y[i], i[:, None], ("joint", loss, self.targeted, samples))

    def divergence_gradient(self, i: Tensor, z: Tensor, clean: Tensor) -> Query:
        """Asks for logits (n, C) at ``z`` and the gradient (n, ...) of their divergence from the logits ``clean``."""
        return Query(i, z, self.y[i], clean, ("divergence",))

    def rival_gradients(self, i: Tensor, z: Tensor, rivals: Tensor, samples: int = 1) -> Query:
        """Asks for logits (n, C) at ``z`` and the gradients (n, k, ...) of the logits of ``rivals`` (n, k) less y's.

        A rival of -1 is the class that is highest at ``z``, y apart. One forward and k backward passes; the mean of
        ``samples`` such.
        """
        return Query(i, z, self.y[i], rivals, ("rivals", rivals.shape[1], samples))

    def clean_logits(self, i: Tensor) -> Generator[Query, Any, Tensor]:
        """The logits (n, C) at x, asked for once."""
        new = i[~self.known[i]]
        if len(new):
            self.clean[new] = yield self.logits(new, self.x[new])
            self.known[new] = True
        return self.clean[i]

    @abstractmethod
    def record(self, i: Tensor, z: Tensor, logits: Tensor, *, own: bool = False) -> Tensor:
        """Keep ``z`` where it is better than what is kept; returns which rows stay active, bool (n,).

        ``own``: these logits are the answer to a :meth:`verdict`.
        """

    def fools(self, i: Tensor, logits: Tensor) -> Tensor:
        """Which rows these logits solve, bool (n,)."""
        return self._fooled(i, logits)

    def finish(self) -> None:
        """The verdict on a stochastic model: one vote of fresh draws on every sample's best point.

        The votes on the way only say when to stop: of many, one is bound to be lucky.
        """
        if self.oracle.stochastic:
            self.solved = self._vote(self.everyone, self.best_x)[0] > 0.5

    def _keep(self, i: Tensor, z: Tensor, rank: Tensor) -> None:
        self.best_x[i], self.rank[i] = z, rank.to(self.rank.dtype)

    def _fooled(self, i: Tensor, logits: Tensor) -> Tensor:
        return fooled(logits, self.y[i], self.targeted)

    def _distance(self, i: Tensor, logits: Tensor) -> Tensor:
        """How far these logits are from success, (n,)."""
        return margin(logits, self.y[i], self.targeted)

    def _vote(self, i: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Which share of ``votes`` fresh draws is fooled, and their mean margin, float64 (n,)."""
        count, distance = torch.zeros_like(i), torch.zeros_like(i, dtype=torch.float64)
        for _ in range(self.votes):
            logits = self.oracle.verdict(i, z)
            count += self._fooled(i, logits)
            distance += self._distance(i, logits).double() / self.votes
        return count.double() / self.votes, distance

    def _again(self, found: Tensor, i: Tensor, z: Tensor) -> Tensor:
        """Which of ``found``, bool (n,), win a second vote unanimously: :meth:`finish` will all but surely agree."""
        found = found.clone()
        found[found.clone()] = self._vote(i[found], z[found])[0] == 1
        return found

    def _check_clean(self, logits: Tensor) -> None:
        bad = int((~logits.isfinite().all(1)).sum())
        if bad:
            raise ValueError(f"the model returns NaN or Inf logits for {bad} of {len(logits)} clean inputs")
        top = int(self.y.max())
        if top >= logits.shape[1]:
            raise ValueError(f"y has label {top}, outside [0, {logits.shape[1]}), the model's classes")
        warn_if_probabilities(logits)


class LowestMargin(Problem):
    """Within a given ball: kept is the point of lowest margin, and a success before any other."""

    def __init__(self, *args: Any, **rules: Any) -> None:
        super().__init__(*args, **rules)
        self.verified = torch.zeros_like(self.solved)  # whether the model itself has been asked at best_x

    def record(self, i: Tensor, z: Tensor, logits: Tensor, *, own: bool = False) -> Tensor:
        """Keep ``z`` where its margin is the lowest so far or it solves a sample; returns which rows stay active.

        With a stochastic model a sample stops once all of many fresh draws are fooled: of the points of a search one is
        bound to win a bare majority by luck, and :meth:`finish` would then take back what was no longer searched for.
        What a prepared copy takes for a success must be one on the model itself: before the sample stops, or, where
        none does, at the end.
        """
        z, own = self.oracle.seen(i, z), own or not self.oracle.prepared
        if self.length is None:
            return self._record(i, z, logits, own)
        delta = z.double() - self.x[i].double()
        near = self.length(delta) <= self.ball.eps[i]
        if self.ball.reach is not None:
            near &= (delta.abs() <= self.ball.reach[i]).flatten(1).all(1)
        stays = ~self.solved[i] if self.early_stop else torch.ones_like(near)
        stays[near] = self._record(i[near], z[near], logits[near], own)
        return stays

    def _record(self, i: Tensor, z: Tensor, logits: Tensor, own: bool) -> Tensor:
        found = self.fools(i, logits)
        rank = self._distance(i, logits).double()
        hit = found.nonzero().squeeze(1)
        if len(hit) and self.oracle.stochastic and self.early_stop:
            share, mean = self._vote(i[hit], z[hit])
            rank[hit] = torch.where(share > 0.5, mean.clamp(max=0), mean)
            found[hit] = self._again(share == 1, i[hit], z[hit])
        elif len(hit) and not own and self.early_stop:
            logits = self.oracle.verdict(i[hit], z[hit])
            found[hit] = self.fools(i[hit], logits)
            rank[hit] = self._distance(i[hit], logits).double()
        better = (rank < self.rank[i]) | (found & ~self.solved[i])
        self._keep(i[better], z[better], rank[better])
        self.verified[i[better]] = own
        self.solved[i] |= found
        return ~found if self.early_stop else torch.ones_like(found)

    def finish(self) -> None:
        """As for every problem; what was not verified on the way is now."""
        super().finish()
        claimed = (self.solved & ~self.verified).nonzero().squeeze(1)
        if len(claimed) and not self.early_stop and not self.oracle.stochastic:
            self.solved[claimed] = self.fools(claimed, self.oracle.verdict(claimed, self.best_x[claimed]))


class Nearest(Problem):
    """Without an eps: kept is the shortest success that is not farther than ``ball.eps``; x where there is none."""

    def __init__(self, *args: Any, length: Callable[[Tensor], Tensor], **rules: Any) -> None:
        super().__init__(*args, **rules)
        self.length = length
        self.firm = torch.zeros_like(self.solved)

    def begin(self) -> None:
        """No point is nearer than x itself."""
        self._judge_clean()
        self.rank[self.solved] = 0.0
        self.firm = self.solved.clone()

    def record(self, i: Tensor, z: Tensor, logits: Tensor, *, own: bool = False) -> Tensor:
        """Keep ``z`` where it fools and is nearer than what is kept; all rows stay: a nearer point may always be found.

        With a stochastic model, firm successes first: of many points near the boundary that are put to the vote, the
        nearest to win it are those that were lucky, and they fail the vote of :meth:`finish`. Those that fooled nearly
        all draws (8 of 9) take precedence over them.
        """
        assert self.length is not None
        z = self.oracle.seen(i, z)
        rank = self.length(z.double() - self.x[i].double())
        nearer = rank < self.rank[i] * (1 - 1e-9)  # rounding errors are no progress, and would cost a verdict
        firm = torch.ones_like(self.firm[i])
        found = self.fools(i, logits) & (rank <= self.ball.eps[i]) & (nearer | ~self.firm[i])
        hit = found.nonzero().squeeze(1)
        if len(hit) and self.oracle.stochastic:
            share, _ = self._vote(i[hit], z[hit])
            found[hit], firm[hit] = share > 0.5, share > 0.8
            found &= torch.where(firm == self.firm[i], nearer, firm)
        elif len(hit) and self.oracle.prepared and not own:
            found[hit] = self.fools(i[hit], self.oracle.verdict(i[hit], z[hit]))
        self._keep(i[found], z[found], rank[found])
        self.solved[i] |= found
        self.firm[i] |= found & firm
        return torch.ones_like(found)

    def fools(self, i: Tensor, logits: Tensor) -> Tensor:
        """Which rows these logits solve, bool (n,).

        The nearest point is on the decision boundary, where the last bits of the logits decide, which differ from one
        batch size to the next: there, a success must show in more than rounding error.
        """
        return self._fooled(i, logits) & (margin(logits, self.y[i], self.targeted) < -rounding(logits))

    def finish(self) -> None:
        """As for every problem; x is returned where the vote fails."""
        super().finish()
        if self.oracle.stochastic:
            self.best_x[~self.solved] = self.x[~self.solved]
