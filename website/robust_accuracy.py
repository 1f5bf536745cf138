"""Draws docs/assets/robust-accuracy.svg, the figure of the start page, from the kept cells of the training recipes.

``python -m website.robust_accuracy``; a test fails while the figure is older than the results.
"""

import json
from pathlib import Path
from typing import Any

from robustgen.experiments.recipes import STANDARD

ROOT = Path(__file__).parent.parent
CELLS = ROOT / "results" / "recipes" / "standard" / "cpu.jsonl"
FIGURE = ROOT / "docs" / "assets" / "robust-accuracy.svg"

_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 760, 190, 60, 46, 78
_CLEAN, _ROBUST, _PUBLISHED, _TEXT, _QUIET = "#b2dfdb", "#00796b", "#e65100", "#1f2328", "#656d76"


def measured() -> list[dict[str, Any]]:
    """A row for each recipe that has been measured, the most robust first."""
    kept = map(json.loads, CELLS.read_text().splitlines())
    cells = {cell["row"]: cell["numbers"] for cell in kept if cell["column"] == "standard"}
    rows = [
        {
            "recipe": row.key,
            "threat": row.title.removeprefix(f"{row.key}, "),
            "clean": cells[row.key]["clean"]["value"],
            "robust": cells[row.key]["standard"]["value"],
            "published": row.published.get("standard"),
            "core-minutes": cells[row.key]["core-minutes of training"]["value"],
        }
        for row in STANDARD.rows
        if row.key in cells
    ]
    return sorted(rows, key=lambda row: -row["robust"])


def drawn(rows: list[dict[str, Any]]) -> str:
    """The figure, as SVG: for each recipe the accuracy on clean images, under attack, and the published one."""
    height = _TOP + _ROW * len(rows) + 34
    scale = (_WIDTH - _LEFT - _RIGHT) / 100
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" role="img">',
        "<title>Accuracy of networks trained by the recipes, clean and under the standard suite of attacks</title>",
        f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
        _text(20, 30, "Robust networks that the recipes give", _TEXT, size=17, weight=600),
    ]
    x = 20
    for colour, label, width in ((_CLEAN, "clean", 70), (_ROBUST, "under attack", 118), (_PUBLISHED, "published", 0)):
        mark = f'<rect x="{x}" y="46" width="12" height="12" rx="2" fill="{colour}"/>'
        parts += [mark, _text(x + 18, 56.5, label, _QUIET)]
        x += width
    for at in (0, 25, 50, 75, 100):
        across = _LEFT + at * scale
        bottom = _TOP + _ROW * len(rows)
        parts.append(f'<path d="M{across:g} {_TOP - 4}V{bottom}" stroke="#d8dee4"/>')
        parts.append(_text(across, bottom + 18, f"{at}" if at < 100 else "100 %", _QUIET, anchor="middle"))
    for i, row in enumerate(rows):
        y = _TOP + i * _ROW
        parts.append(_text(_LEFT - 12, y + 18, row["recipe"], _TEXT, anchor="end", size=13))
        parts.append(_text(_LEFT - 12, y + 33, row["threat"], _QUIET, anchor="end", size=11))
        for key, colour, top, thick in (("clean", _CLEAN, 5, 11), ("robust", _ROBUST, 18, 15)):
            width = row[key] * scale
            parts.append(
                f'<rect x="{_LEFT}" y="{y + top}" width="{width:.1f}" height="{thick}" rx="2" fill="{colour}"/>'
            )
        label = f"{row['robust']:.1f}"
        parts.append(_text(_LEFT + 8, y + 30, label, "#ffffff", size=12, weight=600))
        if row["published"] is not None:
            across = _LEFT + row["published"] * scale
            parts.append(f'<path d="M{across:.1f} {y + 15}V{y + 37}" stroke="{_PUBLISHED}" stroke-width="3"/>')
            parts.append(_text(_LEFT + 100 * scale + 8, y + 30, f"{row['published']:.1f}", _PUBLISHED, weight=600))
    return "\n".join([*parts, "</svg>", ""])


def _text(
    x: float, y: float, text: str, colour: str, *, size: int = 12, weight: int = 400, anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
        f'text-anchor="{anchor}">{text}</text>'
    )


if __name__ == "__main__":
    FIGURE.write_text(drawn(measured()))
