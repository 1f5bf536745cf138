"""Measures the cells of an experiment, each kept as soon as it ends."""

import functools
import math
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustgen.experiments.cells import FORMAT, as_json, cells_path, keep, present_settings, read_cells, read_records
from robustgen.experiments.experiment import Cell, Experiment, Measurement, check_scale
from robustgen.experiments.training_cache import TrainingCache
from robustgen.files import environment

__all__ = ["check_cell", "current_commit", "measure_cell", "run_experiment"]


def measure_cell(
    experiment: Experiment, cell: Cell, scale: str, cache: TrainingCache, command: str | None = None
) -> dict[str, Any]:
    """Measure one cell; its record, as it is written (cell.schema.json).

    Raises:
        ValueError: a number that is NaN or Inf.
    """
    started, commit = time.monotonic(), current_commit()  # before: somebody may commit meanwhile
    found: Measurement = experiment.measure(cell, scale, cache)
    for name, number in {"value": found.value, **{k: v["value"] for k, v in found.numbers.items()}}.items():
        if not math.isfinite(number):
            raise ValueError(f"{experiment.name} {cell.name}: {name} is {number}")
    return {
        "format": FORMAT,
        "experiment": experiment.name,
        "scale": scale,
        "row": cell.row,
        "column": cell.column,
        "seed": cell.seed,
        "settings": present_settings(experiment, cell, scale),
        "value": found.value,
        "numbers": as_json(found.numbers),
        "verdicts": found.verdicts,
        "history": as_json(found.history),
        "command": command,
        "commit": commit,
        "environment": environment(),
        "wall_seconds": round(time.monotonic() - started, 1),
    }


def run_experiment(
    experiment: Experiment,
    scale: str,
    cache: TrainingCache,
    out: Path,
    *,
    seeds: int | None = None,
    only: Cell | None = None,
    part: tuple[int, int] = (1, 1),
    command: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Measure what is not measured yet; each cell is kept as soon as it ends, so a killed run loses at most one.

    Args:
        seeds: 0 to seeds - 1; None: as many as the experiment asks for.
        only: this cell alone.
        part: (i, k): the cells of every k-th row and seed, beginning with the i-th, so that k processes can share the
            work; cells of a row are left to one of them, as they mostly share trainings.

    Returns:
        All kept cells, as :func:`~robustgen.experiments.cells.read_cells` gives them.

    Raises:
        FloatingPointError: the numbers of a cell ran away, in a training for instance; once all others are measured.
    """
    check_scale(scale)
    cells_path(out, experiment, scale).parent.mkdir(parents=True, exist_ok=True)  # fails now, not after the first cell
    cells = [only] if only is not None else _dealt(experiment.cells(seeds), *part)
    kept = read_cells(out, experiment, scale)
    ran_away: list[str] = []
    for k, cell in enumerate(cells):
        where = f"{experiment.name} {scale} [{k + 1}/{len(cells)}] {cell.name}"
        if cell.name in kept:
            say(f"{where}: kept, {kept[cell.name]['value']:.{experiment.digits}f}")
            continue
        try:
            record = measure_cell(experiment, cell, scale, cache, command)
        except FloatingPointError as error:
            ran_away.append(f"{cell.name}: {error}")
            say(f"{where}: {error}")
            continue
        keep(out, experiment, scale, [record])
        say(f"{where}: {record['value']:.{experiment.digits}f} ({record['wall_seconds']:.0f} s)")
    if ran_away:
        raise FloatingPointError(f"not measured: {len(ran_away)} of {len(cells)} cells; {'; '.join(ran_away)}")
    return read_cells(out, experiment, scale)


def _dealt(cells: list[Cell], i: int, k: int) -> list[Cell]:
    lines = list(dict.fromkeys((cell.row, cell.seed) for cell in cells))
    mine = set(lines[i - 1 :: k])
    return [cell for cell in cells if (cell.row, cell.seed) in mine]


def check_cell(
    experiment: Experiment, cell: Cell, scale: str, cache: TrainingCache, out: Path, tolerance: float = 1e-6
) -> list[str]:
    """Measure a kept cell again, from nothing, and name every number that comes out otherwise.

    The same versions, hardware and thread count give the same numbers bitwise; others need not.

    Raises:
        FileNotFoundError: the cell is not kept.
    """
    kept = read_records(out, experiment, scale).get(cell)
    if kept is None:
        raise FileNotFoundError(f"{cells_path(out, experiment, scale)}: no such cell is kept, {cell.name}")
    again = measure_cell(experiment, cell, scale, cache)
    numbers = [("value", kept["value"], again["value"])]
    for name in dict.fromkeys([*kept["numbers"], *again["numbers"]]):
        pair = (found["numbers"].get(name, {}).get("value", float("nan")) for found in (kept, again))
        numbers.append((name, *pair))
    problems = [
        f"{name}: kept {old:.6g}, now {new:.6g}"
        for name, old, new in numbers
        if not abs(old - new) <= tolerance * max(1.0, abs(old))
    ]
    if kept["settings"] != again["settings"]:
        problems.insert(0, "the settings of the experiment are no longer those of the kept cell")
    if problems and kept["environment"] != again["environment"]:
        different = [k for k, v in kept["environment"].items() if again["environment"].get(k) != v]
        problems.append(f"the kept cell was measured elsewhere: {', '.join(different)} differ")
    return problems


@functools.cache
def current_commit() -> str:
    """The commit that this code is at, "-changed" where files of the package differ from it.

    Read once, when the first cell begins. "unknown" outside git, and where git does not know this file.
    """
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # installed inside somebody else's repository?
        changed = git("status", "--porcelain", "--", str(here.parent))
        return git("rev-parse", "HEAD") + ("-changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
