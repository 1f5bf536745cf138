"""What certifying costs beside its forwards alone, what the early stop saves, and that memory does not grow with n.

Both sides in one process, interleaved, on one thread: ``python benchmarks/certification.py [--out
results/benchmarks]``. One side certifies images of MNIST's size; the other asks the same network, behind the same
denoiser where there is one, as many batches of the same size with noise of ``torch.randn``, and does nothing with the
answers. The target is at most 1.05 times its time. Memory: the peak of a process of its own that certifies one image
with n draws.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustgen import smooth
from robustgen.files import environment, write_json
from robustgen.fortified import SmoothedClassifier
from robustgen.generative import Denoiser
from robustgen.networks import strided

TARGET = 1.05
SIGMA, N0, N, BATCH = 0.5, 100, 2000, 500
LONG = (1_000, 100_000)  # draws for the memory


def classifier(behind: bool) -> SmoothedClassifier:
    """The networks of the tables; how good they are does not change their speed."""
    torch.manual_seed(0)
    denoiser = Denoiser((1, 28, 28), sigma_min=SIGMA, sigma_max=SIGMA, width=11, patch=2).eval() if behind else None
    return smooth(strided(1, 10, (28, 28), width=16).eval(), SIGMA, denoiser, batch_size=BATCH)


@torch.no_grad()
def forwards(smoothed: SmoothedClassifier, x: Tensor) -> float:
    """Seconds of the forwards alone."""
    started = time.perf_counter()
    for one in x:
        for size in [N0] + [BATCH] * (N // BATCH):
            noisy = one + SIGMA * torch.randn(size, *one.shape)
            denoised = noisy if smoothed.denoiser is None else smoothed.denoiser.denoise(noisy, SIGMA)
            smoothed.model(denoised)
    return time.perf_counter() - started


def certified(smoothed: SmoothedClassifier, x: Tensor) -> float:
    """Seconds of the certificates."""
    started = time.perf_counter()
    smoothed.certify(x, n0=N0, n=N)
    return time.perf_counter() - started


def saved(smoothed: SmoothedClassifier, x: Tensor, radius: float) -> float:
    """The share of forwards that the early stop saves."""
    draws = smoothed.certify(x, n0=N0, n=N, radius=radius).draws
    return 1 - draws.double().mean().item() / (N0 + N)


def peak(n: int) -> float:
    """MiB at most in memory, of a process that certifies one image with n draws."""
    code = f"import runpy; runpy.run_path({__file__!r})['one'](" + f"{n})"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def one(n: int) -> None:
    """Certify one image and print the peak of memory, MiB."""
    torch.set_num_threads(1)
    classifier(behind=False).certify(torch.rand(1, 1, 28, 28), n0=N0, n=n)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.rand(options.images, 1, 28, 28)
    rows: list[dict[str, Any]] = []
    for behind in (False, True):
        smoothed = classifier(behind)
        certified(smoothed, x[:1]), forwards(smoothed, x[:1])
        pairs = [(certified(smoothed, x), forwards(smoothed, x)) for _ in range(options.rounds)]
        ratios = sorted(a / b for a, b in pairs)
        row = {
            "network": "behind a denoiser" if behind else "plain",
            "ratio, median": statistics.median(ratios),
            "ratio, quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
            "forwards an image": N0 + N,
            "share of forwards saved, radius 1": saved(smoothed, x, 1.0),
        }
        rows.append(row)
        low, high = row["ratio, quartiles"]
        print(f"{row['network']}: {row['ratio, median']:.3f} ({low:.3f} to {high:.3f}) of the forwards' time")
    memory = {f"{n:,} draws": peak(n) for n in LONG}
    print("MiB at the peak:", memory)
    if options.out is not None:
        written = {"rows": rows, "MiB at the peak": memory, "target": TARGET, "environment": environment()}
        write_json(options.out / "certification.json", written)


if __name__ == "__main__":
    main()
