"""Kept cells: one file a table and scale, JSON lines, a cell a line, sorted, written whole or not at all."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from robustgen.experiments.experiment import Cell, Experiment
from robustgen.experiments.training_cache import SCHEDULE
from robustgen.files import parse_json, write_bytes
from robustgen.locks import alone
from robustgen.structure import check_structure

__all__ = ["FORMAT", "as_json", "cells_path", "keep", "merge", "present_settings", "read_cells", "read_records"]

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
MOST_BYTES = 2**28  # of a file of cells


def cells_path(out: Path, experiment: Experiment, scale: str) -> Path:
    """``out/<experiment>/<scale>.jsonl``."""
    return out / experiment.name / f"{scale}.jsonl"


def read_records(out: Path, experiment: Experiment, scale: str) -> dict[Cell, dict[str, Any]]:
    """The records of all kept cells, whatever their settings, in the order of the file; none where there is no file.

    Raises:
        ValueError: a line that is not the record of a cell of this experiment and scale, or of one that an earlier
            line holds; it names file and line.
    """
    path = cells_path(out, experiment, scale)
    if not path.exists():
        return {}
    if not path.is_file():
        raise ValueError(f"{path}: a folder, where a file of cells belongs")
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path}: more than {MOST_BYTES // 2**20} MiB, which no such file has")
    found: dict[Cell, dict[str, Any]] = {}
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n") if data else (), 1):
        where = f"{path}, line {number}"
        record = parse_json(line, where, dict)
        cell = _cell_of(record, experiment, scale, where)
        if cell in found:
            raise ValueError(f"{where}: {cell.name} again, which an earlier line holds")
        found[cell] = record
    return found


def _cell_of(record: dict[str, Any], experiment: Experiment, scale: str, where: str) -> Cell:
    """The cell that a record is of; ValueError where it is no record, or one of another table."""
    if record.get("format") != FORMAT:
        raise ValueError(f"{where}: not the record of a cell in format {FORMAT}")
    check_structure(record, RECORD, where)
    try:
        json.dumps(record, allow_nan=False)
    except ValueError:  # such as 1e999, among settings, which nothing else looks into
        raise ValueError(f"{where}: holds a number that is too large") from None
    if (record["experiment"], record["scale"]) != (experiment.name, scale):
        raise ValueError(f"{where}: holds a cell of {record['experiment']} at scale {record['scale']}")
    return Cell(record["row"], record["column"], record["seed"])


def read_cells(out: Path, experiment: Experiment, scale: str) -> dict[str, dict[str, Any]]:
    """The kept cells of an experiment by name, in its order, without those whose settings are no longer its own.

    Raises:
        ValueError: as :func:`read_records` does.
    """
    records = read_records(out, experiment, scale)
    own = [cell for cell in experiment.sorted(records) if _is_present(records[cell], experiment, cell, scale)]
    return {cell.name: records[cell] for cell in own}


def keep(out: Path, experiment: Experiment, scale: str, records: Iterable[dict[str, Any]]) -> None:
    """Write records among the kept ones, each in place of an older one of its cell.

    The file is replaced as a whole, by one process at a time: others may add cells, and a kill loses none.
    """
    path = cells_path(out, experiment, scale)
    with alone(path.parent, wait=True):
        kept = read_records(out, experiment, scale)
        kept |= {Cell(record["row"], record["column"], record["seed"]): record for record in records}
        lines = [json.dumps(kept[cell], allow_nan=False) for cell in sorted(kept)]
        write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def merge(out: Path, experiment: Experiment, scale: str, other: Path) -> tuple[int, int, int]:
    """Keep the cells of another folder of results that are not kept in ``out``.

    Returns:
        How many were taken, how many ``out`` held already, and how many were left because their settings are not
        those of the experiment.

    Raises:
        FileNotFoundError: the other folder has no file of this experiment and scale.
        ValueError: as :func:`read_records` does.
    """
    if not cells_path(other, experiment, scale).is_file():
        raise FileNotFoundError(f"{cells_path(other, experiment, scale)}: no such file")
    theirs, present = read_records(other, experiment, scale), read_cells(other, experiment, scale)
    ours = read_cells(out, experiment, scale)
    taken = [record for name, record in present.items() if name not in ours]
    if taken:
        keep(out, experiment, scale, taken)
    return len(taken), len(present) - len(taken), len(theirs) - len(present)


def present_settings(experiment: Experiment, cell: Cell, scale: str) -> dict[str, Any]:
    """What a cell measured now would record as its settings."""
    settings = experiment.settings(cell, scale) | {"seed": cell.seed, "schedule": SCHEDULE}
    return dict(as_json(settings))


def _is_present(record: dict[str, Any], experiment: Experiment, cell: Cell, scale: str) -> bool:
    return bool(record["settings"] == present_settings(experiment, cell, scale))


def as_json(value: Any) -> Any:
    """``value`` as it is when written as JSON and read again."""
    return json.loads(json.dumps(value, allow_nan=False))
