"""What an evaluation of a random defence found, as a whole, and what its parts give."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from robustgen.evaluation.metrics import percent, proportion
from robustgen.evaluation.random_defence_page import write_random_defence
from robustgen.evaluation.random_defence_rows import (
    ADAPTIVE,
    BLACK_BOX,
    OBLIVIOUS,
    STAND_IN,
    DefenceRow,
    needs_adaptive,
    told,
)
from robustgen.files import environment
from robustgen.printable import printable

__all__ = ["RandomDefenceReport"]


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
