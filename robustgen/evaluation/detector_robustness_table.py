"""The table of a detector under attack, drawn from its entry in ``report.json``."""

from typing import Any

from robustgen.evaluation.proportions import percent

__all__ = ["GUARDED_NOTE", "detector_robustness_table"]

GUARDED_NOTE = (
    "Oblivious attacks look at the classifier alone, joint ones at the detector too. Fooled are inputs that were "
    "classified correctly without attack; flagged are those among the fooled, and in the first row the false alarms. "
    "Guarded accuracy counts inputs that are correct or flagged, in the first row correct and not flagged. AUROC: "
    "clean inputs against the fooled ones. A stronger attack can only make the detector look worse. Certified is what "
    "no attack can change, where the detector has a bound: alarms that every input of the ball raises (guarded "
    "accuracy is at least their share), and out-of-distribution inputs at the lowest scores that any change can give."
)


def detector_robustness_table(entry: dict[str, Any]) -> tuple[list[str], list[list[object]]]:
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
