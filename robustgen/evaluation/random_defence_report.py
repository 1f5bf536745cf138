"""What an evaluation of a random defence found: how often it is right, draw by draw, and what its parts give."""

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustgen.binomial import lower_bound, upper_bound
from robustgen.evaluation.metrics import percent, proportion, wilson_interval
from robustgen.files import environment
from robustgen.fortified.purify import votes_of
from robustgen.printable import printable

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
    "RandomDefenceReport",
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


@dataclass
class RandomDefenceReport:
    """What :func:`random_defence` found. Accuracies under attack are upper bounds: a stronger attack can lower them.

    Attributes:
        name: of the defence.
        purifier: what it is, its depth and steps, whether its gradient is exact, whether it draws.
        eps, norm: the threat model, in [0, 1].
        eot: draws that gradients averaged.
        k, draws: of a vote and of a verdict; 1 where nothing is drawn.
        ids, y: int64 (N,).
        rows: by attack, "clean" first; "worst" is the worst point of each input, judged by draws of its own.
        fixed: bool (N,), right at every point that was found, where the draws are those of one known seed.
        undefended: bool (N,), the network alone, right at every point that was found.
        undefended_clean: bool (N,), the network alone without attack.
        notes: what a reader should doubt before any number.
        pictures: of a few inputs: as they are and attacked, and what a draw of the purifier makes of both.
        seed, environment, wall_seconds: how it was made.

    Raises:
        ValueError: no row of an adaptive attack.
    """

    name: str
    purifier: dict[str, Any]
    eps: float
    norm: str
    eot: int
    k: int
    draws: int
    ids: Tensor
    y: Tensor
    rows: dict[str, DefenceRow]
    fixed: Tensor
    undefended: Tensor
    undefended_clean: Tensor
    notes: list[str] = field(default_factory=list)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    seed: int = 0
    environment: dict[str, Any] = field(default_factory=environment)
    wall_seconds: float = 0.0

    def __post_init__(self) -> None:
        needs_adaptive([row.kind for row in self.rows.values()])
        blind = [row for row in self.rows.values() if row.kind in (OBLIVIOUS, BLACK_BOX)]
        seeing = [row for row in self.rows.values() if row.kind in (ADAPTIVE, STAND_IN)]
        least = min(seeing, key=lambda row: row.one_draw)
        doubts = [
            f"{row.label} leaves {row.one_draw:.1%} in one draw, less than all that know the purifier "
            f"({least.one_draw:.1%}): their gradients are of little use, and stronger attacks are missing"
            for row in blind
            if least.one_draw - row.one_draw > 0.02
        ]
        self.notes = [*self.notes, *(doubt for doubt in doubts if doubt not in self.notes)]

    @property
    def worst(self) -> DefenceRow:
        """The worst point of each input."""
        return self.rows["worst"]

    @property
    def split(self) -> dict[str, float]:
        """What the accuracy under attack is made of, as shares that may be negative.

        ``undefended`` + ``removal`` is the accuracy where the seed is known; + ``randomness`` that of one draw;
        + ``resubmission``, at most 0, what is left where the attacker may try k times.
        """
        alone, fixed = (t.double().mean().item() for t in (self.undefended, self.fixed))
        one, all_right = self.worst.one_draw, self.worst.all_right.mean().item()
        return {
            "undefended": alone,
            "removal": fixed - alone,
            "randomness": one - fixed,
            "resubmission": all_right - one,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: threat model, every number with its interval, one record for each input."""
        bounds = {key: [[round(b, 6) for b in t.tolist()] for t in row.bounds] for key, row in self.rows.items()}
        return {
            "name": self.name,
            "purifier": self.purifier,
            "threat_model": {"norm": self.norm, "eps": self.eps},
            "eot": self.eot,
            "k": self.k,
            "draws": self.draws,
            "notes": self.notes,
            "rows": {key: row.to_dict() for key, row in self.rows.items()},
            "fixed": proportion(self.fixed),
            "undefended": proportion(self.undefended),
            "undefended_clean": proportion(self.undefended_clean),
            "split": self.split,
            "pictures": self.pictures,
            "per_example": {
                "ids": self.ids.tolist(),
                "labels": self.y.tolist(),
                "right": {key: row.counts.tolist() for key, row in self.rows.items()},
                "low": {key: low for key, (low, _) in bounds.items()},
                "high": {key: high for key, (_, high) in bounds.items()},
                "vote": {key: row.vote.tolist() for key, row in self.rows.items()},
                "fixed": self.fixed.tolist(),
                "undefended": self.undefended.tolist(),
            },
            "seed": self.seed,
            "environment": self.environment,
            "wall_seconds": round(self.wall_seconds, 2),
        }

    def save(self, directory: str | Path, *, command: str | None = None) -> Path:
        """Write ``random_defence.json`` and ``random_defence.html``; returns the path of the page."""
        from robustgen.evaluation.random_defence_page import write_random_defence

        return write_random_defence(self.to_dict(), directory, command)

    def __str__(self) -> str:
        found = self.to_dict()
        rows = [f"{self.name}: {len(self.y)} examples, {self.norm} eps {self.eps:g} (95 % intervals)"]
        rows += [f"  doubt: {note}" for note in self.notes]
        columns = ("one_draw", "vote", "all_right") if self.purifier["stochastic"] else ("one_draw",)
        heads = {"one_draw": "one draw", "vote": f"vote of {self.k}", "all_right": f"all of {self.k} right"}
        width = max(len("the network alone, without attack"), *(len(row.label) for row in self.rows.values()))
        if len(columns) > 1:
            rows.append(f"  {'':<{width}}  " + "".join(f"{heads[c]:<24}" for c in columns).rstrip())
        for row in found["rows"].values():
            rows.append(f"  {row['label']:<{width}}  " + "".join(f"{percent(row[c]):<24}" for c in columns).rstrip())
        if self.purifier["stochastic"]:
            rows.append(f"  {'a seed that the attacker knows':<{width}}  {percent(found['fixed'])}")
        rows.append(f"  {'the network alone, without attack':<{width}}  {percent(found['undefended_clean'])}")
        rows.append(f"  {'the network alone, attacked':<{width}}  {percent(found['undefended'])}")
        rows.append(f"  {told(found)}")
        return printable("\n".join(rows))


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
