"""Importance-weighted log-likelihood of a convolutional VAE, encoding once, against encoding again for each sample.

Both sides in one process, interleaved, on one thread:
``python benchmarks/importance_weighting.py [--out results/benchmarks/generative]``.
"""

import argparse
import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from robustgen.files import environment, write_json
from robustgen.generative import VAE


def encoding_again(vae: VAE, x: Tensor, samples: int) -> Tensor:
    """The same estimate as K single-sample ones, each a whole forward."""
    terms = []
    for k in range(samples):
        noise = vae.posterior_noise(x, first=k)
        reconstruction, divergence = vae._importance_terms(x, vae.encode(x), noise)
        terms.append(reconstruction - divergence)
    return torch.cat(terms).logsumexp(0) - math.log(samples)


def timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Wall time in seconds, and what it returns."""
    started = time.perf_counter()
    found = run()
    return time.perf_counter() - started, found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--samples", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vae = VAE((1, 28, 28)).eval()
    rows = []
    for batch in (16, 100, 16):  # again: the allocator keeps more memory once a larger batch has been
        x = torch.bernoulli(torch.full((batch, 1, 28, 28), 0.2))
        pairs = []
        for _ in range(options.rounds):
            theirs, slow = timed(lambda x=x: encoding_again(vae, x, options.samples))
            ours, fast = timed(lambda x=x: vae.importance_weighted_log_prob(x, options.samples))
            torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-3)
            pairs.append((theirs, ours))
        ratios = sorted(a / b for a, b in pairs)
        row = {
            "batch": batch,
            "samples": options.samples,
            "milliseconds per image, encoding again": 1e3 * statistics.median(a for a, _ in pairs) / batch,
            "milliseconds per image, encoding once": 1e3 * statistics.median(b for _, b in pairs) / batch,
            "ratio, median": statistics.median(ratios),
            "ratio, quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        }
        rows.append(row)
        low, high = row["ratio, quartiles"]
        print(f"batch {batch}: {row['ratio, median']:.2f} ({low:.2f} to {high:.2f}) times as fast")
    if options.out is not None:
        command = shlex.join(["python", *sys.argv])
        found = {"command": command, "rows": rows, "environment": environment()}
        write_json(options.out / "importance_weighting.json", found)


if __name__ == "__main__":
    main()
