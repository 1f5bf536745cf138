"""Help in groups: the options of a command under the headings that they name as their ``rich_help_panel``.

Plain text; typer itself shows groups only in boxes, which another library draws.
"""

from typing import Any

from typer.core import TyperCommand

__all__ = ["ADVERSARIAL", "ATTACK", "DATA", "DETECTOR", "FORTIFY", "GENERATIVE", "NETWORK", "OPTIMISATION", "RUN"]
__all__ += ["GroupedCommand", "examples"]

DATA, NETWORK, RUN = "Data", "Network", "Run"
ADVERSARIAL, FORTIFY, OPTIMISATION, GENERATIVE = "Adversarial training", "Fortify", "Optimisation", "Generative models"
ATTACK, DETECTOR = "Attack", "Detector"
_ORDER = ("Arguments", DATA, NETWORK, ADVERSARIAL, FORTIFY, OPTIMISATION, GENERATIVE, ATTACK, DETECTOR, RUN)


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
