"""``robustgen attack --purify``: what a network is worth behind a purifier."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustgen.checks import check_integers, check_positive
from robustgen.commands.attack import remember_options
from robustgen.commands.data_spec import DataSpec
from robustgen.commands.generative import trained_model
from robustgen.commands.opening import load_run, open_network, usable_device
from robustgen.commands.run_info import stopped_early, threat
from robustgen.commands.runs import by_class_name, check_classes, data_for, is_first
from robustgen.data import require_nonempty
from robustgen.evaluation import RandomDefenceReport, random_defence
from robustgen.fortified import purify
from robustgen.progress import showing
from robustgen.training.distributed import join

__all__ = ["attack_purified"]


def attack_purified(
    *,
    run: Path | None,
    model: str | None,
    weights: Path | None,
    data: DataSpec,
    purifier: Path,
    depth: float | None = None,
    chain_steps: int | None = None,
    eps: float | None = None,
    norm: str | None = None,
    eot: int = 20,
    draws: int = 50,
    resubmit: int = 10,
    part: str = "test",
    surrogate: Path | None = None,
    trust: bool = False,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    batch_size: int = 250,
    seed: int = 0,
    device: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    command: str | None = None,
    options: dict[str, Any] | None = None,
    skip: Callable[[ValueError], None] | None = None,
    tell: Callable[[str], None] = print,
) -> tuple[RandomDefenceReport, Path | None]:
    """Attack a trained network behind the generative model of a run; the report, and with ``out`` where its page is.

    Args:
        purifier: run of a generative model, whose kind says how it purifies: see :func:`robustgen.purify`.
        depth, chain_steps: of its chain.
        eot, draws, resubmit: see ``eot``, ``draws`` and ``k`` of :func:`robustgen.evaluation.random_defence`.

    The others are those of :func:`~robustgen.commands.attack.attack_network`.

    Raises:
        ValueError: as these do, or a model of images of another shape than the network's.
    """
    if resume and out is None:
        raise ValueError("--resume goes on with the evaluation in --out: pass it")
    check_integers(**{"--eot": eot, "--draws": draws, "--resubmit": resubmit})
    if chain_steps is not None:
        check_integers(**{"--chain-steps": chain_steps})
    if draws < resubmit:
        raise ValueError(f"--draws {draws} cannot say what --resubmit {resubmit} draws do: take as many at least")
    if device is not None:
        usable_device(device)
    network, info = open_network(run, model, weights, trust, mean, std)
    eps, norm, of_training = threat(info, eps, norm)
    generative = trained_model(purifier)
    shape = tuple(info["network"]["shape"]) if info else generative.shape
    if shape != generative.shape:
        raise ValueError(f"--purify {purifier}: is of images {generative.shape}, the network takes {shape}")
    if depth is not None:
        check_positive(**{"--depth": depth})
        depth = int(depth) if depth == int(depth) else depth
    try:
        defence = purify(network, generative, depth, chain_steps)
    except (TypeError, ValueError) as error:
        if depth is None:
            raise ValueError(f"--purify {purifier}: how deep does it go? pass --depth ({error})") from None
        raise
    dataset = data_for(data, info).read(part, shape, skip, spaced=True)
    if info:
        dataset = require_nonempty(by_class_name(dataset, info)[0])
    else:
        check_classes(network, dataset)
    substitute = None if surrogate is None else load_run(surrogate, trust=trust)[0]
    world, where = join(device, network)
    for module in (defence, substitute):
        if module is not None:
            module.to(where)
    with showing(progress), world.alone(out, where):
        if out is not None and options is not None and world.rank == 0:
            command = remember_options(out, options | {"eps": eps, "norm": norm}, command)
        if of_training and is_first():
            tell(of_training)
        report = random_defence(
            defence,
            dataset.images().to(where),
            dataset.labels().to(where),
            eps=eps,
            norm=norm,
            k=resubmit,
            draws=draws,
            eot=eot,
            surrogate=substitute,
            ids=dataset.ids.to(where),
            run_dir=out,
            resume=resume,
            seed=seed,
            batch_size=batch_size,
            name=f"{model if run is None else run} on {dataset.name}, behind {purifier}",
            progress=progress,
        )
        stopped = [line for used in (run, surrogate, purifier) if used is not None and (line := stopped_early(used))]
        report.notes += stopped
        return report, None if out is None or world.rank else report.save(out, command=command)
