"""``robustgen reproduce``: measure tables and figures of the sources, take in cells, draw the pages of results."""

from collections.abc import Callable
from pathlib import Path

import torch

from robustgen.commands.opening import usable_device
from robustgen.experiments.catalogue import find
from robustgen.experiments.cells import merge
from robustgen.experiments.experiment import check_scale
from robustgen.experiments.pages import draw_experiment, draw_pages
from robustgen.experiments.runner import check_cell, run_experiment
from robustgen.experiments.training_cache import TrainingCache
from robustgen.files import write_bytes

__all__ = ["check", "draw", "measure", "take_in"]


def measure(
    name: str,
    *,
    scale: str,
    out: Path,
    work: Path,
    data_root: Path | None = None,
    seeds: int | None = None,
    cell: str | None = None,
    part: str = "1/1",
    device: str | None = None,
    progress: bool = True,
    command: str | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Measure what is missing of an experiment; returns its tables."""
    experiment = find(name)
    if seeds is not None and seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {seeds}")
    run_experiment(
        experiment,
        scale,
        _cache(work, data_root, device, progress, say),
        out,
        seeds=seeds,
        only=None if cell is None else experiment.cell(cell),
        part=_part(part),
        command=command,
        say=say,
    )
    return draw_experiment(experiment, out, (scale,))


def check(
    name: str,
    cell: str,
    *,
    scale: str,
    out: Path,
    work: Path,
    data_root: Path | None = None,
    device: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Measure a kept cell again in a fresh ``work`` directory; returns what comes out otherwise."""
    check_scale(scale)
    experiment = find(name)
    cache = _cache(work, data_root, device, progress, say)
    return check_cell(experiment, experiment.cell(cell), scale, cache, out)


def take_in(name: str, *, scale: str, out: Path, other: Path) -> str:
    """Keep the cells of another folder of results that are not kept in ``out``; returns what was taken, in words."""
    check_scale(scale)
    taken, held, stale = merge(out, find(name), scale, other)
    left = f"; {stale} left, whose settings are no longer the experiment's" if stale else ""
    return f"{name} {scale}: {taken} cells taken from {other}, {held} kept already{left}"


def draw(out: Path, page: Path) -> list[Path]:
    """Write the page of all results to ``page``, and beside it what it links to; returns the files."""
    written: list[Path] = []
    for name, text in draw_pages(out).items():
        path = page if not written else page.parent / name
        write_bytes(path, text.encode())
        written.append(path)
    return written


def _cache(
    work: Path, data_root: Path | None, device: str | None, progress: bool, say: Callable[[str], None]
) -> TrainingCache:
    where = torch.device("cpu") if device is None else usable_device(device)
    return TrainingCache(work, data_root, where, progress, say)


def _part(text: str) -> tuple[int, int]:
    i, _, k = text.partition("/")
    if not (i.isdigit() and k.isdigit() and 1 <= int(i) <= int(k)):
        raise ValueError(f"--part is i/k with 1 <= i <= k, such as 1/2; got {text!r}")
    return int(i), int(k)
