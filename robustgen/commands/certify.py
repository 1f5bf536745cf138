"""``robustgen certify``: how robust a network provably is behind noise, and a denoiser before it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from robustgen.checks import check_positive
from robustgen.commands.data_spec import DataSpec
from robustgen.commands.opening import move, open_network
from robustgen.commands.runs import by_class_name, check_classes, data_for
from robustgen.data import require_nonempty
from robustgen.evaluation import CertificationReport, certify_robustness
from robustgen.evaluation.certification_page import write_certification
from robustgen.fortified import smooth
from robustgen.generative import load
from robustgen.progress import showing

__all__ = ["certify_network"]


def certify_network(
    *,
    run: Path | None,
    model: str | None,
    weights: Path | None,
    data: DataSpec,
    sigmas: Sequence[float],
    radii: Sequence[float],
    denoiser: Path | None = None,
    noise: str = "gaussian",
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    n_attacked: int = 0,
    attack: str = "pgd",
    stop_early: bool = False,
    levels: int = 255,
    precision: str = "float32",
    part: str = "test",
    trust: bool = False,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    batch_size: int = 500,
    seed: int = 0,
    device: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    command: str | None = None,
    skip: Callable[[ValueError], None] | None = None,
) -> tuple[list[CertificationReport], Path | None]:
    """Certify a trained network, once for each sigma; the reports, and with ``out`` the page that shows them.

    Args:
        denoiser: directory of a trained model with ``denoise``, :class:`~robustgen.generative.Denoiser` for one.
        radii: none: quarters, halves and wholes of each sigma, up to twice it.
        out: finished certificates are kept in it; ``resume`` goes on with them.
        skip: called with the error of each image file that cannot be read, which is left out; None raises it.

    Raises:
        ValueError: no sigma, or whatever :func:`~robustgen.evaluation.certify_robustness` refuses.
    """
    if not sigmas:
        raise ValueError("say how much noise: --sigma 0.5, once or several times")
    if len({f"{sigma:g}" for sigma in sigmas}) < len(sigmas):
        raise ValueError("one --sigma stands twice, or as good as twice")
    check_positive(**{f"--sigma {sigma:g}": sigma for sigma in sigmas})
    if resume and out is None:
        raise ValueError("--resume goes on with the certificates in --out: pass it")
    network, info = open_network(run, model, weights, trust, mean, std)
    before = None
    if denoiser is not None:
        before = load(denoiser)
        if not hasattr(before, "denoise"):
            kind = type(before).__name__
            raise ValueError(f"{denoiser} holds a {kind}, which takes no noise away: robustgen train denoiser, or ddpm")
    shape = tuple(info["network"]["shape"]) if info else None
    dataset = data_for(data, info).read(part, shape, skip)
    if info:
        dataset = require_nonempty(by_class_name(dataset, info)[0])
    else:
        check_classes(network, dataset)
    for module in (network, before):
        if module is not None:
            move(module, device)
    where = next(network.parameters(), torch.zeros(())).device
    x, y, ids = dataset.images().to(where), dataset.labels().to(where), dataset.ids.to(where)
    named = f"{model if run is None else run} on {dataset.name}"
    options: dict[str, Any] = {"precision": precision, "batch_size": batch_size, "levels": levels}
    reports = []
    with showing(progress):
        for sigma in sigmas:
            smoothed = smooth(network, sigma, before, noise, seed, **options)
            reports.append(
                certify_robustness(
                    smoothed,
                    x,
                    y,
                    radii=tuple(radii) or tuple(sigma * k for k in (0.5, 1.0, 1.5, 2.0)),
                    n0=n0,
                    n=n,
                    alpha=alpha,
                    n_attacked=n_attacked,
                    attack=attack,
                    stop_early=stop_early,
                    ids=ids,
                    run_dir=None if out is None else out / f"sigma-{sigma:g}",
                    resume=resume and out is not None and (out / f"sigma-{sigma:g}").exists(),
                    name=f"{named}, sigma {smoothed.sigma:g}" + ("" if denoiser is None else f", behind {denoiser}"),
                    progress=progress,
                )
            )
    if out is None:
        return reports, None
    return reports, write_certification([r.to_dict() for r in reports], out, command)
