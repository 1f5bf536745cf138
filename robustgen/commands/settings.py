"""What ``--set name=value`` says, of a call and of the run that it resumes."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["parse_options", "resumed_settings"]

_PYTHON = {"True": True, "False": False, "None": None}  # as in the library; JSON writes them otherwise


def parse_options(settings: Iterable[str]) -> dict[str, Any]:
    """``name=value`` pairs as keyword arguments; values are JSON where they can be, else text.

    >>> parse_options(["latent=16", "likelihood=bernoulli"])
    {'latent': 16, 'likelihood': 'bernoulli'}
    >>> parse_options(["bn_in_discriminator=False"])
    {'bn_in_discriminator': False}
    """
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ValueError(f"--set {setting}: write name=value")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = _PYTHON.get(value, value)
    return found


def resumed_settings(run: Path, begun: Iterable[str], asked: Iterable[str]) -> list[str]:
    """The pairs that ``run`` was begun with, and those that are ``asked`` for now and were left to their defaults.

    Raises:
        ValueError: a pair that was another one.

    >>> resumed_settings(Path("run"), ["width=4", "layers=2"], ["width=4", "steps=8"])
    ['width=4', 'layers=2', 'steps=8']
    """
    found = {setting.partition("=")[0]: setting for setting in begun}
    before = parse_options(found.values())
    for setting in asked:
        ((name, value),) = parse_options([setting]).items()
        if name in before and before[name] != value:
            raise ValueError(
                f"{run} was begun with --set {found[name]}, not {setting}: leave --set out, or take another --run"
            )
        found.setdefault(name, setting)
    return list(found.values())
