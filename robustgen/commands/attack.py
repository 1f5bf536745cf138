"""``robustgen attack``: how robust a trained network is on a data set.

What was asked for is kept beside what is written, so that ``--resume`` alone goes on with it. That file is data: it
brings no code in and has nothing fetched, and what it names is read as if it were named anew.
"""

import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustgen.commands.data_spec import DataSpec
from robustgen.commands.network_spec import NetworkSpec
from robustgen.commands.opening import load_run, open_network, saved_detector, usable_device
from robustgen.commands.run_info import recorded_data, stopped_early, threat
from robustgen.commands.runs import by_class_name, check_classes, data_for, is_first
from robustgen.data import require_nonempty
from robustgen.data.load import canonical_name
from robustgen.evaluation import (
    DetectorRobustness,
    RobustnessReport,
    evaluate_detector_robustness,
    evaluate_robustness,
)
from robustgen.evaluation.chunks import kept_under
from robustgen.evaluation.kept import OutOfTime
from robustgen.evaluation.random_defence import KEPT
from robustgen.files import read_json, write_json
from robustgen.progress import showing
from robustgen.training.distributed import join

__all__ = ["attack_network", "naming_options", "remember_options", "resumed_options"]


def attack_network(
    *,
    run: Path | None,
    model: str | None,
    weights: Path | None,
    data: DataSpec,
    eps: float | None = None,
    norm: str | None = None,
    suite: str = "quick",
    part: str = "test",
    surrogate: Path | None = None,
    trust: bool = False,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    masking_tests: bool = True,
    detector: bool = False,
    fpr: float | None = None,
    ood: DataSpec | None = None,
    batch_size: int = 250,
    seed: int = 0,
    device: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    max_minutes: float | None = None,
    progress: bool = True,
    command: str | None = None,
    options: dict[str, Any] | None = None,
    skip: Callable[[ValueError], None] | None = None,
    tell: Callable[[str], None] = print,
) -> tuple[RobustnessReport, DetectorRobustness | None, Path | None]:
    """Attack a trained network on a data set and, if asked, the run's detector with it.

    With ``max_minutes`` the attacks stop when these are used up; the report's ``unfinished`` says what is missing, and
    a detector's attacks that were not finished are not reported. ``options``: what is kept in ``out`` for ``--resume``.

    ``eps`` and ``norm``: without them, those that the run was trained against, which ``tell`` is told; see
    :func:`~robustgen.commands.run_info.threat`.

    ``skip`` is called with the error of each image file that cannot be read, which is left out; None raises it.

    ``trust``: the code that ``run`` and ``surrogate`` name as their networks may run; see :func:`load_run`.

    Under ``torchrun`` the processes share the work; all return the same reports, the first writes them.

    Returns:
        The report, that of the detector, and with ``out`` where their page is.
    """
    if resume and out is None:
        raise ValueError("--resume goes on with the evaluation in --out: pass it")
    if max_minutes is not None and not 0 < max_minutes < float("inf"):
        raise ValueError(f"--max-minutes {max_minutes:g}: it is a number of minutes > 0")
    if max_minutes is not None and out is None:
        raise ValueError("--max-minutes keeps what is done in --out: pass it")
    if detector and run is None:
        raise ValueError("--detector is about the one that a --run of a fortified network has")
    for option, value in (("--ood", ood), ("--fpr", fpr)):
        if value is not None and not detector:
            raise ValueError(f"{option} is about --detector")
    if trust and run is None and surrogate is None and not resume:
        raise ValueError(
            "--trust is about the code that a --run, a --surrogate or, with --resume, the options in --out name"
        )
    if device is not None:
        usable_device(device)
    fpr = 0.05 if fpr is None else fpr
    network, info = open_network(run, model, weights, trust, mean, std)
    eps, norm, of_training = threat(info, eps, norm)
    stopped = [line for used in (run, surrogate) if used is not None and (line := stopped_early(used))]
    guard = None
    if detector:
        assert run is not None
        guard = saved_detector(run, network)
        guard.calibration.threshold(fpr)  # before hours of attacks: there may be too few calibration scores for it
    shape = tuple(info["network"]["shape"]) if info else None
    dataset = data_for(data, info).read(part, shape, skip, spaced=True)
    if ood is not None and info:
        ood = ood.rooted(recorded_data(info))
    x_ood = None if ood is None else ood.read(part, shape, skip, spaced=True).images()
    if info:
        dataset = require_nonempty(by_class_name(dataset, info)[0])
    else:
        check_classes(network, dataset)
    substitute = None if surrogate is None else load_run(surrogate, trust=trust)[0]
    world, where = join(device, network)
    for module in (network, substitute):
        if module is not None:
            module.to(where)
    x, y, ids = dataset.images().to(where), dataset.labels().to(where), dataset.ids.to(where)
    name = f"{model if run is None else run} on {dataset.name}"
    with showing(progress), world.alone(out, where):
        if out is not None and options is not None and world.rank == 0:
            command = remember_options(out, options | {"eps": eps, "norm": norm}, command)
        if of_training and is_first():
            tell(of_training)
        started = time.perf_counter()
        report = evaluate_robustness(
            network,
            x,
            y,
            suite=suite,
            eps=eps,
            norm=norm,
            ids=ids,
            run_dir=out,
            resume=resume,
            seed=seed,
            surrogate=substitute,
            masking_tests=masking_tests,
            batch_size=batch_size,
            name=name,
            class_names=dataset.classes,
            progress=progress,
            max_minutes=max_minutes,
        )
        report.notes += stopped
        guarded = None
        if guard is not None:
            try:
                guarded = evaluate_detector_robustness(
                    network,
                    guard,
                    x,
                    y,
                    eps=eps,
                    norm=norm,
                    fpr=fpr,
                    x_ood=None if x_ood is None else x_ood.to(where),
                    ids=ids,
                    seed=seed,
                    batch_size=batch_size,
                    run_dir=out,
                    resume=resume,
                    name=name,
                    progress=progress,
                    max_minutes=_minutes_left(max_minutes, started, report),
                )
            except OutOfTime:
                report.unfinished["detector"] = "not finished"
                report.notes.append("the time was used up before the attacks on the detector were finished: not shown")
        if out is None or world.rank:
            return report, guarded, None
        return report, guarded, report.save(out, command=command, guarded=guarded)


def _minutes_left(max_minutes: float | None, started: float, report: RobustnessReport) -> float | None:
    """What is left of the minutes; OutOfTime where that is nothing."""
    if max_minutes is None:
        return None
    left = max_minutes - (time.perf_counter() - started) / 60
    if report.unfinished or left <= 0:
        raise OutOfTime
    return left


FORMAT = 1
_STRUCTURE = {
    "run": str | None,
    "model": str | None,
    "weights": str | None,
    "mean": str | None,
    "std": str | None,
    "data": str | None,
    "data_root": str | None,
    "limit": int | None,
    "size": str | None,
    "channels": int | None,
    "fit": str | None,
    "background": str | None,
    "split": str,
    "eps": float,
    "norm": str,
    "suite": str,
    "surrogate": str | None,
    "masking_tests": bool,
    "detector": bool,
    "fpr": float | None,
    "ood": str | None,
    "batch_size": int,
    "seed": int,
    "device": str | None,
    "purify?": str | None,
    "depth?": float | int | None,
    "chain_steps?": int | None,
    "eot?": int | None,
    "draws?": int | None,
    "resubmit?": int | None,
}
#: Where things are may change; that they are the same is seen by what is in them.
_PLACES = ("run", "model", "weights", "data_root", "surrogate", "device", "purify")
_DATA = ("data", "ood")


def resumed_options(out: Path, asked: dict[str, Any], given: Collection[str], trust: bool) -> dict[str, Any]:
    """The options of the evaluation in ``out``; ``asked``, where none are kept there.

    Args:
        asked: every option by its name, ``given`` or by default.
        given: those that were given now; the others are as they were.
        trust: the code that the file names as the network may run.

    Raises:
        ValueError: an option that was another one, with both values; or code that nobody but the file has named.
    """
    path = _path(out)
    if not path.is_file() or not _begun(out):
        return asked
    recorded = read_json(path, {"format": int, "options": _STRUCTURE})
    if recorded["format"] != FORMAT:
        raise ValueError(f"{path}: not the options of an evaluation in format {FORMAT}, the one that is read here")
    kept = {name: recorded["options"].get(name) for name in asked}
    for name in asked:
        if name in given and not _agree(name, kept[name], asked[name]):
            raise ValueError(
                f"{out} holds another evaluation: --{name.replace('_', '-')} was {json.dumps(kept[name])}, now "
                f"{json.dumps(asked[name])}; leave it out, or choose another directory"
            )
    model = kept["model"]
    if model is not None and "model" not in given and NetworkSpec(model).is_code and not trust:
        raise ValueError(
            f"{path}: names code as the network, {model!r}, and a file may not have code run: name it again with "
            "--model, or pass --trust"
        )
    return {name: asked[name] if name in given else kept[name] for name in asked}


@contextmanager
def naming_options(out: Path) -> Iterator[None]:
    """Say of what is refused inside that it is from the options kept in ``out``, unless the line is about ``out``."""
    try:
        yield
    except (FileNotFoundError, TypeError, ValueError) as error:
        if str(out) in str(error):
            raise
        kind = next(k for k in (FileNotFoundError, TypeError, ValueError) if isinstance(error, k))
        raise kind(f"{_path(out)}: {error}") from error


def remember_options(out: Path, options: dict[str, Any], command: str | None = None) -> str | None:
    """Keep the options of an evaluation that is to begin in ``out``, and the command; the one that began it."""
    path = _path(out)
    if not _begun(out):
        write_json(path, {"format": FORMAT, "options": options, "command": command})
    elif path.is_file():
        command = read_json(path, {"command?": str | None}).get("command") or command
    return command


def _begun(out: Path) -> bool:
    """Whether there is an evaluation in ``out``; options alone are of one that was refused."""
    return any((directory / "plan.json").exists() for directory in (kept_under(out), out / KEPT))


def _path(out: Path) -> Path:
    return out / "options.json"


def _agree(name: str, kept: Any, asked: Any) -> bool:
    """Whether an option may be the one that was asked for; of data in files, their content decides."""
    if name in _DATA and kept is not None and asked is not None:
        named = canonical_name(kept), canonical_name(asked)
        return named[0] == named[1] or None in named
    return name in _PLACES or kept == asked or (name == "data" and kept is None)
