"""Means of logged scalars, kept on the device: nothing waits for a GPU until an epoch ends."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from robustgen.files import write_bytes
from robustgen.structure import check_structure
from robustgen.training.distributed import World

__all__ = ["Means", "best_row", "write_rows"]


class Means:
    """Running means over examples of the scalars that an objective returns."""

    def __init__(self, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._names: list[str] = []
        self._sums = torch.zeros(1, dtype=dtype, device=device)  # the count, then one sum for each name

    def add(self, scalars: Mapping[str, Any], n: int) -> None:
        """Add the means over a batch of ``n`` examples; ValueError if other scalars than before."""
        if not self._names:
            self._names = sorted(scalars)
            self._sums = self._sums.new_zeros(1 + len(scalars))
        if self._names != sorted(scalars):
            raise ValueError(f"the objective returned {sorted(scalars)}, before it was {self._names}")
        values = [torch.as_tensor(scalars[name]).detach().to(self._sums) for name in self._names]
        self._sums += n * torch.stack([torch.ones_like(self._sums[0]), *values])

    def read(self, world: World) -> dict[str, float]:
        """The means over the examples of all ranks."""
        count, *sums = world.reduce(self._sums.clone()).tolist()
        return {name: total / count for name, total in zip(self._names, sums, strict=True)}

    def state(self, world: World) -> dict[str, Any]:
        """What :meth:`restore` needs. All sums move to rank 0, which writes the checkpoint."""
        world.reduce(self._sums)
        state = {"names": list(self._names), "sums": self._sums.clone()}
        if world.rank:
            self._sums.zero_()
        return state

    def restore(self, state: Mapping[str, Any], world: World) -> None:
        """Go on from a :meth:`state`; ValueError for anything else."""
        check_structure(state, {"names": [str], "sums": torch.Tensor}, "means")
        if state["sums"].shape not in ((1 + len(state["names"]),), (1,)):
            raise ValueError(f"means: {len(state['names'])} names of sums {tuple(state['sums'].shape)}")
        self._names = list(state["names"])
        self._sums = state["sums"].to(self._sums).clone()
        if world.rank:
            self._sums.zero_()


def best_row(rows: Sequence[Mapping[str, float]], entry: str) -> Mapping[str, float]:
    """The first of the rows of a history, one at least, in which ``entry`` is highest.

    >>> best_row([{"epoch": 1, "a": 0.5}, {"epoch": 2, "a": 0.75}, {"epoch": 3, "a": 0.75}], "a")["epoch"]
    2
    """
    best = rows[0]
    for row in rows[1:]:
        if row[entry] > best[entry]:
            best = row
    return best


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace the file by these rows, a line of JSON each; NaN and Inf, which JSON lacks, are written as null."""
    write_bytes(path, "".join(map(_line, rows)).encode())


def _line(row: Mapping[str, Any]) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite) + "\n"
