"""Measures the cells of an experiment, each into a file of its own, and sums them up."""

import functools
import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustgen.experiments.experiment import Cell, Experiment, Measurement, check_scale
from robustgen.experiments.training_cache import SCHEDULE, TrainingCache
from robustgen.files import environment, read_json, write_json
from robustgen.locks import alone
from robustgen.structure import check_structure

__all__ = [
    "FORMAT",
    "cell_path",
    "check_cell",
    "current_commit",
    "measure_cell",
    "read_cells",
    "run_experiment",
    "summarise",
]

FORMAT = 1
RECORD = {  # as cell.schema.json has it
    "format": int,
    "experiment": str,
    "scale": str,
    "row": str,
    "column": str,
    "seed": int,
    "settings": dict,
    "value": float,
    "numbers": {str: {"value": float, "n": float}},
    "verdicts": [{"name": str, "verdict": str, "detail": str}],
    "history": {str: [float]},
    "command": str | None,
    "commit": str,
    "environment": {"cpu": str, "torch": str, "accelerator": str},
    "wall_seconds": float,
}


def cell_path(out: Path, experiment: Experiment, scale: str, cell: Cell) -> Path:
    """``out/<experiment>/<scale>/<cell>.json``."""
    return out / experiment.name / scale / f"{cell.name}.json"


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
        "settings": _settings(experiment, cell, scale),
        "value": found.value,
        "numbers": _as_json(found.numbers),
        "verdicts": found.verdicts,
        "history": _as_json(found.history),
        "command": command,
        "commit": commit,
        "environment": environment(),
        "wall_seconds": round(time.monotonic() - started, 1),
    }


def read_cell(path: Path, cell: Cell) -> dict[str, Any]:
    """The record of ``cell`` at ``path``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: not a complete record in this format, or that of another cell.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such cell is kept")
    record: dict[str, Any] = read_json(path, dict)
    if record.get("format") != FORMAT:
        raise ValueError(f"{path}: not the record of a cell in format {FORMAT}")
    check_structure(record, RECORD, path)
    if (record["row"], record["column"], record["seed"]) != (cell.row, cell.column, cell.seed):
        raise ValueError(f"{path}: holds another cell ({record['row']}, {record['column']}, seed {record['seed']})")
    return record


def read_cells(out: Path, experiment: Experiment, scale: str) -> dict[str, dict[str, Any]]:
    """The kept cells of an experiment by name, in its order, without those whose settings are no longer its own.

    Raises:
        ValueError: a file that is not a cell's record.
    """
    found = {}
    for cell in experiment.cells(_most_seeds(out, experiment, scale)):
        path = cell_path(out, experiment, scale, cell)
        if path.exists():
            record = read_cell(path, cell)
            if record["settings"] == _settings(experiment, cell, scale):
                found[cell.name] = record
    return found


def _most_seeds(out: Path, experiment: Experiment, scale: str) -> int:
    names = [path.stem for path in (out / experiment.name / scale).glob("*--*--seed*.json")]
    return max([experiment.seeds, *(Cell.parse(name).seed + 1 for name in names if name[-1].isdigit())])


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
    """Measure what is not measured yet; each cell is written as soon as it ends, so a killed run loses at most one.

    Args:
        seeds: 0 to seeds - 1; None: as many as the experiment asks for.
        only: this cell alone.
        part: (i, k): the cells of every k-th row and seed, beginning with the i-th, so that k processes can share the
            work; cells of a row are left to one of them, as they mostly share trainings.

    Returns:
        All kept cells, as :func:`read_cells` gives them. ``out/<experiment>/<scale>.json`` sums them up.
    """
    check_scale(scale)
    (out / experiment.name / scale).mkdir(parents=True, exist_ok=True)  # fails now, not after the first cell
    cells = [only] if only is not None else _dealt(experiment.cells(seeds), *part)
    kept = read_cells(out, experiment, scale)
    for k, cell in enumerate(cells):
        where = f"{experiment.name} {scale} [{k + 1}/{len(cells)}] {cell.name}"
        if cell.name in kept:
            say(f"{where}: kept, {kept[cell.name]['value']:.{experiment.digits}f}")
            continue
        record = measure_cell(experiment, cell, scale, cache, command)
        write_json(cell_path(out, experiment, scale, cell), record)
        _write_summary(experiment, scale, out)
        say(f"{where}: {record['value']:.{experiment.digits}f} ({record['wall_seconds']:.0f} s)")
    return _write_summary(experiment, scale, out)


def _dealt(cells: list[Cell], i: int, k: int) -> list[Cell]:
    lines = list(dict.fromkeys((cell.row, cell.seed) for cell in cells))
    mine = set(lines[i - 1 :: k])
    return [cell for cell in cells if (cell.row, cell.seed) in mine]


def _write_summary(experiment: Experiment, scale: str, out: Path) -> dict[str, dict[str, Any]]:
    with alone(out / experiment.name, wait=True):  # a process that shares the work may have added a cell since
        kept = read_cells(out, experiment, scale)
        if kept:  # else: an experiment of which nothing can be measured
            write_json(out / experiment.name / f"{scale}.json", summarise(experiment, scale, kept))
    return kept


def _settings(experiment: Experiment, cell: Cell, scale: str) -> dict[str, Any]:
    settings: dict[str, Any] = _as_json(experiment.settings(cell, scale) | {"seed": cell.seed, "schedule": SCHEDULE})
    return settings


def summarise(experiment: Experiment, scale: str, kept: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """For each row and column every seed's value, their mean and deviation, the published number; how it was made.

    Seeds whose network has collapsed are named apart, without their values.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    collapsed: dict[tuple[str, str], list[int]] = {}
    for record in kept.values():
        place = record["row"], record["column"]
        groups.setdefault(place, [])
        if experiment.has_collapsed(record):
            collapsed.setdefault(place, []).append(record["seed"])
        else:
            groups[place].append(record)
    return {
        "format": FORMAT,
        "experiment": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "metric": experiment.metric,
        "scale": scale,
        "cells": [
            {
                "row": row,
                "column": column,
                "published": experiment.row(row).published.get(column),
                "seeds": [r["seed"] for r in records],
                "values": [r["value"] for r in records],
            }
            | _spread([r["value"] for r in records])
            | {
                "numbers": {
                    name: _spread([r["numbers"][name]["value"] for r in records if name in r["numbers"]])
                    for name in (records[0]["numbers"] if records else ())
                }
            }
            | ({"collapsed": collapsed[row, column]} if (row, column) in collapsed else {})
            for (row, column), records in groups.items()
        ],
        "commands": sorted({r["command"] for r in kept.values() if r["command"]}),
        "commits": sorted({r["commit"] for r in kept.values()}),
        "environments": _distinct([r["environment"] for r in kept.values()]),
        "wall_seconds": round(sum(r["wall_seconds"] for r in kept.values()), 1),
    }


def _spread(values: list[float]) -> dict[str, Any]:
    return {
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
    }


def _distinct(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [json.loads(text) for text in dict.fromkeys(json.dumps(item, sort_keys=True) for item in items)]


def check_cell(
    experiment: Experiment, cell: Cell, scale: str, cache: TrainingCache, out: Path, tolerance: float = 1e-6
) -> list[str]:
    """Measure a kept cell again, from nothing, and name every number that comes out otherwise.

    The same versions, hardware and thread count give the same numbers bitwise; others need not.

    Raises:
        FileNotFoundError: the cell is not kept.
    """
    kept = read_cell(cell_path(out, experiment, scale, cell), cell)
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


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


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
