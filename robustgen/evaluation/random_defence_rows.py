"""The rows of a random defence's ledger: how often it is right, draw by draw, at the points of one attack."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from robustgen.binomial import lower_bound, upper_bound
from robustgen.evaluation.metrics import proportion, wilson_interval
from robustgen.fortified.purify import votes_of

__all__ = [
    "ADAPTIVE",
    "BLACK_BOX",
    "CLEAN",
    "KINDS",
    "OBLIVIOUS",
    "ONE_SEED",
    "STAND_IN",
    "WORST",
    "DefenceRow",
    "all_of_k",
    "mean_share",
    "needs_adaptive",
    "told",
]

CLEAN, OBLIVIOUS, ADAPTIVE, STAND_IN = "clean", "oblivious", "adaptive", "stand-in"
BLACK_BOX, ONE_SEED, WORST = "black box", "one seed", "worst"
KINDS = (CLEAN, OBLIVIOUS, ADAPTIVE, STAND_IN, BLACK_BOX, ONE_SEED, WORST)
_ALPHA = 0.05  # of the interval of each input


def all_of_k(right: Tensor, draws: int, k: int) -> Tensor:
    """How likely k draws are all right, float64 (N,), where ``right`` (N,) of ``draws`` were.

    The share of the ways to choose k of the draws in which all are right: (c over k) / (n over k). Its mean is p^k for
    every chance p of one draw, without bias, which (c / n)^k has (Hoeffding, "A Class of Statistics with Asymptotically
    Normal Distribution", 1948).

    >>> all_of_k(torch.tensor([0, 3, 4]), 4, 2)
    tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    found = torch.ones(len(right), dtype=torch.float64)
    for j in range(k):
        found *= (right.double() - j).clamp(min=0) / (draws - j)
    return found


def mean_share(values: Tensor) -> dict[str, Any]:
    """The mean of values (N,) in [0, 1], each of an input of its own, with a 95 % interval and N.

    That of Wilson, as of N coins: values between 0 and 1 vary by no more, so that it is wide enough.
    """
    n, hits = len(values), round(values.double().sum().item(), 9)
    low, high = wilson_interval(math.floor(hits), n)[0], wilson_interval(math.ceil(hits), n)[1]
    return {"value": hits / n, "low": low, "high": high, "n": n}


def needs_adaptive(kinds: list[str]) -> None:
    """ValueError unless one of the rows is of an attack on the defence itself."""
    if ADAPTIVE not in kinds:
        raise ValueError(
            "a purified accuracy is not shown without its adaptive row: run an attack through the purifier, pgd or apgd"
        )


@dataclass(frozen=True)
class DefenceRow:
    """The points of one attack, as many draws of the defence judge them.

    Attributes:
        label: in words.
        kind: "clean", "oblivious" (of an attack that does not know the purifier), "adaptive" (on the defence as it is),
            "stand-in" (with other gradients), "black box", "one seed" (on draws of a seed) or "worst".
        settings: of the attack.
        answers: int64 (N, n), the class in each draw.
        y: int64 (N,).
        k: draws of a vote, and tries of an attacker who may submit again.
        rejected: points of the attack that were not in the ball and the bounds; the input itself stands in for them.
    """

    label: str
    kind: str
    settings: dict[str, Any]
    answers: Tensor
    y: Tensor
    k: int
    rejected: int = 0

    @cached_property
    def right(self) -> Tensor:
        """bool (N, n)."""
        return self.answers == self.y[:, None]

    @property
    def counts(self) -> Tensor:
        """int64 (N,), how many draws are right."""
        return self.right.sum(1)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Between which the chance that one draw is right lies, float64 (N,) each: Clopper and Pearson, 95 %."""
        n = self.answers.shape[1]
        return lower_bound(self.counts, n, _ALPHA / 2), upper_bound(self.counts, n, _ALPHA / 2)

    @property
    def vote(self) -> Tensor:
        """bool (N,): most of the first k draws are right."""
        return votes_of(self.answers[:, : self.k]) == self.y

    @property
    def all_right(self) -> Tensor:
        """float64 (N,): how likely k draws are all right, so that the attacker gains nothing by trying so often."""
        return all_of_k(self.counts, self.answers.shape[1], self.k)

    @property
    def one_draw(self) -> float:
        """Share of draws that are right."""
        return self.right.double().mean().item()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "label": self.label,
            "kind": self.kind,
            "settings": json.loads(json.dumps(self.settings)),  # lists, as it reads back
            "one_draw": mean_share(self.right.double().mean(1)),
            "vote": proportion(self.vote),
            "all_right": mean_share(self.all_right),
            "rejected": self.rejected,
        }


def told(found: dict[str, Any]) -> str:
    """Of what the accuracy under attack is made, in a sentence."""
    split = {name: f"{100 * share:+.1f}" for name, share in found["split"].items()}
    removal = f"Under attack, removing perturbations gives {split['removal']} points"
    if not found["purifier"]["stochastic"]:
        return f"{removal}; nothing is drawn."
    return (
        f"{removal}, randomness {split['randomness']}; an attacker who may submit {found['k']} times takes "
        f"{split['resubmission'].lstrip('-+')} back."
    )
