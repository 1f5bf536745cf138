"""``random_defence.html``: the ledger of a random defence, drawn from ``random_defence.json`` alone."""

from functools import partial
from pathlib import Path
from typing import Any

from robustgen.evaluation import report_tables as tables
from robustgen.evaluation.metrics import percent
from robustgen.evaluation.random_defence_rows import KINDS, needs_adaptive, told
from robustgen.evaluation.report_figures import draw_defence
from robustgen.evaluation.report_format import PROPORTION, check_picture
from robustgen.evaluation.report_markdown import as_text, markdown_table
from robustgen.evaluation.report_page import draw_figure, record_in, templates, write_page
from robustgen.evaluation.report_pictures import draw_picture
from robustgen.evaluation.summary import Summary, eps_text, short_percent
from robustgen.files import read_json
from robustgen.structure import POSITIVE, Between, check_structure

__all__ = [
    "load_random_defence",
    "random_defence_html",
    "random_defence_in",
    "random_defence_markdown",
    "write_random_defence",
]

FORMAT = 1
_MOST = 64  # rows and inputs pictured that a page may hold
_DIFFERENCE = Between(-1, 1)
_PICTURE = {"shape": [POSITIVE], "uint8": str}
_SHOWN = ("image", "purified", "attacked", "attacked, purified")
_ROW = {
    "label": str,
    "kind": str,
    "one_draw": PROPORTION,
    "vote": PROPORTION,
    "all_right": PROPORTION,
    "rejected": range(2**31),
}
_ENTRY = {
    "name": str,
    "purifier": {"purifier": str, "depth": int | float | None, "steps": int | None, "exact": bool, "stochastic": bool},
    "threat_model": {"norm": str, "eps": float},
    "eot": POSITIVE,
    "k": POSITIVE,
    "draws": POSITIVE,
    "notes": [str],
    "rows": {str: _ROW},
    "fixed": PROPORTION,
    "undefended": PROPORTION,
    "undefended_clean": PROPORTION,
    "split": dict.fromkeys(("undefended", "removal", "randomness", "resubmission"), _DIFFERENCE),
    "pictures": [dict.fromkeys(_SHOWN, _PICTURE)],
    "seed": int,
    "environment": {str: str | int | float | bool | None},
    "wall_seconds": Between(0, 1e12),
}
_RECORD = {"format": range(FORMAT, FORMAT + 1), "command?": str | None, "defence": _ENTRY}


def write_random_defence(entry: dict[str, Any], directory: str | Path, command: str | None = None) -> Path:
    """Write ``random_defence.json`` and ``random_defence.html`` to ``directory``; returns the path of the page.

    See :func:`~robustgen.evaluation.report_page.write_page`.

    Args:
        entry: what :meth:`RandomDefenceReport.to_dict` gave.
        directory: it is made where there is none.
        command: how to run it again.
    """
    record = {"format": FORMAT, "command": command, "defence": entry}
    return write_page(record, Path(directory) / "random_defence.json", random_defence_html)


def random_defence_in(path: Path) -> Path | None:
    """The ``random_defence.json`` that a path is or holds; None where it holds a report, or nothing."""
    return record_in(path, "random_defence.json")


def load_random_defence(path: Path) -> dict[str, Any]:
    """Read a ``random_defence.json``.

    Raises:
        FileNotFoundError: not there.
        ValueError: not one, not all of it, or without an adaptive row; names the file.
    """
    record: dict[str, Any] = read_json(path, dict, at_most=2**30)
    check_structure(record, _RECORD, path)
    entry = record["defence"]
    if wrong := _contradiction(entry):
        raise ValueError(f"{path}: {wrong}")
    for i, pictures in enumerate(entry["pictures"]):
        for name in _SHOWN:
            check_picture(pictures[name], path, f"defence.pictures[{i}].{name}")
    return record


def _contradiction(entry: dict[str, Any]) -> str | None:
    """What of an entry cannot be, though each number by itself could."""
    rows = entry["rows"]
    if len(rows) > _MOST or len(entry["pictures"]) > _MOST:
        return f"defence must hold at most {_MOST} rows, and no more pictures"
    if not {"clean", "oblivious", "worst"} <= rows.keys():
        return "defence.rows lacks clean, oblivious or worst"
    if unknown := next((row["kind"] for row in rows.values() if row["kind"] not in KINDS), None):
        return f"defence.rows: unknown kind {unknown!r}"
    try:
        needs_adaptive([row["kind"] for row in rows.values()])
    except ValueError as error:
        return str(error)
    shares = [row[name] for row in rows.values() for name in ("one_draw", "vote", "all_right")]
    shares += [entry[name] for name in ("fixed", "undefended", "undefended_clean")]
    if not entry["fixed"]["n"] or any(share["n"] != entry["fixed"]["n"] for share in shares):
        return "defence: every share must be of the same inputs, one at least"
    if any(not share["low"] <= share["value"] <= share["high"] for share in shares):
        return "defence: a share lies outside its interval"
    return None


def random_defence_html(record: dict[str, Any]) -> str:
    """The page, with every picture inside it and nothing loaded from elsewhere; ValueError without an adaptive row."""
    entry = record["defence"]
    needs_adaptive([row["kind"] for row in entry["rows"].values()])
    return (
        templates()
        .get_template("random_defence.html")
        .render(
            title=f"What purification is worth: {entry['name']}",
            summaries=[_summary(entry)],
            doubts=entry["notes"],
            figure=draw_figure(partial(draw_defence, entry), "Accuracy by attack, with 95 % intervals"),
            ledger=_ledger(entry),
            table=_table(entry),
            pictures=[{name: draw_picture(one[name]) for name in _SHOWN} for one in entry["pictures"]],
            notes=_notes(entry),
            facts=(["", ""], _facts(entry)),
            made=(
                ["", ""],
                tables.facts(
                    {name: value for name, value in entry.items() if name in ("seed", "environment")} | record
                ),
            ),
        )
    )


def random_defence_markdown(record: dict[str, Any]) -> str:
    """Sentences, tables and settings as Markdown."""
    entry = record["defence"]
    needs_adaptive([row["kind"] for row in entry["rows"].values()])
    parts = ["## What purification is worth", *(as_text(f"doubt: {note}") for note in entry["notes"])]
    parts += [as_text(part) for part in _summary(entry)[:2]]
    parts += [markdown_table(*_ledger(entry)), markdown_table(*_table(entry))]
    parts.append("; ".join(as_text(f"{name}: {value}") for name, value in _facts(entry)))
    return "\n\n".join([*parts, *map(as_text, _notes(entry))]) + "\n"


def _summary(entry: dict[str, Any]) -> Summary:
    rows, k = entry["rows"], entry["k"]
    worst, threat = rows["worst"], entry["threat_model"]
    draws = entry["purifier"]["stochastic"]
    one = " in one draw" if draws else ""
    parts = [f"on {short_percent(worst['one_draw']['value'])}{one} under attacks that know the purifier"]
    if draws:
        parts.append(f"on {short_percent(worst['all_right']['value'])} where the attacker may submit {k} times")
        parts.append(f"on {short_percent(entry['fixed']['value'])} where the seed is known")
    sentence = (
        f"Right on {short_percent(rows['clean']['one_draw']['value'])} of {entry['fixed']['n']:,} inputs{one} without "
        f"attack; at {threat['norm']} {eps_text(threat['eps'])} {', '.join(parts)}. An attack that does not know the "
        f"purifier leaves {short_percent(rows['oblivious']['one_draw']['value'])}, which says nothing of it."
    )
    verdict, kind = _verdict(entry)
    return Summary(sentence, f"{verdict} {told(entry)}", kind)


def _verdict(entry: dict[str, Any]) -> tuple[str, str]:
    worst, alone = entry["rows"]["worst"], entry["undefended"]["high"]
    if entry["notes"]:
        return "Something is to be doubted before these numbers count.", "violated"
    if worst["all_right"]["low"] > alone:
        tries = ", tries counted" if entry["purifier"]["stochastic"] else ""
        return f"It adds to the network alone{tries}. A stronger attack can only lower these numbers.", "holds"
    if worst["one_draw"]["low"] > alone:
        return (
            f"What it adds to the network alone is gone where the attacker may submit {entry['k']} times.",
            "violated",
        )
    return "It adds nothing to the network alone that these inputs could show.", "violated"


def _ledger(entry: dict[str, Any]) -> tables.Table:
    """From the network alone to what is left, item by item."""
    split, worst = entry["split"], entry["rows"]["worst"]
    rows: list[list[object]] = [
        ["the network alone, attacked", "", _share(entry["undefended"])],
        ["removal of perturbations", _points(split["removal"]), _share(entry["fixed"])],
    ]
    if entry["purifier"]["stochastic"]:
        rows[1][0] = "removal of perturbations, by draws of a seed that the attacker knows"
        rows += [
            ["randomness: one draw", _points(split["randomness"]), _share(worst["one_draw"])],
            [f"resubmission, {entry['k']} times", _points(split["resubmission"]), _share(worst["all_right"])],
        ]
    return ["under attack", "gives", "accuracy"], rows


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"


def _table(entry: dict[str, Any]) -> tables.Table:
    k, draws = entry["k"], entry["purifier"]["stochastic"]
    columns = {"one_draw": "one draw" if draws else "accuracy"}
    if draws:
        columns |= {"vote": f"vote of {k}", "all_right": f"all of {k} right"}
    head = [f"n = {entry['fixed']['n']}", "attack", *columns.values()]
    rows: list[list[object]] = [
        [key, "none" if key == "clean" else row["label"], *(_share(row[name]) for name in columns)]
        for key, row in entry["rows"].items()
    ]
    blank = [""] * (len(columns) - 1)
    rows += [
        ["the network alone", "none", _share(entry["undefended_clean"]), *blank],
        ["the network alone", "every point above", _share(entry["undefended"]), *blank],
    ]
    return head, rows


def _share(found: dict[str, Any]) -> str:
    """On a narrow page its interval stays in one piece."""
    return percent(found).replace(", ", ",\N{NO-BREAK SPACE}")


def _facts(entry: dict[str, Any]) -> list[list[object]]:
    purifier = entry["purifier"]
    found = {
        "purifier": purifier["purifier"],
        "depth": purifier["depth"],
        "steps": purifier["steps"],
        "gradient": "through the whole chain" if purifier["exact"] else "none of its own: that of the identity",
        "draws of a verdict": f"{entry['draws']}",
        "draws of a gradient": f"{entry['eot']}",
        "points of attacks outside the ball": sum(row["rejected"] for row in entry["rows"].values()) or None,
        "time": f"{entry['wall_seconds']:.0f} s",
    }
    return [[name, value] for name, value in found.items() if value is not None]


def _notes(entry: dict[str, Any]) -> list[str]:
    notes = [
        "Accuracies under attack are upper bounds: a stronger attack can only lower them. Brackets are 95 % Wilson "
        "intervals over the inputs.",
    ]
    if entry["purifier"]["stochastic"]:
        notes.append(
            f"Every point is judged by {entry['draws']} draws that no attack has seen; the worst point of each input "
            f"by others than chose it. All of {entry['k']} right: what is left where an attacker may submit a point "
            f"{entry['k']} times and needs to win once."
        )
    return notes
