"""Langevin steps of an energy on images beside the same steps by others.

All in one process, interleaved, on one thread: ``python benchmarks/energies.py [--out results/benchmarks]``. The other
sides walk on the same network in torch's default layout: a loop as in public code of JEM (Grathwohl et al., 2020), with
parameters that train and a retained graph; and torchebm's sampler, where it is installed. Targets: at most half of the
loop's time, at most two thirds of torchebm's.
"""

import argparse
import copy
import importlib.metadata
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.files import environment, write_json
from robustgen.generative.energy.langevin import langevin
from robustgen.generative.energy.network import EnergyNetwork

SHAPE, BATCH, WIDTH, STEPS, STEP_SIZE = (1, 28, 28), 64, 32, 10, 1e-4


def half(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The energy in bfloat16, as a training with ``precision="bfloat16"`` walks."""

    def energy(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            found: Tensor = network(x)
        return found

    return energy


def loop(network: nn.Module, x: Tensor, steps: int) -> Tensor:
    """Steps as the field writes them."""
    x = x.clone().requires_grad_()
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(network(x).sum(), [x], retain_graph=True)
        x.data += -STEP_SIZE * gradient + (2 * STEP_SIZE) ** 0.5 * torch.randn_like(x)
    return x.detach()


def torchebm_sampler(network: nn.Module) -> Callable[[Tensor, int], Tensor] | None:
    """Its Langevin dynamics, or None where it is not installed."""
    try:
        from torchebm.core import BaseModel
        from torchebm.samplers import LangevinDynamics
    except ImportError:
        return None

    class Model(BaseModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.network(x)
            return found

    sampler = LangevinDynamics(Model(), step_size=STEP_SIZE)

    def walk(x: Tensor, steps: int) -> Tensor:
        found: Tensor = sampler.sample(x=x, n_steps=steps)
        return found

    return walk


def measure(repeats: int) -> dict[str, Any]:
    """Seconds of a step on every side, and ratios to ours."""
    torch.manual_seed(0)
    network = EnergyNetwork(SHAPE, width=WIDTH)
    plain = nn.Sequential(*copy.deepcopy(network)).to(memory_format=torch.contiguous_format)
    as_made = nn.Sequential(plain, nn.Flatten(0))  # (N,), of [-1, 1] or [0, 1] alike for a clock
    x = torch.rand(BATCH, *SHAPE)
    sides: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: langevin(network, x, STEPS, STEP_SIZE),
        "ours, bfloat16": lambda: langevin(half(network), x, STEPS, STEP_SIZE),
        "ours, Metropolis": lambda: langevin(network, x, STEPS, STEP_SIZE, adjusted=True),
        "loop": lambda: loop(as_made, x, STEPS),
    }
    if (walk := torchebm_sampler(as_made)) is not None:
        sides["torchebm"] = lambda: walk(x, STEPS)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, walk_once in sides.items():
            started = time.perf_counter()
            walk_once()
            seconds[name].append((time.perf_counter() - started) / STEPS)
    found: dict[str, Any] = {"milliseconds of a step": {k: 1000 * statistics.median(v) for k, v in seconds.items()}}
    for ours in ("ours", "ours, bfloat16"):
        for other in seconds.keys() - {"ours", "ours, bfloat16", "ours, Metropolis"}:
            ratios = sorted(b / a for a, b in zip(seconds[ours], seconds[other], strict=True))
            found[f"{other} / {ours}"] = {"median": statistics.median(ratios), "spread": [ratios[0], ratios[-1]]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(args.repeats)
    for name, value in found.items():
        print(name, value)
    if args.out is not None:
        settings = {"shape": SHAPE, "batch": BATCH, "width": WIDTH, "steps": STEPS, "repeats": args.repeats}
        peers = {"torchebm": importlib.metadata.version("torchebm")} if "torchebm / ours" in found else {}
        write_json(
            args.out / "energies.json",
            found | {"settings": settings, "peers": peers, "environment": environment(), "command": "energies.py"},
        )


if __name__ == "__main__":
    main()
