"""Input gradient of the MNIST convnet with StridedConv2d, against the same network with nn.Conv2d.

Both sides in one process, interleaved, on one thread: ``python benchmarks/strided_conv.py [--out results/benchmarks]``.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from robustgen.files import environment, write_json
from robustgen.networks import convnet
from robustgen.strided_conv import StridedConv2d


def input_gradient(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a step of an attack computes."""
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(net(leaf).logsumexp(1).sum(), leaf)
    return gradient


def plain(net: nn.Sequential) -> nn.Sequential:
    """The same network with nn.Conv2d throughout."""
    first = net[0]
    assert isinstance(first, StridedConv2d)
    conv = nn.Conv2d(first.in_channels, first.out_channels, first.kernel_size, first.stride, first.padding)
    conv.load_state_dict(first.state_dict())
    return nn.Sequential(conv, *list(net)[1:])


def seconds(net: nn.Module, x: torch.Tensor) -> float:
    """Wall time of one input gradient."""
    started = time.perf_counter()
    input_gradient(net, x)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for width in (16, 32, 64):
        for batch in (64, 500):
            ours = convnet(1, 10, 28, width=width)
            theirs, x = plain(ours), torch.rand(batch, 1, 28, 28)
            for net in (ours, theirs):
                for p in net.parameters():
                    p.requires_grad_(False)
            torch.testing.assert_close(input_gradient(ours, x), input_gradient(theirs, x))
            pairs = [(seconds(theirs, x), seconds(ours, x)) for _ in range(options.rounds)]
            ratios = sorted(a / b for a, b in pairs)
            row = {
                "width": width,
                "batch": batch,
                "microseconds per image, nn.Conv2d": 1e6 * statistics.median(a for a, _ in pairs) / batch,
                "microseconds per image, StridedConv2d": 1e6 * statistics.median(b for _, b in pairs) / batch,
                "ratio, median": statistics.median(ratios),
                "ratio, quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
            }
            rows.append(row)
            low, high = row["ratio, quartiles"]
            print(f"width {width}, batch {batch}: {row['ratio, median']:.2f} ({low:.2f} to {high:.2f}) times as fast")
    if options.out is not None:
        write_json(options.out / "strided_conv.json", {"rows": rows, "environment": environment()})


if __name__ == "__main__":
    main()
