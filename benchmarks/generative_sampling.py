"""Sampling of autoregressive models that computes each feature once, against the naive loop: a full forward a pixel.

16 images of 28x28, 64 features, 7 layers (PixelCNN++: 8 blocks a stream over 3 resolutions). Both sides in one process,
interleaved, of the same noise: ``python benchmarks/generative_sampling.py [--out results/benchmarks/generative]``. A
forward costs the naive loop the same at each pixel, so a round measures the first ``--pixels`` of them and scales; 784
measures whole images.
"""

import argparse
import shlex
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from robustgen.files import environment, write_json
from robustgen.generative import GatedPixelCNN, PixelCNN, PixelCNNPlusPlus
from robustgen.generative.autoregressive.base import AutoregressiveModel

SHAPE, IMAGES = (1, 28, 28), 16


def naive(model: AutoregressiveModel, uniforms: Tensor, pixels: int) -> Tensor:
    """The first ``pixels`` of every image, each from a forward of the whole network; the rest is zero."""
    x = torch.zeros_like(uniforms)
    for i in range(pixels):
        r, c = divmod(i, x.shape[3])
        parameters = model._pixels(x, model._rows(x, None))[:, :, r : r + 1, c : c + 1]
        x[:, :, r, c] = model.distribution.sample(parameters, uniforms[:, :, r : r + 1, c : c + 1])[:, :, 0, 0]
    return x


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pixels", type=int, default=28)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    models = {
        "PixelCNN": PixelCNN(SHAPE, levels=2, width=64, layers=7),
        "GatedPixelCNN": GatedPixelCNN(SHAPE, levels=2, width=64, layers=7),
        "PixelCNNPlusPlus": PixelCNNPlusPlus(SHAPE, levels=2, width=64, blocks=1, resolutions=3),
    }
    rows = []
    for name, model in models.items():
        model.eval()
        pairs, agree = [], []
        for _ in range(options.rounds):
            uniforms = torch.rand(IMAGES, *SHAPE)
            started = time.perf_counter()
            slow = naive(model, uniforms, options.pixels)
            between = time.perf_counter()
            fast = model.sample(IMAGES, uniforms=uniforms)
            ended = time.perf_counter()
            pairs.append(((between - started) * 784 / options.pixels, ended - between))
            same = (slow == fast).flatten(1)[:, : options.pixels]
            agree.append(float(same.float().mean()))
        ratios = sorted(a / b for a, b in pairs)
        row = {
            "model": name,
            "seconds, naive": statistics.median(a for a, _ in pairs),
            "pixels measured of naive": options.pixels,
            "seconds, cached": statistics.median(b for _, b in pairs),
            "ratio, median": statistics.median(ratios),
            "ratio, quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
            "share of pixels that agree, lowest": min(agree),
            "threads": options.threads,
        }
        rows.append(row)
        low, high = row["ratio, quartiles"]
        print(f"{name}: {row['ratio, median']:.0f} ({low:.0f} to {high:.0f}) times as fast, agreement {min(agree):.6f}")
    if options.out is not None:
        command = shlex.join(["python", *sys.argv])
        found = {"command": command, "rows": rows, "environment": environment()}
        write_json(options.out / "sampling.json", found)


if __name__ == "__main__":
    main()
