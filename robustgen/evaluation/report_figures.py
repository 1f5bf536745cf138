"""The figures of a report's page, as SVG whose letters are as large on the page as its text."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from robustgen.printable import printable
from robustgen.turns import warnings_set_to

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "as_svg",
    "draw_certified",
    "draw_curves",
    "draw_defence",
    "draw_roc",
    "draw_score_histogram",
    "draw_scores",
]

_LONGEST = 40  # characters of a name in a figure
_COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8e6c8a", "#c98a1b", "#444444")
_USUAL, _FLAGGED = "#8fa9bf", "#d1495b"
_WIDTH, _HEIGHT, _LINE = 4.4, 2.6, 0.2  # inches: as wide as a phone shows nearly whole; of a line of the legend


def as_svg(draw: Callable[[], "Figure"]) -> str:
    """What ``draw`` draws; the names in it are text, escaped."""
    import matplotlib

    style = {
        "svg.hashsalt": "robustgen",
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    out = io.StringIO()
    # a letter that the font lacks is one that the browser's has
    with warnings_set_to("ignore"), matplotlib.rc_context(style), np.errstate(all="ignore"):
        draw().savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :]


def draw_curves(networks: list[dict[str, Any]]) -> "Figure":
    """Accuracy as eps grows, of each network."""
    figure, axes = _axes(len(networks) + 1)
    for colour, network in zip(_COLOURS * len(networks), networks, strict=False):
        eps = [p["eps"] for p in network["curve"]]
        axes.plot(eps, [p["value"] for p in network["curve"]], "o-", color=colour, label=_label(network["name"]))
        low, high = ([p[k] for p in network["curve"]] for k in ("low", "high"))
        axes.fill_between(eps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.axvline(networks[0]["threat_model"]["eps"], color="#999", linestyle=":", label="eps of the table")
    axes.set(xlabel="eps", ylabel="accuracy", ylim=(-0.02, 1.02))
    figure.legend(loc="outside lower left", frameon=False)
    return figure


def draw_certified(entries: list[dict[str, Any]]) -> "Figure":
    """By radius, of each sigma: what is certified as a line, what an attack left as a dashed one, the gap shaded."""
    attacked = any("attacked" in row for entry in entries for row in entry["radii"])
    figure, axes = _axes(len(entries) + attacked)
    for colour, entry in zip(_COLOURS * len(entries), entries, strict=False):
        rows = sorted((row for row in entry["radii"] if row["provable"]), key=lambda row: row["radius"])
        radii = [0.0, *(row["radius"] for row in rows)]
        certified = [entry["accuracy"], *(row["certified"] for row in rows)]
        values, low, high = ([share[k] for share in certified] for k in ("value", "low", "high"))
        axes.errorbar(
            radii,
            values,
            [np.subtract(values, low).clip(0), np.subtract(high, values).clip(0)],
            fmt="o-",
            capsize=2,
            color=colour,
            label=f"sigma {entry['smoothing']['sigma']:g}, certified",
        )
        both = [row for row in entry["radii"] if "attacked" in row]
        if both:
            both.sort(key=lambda row: row["radius"])
            at = [row["radius"] for row in both]
            left = [row["attacked"]["value"] for row in both]
            axes.plot(at, left, "v--", color=colour, alpha=0.7)
            sure = [row["certified_of_attacked"]["value"] for row in both]
            axes.fill_between(at, sure, left, color=colour, alpha=0.15, linewidth=0)
    if attacked:
        axes.plot([], [], "v--", color="#666", label="left by the attack, of the attacked")
    axes.set(xlabel=f"radius, {entries[0]['smoothing']['norm']}", ylabel="accuracy", ylim=(-0.02, 1.02))
    figure.legend(loc="outside lower left", frameon=False)
    return figure


def draw_defence(entry: dict[str, Any]) -> "Figure":
    """A row for each attack: one draw, the vote and all of k right; lines for a known seed and the network alone."""
    rows, draws = entry["rows"], entry["purifier"]["stochastic"]
    kinds = {"one_draw": ("o", "one draw" if draws else "behind the purifier")}
    if draws:
        kinds |= {"vote": ("s", f"vote of {entry['k']}"), "all_right": ("v", f"all of {entry['k']} right")}
    figure, axes = _axes(len(rows) + len(kinds))
    for j, (colour, (name, (marker, label))) in enumerate(zip(_COLOURS, kinds.items(), strict=False)):
        shares = [row[name] for row in rows.values()]
        values, low, high = ([share[part] for share in shares] for part in ("value", "low", "high"))
        at = np.arange(len(rows)) + 0.2 * (j - (len(kinds) - 1) / 2)
        spread = [np.subtract(values, low).clip(0), np.subtract(high, values).clip(0)]
        axes.errorbar(values, at, xerr=spread, fmt=marker, markersize=4, linewidth=1, color=colour, label=label)
    if draws:
        axes.axvline(entry["fixed"]["value"], color="#666", linestyle="--", linewidth=1, label="a known seed")
    axes.axvline(entry["undefended"]["value"], color="#999", linestyle=":", label="the network alone, attacked")
    axes.set_yticks(range(len(rows)), [_label(name) for name in rows])
    axes.invert_yaxis()
    axes.set(xlabel="accuracy", xlim=(-0.02, 1.02))
    figure.legend(loc="outside lower left", frameon=False)
    return figure


def draw_scores(entry: dict[str, Any]) -> "Figure":
    """Histograms of the scores of each population."""
    figure, axes = _axes(len(entry["populations"]) + 1)
    known = np.asarray(entry["in_distribution"])
    everything = np.concatenate([known, *(np.asarray(p["scores"]) for p in entry["populations"].values())])
    low, high = np.quantile(everything, [0, 0.995])
    bins = np.linspace(low, high if high > low else low + 1, 50)
    axes.hist(known, bins, density=True, color="#999", alpha=0.6, label="in-distribution")
    for colour, (name, population) in zip(_COLOURS * 9, entry["populations"].items(), strict=False):
        scores = np.asarray(population["scores"])
        axes.hist(scores, bins, density=True, histtype="step", linewidth=1.5, color=colour, label=_label(name))
    axes.set(xlabel="score (the top 0.5 % are cut off)", ylabel="density")
    figure.legend(loc="outside lower left", frameon=False)
    return figure


def draw_roc(entry: dict[str, Any]) -> "Figure":
    """The ROC curve of each population."""
    from robustgen.evaluation.metrics import roc_curve

    figure, axes = _axes(len(entry["populations"]))
    known = np.asarray(entry["in_distribution"])
    for colour, (name, population) in zip(_COLOURS * 9, entry["populations"].items(), strict=False):
        curve = roc_curve(known, np.asarray(population["scores"]))
        axes.plot(curve.fpr, curve.tpr, color=colour, label=f"{_label(name)}, AUROC {population['auroc']:.2f}")
    axes.plot([0, 1], [0, 1], color="#999", linestyle=":")
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    figure.legend(loc="outside lower left", frameon=False)
    return figure


def draw_score_histogram(entry: dict[str, Any]) -> "Figure":
    """The scores of ``robustgen score``, with the threshold above which an input is flagged."""
    figure, axes = _axes(1)
    edges, counts = (np.asarray(entry["histogram"][name], dtype=float) for name in ("edges", "counts"))
    threshold = np.inf if entry["threshold"] is None else entry["threshold"]
    flagged = (edges[:-1] + edges[1:]) / 2 > threshold
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=np.where(flagged, _FLAGGED, _USUAL))
    if entry["threshold"] is not None:
        axes.axvline(threshold, color="#333", linestyle="--", label="threshold: above it an input is flagged")
        figure.legend(loc="outside lower left", frameon=False)
    axes.set(xlabel="score", ylabel="inputs")
    return figure


def _label(name: str) -> str:
    """A name in a figure, at a length that leaves room for the rest."""
    name = " ".join(printable(name).split())
    name = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
    return f" {name}" if name.startswith("_") else name  # which a legend would leave out


def _axes(lines: int) -> tuple["Figure", "Axes"]:
    """With room for a legend of so many lines."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(_WIDTH, _HEIGHT + _LINE * lines), layout="constrained")
    return figure, figure.subplots()
