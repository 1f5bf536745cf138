"""``quality.html``: the page of :func:`~robustgen.evaluation.sample_quality`, drawn from ``quality.json`` alone."""

from pathlib import Path
from typing import Any, NamedTuple

from robustgen.evaluation import report_tables as tables
from robustgen.evaluation.masking import NOT_RUN, VIOLATED
from robustgen.evaluation.report_format import PROPORTION, check_picture
from robustgen.evaluation.report_markdown import as_text, markdown_table
from robustgen.evaluation.report_page import record_in, templates, write_page
from robustgen.evaluation.report_pictures import draw_picture
from robustgen.evaluation.summary import Summary, short_percent
from robustgen.files import read_json
from robustgen.printable import printable
from robustgen.structure import check_structure

__all__ = ["load_quality", "quality_html", "quality_in", "quality_markdown", "quality_text", "write_quality"]

FORMAT = 1
_MOST = 256  # pictures of a kind that a page may hold
_NEARER = 0.75  # probability of lying closer to the training images from which on it is told


class _Row(NamedTuple):
    """How a number is told: its name, its format, and what it means."""

    label: str
    form: str
    meaning: str


_ROWS = {
    "frechet_distance": _Row("Frechet distance", ",.4g", "of features, lower is better; not an FID"),
    "precision": _Row("precision", ".1%", "samples among the data"),
    "recall": _Row("recall", ".1%", "data among the samples"),
    "density": _Row("density", ".3f", "how deep among the data, 1 is as data"),
    "coverage": _Row("coverage", ".1%", "data with a sample beside them"),
    "prd_precision": _Row("PRD F1/8", ".1%", "precision of the distributions"),
    "prd_recall": _Row("PRD F8", ".1%", "recall of the distributions"),
    "class_score": _Row("class score", ".2f", "higher is clearer and more even; not an Inception score"),
    "modes": _Row("classes seen", ".0f", "by the feature network"),
    "mode_kl": _Row("KL of the classes", ".4f", "in nats, 0 is the shares of the data"),
    "parzen": _Row("Parzen estimate", ",.1f", "of log p, in nats; a poor estimate"),
    "copies": _Row("copies", ".1%", "far nearer to one training image than to any other"),
    "closer": _Row("closer to training", ".1%", "than held-back images are; 50 % without memorising"),
}

_ESTIMATE = {"value": float, "low": (float, None), "high": (float, None)}
_PICTURE = {"shape": [range(1, 2**20)], "uint8": str}
_BESIDE = [{"sample": _PICTURE, "neighbours": [_PICTURE], "distances": [float]}]
_COUNT = range(2**53)
_QUALITY = {
    "name": str,
    "data": str,
    "n": {"samples": _COUNT, "data": _COUNT, "features": _COUNT, "train?": _COUNT, "control?": _COUNT},
    "features": {"name": str, "layer": str, "fingerprint": str, "about": str, "accuracy": (PROPORTION, None)},
    "measured": {str: _ESTIMATE},
    "control": ({str: _ESTIMATE}, None),
    "sigma": float,
    "scored": _COUNT,
    "classes": _COUNT,
    "left_out": [str],
    "doubts": [str],
    "pictures": {"samples": [_PICTURE], "first?": _BESIDE, "closest?": _BESIDE},
    "seed": int,
    "resamples": _COUNT,
    "environment": {str: str | int | float | bool | None},
    "wall_seconds": float,
}
_RECORD = {"format": range(FORMAT, FORMAT + 1), "command?": str | None, "quality": _QUALITY}


def write_quality(quality: dict[str, Any], directory: str | Path, command: str | None = None) -> Path:
    """Write ``quality.json`` and ``quality.html`` to ``directory``; returns the path of the page.

    See :func:`~robustgen.evaluation.report_page.write_page`.

    Args:
        quality: what :meth:`SampleQuality.to_dict` gave.
        directory: it is made where there is none.
        command: how to run it again.
    """
    record = {"format": FORMAT, "command": command, "quality": quality}
    return write_page(record, Path(directory) / "quality.json", quality_html)


def quality_in(path: Path) -> Path | None:
    """The ``quality.json`` that a path is or holds; None where it holds a report, or nothing."""
    return record_in(path, "quality.json")


def load_quality(path: Path) -> dict[str, Any]:
    """Read a ``quality.json``.

    Raises:
        FileNotFoundError: not there.
        ValueError: not one, or not all of it; names the field.
    """
    record: dict[str, Any] = read_json(path, dict, at_most=2**30)
    check_structure(record, _RECORD, path)
    quality = record["quality"]
    for side in ("measured", "control"):
        if quality[side] is not None and "frechet_distance" not in quality[side]:
            raise ValueError(f"{path}: quality.{side} lacks frechet_distance")
        for name, one in (quality[side] or {}).items():
            ends = [end for end in (one["low"], one["value"], one["high"]) if end is not None]
            if ends != sorted(ends):
                raise ValueError(f"{path}: quality.{side}.{name} lies outside its interval")
    if missing := [name for name in ("precision", "recall") if name not in quality["measured"]]:
        raise ValueError(f"{path}: quality.measured lacks {missing[0]}")
    if quality["control"] is not None and "control" not in quality["n"]:
        raise ValueError(f"{path}: quality.n lacks control")
    pictures = quality["pictures"]
    for kind, found in pictures.items():
        if kind in ("samples", "first", "closest") and len(found) > _MOST:
            raise ValueError(f"{path}: quality.pictures.{kind} must hold at most {_MOST}")
    for i, picture in enumerate(pictures["samples"]):
        check_picture(picture, path, f"quality.pictures.samples[{i}]")
    for kind in ("first", "closest"):
        for i, row in enumerate(pictures.get(kind, [])):
            if len(row["neighbours"]) != len(row["distances"]) or len(row["neighbours"]) > _MOST:
                raise ValueError(f"{path}: quality.pictures.{kind}[{i}] must hold a distance for each neighbour")
            for j, picture in enumerate([row["sample"], *row["neighbours"]]):
                check_picture(picture, path, f"quality.pictures.{kind}[{i}][{j}]")
    return record


def quality_html(record: dict[str, Any]) -> str:
    """The page, with every picture inside it and nothing loaded from elsewhere."""
    quality = record["quality"]
    pictures = quality["pictures"]
    return (
        templates()
        .get_template("quality.html")
        .render(
            title="Sample quality",
            summaries=[_summary(quality)],
            doubts=quality["doubts"],
            table=_table(quality),
            notes=_notes(quality),
            samples=[draw_picture(p) for p in pictures["samples"]],
            rows={
                kind: [
                    {
                        "sample": draw_picture(row["sample"]),
                        "neighbours": [draw_picture(p) for p in row["neighbours"]],
                        "distance": f"{row['distances'][0]:.2f}" if row["distances"] else "",
                    }
                    for row in pictures.get(kind, [])
                ]
                for kind in ("first", "closest")
            },
            facts=(["", ""], _facts(quality)),
            made=(["", ""], tables.facts({"command": record.get("command"), **_common(quality)})),
        )
    )


def quality_markdown(record: dict[str, Any]) -> str:
    """Sentences, table and settings as Markdown."""
    quality = record["quality"]
    found = _summary(quality)
    parts = ["## Sample quality", as_text(f"{found.sentence} {found.verdict}"), *map(as_text, quality["doubts"])]
    parts += [markdown_table(*_table(quality)), "; ".join(as_text(f"{name}: {what}") for name, what in _facts(quality))]
    return "\n\n".join([*parts, *map(as_text, _notes(quality))]) + "\n"


def quality_text(quality: dict[str, Any]) -> str:
    """The sentence and a line for each number, for a terminal."""
    found = _summary(quality)
    lines = [found.sentence, found.verdict, *quality["doubts"]]
    head, rows = _table(quality)
    width = max(len(str(row[1])) for row in rows) + 2
    lines.append(f"  {'':<20}{'samples':<{width}}{head[2]}")
    lines += [f"  {row[0]:<20}{row[1]:<{width}}{row[2]}".rstrip() for row in rows]
    lines += [f"  {name}: {what}" for name, what in _facts(quality) if name in ("features", "left out")]
    return printable("\n".join(lines))


def _common(quality: dict[str, Any]) -> dict[str, Any]:
    return {"seed": quality["seed"], "environment": quality["environment"]}


def _told(name: str, one: dict[str, float | None] | None, classes: int) -> str:
    """A number with its interval."""
    if one is None:
        return ""
    form = _ROWS[name].form
    assert one["value"] is not None
    if name == "modes":
        return f"{one['value']:.0f} of {classes}"
    ends = "" if one["low"] is None or one["high"] is None else f" [{one['low']:{form}}, {one['high']:{form}}]"
    return f"{one['value']:{form}}{ends}"


def _table(quality: dict[str, Any]) -> tables.Table:
    n, control = quality["n"], quality["control"]
    head = ["", f"samples (n = {n['samples']:,})"]
    head += ["" if control is None else f"training images in their place (n = {n['control']:,})", "what it is"]
    sides = (quality["measured"], control or {})
    rows: list[list[object]] = [
        [row.label, *(_told(name, side.get(name), quality["classes"]) for side in sides), row.meaning]
        for name, row in _ROWS.items()
        if name in quality["measured"]
    ]
    return head, rows


def _summary(quality: dict[str, Any]) -> Summary:
    measured, control, n = quality["measured"], quality["control"], quality["n"]
    distance = f"Frechet distance {measured['frechet_distance']['value']:.3g}"
    if control is not None:
        distance += f" where training images get {control['frechet_distance']['value']:.3g}"
    parts = [
        distance,
        f"{short_percent(measured['precision']['value'])} of the samples lie among the data (precision)",
        f"{short_percent(measured['recall']['value'])} of the data among the samples (recall)",
    ]
    if "modes" in measured:
        parts.append(f"{measured['modes']['value']:.0f} of {quality['classes']} classes are seen")
    sentence = f"{n['samples']:,} samples of {quality['name']} beside {n['data']:,} images of {quality['data']}: "
    return Summary(sentence + "; ".join(parts) + ".", *_copying(quality))


def _copying(quality: dict[str, Any]) -> tuple[str, str]:
    """A verdict on memorising."""
    copies = quality["measured"].get("copies")
    if copies is None:
        return "Whether samples are copies of training images was not looked at.", NOT_RUN
    usual = (quality["control"] or {}).get("copies", {"high": None})["high"] or 0.0
    least = copies["value"] if copies["low"] is None else copies["low"]
    if least > usual:
        share = short_percent(copies["value"])
        return f"Memorised: {share} of the samples are copies of a training image, as near as no other is.", VIOLATED
    closer = quality["measured"]["closer"]["value"] if "closer" in quality["measured"] else 0.5
    if closer > _NEARER:
        return (
            f"No copies; but with a probability of {short_percent(closer)} a sample lies closer to the training images "
            "than a held-back image does: so do blurred and simple images.",
            NOT_RUN,
        )
    return "No sign that training images were memorised.", ""


def _facts(quality: dict[str, Any]) -> list[list[object]]:
    features, n = quality["features"], quality["n"]
    name = f"{features['name']}, {features['layer']}: {n['features']:,} numbers, {features['about']}"
    rows: list[list[object]] = [["features", f"{name}; fingerprint {features['fingerprint']}"]]
    if features["accuracy"] is not None:
        rows.append(["its accuracy on the data", short_percent(features["accuracy"]["value"])])
    if "train" in n:
        rows.append(["training images", f"{n['train']:,}, among which neighbours are looked for, by their pixels"])
    rows.append(["Parzen windows", f"sigma {quality['sigma']:.3g}, {quality['scored']:,} images scored"])
    rows.append(["intervals", f"95 %, {quality['resamples']} bootstrap draws of both sides, seed {quality['seed']}"])
    rows += [["left out", line] for line in quality["left_out"]]
    return [*rows, ["time", f"{quality['wall_seconds']:.0f} s"]]


def _notes(quality: dict[str, Any]) -> list[str]:
    notes = [
        "Every number is of this feature network, at this n: none is an FID or an Inception score, and numbers of "
        "other features or another n cannot be compared with it.",
        "Precision is too high where an image of the data lies far from the others, as its ball is large; recall, "
        "where a sample does. Density and coverage hardly feel it.",
        "Intervals tell how the number would vary with other images, not what few images do to it: a Frechet distance "
        "of few images is too large. Training images in the place of samples show by how much.",
        "The Parzen estimate is far from the true likelihood in so many dimensions and may rank models wrongly.",
    ]
    if quality["control"] is not None:
        notes.append(
            "Copies: the nearest training image is at most a third as far as the second nearest, by pixels; shifted "
            "copies are not seen. In the column of training images these two lines are of the held-back data."
        )
    return notes
