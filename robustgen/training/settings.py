"""What a training is made of, checked before anything begins."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from robustgen.checks import check_integers, check_positive, plain_arguments
from robustgen.training.ema import check_decay
from robustgen.training.objective import Objective
from robustgen.training.overfitting import Guard

__all__ = ["Settings"]


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The default optimizer: Adam (Kingma and Ba, 2015) with its paper's learning rate."""
    return torch.optim.Adam(parameters, lr=1e-3)


class Settings:
    """The settings of a :class:`Trainer`, which says what each of them means."""

    @plain_arguments
    def __init__(
        self,
        objective: Objective,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = adam,
        schedule: Callable[[float], float] | None = None,
        epochs: int = 1,
        batch_size: int = 128,
        seed: int = 0,
        device: torch.device | str | None = None,
        precision: str = "float32",
        ema: float | None = None,
        clip_norm: float | None = None,
        guard: Guard | None = None,
        val_objective: Objective | None = None,
        best: str | None = None,
        run_dir: str | Path | None = None,
        resume: bool = False,
        checkpoint_every: int | None = None,
        after_epoch: Callable[[nn.Module, list[dict[str, float]]], None] | None = None,
        progress: bool = True,
    ) -> None:
        check_integers(epochs=epochs, batch_size=batch_size)
        check_integers(-(2**63), seed=seed)
        if checkpoint_every is not None:
            check_integers(checkpoint_every=checkpoint_every)
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', got {precision!r}")
        check_decay(ema)
        if clip_norm is not None:
            check_positive(clip_norm=clip_norm)
        if resume and run_dir is None:
            raise ValueError("resume=True needs the run_dir to resume from")
        self.objective, self.optimizer, self.schedule = objective, optimizer, schedule
        self.epochs, self.batch_size, self.seed = epochs, batch_size, seed
        self.device, self.precision = device, precision
        self.ema, self.clip_norm, self.guard = ema, clip_norm, guard
        self.val_objective, self.best = val_objective, best
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.resume, self.checkpoint_every = resume, checkpoint_every
        self.after_epoch, self.progress = after_epoch, progress
