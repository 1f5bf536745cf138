"""What the command prints: lines, in which control characters are written out as they may come from a file, and help.

Help is in groups, the options of a command under the headings that they name as their ``rich_help_panel``. Plain text;
typer itself shows groups only in boxes, which another library draws.
"""

import json
import sys
from typing import Any

from typer.core import TyperCommand

from robustgen.printable import printable

__all__ = [
    "ADVERSARIAL",
    "ATTACK",
    "DATA",
    "DETECTOR",
    "FORTIFY",
    "GENERATIVE",
    "NETWORK",
    "OPTIMISATION",
    "PURIFIER",
    "RUN",
    "GroupedCommand",
    "complain",
    "examples",
    "note",
    "print_found",
    "say",
]

_SCREEN = 4000  # characters; a name in a file may have any number of them


def say(text: object) -> None:
    """Print to stdout."""
    print(printable(str(text)))


def note(text: str) -> None:
    """Print a line to stderr, between progress bars."""
    from tqdm import tqdm

    tqdm.write(printable(text), file=sys.stderr)


def complain(kind: str, message: object) -> None:
    """Print "robustgen: kind: message" to stderr, as one line of no more than a screen."""
    line = printable(" ".join(str(message).split()))
    print(f"robustgen: {kind}: {line if len(line) <= _SCREEN else line[:_SCREEN] + '...'}", file=sys.stderr)


def print_found(found: dict[str, Any], as_json: bool) -> None:
    """Print what a command found, a line an entry or one JSON object."""
    if as_json:
        say(json.dumps(found))
        return
    for name, value in found.items():
        say(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")


DATA, NETWORK, RUN = "Data", "Network", "Run"
ADVERSARIAL, FORTIFY, OPTIMISATION, GENERATIVE = "Adversarial training", "Fortify", "Optimisation", "Generative models"
ATTACK, DETECTOR, PURIFIER = "Attack", "Detector", "Purifier"
_ORDER = ("Arguments", DATA, NETWORK, ADVERSARIAL, FORTIFY, OPTIMISATION, GENERATIVE, ATTACK, DETECTOR, PURIFIER, RUN)


class GroupedCommand(TyperCommand):
    """A command whose help is grouped; options of no group are under "Run"."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in _ORDER}
        for parameter in self.get_params(ctx):
            if (line := parameter.get_help_record(ctx)) is None:
                continue
            other = "Arguments" if parameter.param_type_name == "argument" else RUN
            said = line[1] or getattr(parameter, "help", None) or ""  # of arguments, older typers leave it out
            groups[getattr(parameter, "rich_help_panel", None) or other].append((line[0], said))
        for name, lines in groups.items():
            if not lines:
                continue
            with formatter.section(name):
                formatter.write_dl(lines)


def examples(*lines: str) -> str:
    """The end of a command's help; ``lines`` stay as they are."""
    return "\n".join(["\b", "Examples:", *(f"  robustgen {line}" for line in lines)])
