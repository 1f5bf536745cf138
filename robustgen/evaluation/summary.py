"""A report in a sentence: what was found, and whether its own tests speak against it."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from robustgen.evaluation.by_class import accuracy_by_class
from robustgen.evaluation.masking import HOLDS, NOT_RUN, VIOLATED

__all__ = ["Summary", "eps_text", "of_detection", "of_guarded", "of_network", "of_report", "of_scores", "short_percent"]

_NAMED = 3  # classes that are weakest together
_ENOUGH = 10  # examples of every class: of fewer, which is weakest is chance


class Summary(NamedTuple):
    """The ``sentence``, a verdict on it in words, and in one word: "holds", "violated" or "not run"; "" if untested."""

    sentence: str
    verdict: str = ""
    kind: str = ""


def of_report(report: dict[str, Any]) -> list[Summary]:
    """One for each network, detector and set of scores; where there are several networks, each is named."""
    networks = report["networks"]
    found = [of_network(n, named=len(networks) > 1) for n in networks]
    found += [Summary(of_scores(entry)) for entry in report.get("scores", [])]
    found += [Summary(of_detection(entry)) for entry in report.get("detection", [])]
    return found + [Summary(of_guarded(entry)) for entry in report.get("detector_robustness", [])]


def of_network(network: dict[str, Any], named: bool = False) -> Summary:
    """Accuracy without and under attack, how many tests hold, the weakest class."""
    counts = dict.fromkeys((HOLDS, VIOLATED, NOT_RUN), 0)
    for test in network["masking_tests"]:
        kind = test["verdict"] if test["verdict"] in (HOLDS, NOT_RUN) else VIOLATED  # of a report made elsewhere
        counts[kind] = counts.get(kind, 0) + 1
    parts = [
        f"{short_percent(network['clean_accuracy']['value'])} clean, "
        f"{short_percent(network['worst_case_accuracy']['value'])} {_under(network)} at {_threat(network)}",
        _tested(counts) if network["masking_tests"] else "no tests of the attacks",
    ]
    if weakest := _weakest(network):
        parts.append(weakest)
    sentence = f"{network['name']}: {'; '.join(parts)}." if named else f"{'; '.join(parts)}."
    return Summary(sentence, *_verdict(counts, network))


def of_guarded(entry: dict[str, Any]) -> str:
    """Accuracy with the detector, without and under attack."""
    clean, attacked = entry["clean"]["correct_and_unflagged"], entry["worst_case"]["guarded_accuracy"]
    return (
        f"{entry['name']} with its detector: {short_percent(clean['value'])} right and not flagged without attack; "
        f"{short_percent(attacked['value'])} right or flagged under the worst attack at {_threat(entry)}."
    )


def of_detection(entry: dict[str, Any]) -> str:
    """What a detector flags of each population."""
    flagged = [f"{short_percent(p['flagged'])} of {name}" for name, p in entry["populations"].items()]
    return (
        f"{entry['detector']} on {entry['network']} flags {', '.join(flagged) or 'nothing else'}, and "
        f"{short_percent(entry['false_alarms'])} of in-distribution inputs."
    )


def of_scores(entry: dict[str, Any]) -> str:
    """The flagged share beside the nominal one."""
    if entry["flagged"] is None:
        return f"{entry['data']}: nothing was scored."
    return (
        f"{short_percent(entry['flagged']['value'])} of {entry['n']:,} inputs are flagged; of inputs like those that "
        f"set the threshold it would be {short_percent(entry['fpr'])}."
    )


def short_percent(share: float) -> str:
    """For a sentence: one digit behind the point, if it is not 0.

    >>> short_percent(0.26), short_percent(0.0626), short_percent(0.99996), short_percent(1)
    ('26 %', '6.3 %', 'almost 100 %', '100 %')
    """
    text = f"{100 * share:.1f}".removesuffix(".0")
    if (text == "100" and share < 1) or (text == "0" and share > 0):
        text = f"almost {text}"
    return f"{text} %"


def eps_text(eps: float, bounds: Sequence[float] = (0.0, 1.0)) -> str:
    """As people write it: in 255ths where that is a whole number and the decimal is long.

    >>> eps_text(8 / 255), eps_text(0.3), eps_text(8.0, (0, 255))
    ('8/255', '0.3', '8')
    """
    levels = 255 * eps
    short = f"{eps:.3g}"
    if list(bounds) == [0, 1] and float(short) != eps and 0 < levels < 256 and abs(levels - round(levels)) < 1e-6:
        return f"{round(levels)}/255"
    return short if float(short) == eps else f"{eps:.6g}"


def _threat(entry: dict[str, Any]) -> str:
    threat = entry["threat_model"]
    return f"{threat['norm']} {eps_text(threat['eps'], threat.get('bounds', (0, 1)))}"


def _under(network: dict[str, Any]) -> str:
    attacks = list(network["attacks"])
    if not attacks:
        return "as no attack was finished,"
    if network.get("unfinished"):
        return f"under {_counted(len(attacks), 'attack', 'attacks')} of an unfinished evaluation"
    if network.get("suite"):
        return f"under the {network['suite']} suite"
    return f"under {attacks[0]}" if len(attacks) == 1 else f"under {len(attacks)} attacks"


def _counted(n: int, one: str, more: str) -> str:
    return f"{n} {one if n == 1 else more}"


def _tested(counts: dict[str, int]) -> str:
    hold = _counted(counts[HOLDS], "test holds", "tests hold")
    return f"{hold}, {counts[VIOLATED]} violated, {counts[NOT_RUN]} not run"


def _weakest(network: dict[str, Any]) -> str:
    """The classes of lowest accuracy under attack; nothing where most are alike, or examples few."""
    classes = accuracy_by_class(network)
    if any(c.n < _ENOUGH for c in classes):
        return ""
    shares = {c.name: Fraction(c.standing, c.n) for c in classes}
    lowest = [name for name, share in shares.items() if share == min(shares.values())]
    if not 0 < len(lowest) <= min(_NAMED, len(shares) - 1):
        return ""
    return f"weakest class{'es' if len(lowest) > 1 else ''} {', '.join(lowest)}"


def _verdict(counts: dict[str, int], network: dict[str, Any]) -> tuple[str, str]:
    if counts[VIOLATED]:
        which = "A test is" if counts[VIOLATED] == 1 else f"{counts[VIOLATED]} tests are"
        return f"{which} violated: the network may be weaker than these numbers say.", VIOLATED
    if network.get("notes"):
        return "Something is to be doubted before these numbers count.", VIOLATED
    if not counts[HOLDS]:
        return "The attacks were not tested: how strong they are is not known.", NOT_RUN
    return "No test speaks against these numbers. They are upper bounds: a stronger attack can only lower them.", HOLDS
