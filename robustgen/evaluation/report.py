"""The report: ``report.json`` is the truth, ``report.html`` one self-contained page drawn from it."""

from pathlib import Path
from typing import Any

from robustgen.evaluation.report_format import FORMAT, check_report
from robustgen.evaluation.report_markdown import draw_markdown
from robustgen.evaluation.report_page import draw_html, write_page
from robustgen.files import read_json

__all__ = ["draw_html", "draw_markdown", "load_report", "write_report"]


def write_report(report: dict[str, Any], directory: str | Path) -> Path:
    """Write ``report.json`` and ``report.html`` to ``directory``; returns the path of the page.

    A page that cannot be drawn takes nothing away: then a warning says so, and the path is that of ``report.json``.
    """
    report = {"format": FORMAT} | report
    truth = Path(directory) / "report.json"
    return write_page(report, truth, draw_html, indent=None)  # outcomes of every example: one line is a tenth as long


def load_report(path: str | Path) -> dict[str, Any]:
    """Read a ``report.json`` (or the directory that holds one).

    Raises:
        FileNotFoundError: not there.
        ValueError: incomplete, or not a report of this format; it names the file and what in it is wrong.
    """
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such report")
    report: dict[str, Any] = read_json(path, dict, at_most=2**30)
    check_report(report, path)
    return report
