"""What flows save, each case against the plain way of doing the same, both sides in one process, interleaved.

Seconds are those of the processor, on one thread, so that other programs count for little.

``maf-inverse``: the inverse of a masked autoregressive step of 64 numbers, width 512 and 100 rows, each weight used
once, against a pass through the whole network for each number.

``python benchmarks/flows.py [--case maf-inverse] [--out results/benchmarks]``
"""

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustgen.files import environment, write_json
from robustgen.generative.flows.maf import MaskedAutoregressive

Side = Callable[[], Any]
DIM, WIDTH, BATCH = 64, 512, 100


@torch.no_grad()
def in_full_passes(step: MaskedAutoregressive, y: Tensor) -> Tensor:
    """The x of y (N, D): of each number in turn, what a whole pass says of it."""
    x = torch.zeros_like(y)
    for i in range(y.shape[1]):
        m, a = step.made(x)[:, :, i].unbind(1)
        x[:, i] = m + y[:, i] * (5 * torch.tanh(a / 5)).exp()
    return x


def maf_inverse() -> Iterator[tuple[dict[str, Any], Side, Side]]:
    """Rows with one and two hidden layers."""
    for layers in (1, 2):
        step, y = MaskedAutoregressive(DIM, WIDTH, layers), torch.randn(BATCH, DIM)
        for p in step.parameters():
            torch.nn.init.normal_(p, std=0.05)

        def fast(step: MaskedAutoregressive = step, y: Tensor = y) -> Tensor:
            with torch.no_grad():
                return step.inverse(y)

        def slow(step: MaskedAutoregressive = step, y: Tensor = y) -> Tensor:
            return in_full_passes(step, y)

        torch.testing.assert_close(fast(), slow(), rtol=1e-4, atol=1e-4)
        yield {"hidden layers": layers, "numbers": DIM, "width": WIDTH, "rows": BATCH}, slow, fast


CASES: dict[str, Callable[[], Iterator[tuple[dict[str, Any], Side, Side]]]] = {"maf-inverse": maf_inverse}


def seconds(side: Side) -> float:
    """Of the processor, in one call."""
    started = time.process_time()
    side()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", choices=CASES, action="append", help="several times; all where it is left out")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for name in options.case or CASES:
        for row, slow, fast in CASES[name]():
            pairs = [(seconds(slow), seconds(fast)) for _ in range(options.rounds)]
            ratios = sorted(a / b for a, b in pairs)
            row = {"case": name, **row}
            row["seconds, plain"] = statistics.median(a for a, _ in pairs)
            row["seconds, ours"] = statistics.median(b for _, b in pairs)
            row["ratio, median"] = statistics.median(ratios)
            low, high = row["ratio, quartiles"] = [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]]
            rows.append(row)
            print(f"{row}: {row['ratio, median']:.1f} ({low:.1f} to {high:.1f}) times as fast", flush=True)
    if options.out is not None:
        command = shlex.join(["python", *sys.argv])
        write_json(options.out / "flows.json", {"command": command, "rows": rows, "environment": environment()})


if __name__ == "__main__":
    main()
