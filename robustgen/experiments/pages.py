"""RESULTS.md, the pages behind it and what the command prints: drawn from the cells under results/, never by hand."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustgen.experiments.catalogue import table
from robustgen.experiments.cells import cells_path, read_cells
from robustgen.experiments.experiment import SCALES, Experiment, Row
from robustgen.experiments.figures import CAPTIONS, draw_figures
from robustgen.experiments.summary import NOT_MEASURED, Group, Groups, fill, summarise

__all__ = ["draw_experiment", "draw_list", "draw_pages", "status_of"]

REASONS = {"cpu": "its turn has not come", "full": "meant for an accelerator"}
DRAWN = ("cpu", "full")  # scales
PAGES, FIGURES = "docs/results", "docs/figures"  # beside RESULTS.md
SOURCES = {  # the first part of an experiment's name: a page each
    "recipes": "Training recipes",
    "lamb-2018": "Fortified networks (Lamb, 2018)",
    "ahmed-2017": "Generative models and held-out classes (Ahmed, 2017)",
    "guarantees": "Certificates",
    "xiao-2022": "Flows and latent flows (Xiao, 2022)",
}
ABOUT = (
    "Everything here is drawn from the cells under `results/`, one file a table and scale, a cell a line, by "
    "`robustgen reproduce --page RESULTS.md`. A cell holds its command, settings, seed, commit, versions, hardware and "
    "wall time, and everything measured. `robustgen reproduce NAME --cell CELL --check` measures one again.",
    "Ours are means over seeds. Robust accuracies are upper bounds: a better attack can lower them. Scale `cpu` is "
    "small, in networks and in training sets: compare its numbers with each other before you compare them with "
    "published ones.",
    "Collapsed: networks that have learned nothing, so that their last training losses are within 1 % of log C, those "
    "of guessing. They are counted beside the others of their seeds, and are in no mean and no verdict.",
)
READ_FIRST = "Drawn from the cells under `results/`; [how to read these tables](index.md)."
ATTACKED = (
    "How networks are attacked: with their true labels; the iterate of lowest margin counts, not the last; an image "
    "that is misclassified without an attack counts as broken. PGD: 40 steps of 2.5 eps / 40 (fewer at scale `smoke`), "
    "from the clean image or from a random start; restarts: of PGD from random starts, on fewer images. noise: the "
    "worst of 20 uniform draws. transfer: FGSM on a plainly trained network of the same kind, from other initial "
    "weights.",
    "Fortified, where nothing else is said: one dense autoencoder, twice as wide as its layer, on the last hidden "
    "layer of the convnet, noise 0.1, both losses (means over units) with weight 0.1.",
)


def draw_pages(out: Path) -> dict[str, str]:
    """All pages and figures from the cells kept under ``out``, by their paths beside RESULTS.md, which is the first."""
    findings = {e.name: _findings(e, out) for e in table().values()}
    pages = {"RESULTS.md": _overview(findings, f"{PAGES}/", f"{FIGURES}/")}
    pages[f"{PAGES}/index.md"] = _overview(findings, "", "../figures/")
    pages |= {f"{PAGES}/{source}.md": _page(source, out) for source in SOURCES}
    return pages | {f"{FIGURES}/{name}.svg": figure for name, figure in draw_figures(out).items()}


def _overview(findings: Mapping[str, str], pages: str, figures: str) -> str:
    """A line a table and the figures; links begin with ``pages`` and ``figures``."""
    parts = ["# Results", *ABOUT, "## At a glance"]
    for name, (title, reading) in CAPTIONS.items():
        parts += [reading, f"![{title}]({figures}{name}.svg)"]
    for source, title in SOURCES.items():
        lines = [
            f"- **[{e.name}: {e.title}]({pages}{source}.md#{_place(e)})** *{e.question}* {findings[e.name]}"
            for e in _of_source(source)
        ]
        parts += [f"## {title}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _page(source: str, out: Path) -> str:
    parts = [f"# {SOURCES[source]}", READ_FIRST, *(ATTACKED if source == "lamb-2018" else ())]
    for experiment in _of_source(source):
        parts += [f'<a id="{_place(experiment)}"></a>', draw_experiment(experiment, out)]
    return "\n\n".join(parts) + "\n"


def _of_source(source: str) -> list[Experiment]:
    return [e for name, e in table().items() if name.startswith(f"{source}/")]


def _place(experiment: Experiment) -> str:
    """ "table-2.1", of "lamb-2018/table-2.1"."""
    return experiment.name.partition("/")[2]


def _findings(experiment: Experiment, out: Path) -> str:
    """A sentence or two for each scale that has cells; where none has, why."""
    found = []
    for scale in DRAWN:
        kept = read_cells(out, experiment, scale)
        if kept:
            found.append(f"{_finding(experiment, scale, kept, out)} ({_extent(experiment, scale, kept)}.)")
    why = statistics.mode(row.missing for row in experiment.rows) or REASONS["cpu"]
    return " ".join(found) or f"{NOT_MEASURED.capitalize()}: {why}."


def _finding(experiment: Experiment, scale: str, kept: Mapping[str, dict[str, Any]], out: Path) -> str:
    said = [
        fill(experiment.finding, experiment, summarise(experiment, kept)),
        experiment.conclusion(kept, lambda other: other.living(read_cells(out, other, scale))),
    ]
    return " ".join(part for part in said if part)


def _extent(experiment: Experiment, scale: str, kept: Mapping[str, dict[str, Any]]) -> str:
    """Scale, seeds and cells, in words."""
    seeds = len({record["seed"] for record in kept.values()})
    due = max(len(experiment.cells()), len(kept))
    return f"Scale `{scale}`, {seeds} seed{'' if seeds == 1 else 's'}, {len(kept)} of {due} cells"


def draw_experiment(experiment: Experiment, out: Path, scales: tuple[str, ...] = DRAWN) -> str:
    """The tables of one experiment, at each of ``scales``, in Markdown."""
    lines = [f"## {experiment.name}: {experiment.title}", experiment.question]
    kept = {scale: read_cells(out, experiment, scale) for scale in scales}
    lines += [
        f"**{_extent(experiment, scale, cells)}.** {_finding(experiment, scale, cells, out)}"
        for scale, cells in kept.items()
        if cells
    ]
    lines.append(f"In the table: {experiment.metric}. Source: {experiment.source}.")
    lines.append("\n".join(f"- {note}" for note in experiment.notes))
    for scale, cells in kept.items():
        if not cells:
            continue
        lines.append(f"### Scale `{scale}`")
        try:
            lines += _tables(experiment, scale, cells, out)
        except KeyError as error:
            place = cells_path(out, experiment, scale)
            raise ValueError(f"{place}: a cell there lacks the number {error}") from None
    lines += [f"Scale `{scale}`: {NOT_MEASURED} ({REASONS[scale]})." for scale in scales if not kept[scale]]
    missing = [f"- {row.title}: not yet ({row.missing})" for row in experiment.rows if row.missing]
    lines += ["Rows of the source that are not measured:\n\n" + "\n".join(missing)] if missing else []
    return "\n\n".join(line for line in lines if line)


def _tables(experiment: Experiment, scale: str, kept: dict[str, dict[str, Any]], out: Path) -> list[str]:
    groups = summarise(experiment, kept)
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
    return (
        f"{described + '. ' if described else ''}Cells: `{cells_path(Path('results'), experiment, scale).as_posix()}`; "
        f"{minutes:.0f} minutes of one thread on a shared machine, without the trainings that other cells had done "
        f"({'; '.join(machines)}; {', '.join(versions)})."
    )


def _main_table(experiment: Experiment, groups: Groups) -> str:
    """A line for each row; a column of the source's numbers beside ours where it has any."""
    published = {c.key for c in experiment.columns if any(c.key in row.published for row in experiment.rows)}
    noted = any(row.note for row in experiment.rows)
    head = [""]
    for column in experiment.columns:
        head += [f"{column.title}: published", "ours"] if column.key in published else [column.title]
    head += ["note"] if noted else []
    lines = [_line(head), _line(["---"] * len(head))]
    for row in experiment.rows:
        cells = [row.title]
        for column in experiment.columns:
            if column.key in published:
                cells.append(f"{row.published[column.key]:g}" if column.key in row.published else "")
            cells.append(_ours(experiment, groups, row, column.key))
        lines.append(_line([*cells, *([row.note] if noted else [])]))
    return "\n".join(lines)


def _lines_table(experiment: Experiment, groups: Groups) -> str:
    """A line for each column, published and ours, over all rows that are measured or published; mean and median."""
    rows, digits = experiment.rows, experiment.digits
    lines = [_line(["", *(row.title for row in rows), "mean", "median"]), _line(["---"] * (len(rows) + 3))]
    for level in experiment.levels:
        found = {row: group.number(level) for (row, _), group in reversed(groups.items())}
        lines.append(_averaged_line(level, [found.get(row.key) for row in rows], digits))
    for column in experiment.columns:
        published = [row.published.get(column.key) for row in rows]
        ours = [groups.get((row.key, column.key), Group()).mean for row in rows]
        if any(value is not None for value in published):
            lines.append(_averaged_line(f"{column.title}: published", published, digits))
        if any(not row.missing and (row.columns is None or column.key in row.columns) for row in rows):
            lines.append(_averaged_line(f"{column.title}: ours", ours, digits))
    return "\n".join(lines)


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
    parts = [spread(found, experiment.digits)] if found.values else []
    parts += [f"collapsed ({len(found.collapsed)})"] if found.collapsed else []
    return ", ".join(parts)


def spread(group: Group, digits: int) -> str:
    """Mean +- standard deviation (how many), as text.

    >>> spread(Group([1.0, 2.0, 3.0]), 1), spread(Group([1.0]), 2)
    ('2.0 ± 1.0 (3)', '1.00 (1)')
    """
    sd = "" if group.sd is None else f" ± {group.sd:.{digits}f}"
    return f"{group.mean:.{digits}f}{sd} ({len(group.values)})"


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
    lines = ['<details markdown="1"><summary>Everything measured on each of these, means over seeds</summary>', ""]
    lines += [_line(["", "", *head]), _line(["---"] * (2 + len(counts)))]
    for (row, column), found in groups.items():
        if not found.numbers:
            continue  # all collapsed, as the table says
        means = [found.number(name) for name in counts]
        cells = ["" if mean is None else f"{mean:.{experiment.digits}f}" for mean in means]
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
        lines += [f"    - violated by `{cell}`: {v['detail']}" for cell, v in bad[:3]]
        if len(bad) > 3:
            lines.append(f"    - and by {len(bad) - 3} more cells")
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
