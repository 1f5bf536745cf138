"""``robustgen attack``: how robust a trained network is on a data set."""

from pathlib import Path

from robustgen.commands.runs import DataSpec, by_class_name, data_for, load_run, open_network
from robustgen.data import require_nonempty
from robustgen.evaluation import RobustnessReport, evaluate_robustness
from robustgen.training.distributed import join

__all__ = ["attack_network"]


def attack_network(
    *,
    run: Path | None,
    model: str | None,
    weights: Path | None,
    data: DataSpec,
    eps: float,
    norm: str = "Linf",
    suite: str = "quick",
    part: str = "test",
    surrogate: Path | None = None,
    masking_tests: bool = True,
    batch_size: int = 250,
    seed: int = 0,
    device: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    command: str | None = None,
) -> tuple[RobustnessReport, Path | None]:
    """Attack a trained network on a data set; returns the report and, with ``out``, where its page is.

    Under ``torchrun`` the processes share the work; all return the same report, the first writes it.
    """
    if resume and out is None:
        raise ValueError("--resume goes on with the evaluation in --out: pass it")
    network, info = open_network(run, model, weights)
    dataset = data_for(data, info).read(part, tuple(info["network"]["shape"]) if info else None)
    if info:
        dataset = require_nonempty(by_class_name(dataset, info)[0])
    substitute = None if surrogate is None else load_run(surrogate)[0]
    world, where = join(device, network)
    for module in (network, substitute):
        if module is not None:
            module.to(where)
    report = evaluate_robustness(
        network,
        dataset.images().to(where),
        dataset.labels().to(where),
        suite=suite,
        eps=eps,
        norm=norm,
        ids=dataset.ids.to(where),
        run_dir=out,
        resume=resume,
        seed=seed,
        surrogate=substitute,
        masking_tests=masking_tests,
        batch_size=batch_size,
        name=f"{run or model} on {dataset.name}",
        progress=progress,
    )
    return report, None if out is None or world.rank else report.save(out, command=command)
