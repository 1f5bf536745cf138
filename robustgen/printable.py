"""Text from a file or a file's name, made fit for a terminal and for a spreadsheet."""

import unicodedata

__all__ = ["as_cell", "printable"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet takes what begins so for a formula


def printable(text: str) -> str:
    """``text`` with control characters written out, so that no file name moves a cursor or hides what was printed.

    Line feeds and tabs stay. Escape sequences, carriage returns, marks that turn the direction of writing, and bytes of
    a name that are no text are seen as what they are.

    >>> print(printable("cat\\x1b[2J.png"))
    cat\\x1b[2J.png
    """
    return "".join(c if c in "\n\t" or not _hidden(c) else _escaped(c) for c in text)


def _hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def as_cell(text: str) -> str:
    """``text`` as a spreadsheet shows it: what it would take for a formula gets an apostrophe before it.

    The treatment that OWASP describes under "CSV injection".

    >>> as_cell("=1+1.png"), as_cell("a.png")
    ("'=1+1.png", 'a.png')
    """
    text = printable(f"'{text}" if text.startswith(_FORMULA) else text)
    return text.replace("\n", "\\x0a").replace("\t", "\\x09")
