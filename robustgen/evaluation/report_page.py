"""``report.html``: one self-contained page, drawn from ``report.json`` by the templates beside this file.

Whatever a report from elsewhere says is text: the templates escape every value, and only the figures, whose words are
escaped by who draws them, are markup.
"""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from robustgen.checks import warn_user
from robustgen.evaluation import report_figures as figures
from robustgen.evaluation import report_tables as tables
from robustgen.evaluation.by_class import Confusion, accuracy_by_class, confusion
from robustgen.evaluation.masking import HOLDS, NOT_RUN
from robustgen.evaluation.report_pictures import draw_picture, draw_pictures
from robustgen.evaluation.summary import of_report
from robustgen.files import write_bytes, write_json
from robustgen.printable import printable
from robustgen.progress import bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_figure", "draw_html", "kind_of", "record_in", "templates", "write_page"]

_CLASSES = 20  # a matrix of more would not be read
_PAIRS = 12  # then so many of the most frequent confusions are listed

_Draw = Callable[[Callable[[], "Figure"], str], dict[str, Any]]


def draw_html(report: dict[str, Any]) -> str:
    """The page, with every picture inside it and nothing loaded from elsewhere."""
    networks, detection, scores = report["networks"], report.get("detection", []), report.get("scores", [])
    total = any(n["curve"] for n in networks) + len(networks) + 2 * len(detection) + len(scores)
    with bar("report, figures", total) as shown:

        def figure(draw: Callable[[], "Figure"], caption: str) -> dict[str, Any]:
            drawn = draw_figure(draw, caption)
            shown.update()
            return drawn

        def network(entry: dict[str, Any]) -> dict[str, Any]:
            found = _network(entry)
            shown.update()
            return found

        parts = {
            "networks": [network(n) for n in networks],
            "curve": _curve(networks, figure),
            "detection": [_detection(entry, figure) for entry in detection],
            "scores": [_scores(entry, figure) for entry in scores],
        }
    return (
        templates()
        .get_template("page.html")
        .render(
            title=report.get("title", "Robustness report"),
            summaries=of_report(report),
            doubts=tables.doubts([*networks, *report.get("detector_robustness", [])]),
            remarks=report.get("remarks", []),
            story=[
                step | {"pictures": _told(step, networks), "inputs": _inputs(step.get("inputs", []))}
                for step in report.get("story", [])
            ],
            accuracy=tables.accuracy_table(networks) if networks else None,
            robust_note=tables.ROBUST_NOTE,
            detection_table=tables.detection_table(detection) if detection else None,
            guarded=[
                {"entry": entry, "table": tables.detector_robustness_table(entry)}
                for entry in report.get("detector_robustness", [])
            ],
            guarded_note=tables.GUARDED_NOTE,
            facts=tables.facts(report),
            stages=tables.stage_table(report),
            **parts,
        )
    )


def write_page(
    record: dict[str, Any], truth: Path, draw: Callable[[dict[str, Any]], str], indent: int | None = 1
) -> Path:
    """Write ``record`` to the file ``truth`` and, beside it, the page that ``draw`` makes of it; returns its path.

    A page that cannot be drawn takes nothing away: then a warning says so, and the path is that of ``truth``.
    """
    write_json(truth, record, indent=indent)
    try:
        page = draw(record)
    except Exception as error:
        warn_user(f"{truth} is complete, but its page cannot be drawn: {kind_of(error)}")
        return truth
    write_bytes(truth.with_suffix(".html"), page.encode())
    return truth.with_suffix(".html")


def record_in(path: Path, name: str) -> Path | None:
    """The file called ``name`` that a path is or holds; None where it holds a report, or nothing."""
    if path.is_dir():
        found = path / name
        return found if found.is_file() and not (path / "report.json").exists() else None
    return path if path.name == name else None


def kind_of(error: Exception) -> str:
    """What went wrong, in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@cache
def templates() -> Environment:
    """Of every page; they escape what is filled in."""
    return Environment(
        loader=PackageLoader("robustgen.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
    )


def draw_figure(draw: Callable[[], "Figure"], caption: str) -> dict[str, Any]:
    """The figure with its caption; in its place why, where it cannot be drawn: the tables are what counts."""
    try:
        return {"svg": Markup(figures.as_svg(draw)), "caption": caption}
    except Exception as error:
        return {"svg": None, "caption": f"{caption}: this figure cannot be drawn ({kind_of(error)})"}


def _curve(networks: list[dict[str, Any]], figure: _Draw) -> dict[str, Any] | None:
    if not any(n["curve"] for n in networks):
        return None
    return figure(partial(figures.draw_curves, networks), "Accuracy of one fixed network under PGD as eps grows")


def _detection(entry: dict[str, Any], figure: _Draw) -> list[dict[str, Any]]:
    about = f"{entry['detector']} on {entry['network']}"
    return [
        figure(partial(figures.draw_scores, entry), f"Scores of {about}"),
        figure(partial(figures.draw_roc, entry), f"ROC curves of {about}"),
    ]


def _scores(entry: dict[str, Any], figure: _Draw) -> dict[str, Any]:
    histogram = entry["histogram"]
    drawn = None
    if histogram is not None:
        beyond = [f"{histogram[side]} {side} it" for side in ("below", "above") if histogram[side]]
        left_out = f"; inputs outside the figure: {', '.join(beyond)}" if beyond else ""
        drawn = figure(partial(figures.draw_score_histogram, entry), f"Scores of {entry['n']:,} inputs{left_out}")
    ends = {kind: _inputs(entry[kind]) for kind in ("most", "least")}
    return {"entry": entry, "figure": drawn, "ends": ends}


def _inputs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Scored inputs as they are shown."""
    return [
        {
            "input": row["input"],
            "score": tables.score_text(row["score"]),
            "p_value": f"{row['p_value']:.3g}",
            "flag": row["flag"],
            "picture": draw_picture(row["picture"]) if row.get("picture") else None,
        }
        for row in rows
    ]


def _network(network: dict[str, Any]) -> dict[str, Any]:
    """What is shown of one network apart from the others."""
    classes = accuracy_by_class(network)
    tests = {kind: [t for t in network["masking_tests"] if t["verdict"] == kind] for kind in (HOLDS, NOT_RUN)}
    return {
        "name": network["name"],
        "violated": [t for t in network["masking_tests"] if t["verdict"] not in (HOLDS, NOT_RUN)],
        "holds": tests[HOLDS],
        "not_run": tests[NOT_RUN],
        "pictures": draw_pictures(network) if network.get("pictures") else None,
        "classes": tables.class_table(classes) if len(classes) > 1 else None,
        "confusion": _confusion(confusion(network)),
    }


def _told(step: dict[str, Any], networks: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The pictures of the network that a step of the story is about."""
    shown = [n for n in networks if n["name"] == step.get("pictures_of") and n.get("pictures")]
    return draw_pictures(shown[0]) if shown else None


def _confusion(found: Confusion | None) -> dict[str, Any] | None:
    """As a matrix of shaded cells or, of many classes, as the most frequent confusions."""
    if found is None or len(found.names) < 2:
        return None
    rows = list(zip(found.names, found.counts, strict=True))
    if len(found.names) > _CLASSES:
        pairs = [
            (count, name, column)
            for i, (name, counts) in enumerate(rows)
            for j, (column, count) in enumerate(zip(found.columns, counts, strict=True))
            if count and i != j
        ]
        pairs.sort(key=lambda pair: -pair[0])
        return {"pairs": pairs[:_PAIRS], "n_pairs": len(pairs)}
    return {
        "columns": found.columns,
        "rows": [
            {
                "name": name,
                "cells": [
                    {"count": count, "shade": f"{count / max(1, sum(counts)):.2f}", "right": i == j}
                    for j, count in enumerate(counts)
                ],
            }
            for i, (name, counts) in enumerate(rows)
        ],
    }
