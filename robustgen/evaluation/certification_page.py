"""``certification.html``: the page of certificates, drawn from ``certification.json`` alone."""

from functools import partial
from pathlib import Path
from typing import Any

from robustgen.evaluation import report_tables as tables
from robustgen.evaluation.certification import rounded_down, unprovable
from robustgen.evaluation.metrics import percent
from robustgen.evaluation.report_figures import draw_certified
from robustgen.evaluation.report_format import PROPORTION, check_picture
from robustgen.evaluation.report_markdown import as_text, markdown_table
from robustgen.evaluation.report_page import draw_figure, record_in, templates, write_page
from robustgen.evaluation.report_pictures import draw_picture
from robustgen.evaluation.summary import Summary, short_percent
from robustgen.files import read_json
from robustgen.structure import SHARE, Between, check_structure

__all__ = [
    "certification_html",
    "certification_in",
    "certification_markdown",
    "load_certification",
    "write_certification",
]

FORMAT = 1
_MOST = 64  # entries, radii of each and pictures of each that a page may hold

_PICTURE = {"shape": [range(1, 2**20)], "uint8": str}
_COUNT = range(2**62)
_LENGTH = Between(0, 1e12)
_ENTRY = {
    "name": str,
    "smoothing": {"sigma": _LENGTH, "noise": str, "norm": str, "precision": str},
    "certificates": {
        "n0": _COUNT,
        "n": _COUNT,
        "alpha": SHARE,
        "exact": bool,
        "stopped_early": bool,
        "largest_provable_radius": _LENGTH,
    },
    "accuracy": PROPORTION,
    "abstains": PROPORTION,
    "average_radius": _LENGTH,
    "draws": _COUNT,
    "draws_saved": _COUNT,
    "attack": str | None,
    "radii": [
        {
            "radius": _LENGTH,
            "provable": bool,
            "draws_that_could": (_COUNT, None),
            "certified": PROPORTION,
            "attacked?": PROPORTION,
            "certified_of_attacked?": PROPORTION,
            "beaten?": _COUNT,
        }
    ],
    "every_element": _LENGTH,
    "pictures": [{"image": _PICTURE, "noisy": _PICTURE, "denoised?": _PICTURE}],
    "seed": (int, None),
    "environment": {str: str | int | float | bool | None},
    "wall_seconds": _LENGTH,
}
_RECORD = {"format": range(FORMAT, FORMAT + 1), "command?": str | None, "certified": [_ENTRY]}


def write_certification(entries: list[dict[str, Any]], directory: str | Path, command: str | None = None) -> Path:
    """Write ``certification.json`` and ``certification.html`` to ``directory``; returns the path of the page.

    See :func:`~robustgen.evaluation.report_page.write_page`.

    Args:
        entries: what :meth:`CertificationReport.to_dict` gave, one for each sigma.
        directory: it is made where there is none.
        command: how to run it again.
    """
    record = {"format": FORMAT, "command": command, "certified": entries}
    return write_page(record, Path(directory) / "certification.json", certification_html)


def certification_in(path: Path) -> Path | None:
    """The ``certification.json`` that a path is or holds; None where it holds a report, or nothing."""
    return record_in(path, "certification.json")


def load_certification(path: Path) -> dict[str, Any]:
    """Read a ``certification.json``.

    Raises:
        FileNotFoundError: not there.
        ValueError: not one, or not all of it; names the field.
    """
    record: dict[str, Any] = read_json(path, dict, at_most=2**30)
    check_structure(record, _RECORD, path)
    entries = record["certified"]
    if not 0 < len(entries) <= _MOST:
        raise ValueError(f"{path}: certified must hold 1 to {_MOST} entries")
    for i, entry in enumerate(entries):
        if not 0 < len(entry["radii"]) <= _MOST or len(entry["pictures"]) > _MOST:
            raise ValueError(f"{path}: certified[{i}] must hold 1 to {_MOST} radii, and no more pictures")
        for name in ("certified_of_attacked", "beaten"):
            if any(name not in row for row in entry["radii"] if "attacked" in row):
                raise ValueError(f"{path}: certified[{i}].radii lacks {name}")
        if wrong := _contradiction(entry):
            raise ValueError(f"{path}: certified[{i}]: {wrong}")
        for j, pictures in enumerate(entry["pictures"]):
            for name, picture in pictures.items():
                if name in ("image", "noisy", "denoised"):
                    check_picture(picture, path, f"certified[{i}].pictures[{j}].{name}")
    return record


def _contradiction(entry: dict[str, Any]) -> str | None:
    """What of an entry cannot be, though each number by itself could."""
    certificates, n = entry["certificates"], entry["accuracy"]["n"]
    if not certificates["exact"] and not 0 < certificates["alpha"] < 1:
        return f"certificates.alpha must be in (0, 1), not {certificates['alpha']:g}"
    if not n or not certificates["n"]:
        return "no input, or no draw"
    if entry["draws"] + entry["draws_saved"] != n * (certificates["n0"] + certificates["n"]):
        return f"draws and draws_saved are not those of {n} inputs"
    of_all = [entry["accuracy"], entry["abstains"], *(row["certified"] for row in entry["radii"])]
    attacked = [row for row in entry["radii"] if "attacked" in row]
    if any(share["n"] != n for share in of_all):
        return f"accuracy, abstains and certified are of {n} inputs each"
    if attacked and entry["attack"] is None:
        return "lacks the attack"
    for row in attacked:
        few = row["attacked"]["n"]
        if not few <= n or row["certified_of_attacked"]["n"] != few or row["beaten"] > few:
            return f"radii: {few} inputs are attacked, of which some are certified, and some of these beaten"
    shares = [*of_all, *(row[name] for row in attacked for name in ("attacked", "certified_of_attacked"))]
    if any(not share["low"] <= share["value"] <= share["high"] for share in shares):
        return "a share lies outside its interval"
    return None


def certification_html(record: dict[str, Any]) -> str:
    """The page, with every picture inside it and nothing loaded from elsewhere."""
    entries = record["certified"]
    return (
        templates()
        .get_template("certification.html")
        .render(
            title="Certificates",
            summaries=[_summary(entry, len(entries) > 1) for entry in entries],
            figure=draw_figure(
                partial(draw_certified, entries),
                "Certified accuracy, with 95 % intervals: no attack leaves less at that radius",
            ),
            attacked=any(entry["attack"] for entry in entries),
            parts_=[
                {
                    "name": entry["name"],
                    "table": _table(entry),
                    "facts": (["", ""], _facts(entry)),
                    "pictures": [
                        {n: draw_picture(p) for n, p in one.items() if n in _NAMES} for one in entry["pictures"]
                    ],
                }
                for entry in entries
            ],
            notes=_notes(entries),
            made=(["", ""], tables.facts({"command": record.get("command"), **_common(entries[0])})),
        )
    )


def certification_markdown(record: dict[str, Any]) -> str:
    """Sentences, tables and settings as Markdown."""
    parts = ["## Certificates"]
    for entry in record["certified"]:
        parts += [as_text(_summary(entry, len(record["certified"]) > 1).sentence), markdown_table(*_table(entry))]
        parts.append("; ".join(as_text(f"{name}: {value}") for name, value in _facts(entry)))
    return "\n\n".join([*parts, *map(as_text, _notes(record["certified"]))]) + "\n"


_NAMES = ("image", "noisy", "denoised")


def _common(entry: dict[str, Any]) -> dict[str, Any]:
    return {"seed": "secret" if entry["seed"] is None else entry["seed"], "environment": entry["environment"]}


def _summary(entry: dict[str, Any], several: bool) -> Summary:
    smoothing, rows = entry["smoothing"], entry["radii"]
    told = [f"{short_percent(row['certified']['value'])} at {row['radius']:g}" for row in rows if row["provable"]]
    beyond = [f"{row['radius']:g}" for row in rows if not row["provable"]]
    proved = [f"whatever the attack, on {', '.join(told)} ({smoothing['norm']})"] if told else []
    proved += [f"nothing can be proved at {', '.join(beyond)}"] if beyond else []
    alpha = entry["certificates"]["alpha"]
    surely = (
        "for certain" if entry["certificates"]["exact"] else f"each input wrongly with probability {alpha:g} at most"
    )
    who = f"Sigma {smoothing['sigma']:g}: right" if several else "Right"
    sentence = (
        f"{who} on "
        f"{short_percent(entry['accuracy']['value'])} of {entry['accuracy']['n']:,} inputs without attack; "
        f"{'; '.join(proved)}{f' ({surely})' if told else ''}."
    )
    beaten = [row["beaten"] for row in rows if "beaten" in row]
    if not beaten:
        return Summary(
            sentence, "No attack was run: what lies between these bounds and the truth is not known.", "not run"
        )
    if worst := max(beaten):
        certificates = "certificate was" if worst == 1 else "certificates were"
        odds = (
            "none may be"
            if entry["certificates"]["exact"]
            else f"one in {1 / entry['certificates']['alpha']:,.0f} may be"
        )
        return Summary(sentence, f"{worst} {certificates} beaten by an attack; {odds}.", "violated")
    return Summary(sentence, "No certificate was beaten by the attack.", "holds")


def _table(entry: dict[str, Any]) -> tables.Table:
    attacked = any("attacked" in row for row in entry["radii"])
    head = [f"{entry['smoothing']['norm']} radius", f"certified (n = {entry['accuracy']['n']})"]
    first = next((row["attacked"]["n"] for row in entry["radii"] if "attacked" in row), 0)
    of = f"of the first {first}"
    head += [f"certified, {of}", f"left by {entry['attack']}, {of}", "beaten"] if attacked else []
    blank: list[object] = ["", "", ""] if attacked else []
    rows: list[list[object]] = [["0, without attack", percent(entry["accuracy"]), *blank]]
    for row in entry["radii"]:
        certificates = entry["certificates"]
        shown = percent(row["certified"])
        if not row["provable"]:
            shown = unprovable(certificates["n"], row["draws_that_could"], certificates["exact"])
        more = blank
        if "attacked" in row:
            more = [percent(row["certified_of_attacked"]), percent(row["attacked"]), row["beaten"]]
        rows.append([f"{row['radius']:g}", shown, *more])
    return head, rows


def _facts(entry: dict[str, Any]) -> list[list[object]]:
    smoothing, certificates = entry["smoothing"], entry["certificates"]
    average = f"{entry['average_radius']:.3f}" + (" of the draws counted" if certificates["stopped_early"] else "")
    asked = f"{entry['draws']:,} counted"
    if entry["draws_saved"]:
        asked += f", {entry['draws_saved']:,} saved by an early stop"
    how = f"{certificates['n']:,} of each input, {certificates['n0']:,} others choose the class"
    how += f", alpha {certificates['alpha']:g}"
    if certificates["exact"]:
        how = f"all {certificates['n']:,} versions of each input: certificates hold for sure"
    return [
        ["abstains", percent(entry["abstains"])],
        ["average certified radius", average],
        ["largest radius that can be proved", rounded_down(certificates["largest_provable_radius"])],
        ["noise", f"{smoothing['noise']}, sigma {smoothing['sigma']:g}, {smoothing['precision']}"],
        ["draws", how],
        ["draws in all", asked],
        ["time", f"{entry['wall_seconds']:.0f} s"],
    ]


def _notes(entries: list[dict[str, Any]]) -> list[str]:
    largest = max(entry["every_element"] for entry in entries)
    notes = [
        "Certified accuracy is a lower bound: no attack within the radius leaves less, whatever it knows. What an "
        "attack left is an upper one. Brackets are 95 % Wilson intervals.",
        f"The largest radius here covers changes of every element by {largest:.4f} at once (Linf), and that is small: "
        "these certificates are no answer to attacks in Linf.",
    ]
    if not all(entry["certificates"]["exact"] for entry in entries):
        notes.append(
            "Each certificate holds with probability 1 - alpha over its draws. The inputs were fixed without a look at "
            "the seed: that it stands here harms nothing."
        )
    if any(entry["certificates"]["stopped_early"] for entry in entries):
        notes.append(
            "Draws ended where every radius of the table was decided: accuracies and abstentions are those of all "
            "draws, the average radius is lower."
        )
    return notes
