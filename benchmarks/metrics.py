"""AUROC, average precision and FPR95 of ten million scores, against one argsort of them.

Both sides in one process, interleaved, on one thread: ``python benchmarks/metrics.py [--out results/benchmarks]``. The
target is at most three times the argsort. The three metrics are asked for as a user does who wants all: together.
"""

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from robustgen.evaluation import detection_metrics
from robustgen.files import environment, write_json

TARGET = 3.0
KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "distinct": lambda scores: scores,
    "tied, 1000 values": lambda scores: np.round(scores * 100) / 100,
}


def seconds(work: Callable[..., object], *scores: np.ndarray) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work(*scores)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scores", type=int, default=10_000_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    rows = []
    for kind, make in KINDS.items():
        for prevalence in (0.1, 0.5):
            n_ood = round(options.scores * prevalence)
            ordinary, anomalous = make(rng.normal(size=options.scores - n_ood)), make(rng.normal(size=n_ood) + 1)
            both = np.concatenate([ordinary, anomalous])
            pairs = [
                (seconds(np.argsort, both), seconds(detection_metrics, ordinary, anomalous))
                for _ in range(options.rounds)
            ]
            ratios = sorted(ours / argsort for argsort, ours in pairs)
            row = {
                "scores": options.scores,
                "kind": kind,
                "prevalence": prevalence,
                "seconds, argsort": statistics.median(a for a, _ in pairs),
                "seconds, all metrics": statistics.median(b for _, b in pairs),
                "ratio, median": statistics.median(ratios),
                "ratio, lowest and highest": [ratios[0], ratios[-1]],
                "target": TARGET,
            }
            rows.append(row)
            print(f"{kind}, prevalence {prevalence}: {row['ratio, median']:.2f} times one argsort (target {TARGET})")
    if options.out is not None:
        command = shlex.join(["python", *sys.argv])
        found = {"command": command, "rows": rows, "environment": environment()}
        write_json(options.out / "metrics.json", found)


if __name__ == "__main__":
    main()
