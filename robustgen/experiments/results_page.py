"""RESULTS.md and what the command prints: tables drawn from the files under results/, never by hand."""

import statistics
from pathlib import Path
from typing import Any, TypeAlias

from robustgen.experiments.catalogue import table
from robustgen.experiments.experiment import SCALES, Experiment, Row
from robustgen.experiments.runner import read_cells, summarise

__all__ = ["draw_experiment", "draw_list", "draw_page", "status_of"]

NOT_MEASURED = "not measured"
REASONS = {"cpu": "its turn has not come", "full": "meant for an accelerator"}
Groups: TypeAlias = dict[tuple[str, str], dict[str, Any]]  # (row, column): what all its seeds gave


def draw_page(out: Path) -> str:
    """The whole of RESULTS.md from the cells kept under ``out``."""
    parts = [
        "# Results",
        "Drawn from the files under `results/` by `robustgen reproduce --page RESULTS.md`; every cell there holds its "
        "command, settings, seed, commit, versions, hardware and wall time. Ours are means over seeds, with the "
        "standard deviation where there are several. Robust accuracies are upper bounds: a better attack can lower "
        "them. `robustgen reproduce NAME --cell CELL --check` measures a cell again.",
        "How networks are attacked: with their true labels; the iterate of lowest margin counts, not the last; an "
        "image that is misclassified without an attack counts as broken. PGD: 40 steps of 2.5 eps / 40 (fewer at "
        "scale `smoke`), from the clean image or from a random start; restarts: of PGD from random starts, on fewer "
        "images. noise: the worst of 20 uniform draws. transfer: FGSM on a plainly trained network of the same kind, "
        "from other initial weights. Fortified, where nothing else is said: one dense autoencoder, twice as wide as "
        "its layer, on the last hidden layer of the convnet, noise 0.1, both losses (means over units) with weight "
        "0.1.",
        "Scale `cpu` is small, in networks and in training sets, so its numbers are to be compared with each other "
        "before they are compared with published ones.",
        "Collapsed: networks that have learned nothing, so that their last training losses are within 1 % of log C, "
        "those of guessing. They are counted beside the others of their seeds, and are in no mean and no verdict.",
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
        try:
            lines += _tables(experiment, scale, kept, out)
        except KeyError as error:
            raise ValueError(f"{out / experiment.name / scale}: a cell there lacks the number {error}") from None
    if empty:
        lines += [f"Scale `{scale}`: {NOT_MEASURED} ({REASONS[scale]})." for scale in empty]
    missing = [f"- {row.title}: not yet ({row.missing})" for row in experiment.rows if row.missing]
    lines += ["Rows of the source that are not measured:\n" + "\n".join(missing)] if missing else []
    return "\n\n".join(line for line in lines if line)


def _tables(experiment: Experiment, scale: str, kept: dict[str, dict[str, Any]], out: Path) -> list[str]:
    groups = {(cell["row"], cell["column"]): cell for cell in summarise(experiment, scale, kept)["cells"]}
    living = experiment.living(kept)
    return [
        _how(experiment, scale, list(kept.values())),
        _lines_table(experiment, groups) if experiment.as_lines else _main_table(experiment, groups),
        experiment.remarks(living, lambda other: other.living(read_cells(out, other, scale))),
        _all_numbers(experiment, groups, living),
        _verdicts(experiment, living, len(kept) - len(living)),
    ]


def status_of(experiment: Experiment, out: Path) -> str:
    """One line: how many cells of each scale are kept, which rows are not measured and why."""
    due = len(experiment.cells())
    parts = []
    for scale in SCALES:
        kept = len(read_cells(out, experiment, scale))
        if kept:
            parts.append(f"{scale}: {kept} of {due} cells")
        elif scale in REASONS:
            parts.append(f"{scale}: {NOT_MEASURED} ({REASONS[scale]})")
    missing = [f"{row.key} not yet: {row.missing}" for row in experiment.rows if row.missing]
    return "; ".join([*parts, *missing])


def draw_list(out: Path) -> str:
    """Every experiment with its state."""
    return "\n".join(f"{e.name:<34}{e.title}\n{'':<34}{status_of(e, out)}" for e in table().values())


def _how(experiment: Experiment, scale: str, records: list[dict[str, Any]]) -> str:
    minutes = sum(r["wall_seconds"] for r in records) / 60
    machines = sorted({f"{r['environment']['cpu']}, accelerator: {r['environment']['accelerator']}" for r in records})
    versions = sorted({f"torch {r['environment']['torch']}" for r in records})
    described = experiment.describe(scale)
    due = max(len(experiment.cells()), len(records))
    return (
        f"{described + '. ' if described else ''}{len(records)} of {due} cells; {minutes:.0f} "
        f"minutes of one thread on a shared machine, without the trainings that other cells had done "
        f"({'; '.join(machines)}; {', '.join(versions)})."
    )


def _main_table(experiment: Experiment, groups: Groups) -> str:
    columns = experiment.columns
    head = [""]
    for column in columns:
        head += [f"{column.title}: published", "ours"]
    lines = [_line([*head, "note"]), _line(["---"] * (len(head) + 1))]
    for row in experiment.rows:
        cells = []
        for column in columns:
            published = row.published.get(column.key)
            cells += ["" if published is None else f"{published:g}", _ours(experiment, groups, row, column.key)]
        lines.append(_line([row.title, *cells, row.note]))
    return "\n".join(lines)


def _lines_table(experiment: Experiment, groups: Groups) -> str:
    """A line for each column, published and ours, over all rows that are measured or published; mean and median."""
    rows, digits = experiment.rows, experiment.digits
    lines = [_line(["", *(row.title for row in rows), "mean", "median"]), _line(["---"] * (len(rows) + 3))]
    for level in experiment.levels:
        found = {row.key: cell["numbers"][level]["mean"] for (row, _), cell in _first_of_rows(experiment, groups)}
        lines.append(_averaged_line(level, [found.get(row.key) for row in rows], digits))
    for column in experiment.columns:
        published = [row.published.get(column.key) for row in rows]
        ours = [groups.get((row.key, column.key), {}).get("mean") for row in rows]
        if any(value is not None for value in published):
            lines.append(_averaged_line(f"{column.title}: published", published, digits))
        if any(not row.missing and (row.columns is None or column.key in row.columns) for row in rows):
            lines.append(_averaged_line(f"{column.title}: ours", ours, digits))
    return "\n".join(lines)


def _first_of_rows(experiment: Experiment, groups: Groups) -> list[tuple[tuple[Row, str], dict[str, Any]]]:
    """A measured cell of each row."""
    cells = {row: (column, cell) for (row, column), cell in reversed(groups.items())}
    return [((row, cells[row.key][0]), cells[row.key][1]) for row in experiment.rows if row.key in cells]


def _averaged_line(title: str, values: list[float | None], digits: int) -> str:
    """Values of all rows, then mean and median where all rows have one."""
    known = [v for v in values if v is not None]
    whole = [statistics.fmean(known), statistics.median(known)] if len(known) == len(values) else [None, None]
    return _line([title, *("" if v is None else f"{v:.{digits}f}" for v in (*values, *whole))])


def _ours(experiment: Experiment, groups: Groups, row: Row, column: str) -> str:
    if row.missing:
        return "not yet"
    if row.columns is not None and column not in row.columns:
        return ""
    found = groups.get((row.key, column))
    if found is None:
        return NOT_MEASURED
    parts = [spread(found["mean"], found["sd"], len(found["values"]), experiment.digits)] if found["values"] else []
    parts += [f"collapsed ({len(found['collapsed'])})"] if "collapsed" in found else []
    return ", ".join(parts)


def spread(mean: float, sd: float | None, n: int, digits: int) -> str:
    """Mean +- standard deviation (how many), as text.

    >>> spread(2.0, 1.0, 3, 1), spread(1.0, None, 1, 2)
    ('2.0 ± 1.0 (3)', '1.00 (1)')
    """
    return f"{mean:.{digits}f}{'' if sd is None else f' ± {sd:.{digits}f}'} ({n})"


def _all_numbers(experiment: Experiment, groups: Groups, kept: dict[str, dict[str, Any]]) -> str:
    """Everything else that was measured on the networks of each cell, means over seeds."""
    counts: dict[str, list[float]] = {}
    for record in kept.values():
        for name, number in record["numbers"].items():
            if number["n"] not in counts.setdefault(name, []):
                counts[name].append(number["n"])
    if not counts:
        return ""
    titles = {c.key: c.title for c in experiment.columns}
    head = [f"{name} [n={' to '.join(f'{n:g}' for n in sorted({min(ns), max(ns)}))}]" for name, ns in counts.items()]
    lines = ["<details><summary>Everything measured on each of these, means over seeds</summary>", ""]
    lines += [_line(["", "", *head]), _line(["---"] * (2 + len(counts)))]
    for (row, column), found in groups.items():
        numbers = found["numbers"]
        if not numbers:
            continue  # all collapsed, as the table says
        cells = [f"{numbers[name]['mean']:.{experiment.digits}f}" if name in numbers else "" for name in counts]
        lines.append(_line([experiment.row(row).title, titles[column], *cells]))
    return "\n".join([*lines, "", "</details>"])


def _verdicts(experiment: Experiment, kept: dict[str, dict[str, Any]], collapsed: int) -> str:
    names = list(dict.fromkeys(v["name"] for r in kept.values() for v in r["verdicts"]))
    if not names:
        return ""
    but = f" but for {collapsed} of collapsed networks" if collapsed else ""
    lines = [f"Tests of the attacks themselves, over all cells above{but}:", ""]
    for name in names:
        found = [(cell, v) for cell, r in kept.items() for v in r["verdicts"] if v["name"] == name]
        bad = [(cell, v) for cell, v in found if v["verdict"] == "violated"]
        good = sum(v["verdict"] == "holds" for _, v in found)
        lines.append(f"- {name}: holds in {good} of {len(found)}")
        lines += [f"  - violated by `{cell}`: {v['detail']}" for cell, v in bad[:3]]
        if len(bad) > 3:
            lines.append(f"  - and by {len(bad) - 3} more cells")
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
