"""The tables of a report, head and rows of text, for its page and for Markdown."""

from typing import Any, TypeAlias

from robustgen.evaluation.by_class import ClassAccuracy
from robustgen.evaluation.masking import VIOLATED
from robustgen.evaluation.metrics import percent

__all__ = [
    "GUARDED_NOTE",
    "ROBUST_NOTE",
    "Table",
    "accuracy_table",
    "class_table",
    "detection_table",
    "detector_robustness_table",
    "doubts",
    "facts",
    "masking_table",
    "scores_table",
    "stage_table",
]

Table: TypeAlias = tuple[list[str], list[list[object]]]

ROBUST_NOTE = (
    "Robust accuracies are upper bounds: a stronger attack can only lower them. Brackets are 95 % Wilson intervals."
)

GUARDED_NOTE = (
    "Oblivious attacks look at the classifier alone, joint ones at the detector too. Fooled are inputs that were "
    "classified correctly without attack; flagged are those among the fooled, and in the first row the false alarms. "
    "Guarded accuracy counts inputs that are correct or flagged, in the first row correct and not flagged. AUROC: "
    "clean inputs against the fooled ones. A stronger attack can only make the detector look worse. Certified is what "
    "no attack can change, where the detector has a bound: alarms that every input of the ball raises (guarded "
    "accuracy is at least their share), and out-of-distribution inputs at the lowest scores that any change can give."
)


def doubts(entries: list[dict[str, Any]]) -> list[str]:
    """What to doubt about each entry, in words; reports from before it was recorded have none."""
    return [f"{entry['name']}: {note}" for entry in entries for note in entry.get("notes", [])]


def accuracy_table(networks: list[dict[str, Any]]) -> Table:
    """A row for each attack, a column for each network."""
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


def class_table(classes: list[ClassAccuracy]) -> Table:
    """A row for each class, the weakest first: by its accuracy in the worst case, of equal ones by the clean one."""
    ordered = sorted(classes, key=lambda c: (c.standing / c.n, c.clean / c.n))
    rows: list[list[object]] = [[c.name, c.n, f"{c.clean / c.n:.1%}", f"{c.standing / c.n:.1%}"] for c in ordered]
    return ["class", "examples", "clean", "worst case"], rows


def masking_table(networks: list[dict[str, Any]]) -> Table:
    """A row for each test, those that are violated first."""
    rows: list[list[object]] = [
        [n["name"], t["name"], t["verdict"], t["detail"], t.get("advice", "") if t["verdict"] == VIOLATED else ""]
        for n in networks
        for t in n["masking_tests"]
    ]
    return ["network", "masking test", "verdict", "numbers", "what to do"], sorted(rows, key=lambda r: r[2] != VIOLATED)


def detection_table(detection: list[dict[str, Any]]) -> Table:
    """A row for each detector and population."""
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


def scores_table(entry: dict[str, Any]) -> Table:
    """The most and the least anomalous inputs."""
    rows: list[list[object]] = [
        [kind, row["input"], score_text(row["score"]), f"{row['p_value']:.3g}", "flagged" if row["flag"] else ""]
        for kind in ("most", "least")
        for row in entry[kind]
    ]
    return ["anomalous", "input", "score", "p-value", ""], rows


def score_text(score: float | None) -> str:
    """None is a score that is not finite, which JSON does not hold."""
    return "not finite" if score is None else f"{score:.4g}"


def facts(report: dict[str, Any]) -> list[list[object]]:
    """How a report was made: command, seed, versions, machine."""
    found = {name: report.get(name) for name in ("command", "seed")} | report.get("environment", {})
    return [[name, value] for name, value in found.items() if value is not None]


def stage_table(report: dict[str, Any]) -> Table:
    """What each stage took."""
    return ["stage", "time"], [[name, _duration(s)] for name, s in report.get("stage_seconds", {}).items()]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def detector_robustness_table(entry: dict[str, Any]) -> Table:
    """Head and rows: one for clean inputs, one for each attack, the worst case, out-of-distribution inputs."""
    clean = entry["clean"]
    head = [
        f"{entry['threat_model']['norm']} eps {entry['threat_model']['eps']:g}",
        f"fools the classifier (of {clean['accuracy']['value'] * clean['accuracy']['n']:.0f})",
        f"flagged at a nominal {entry['fpr']:.1%}",
        "fools both",
        f"guarded accuracy (n = {clean['accuracy']['n']})",
        "AUROC",
    ]
    rows: list[list[object]] = [
        ["clean", "", percent(clean["false_alarms"]), "", percent(clean["correct_and_unflagged"]), ""]
    ]
    for label, found in {**entry["attacks"], "worst case per example": entry["worst_case"]}.items():
        shares = [percent(found[rate]) for rate in ("success", "flagged", "evaded", "guarded_accuracy")]
        rows.append([label, *shares, _area(found["auroc"])])
    reverse = entry["out_of_distribution"]
    if reverse is not None:
        for label, found in {"": reverse["before"], ", attacked to look normal": reverse["after"]}.items():
            label = f"out of distribution{label} (n = {found['flagged']['n']})"
            rows.append([label, "", percent(found["flagged"]), "", "", _area(found["auroc"])])
    certified = entry.get("certified")
    if certified is not None:
        sure = percent(certified["flagged"])
        rows.append(["certified: flagged whatever the change", "", sure, "", f"at least {sure}", ""])
        rows.append(["certified: not flagged whatever the change", "", percent(certified["quiet"]), "", "", ""])
        if (outside := certified["out_of_distribution"]) is not None:
            label = f"certified: out of distribution (n = {outside['flagged']['n']})"
            rows.append([label, "", percent(outside["flagged"]), "", "", _area(outside["auroc"])])
    return head, rows


def _area(value: float | None) -> str:
    return "of none" if value is None else f"{value:.3f}"
