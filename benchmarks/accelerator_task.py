"""What a part of benchmarks/accelerator.py is given, and how it says what it found."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from robustgen.files import write_json

__all__ = ["Skipped", "Task"]


class Skipped(Exception):
    """There is nothing to measure with; says what is missing."""


@dataclass
class Task:
    """A device, folders, and time until ``until`` (of ``time.time``); ``notes`` is the file of what was found."""

    device: torch.device
    smoke: bool
    data_root: Path | None
    work: Path
    until: float
    notes: Path
    found: dict[str, Any] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds, at least 1."""
        return max(1.0, self.until - time.time())

    def note(self, line: str, **found: Any) -> None:
        """Keep what is known by now; ``line`` says it in a few words."""
        self.found |= {"line": line} | found
        write_json(self.notes, self.found)
