"""The report's tables as Markdown."""

import html
import re
from collections.abc import Sequence
from typing import Any

from robustgen.evaluation import report_tables as tables
from robustgen.evaluation.summary import of_report
from robustgen.printable import printable

__all__ = ["as_text", "draw_markdown", "markdown_table"]


def draw_markdown(report: dict[str, Any]) -> str:
    """The report's tables as Markdown; names and other text stand there as they are, none of it is markup."""
    networks, guarded = report["networks"], report.get("detector_robustness", [])
    parts = [f"## {as_text(report.get('title', 'Report'))}"]
    parts += [as_text(f"{found.sentence} {found.verdict}".strip()) for found in of_report(report)]
    parts += [as_text(f"{step['title']}: {step['text']}") for step in report.get("story", [])]
    parts += map(as_text, [*report.get("remarks", []), *tables.doubts(networks), *tables.doubts(guarded)])
    if networks:
        parts += [markdown_table(*tables.accuracy_table(networks)), markdown_table(*tables.masking_table(networks))]
    if report.get("detection"):
        parts.append(markdown_table(*tables.detection_table(report["detection"])))
    for entry in guarded:
        head = as_text(f"{entry['name']}, {entry['detector']}:")
        parts += [head, markdown_table(*tables.detector_robustness_table(entry)), tables.GUARDED_NOTE]
    for entry in report.get("scores", []):
        parts += [as_text(f"{entry['data']}, {entry['detector']}:"), markdown_table(*tables.scores_table(entry))]
    parts.append("; ".join(as_text(f"{name}: {value}") for name, value in tables.facts(report)))
    return "\n\n".join(parts) + "\n"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in whose cells nothing is markup."""
    lines = [list(map(as_text, line)) for line in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_text(value: object) -> str:
    """Text in which nothing is markup: no tags, code, emphasis, formulas or cells, and a bracket is no link."""
    line = html.escape(" ".join(printable(str(value)).split()), quote=False)
    line = re.sub(r"([\\`*_~$|])", r"\\\1", line)
    return re.sub(r"(?<=\])(?=[(\[:])", r"\\", line)
