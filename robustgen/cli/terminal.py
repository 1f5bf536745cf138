"""What the command prints. Names and messages may come from a file, so control characters in them are written out."""

import json
import sys
from typing import Any

from robustgen.printable import printable

__all__ = ["complain", "note", "print_found", "say"]

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
