"""Docstrings as Markdown, for the API pages: doctests become code blocks, reStructuredText's roles plain code."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?(?:[\w.]*\.)?(\w+)`")
_COMPARISON = re.compile(r"^(\s*(?:[\w, ]+: )?)>(?!>> )", re.MULTILINE)  # "n: > 0" is no quotation
_TITLE = re.compile(r"(?:Args|Arguments|Attributes|Examples?|Raises|Returns|Warns|Yields):$")


def markdown(docstring: str) -> str:
    """The docstring, with each doctest in a fence of its own and roles as code.

    >>> print(markdown("See :func:`~robustgen.fortify`.\\n\\n>>> 1 + 1\\n2"))
    See `fortify`.
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    2
    ```
    """
    lines: list[str] = []
    fenced = False
    for line in _COMPARISON.sub(r"\1\>", _ROLE.sub(r"`\1`", docstring)).splitlines():
        bare = line.strip()
        if not fenced and bare.startswith(">>> "):
            if lines and lines[-1].strip():
                lines.append("")
            lines.append(line[: len(line) - len(bare)] + "```pycon")
            fenced = True
        elif fenced and (not bare or _TITLE.match(bare)):
            lines.append("```")
            fenced = False
        lines.append(line)
    return "\n".join([*lines, "```"] if fenced else lines)


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
