"""RESULTS.md and what the command prints: tables drawn from the files under results/, never by hand."""

import statistics
from pathlib import Path
from typing import Any

from robustgen.experiments.catalogue import table
from robustgen.experiments.experiment import SCALES, Experiment, Row
from robustgen.experiments.runner import read_cells

__all__ = ["draw_experiment", "draw_list", "draw_page", "status_of"]

NOT_MEASURED = "not measured"


def draw_page(out: Path) -> str:
    """The whole of RESULTS.md from the cells kept under ``out``."""
    parts = [
        "# Results",
        "Drawn from the files under `results/` by `robustgen reproduce --page RESULTS.md`; every cell there holds its "
        "command, settings, seed, commit, versions, hardware and wall time. Ours are means over seeds, with the "
        "standard deviation where there are several. Robust accuracies are upper bounds: a better attack can lower "
        "them. `robustgen reproduce NAME --cell CELL --check` measures a cell again.",
    ]
    parts += [draw_experiment(e, out) for e in table().values()]
    return "\n\n".join(parts) + "\n"


def draw_experiment(experiment: Experiment, out: Path, scales: tuple[str, ...] = ("cpu", "full")) -> str:
    """The tables of one experiment, at each of ``scales``, in Markdown."""
    lines = [f"## {experiment.name}: {experiment.title}", f"{experiment.source}. In the table: {experiment.metric}."]
    lines += [f"- {note}" for note in experiment.notes]
    empty = []
    for scale in scales:
        kept = read_cells(out, experiment, scale)
        if not kept:
            empty.append(scale)
            continue
        lines.append(f"### Scale `{scale}`")
        lines.append(_how(experiment, scale, list(kept.values())))
        lines.append(_main_table(experiment, kept))
        lines.append(experiment.remarks(kept))
        lines.append(_all_numbers(experiment, kept))
        lines.append(_verdicts(experiment, kept))
    if empty:
        lines.append(f"Scale {' and '.join(f'`{s}`' for s in empty)}: {NOT_MEASURED}.")
    missing = [f"- {row.title}: not yet ({row.missing})" for row in experiment.rows if row.missing]
    lines += ["Rows of the source that are not measured:\n" + "\n".join(missing)] if missing else []
    return "\n\n".join(line for line in lines if line)


def status_of(experiment: Experiment, out: Path) -> str:
    """One line: how many cells of each scale are kept, which rows are not measured and why."""
    due = len(experiment.cells())
    parts = []
    for scale in SCALES:
        kept = len(read_cells(out, experiment, scale))
        if kept:
            parts.append(f"{scale}: {kept} of {due} cells")
    missing = [f"{row.key} not yet: {row.missing}" for row in experiment.rows if row.missing]
    return "; ".join([*(parts or [NOT_MEASURED]), *missing])


def draw_list(out: Path) -> str:
    """Every experiment with its state."""
    return "\n".join(f"{e.name:<34}{e.title}\n{'':<34}{status_of(e, out)}" for e in table().values())


def _how(experiment: Experiment, scale: str, records: list[dict[str, Any]]) -> str:
    minutes = sum(r["wall_seconds"] for r in records) / 60
    machines = sorted({f"{r['environment']['cpu']}, {r['environment']['accelerator']}" for r in records})
    versions = sorted({f"torch {r['environment']['torch']}" for r in records})
    described = experiment.describe(scale)
    return (
        f"{described + '. ' if described else ''}{len(records)} of {len(experiment.cells())} cells, "
        f"{minutes:.0f} minutes of one process each on a shared machine ({'; '.join(machines)}, accelerator last; "
        f"{', '.join(versions)})."
    )


def _main_table(experiment: Experiment, kept: dict[str, dict[str, Any]]) -> str:
    columns = experiment.columns
    head = [""]
    for column in columns:
        head += [f"{column.title}: published", "ours"]
    lines = [_line([*head, "note"]), _line(["---"] * (len(head) + 1))]
    for row in experiment.rows:
        cells = []
        for column in columns:
            published = row.published.get(column.key)
            cells.append("" if published is None else f"{published:g}")
            cells.append(_ours(experiment, kept, row, column.key))
        lines.append(_line([row.title, *cells, row.note]))
    return "\n".join(lines)


def _ours(experiment: Experiment, kept: dict[str, dict[str, Any]], row: Row, column: str) -> str:
    if row.missing:
        return "not yet"
    if row.columns is not None and column not in row.columns:
        return ""
    values = [r["value"] for r in kept.values() if (r["row"], r["column"]) == (row.key, column)]
    return spread(values, experiment.digits) if values else NOT_MEASURED


def spread(values: list[float], digits: int) -> str:
    """Mean +- standard deviation (how many), as text.

    >>> spread([1.0, 2.0, 3.0], 1), spread([1.0], 1)
    ('2.0 ± 1.0 (3)', '1.0 (1)')
    """
    middle = f"{statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        middle += f" ± {statistics.stdev(values):.{digits}f}"
    return f"{middle} ({len(values)})"


def _all_numbers(experiment: Experiment, kept: dict[str, dict[str, Any]]) -> str:
    """Everything else that was measured on the networks of each cell, means over seeds."""
    names = list(dict.fromkeys(name for r in kept.values() for name in r["numbers"]))
    if not names:
        return ""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in kept.values():
        groups.setdefault((record["row"], record["column"]), []).append(record)
    titles = {c.key: c.title for c in experiment.columns}
    counts = {name: sorted({r["numbers"][name]["n"] for r in kept.values() if name in r["numbers"]}) for name in names}
    head = [f"{name} [n={'/'.join(f'{n:g}' for n in counts[name])}]" for name in names]
    lines = ["<details><summary>Everything measured on each of these, means over seeds</summary>", ""]
    lines += [_line(["", "", *head]), _line(["---"] * (2 + len(names)))]
    for (row, column), records in groups.items():
        cells = []
        for name in names:
            values = [r["numbers"][name]["value"] for r in records if name in r["numbers"]]
            cells.append(f"{statistics.fmean(values):.{experiment.digits}f}" if values else "")
        lines.append(_line([experiment.row(row).title, titles[column], *cells]))
    lines += ["", "</details>"]
    return "\n".join(lines)


def _verdicts(experiment: Experiment, kept: dict[str, dict[str, Any]]) -> str:
    names = list(dict.fromkeys(v["name"] for r in kept.values() for v in r["verdicts"]))
    if not names:
        return ""
    lines = ["Tests of the attacks themselves, over all cells above:", ""]
    for name in names:
        found = [(cell, v) for cell, r in kept.items() for v in r["verdicts"] if v["name"] == name]
        bad = [(cell, v) for cell, v in found if v["verdict"] == "violated"]
        lines.append(f"- {name}: holds in {len(found) - len(bad)} of {len(found)}")
        lines += [f"  - violated by `{cell}`: {v['detail']}" for cell, v in bad[:3]]
        if len(bad) > 3:
            lines.append(f"  - and by {len(bad) - 3} more cells")
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
