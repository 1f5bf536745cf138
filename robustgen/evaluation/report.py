"""The report: ``report.json`` is the truth, ``report.html`` one self-contained page drawn from it."""

import base64
import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robustgen.evaluation.detector_robustness_table import GUARDED_NOTE, detector_robustness_table
from robustgen.evaluation.masking import VERDICTS, VIOLATED
from robustgen.evaluation.proportions import percent
from robustgen.evaluation.report_format import FORMAT, check_report
from robustgen.files import read_json, write_bytes, write_json
from robustgen.printable import printable
from robustgen.progress import bar
from robustgen.turns import warnings_set_to

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_html", "draw_markdown", "encode_pictures", "load_report", "write_report"]

_LONGEST = 80  # characters of a name in a figure
_COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8e6c8a", "#c98a1b", "#444444")


def encode_pictures(x: Tensor, x_adv: Tensor, bounds: tuple[float, float]) -> dict[str, Any]:
    """Images (n, C, H, W) and their adversarial versions as 8-bit values for display; empty for others."""
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not len(x):
        return {}
    both = torch.stack([x, x_adv]).double().sub(bounds[0]).div(bounds[1] - bounds[0])
    values = both.mul(255).round().clamp(0, 255).to(torch.uint8).numpy()
    return {"shape": list(values.shape), "uint8": base64.b64encode(values.tobytes()).decode()}


def write_report(report: dict[str, Any], directory: str | Path) -> Path:
    """Write ``report.json`` and ``report.html`` to ``directory``; returns the path of the page.

    A page that cannot be drawn takes nothing away: then a warning says so, and the path is that of ``report.json``.
    """
    directory = Path(directory)
    report = {"format": FORMAT} | report
    truth, page = directory / "report.json", directory / "report.html"
    write_json(truth, report, indent=None)  # outcomes of every example: one line is a tenth as long
    try:
        drawn = draw_html(report)
    except Exception as error:
        warnings.warn(f"{truth} is complete, but its page cannot be drawn: {_kind(error)}", stacklevel=2)
        return truth
    write_bytes(page, drawn.encode())
    return page


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


def draw_html(report: dict[str, Any]) -> str:
    """The page, with every picture inside it and nothing loaded from elsewhere."""
    networks = report["networks"]
    pictures = sum(bool(network.get("pictures")) for network in networks)
    figures = any(network["curve"] for network in networks) + len(report.get("detection", [])) + pictures
    with bar("report, figures", figures) as shown:

        def figure(draw: Callable[[], "Figure"], caption: str) -> str:
            drawn = _figure(draw, caption)
            shown.update()
            return drawn

        body = "\n".join(_body(report, figure))
    head = f"<meta charset=utf-8><title>robustgen report</title>{_STYLE}"
    return f"<!doctype html><html lang=en><head>{head}</head>\n<body>{body}</body></html>\n"


def _body(report: dict[str, Any], figure: Callable[[Callable[[], "Figure"], str], str]) -> list[str]:
    """The page's parts in their order; ``figure`` draws with a caption."""
    parts = [f"<h1>{_text(report.get('title', 'Robustness report'))}</h1>"]
    parts += [f"<p>{_text(line)}</p>" for line in report.get("remarks", [])]
    networks, detection = report["networks"], report.get("detection", [])
    if networks:
        parts += ["<h2>Accuracy under attack</h2>", _html_doubts(networks), _html_table(*_accuracy_table(networks))]
        parts.append(
            "<p class=note>Robust accuracies are upper bounds: a stronger attack can only lower them. "
            "Brackets are 95 % Wilson intervals.</p>"
        )
        if any(n["curve"] for n in networks):
            parts.append(figure(lambda: _draw_curves(networks), "Accuracy of one fixed network under PGD as eps grows"))
        parts += ["<h2>Do the attacks work?</h2>", _html_table(*_masking_table(networks))]
    if detection:
        parts += ["<h2>Signals off the manifold</h2>", _html_table(*_detection_table(detection))]
        parts.append(
            "<p class=note>Higher scores are more anomalous; the other population is the positive class. Chance is "
            "what a random ranking would expect. FPR95: in-distribution inputs above the threshold that finds 95 % of "
            "the others.</p>"
        )
        for entry in detection:
            caption = f"Scores of {entry['detector']} on {entry['network']}"
            parts.append(figure(partial(_draw_detection, entry), caption))
    if guarded := report.get("detector_robustness"):
        parts += ["<h2>Detectors under attack</h2>", _html_doubts(guarded)]
        for entry in guarded:
            threshold = f"threshold {entry['threshold']:.6g}, fixed on {entry['n_calibration']} calibration inputs"
            parts.append(f"<p>{_text(entry['name'])}, {_text(entry['detector'])}: {threshold}</p>")
            parts.append(_html_table(*detector_robustness_table(entry)))
        parts.append(f"<p class=note>{_text(GUARDED_NOTE)}</p>")
    for network in networks:
        if network.get("pictures"):
            pictures = network["pictures"]
            parts.append(f"<h2>Adversarial inputs: {_text(network['name'])}</h2>")
            parts.append(figure(partial(_draw_pictures, pictures), _pictures_caption(pictures)))
    parts += ["<h2>How it was made</h2>", _html_table(["", ""], _facts(report))]
    if seconds := report.get("stage_seconds"):
        parts.append(_html_table(["stage", "time"], [[name, _duration(s)] for name, s in seconds.items()]))
    return parts


_STYLE = """<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse;margin:.6rem 0;display:block;overflow-x:auto}
td,th{padding:.25rem .7rem;border-bottom:1px solid #eee;text-align:left;vertical-align:top}
th{background:#f5f5f5}.note{color:#666;font-size:.9rem}figure{margin:1rem 0}figcaption{color:#666;font-size:.9rem}
svg{max-width:100%;height:auto}.violated{color:#b00020;font-weight:600}.holds{color:#1a7f37}.not{color:#777}
</style>"""


def _text(value: object) -> str:
    return html.escape(printable(str(value)))


def _kind(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _html_doubts(entries: list[dict[str, Any]]) -> str:
    return "".join(f"<p class=violated>{_text(line)}</p>" for line in _doubts(entries))


def _doubts(entries: list[dict[str, Any]]) -> list[str]:
    """What to doubt about each entry, in words; reports from before it was recorded have none."""
    return [f"{entry['name']}: {note}" for entry in entries for note in entry.get("notes", [])]


def _html_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def cells(row: Sequence[object], tag: str) -> str:
        coloured = (f" class={str(c).split()[0]}" if c in VERDICTS else "" for c in row)
        return "".join(f"<{tag}{colour}>{_text(c)}</{tag}>" for c, colour in zip(row, coloured, strict=True))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{cells(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def draw_markdown(report: dict[str, Any]) -> str:
    """The report's tables as Markdown; names and other text stand there as they are, none of it is markup."""

    def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
        lines = [list(map(_markdown, line)) for line in (head, *rows)]
        lines.insert(1, ["---"] * len(head))
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    networks, guarded = report["networks"], report.get("detector_robustness", [])
    parts = [f"## {_markdown(report.get('title', 'Report'))}"]
    parts += map(_markdown, [*report.get("remarks", []), *_doubts(networks), *_doubts(guarded)])
    if networks:
        parts += [table(*_accuracy_table(networks)), table(*_masking_table(networks))]
    if report.get("detection"):
        parts.append(table(*_detection_table(report["detection"])))
    for entry in guarded:
        head = _markdown(f"{entry['name']}, {entry['detector']}:")
        parts += [head, table(*detector_robustness_table(entry)), GUARDED_NOTE]
    parts.append("; ".join(_markdown(f"{name}: {value}") for name, value in _facts(report)))
    return "\n\n".join(parts) + "\n"


def _markdown(value: object) -> str:
    """Text in which nothing is markup: no tags, code, emphasis, formulas or cells, and a bracket is no link."""
    line = html.escape(" ".join(printable(str(value)).split()), quote=False)
    line = re.sub(r"([\\`*_~$|])", r"\\\1", line)
    return re.sub(r"(?<=\])(?=[(\[:])", r"\\", line)


def _facts(report: dict[str, Any]) -> list[list[object]]:
    facts = {name: report.get(name) for name in ("command", "seed")} | report.get("environment", {})
    return [[name, value] for name, value in facts.items() if value is not None]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


_Table = tuple[list[str], list[list[object]]]


def _accuracy_table(networks: list[dict[str, Any]]) -> _Table:
    labels = list(dict.fromkeys(label for n in networks for label in n["attacks"]))
    threat = "; ".join(dict.fromkeys(f"{n['threat_model']['norm']} eps {n['threat_model']['eps']:g}" for n in networks))
    rows: list[list[object]] = [["clean", *(percent(n["clean_accuracy"]) for n in networks)]]
    for label in labels:
        found = [n["attacks"].get(label) for n in networks]
        rows.append([label, *map(_accuracy, found)])
    rows.append(["worst case per example", *(percent(n["worst_case_accuracy"]) for n in networks)])
    return [threat, *(f"{n['name']} (n = {n['clean_accuracy']['n']})" for n in networks)], rows


def _accuracy(attack: dict[str, Any] | None) -> str:
    if attack is None:
        return "not measured"
    accuracy, attacked = attack["robust_accuracy"], attack.get("n_attacked")
    left = "" if attacked in (None, accuracy["n"]) else f", attacked: the {attacked} still standing"
    return percent(accuracy) + left


def _masking_table(networks: list[dict[str, Any]]) -> _Table:
    rows: list[list[object]] = [
        [n["name"], t["name"], t["verdict"], t["detail"], t.get("advice", "") if t["verdict"] == VIOLATED else ""]
        for n in networks
        for t in n["masking_tests"]
    ]
    return ["network", "masking test", "verdict", "numbers", "what to do"], rows


def _detection_table(detection: list[dict[str, Any]]) -> _Table:
    rows: list[list[object]] = [
        [
            f"{entry['network']}, {entry['detector']}",
            f"{name} (n = {p['n']})",
            f"{p['auroc']:.3f}",
            f"{p['average_precision']:.3f} (chance {p['chance']:.3f}, prevalence {p['prevalence']:.3f})",
            f"{p['fpr_at_95_tpr']:.3f}",
            f"{p['flagged']:.1%}",
        ]
        for entry in detection
        for name, p in entry["populations"].items()
    ]
    flagged = f"flagged at a nominal {detection[0]['fpr']:.0%} false alarms"
    rows += [
        [f"{e['network']}, {e['detector']}", "in-distribution", "", "", "", f"{e['false_alarms']:.1%}"]
        for e in detection
    ]
    return ["detector", "population", "AUROC", "average precision", "FPR95", flagged], rows


def _figure(draw: Callable[[], "Figure"], caption: str) -> str:
    """The figure with its caption; in its place why, where it cannot be drawn: the tables are what counts."""
    import matplotlib

    style = {"svg.hashsalt": "robustgen", "svg.fonttype": "none", "svg.image_inline": True, "text.parse_math": False}
    out = io.StringIO()
    # a letter that the font lacks is one that the browser's has
    with warnings_set_to("ignore"), matplotlib.rc_context(style), np.errstate(all="ignore"):
        try:
            draw().savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
        except Exception as error:
            return f"<p class=note>{_text(caption)}: this figure cannot be drawn ({_text(_kind(error))})</p>"
    svg = out.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}<figcaption>{_text(caption)}</figcaption></figure>"


def _label(name: str) -> str:
    """A name in a figure, at a length that leaves room for the rest."""
    name = " ".join(printable(name).split())
    name = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
    return f" {name}" if name.startswith("_") else name  # which a legend would leave out


def _axes(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _draw_curves(networks: list[dict[str, Any]]) -> "Figure":
    figure, axes = _axes(7.5, 3.6)
    for colour, network in zip(_COLOURS * len(networks), networks, strict=False):
        eps = [p["eps"] for p in network["curve"]]
        axes[0][0].plot(eps, [p["value"] for p in network["curve"]], "o-", color=colour, label=_label(network["name"]))
        low, high = ([p[k] for p in network["curve"]] for k in ("low", "high"))
        axes[0][0].fill_between(eps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes[0][0].axvline(networks[0]["threat_model"]["eps"], color="#999", linestyle=":", label="eps of the table")
    axes[0][0].set(xlabel="eps", ylabel="accuracy", ylim=(-0.02, 1.02))
    axes[0][0].legend(frameon=False)
    return figure


def _draw_detection(entry: dict[str, Any]) -> "Figure":
    from robustgen.evaluation.metrics import roc_curve

    figure, axes = _axes(10, 3.6, columns=2)
    histogram, roc = axes[0]
    known = np.asarray(entry["in_distribution"])
    everything = np.concatenate([known, *(np.asarray(p["scores"]) for p in entry["populations"].values())])
    low, high = np.quantile(everything, [0, 0.995])
    bins = np.linspace(low, high if high > low else low + 1, 50)
    histogram.hist(known, bins, density=True, color="#999", alpha=0.6, label="in-distribution")
    for colour, (name, population) in zip(_COLOURS * 9, entry["populations"].items(), strict=False):
        scores = np.asarray(population["scores"])
        histogram.hist(scores, bins, density=True, histtype="step", linewidth=1.5, color=colour, label=_label(name))
        curve = roc_curve(known, scores)
        roc.plot(curve.fpr, curve.tpr, color=colour, label=f"{_label(name)} ({population['auroc']:.2f})")
    histogram.set(xlabel="score (the top 0.5 % are cut off)", ylabel="density")
    histogram.legend(frameon=False, fontsize=8)
    roc.plot([0, 1], [0, 1], color="#999", linestyle=":")
    roc.set(xlabel="false positive rate", ylabel="true positive rate")
    roc.legend(frameon=False, fontsize=8, title="AUROC", title_fontsize=8)
    return figure


def _draw_pictures(pictures: dict[str, Any]) -> "Figure":
    values = np.frombuffer(base64.b64decode(pictures["uint8"]), np.uint8).reshape(pictures["shape"]) / 255.0
    clean, adversarial = values  # (n, C, H, W) each
    n = len(clean)
    figure, axes = _axes(1.2 * n, 3.6, columns=n, rows=3)
    signed = (adversarial - clean).mean(1)
    rows = [("clean", clean), ("adversarial", adversarial), ("difference", signed)]
    for row, (title, images) in enumerate(rows):
        for column in range(n):
            ax, image = axes[row][column], images[column]
            if image.ndim == 2:
                ax.imshow(image, cmap="RdBu_r", vmin=-1, vmax=1)
            elif image.shape[0] == 1:
                ax.imshow(image[0], cmap="gray", vmin=0, vmax=1)
            else:
                ax.imshow(image.transpose(1, 2, 0))
            ax.set(xticks=[], yticks=[])
            if column == 0:
                ax.set_ylabel(title)
    for ax, number in zip(axes[0], pictures.get("ids", ()), strict=False):
        ax.set_title(number, fontsize=8)
    return figure


def _pictures_caption(pictures: dict[str, Any]) -> str:
    rows = "Clean, adversarial and their difference"
    if "ids" not in pictures:  # a report from before it was recorded
        return f"{rows}; the clean input where no attack succeeded"
    fell, stood = (
        ", ".join(str(k) for k, fell in zip(pictures["ids"], pictures["fell"], strict=True) if fell == wanted)
        for wanted in (True, False)
    )
    which = {"fell": fell, "stood under every attack and shown as they are": stood}
    listed = "; ".join(f"{what}: {ids}" for what, ids in which.items() if ids)
    return f"{rows}, of inputs that are classified correctly without attack; by id, {listed}"
