"""Two ways of doing the same, timed in one process, interleaved: what the scripts with several cases share.

Seconds are those of the processor, on one thread, so that other programs count for little.
"""

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from robustgen.files import environment, write_json

__all__ = ["Rows", "Side", "compare"]

Side: TypeAlias = Callable[[], Any]
Rows: TypeAlias = Iterator[tuple[dict[str, Any], Side, Side]]  # what it is of; the plain way; ours


def seconds(side: Side) -> float:
    """Of the processor, in one call."""
    started = time.process_time()
    side()
    return time.process_time() - started


def compare(cases: Mapping[str, tuple[Callable[[bool], Rows], int]], name: str, about: str | None) -> None:
    """Time the cases that the command line asks for, print their ratios and write ``name``.json where it says.

    Args:
        cases: each a function of whether sizes are to be tiny, and how many rounds it is timed in.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", choices=cases, action="append", help="several times; all where it is left out")
    parser.add_argument("--rounds", type=int, help="of every case; default: its own")
    parser.add_argument("--tiny", action="store_true", help="small sizes, whose ratios say nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for case in options.case or cases:
        make, rounds = cases[case]
        for row, slow, fast in make(options.tiny):
            slow(), fast()  # what is made once only is not counted
            pairs = [(seconds(slow), seconds(fast)) for _ in range(options.rounds or rounds)]
            ratios = sorted(a / b for a, b in pairs)
            row = {"case": case, **row}
            row["seconds, plain"] = statistics.median(a for a, _ in pairs)
            row["seconds, ours"] = statistics.median(b for _, b in pairs)
            row["ratio, median"] = statistics.median(ratios)
            low, high = row["ratio, quartiles"] = [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]]
            rows.append(row)
            print(f"{row}: {row['ratio, median']:.2f} ({low:.2f} to {high:.2f}) times as fast", flush=True)
    if options.out is not None:
        command = shlex.join(["python", *sys.argv])
        write_json(options.out / f"{name}.json", {"command": command, "rows": rows, "environment": environment()})
