"""Dot plots as SVG text: the same numbers give the same file, whatever is installed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Series", "dot_plot"]

WIDTH, MARGIN = 480, 18  # pixels; narrow, so that the letters stay readable on a phone
ROW, LEGEND_LINE = 34, 18
LETTER = 6.3  # mean width of a letter of the legend
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#555555")  # told apart by the colour-blind


@dataclass(frozen=True)
class Series:
    """Dots of one kind.

    Attributes:
        label: in the legend.
        values: one a row; None where there is none.
        spreads: half the length of a bar through each dot, such as a standard deviation; empty: no bars.
    """

    label: str
    values: Sequence[float | None]
    spreads: Sequence[float | None] = ()


def dot_plot(
    title: str,
    axis: str,
    rows: Sequence[str],
    series: Sequence[Series],
    *,
    source: str,
    limits: tuple[float, float] = (0, 100),
) -> str:
    """A line for each row, its label above it, and on it a dot of each series; the document.

    Args:
        axis: what the numbers are, with their unit.
        series: one to four, each of one value a row; a row without one in the first is said to be not measured.
        source: the file of the numbers, named below the plot.
        limits: of the axis; dots beyond them widen it by tens.

    Raises:
        ValueError: no series, more of them than kinds of dots, or one that has not a value for each row.
    """
    if not 1 <= len(series) <= len(COLOURS):
        raise ValueError(f"{len(series)} series, where one to {len(COLOURS)} can be drawn")
    for one in series:
        if len(one.values) != len(rows):
            raise ValueError(f"{one.label}: {len(one.values)} values for {len(rows)} rows")

    low, high = _widened(limits, [value for one in series for value in one.values if value is not None])
    step = 10 if high - low <= 60 else 20

    def at(value: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * (min(max(value, low), high) - low) / (high - low)

    parts = [_text(MARGIN, 24, title, 'font-size="15" font-weight="bold"')]
    legend, top = _legend(series, 44)
    bottom = top + ROW * len(rows)
    for value in range(low, high + 1, step):
        x = at(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="#e4e4e4"/>')
        parts.append(_text(x, bottom + 16, f"{value}", 'text-anchor="middle" fill="#444444"'))
    parts += [*legend, _text(WIDTH / 2, bottom + 34, axis, 'text-anchor="middle"')]
    parts.append(_text(MARGIN, bottom + 54, source, 'font-size="10" fill="#666666"'))
    for k, row in enumerate(rows):
        parts += _row(row, top + ROW * k, [(s.values[k], s.spreads[k] if s.spreads else None) for s in series], at)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 64}" width="{WIDTH}" '
            f'height="{bottom + 64}" font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#111111" '
            'role="img">',
            f"<title>{escape(title)}</title>",
            '<rect width="100%" height="100%" fill="white"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _widened(limits: tuple[float, float], values: Sequence[float]) -> tuple[int, int]:
    """The tens that hold limits and values.

    >>> _widened((50, 70), [48.2, 70.0])
    (40, 70)
    """
    low, high = min([limits[0], *values]), max([limits[1], *values])
    return 10 * math.floor(low / 10), 10 * math.ceil(high / 10)


def _row(
    label: str, top: int, dots: Sequence[tuple[float | None, float | None]], at: Callable[[float], float]
) -> list[str]:
    """A row whose dots are (value, spread), one a series."""
    y, empty = top + 24, dots[0][0] is None
    parts = [
        f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y}" y2="{y}" stroke="#bbbbbb"/>',
        _text(MARGIN, top + 14, f"{label}: not measured" if empty else label),
    ]
    for kind, (value, spread) in enumerate(dots):
        if value is None:
            continue
        if spread:
            ends = f'x1="{at(value - spread):.1f}" x2="{at(value + spread):.1f}" y1="{y}" y2="{y}"'
            parts.append(f'<line {ends} stroke="{COLOURS[kind]}" stroke-width="3"/>')
        parts.append(_mark(at(value), y, kind))
    return parts


def _legend(series: Sequence[Series], y: float) -> tuple[list[str], int]:
    """Its elements, and where it ends."""
    parts, x = [], float(MARGIN)
    for kind, one in enumerate(series):
        width = 24 + LETTER * len(one.label)
        if x > MARGIN and x + width > WIDTH - MARGIN:
            x, y = MARGIN, y + LEGEND_LINE
        parts += [_mark(x + 5, y, kind), _text(x + 15, y + 4, one.label)]
        x += width
    return parts, int(y) + 12


def _mark(x: float, y: float, kind: int) -> str:
    """A disc, a ring, a diamond or a square, so that colours alone decide nothing."""
    colour = COLOURS[kind]
    if kind == 0:
        return f'<circle cx="{x:.1f}" cy="{y:g}" r="5" fill="{colour}"/>'
    if kind == 1:
        return f'<circle cx="{x:.1f}" cy="{y:g}" r="4" fill="white" stroke="{colour}" stroke-width="2.5"/>'
    turned = f' transform="rotate(45 {x:.1f} {y:g})"' if kind == 2 else ""
    return f'<rect x="{x - 4:.1f}" y="{y - 4:g}" width="8" height="8" fill="{colour}"{turned}/>'


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:g}" {attributes}>{escape(text)}</text>'.replace(" >", ">")
