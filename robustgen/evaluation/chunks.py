"""Attacks run chunk by chunk; with a directory, what is done is kept there, and a killed run goes on."""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustgen.attacks import Attack, AttackResult, Engine, TransferAttack
from robustgen.evaluation.kept import DiskJournal, OutOfTime
from robustgen.evaluation.stages import GRADIENT_FREE, Stages, asked, passes
from robustgen.evaluation.verifier import Verification, verify
from robustgen.evaluation.wall_clock import WallClock
from robustgen.files import load_tensors, read_json, save_tensors, write_json
from robustgen.fingerprint import answers, fingerprint, model_fingerprint, same_answers
from robustgen.model import Model, logits_of, untouched
from robustgen.progress import showing
from robustgen.training.distributed import World, current_world

__all__ = ["Job", "Outcome", "any_process", "kept_under", "run_jobs", "stages_of"]

ASKED = 4  # examples by whose logits a directory knows its models
WAVES = 4  # chunks are so many batches large: while samples fall, others take their places in the batch
ANSWERS = 2**28  # bytes of a model's answers that a chunk may keep on the way; it is so small that they suffice
SCORES = 256  # bytes for an answer without a gradient: more than it has, as it takes a step of the search to repeat it


class Job(NamedTuple):
    """One attack on the first ``n`` examples.

    Of the adversarial inputs the first ``keep`` are kept. ``after`` names jobs whose fallen examples count as fallen
    here too and are not attacked again. ``precision`` of the search. ``checked``: every success is put to the verifier,
    and what that rejects is none. ``named``: it says what the model takes each success for; so it does where they are
    checked. ``needed``: it runs to its end even where the time is used up.
    """

    attack: Attack
    n: int
    keep: int = 0
    after: tuple[str, ...] = ()
    precision: str = "float32"
    checked: bool = False
    named: bool = False
    needed: bool = False


@dataclass(frozen=True)
class Outcome(AttackResult):
    """What a job found; only the first rows of ``x_adv`` are there.

    ``attacked`` and ``rejected`` (N,), bool: which examples it saw, and which of its successes the verifier rejected,
    for what ``reasons``. Those are none of ``success``. ``predicted`` int64 (N,): what the model says at each success
    of a job that asks for it; -1: no class, or not asked.
    """

    attacked: Tensor
    rejected: Tensor
    reasons: tuple[str, ...]
    predicted: Tensor


def run_jobs(
    jobs: Mapping[str, Job],
    model: Model,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    *,
    batch_size: int,
    run_dir: str | Path | None = None,
    resume: bool = False,
    about: Mapping[str, Tensor] | None = None,
    progress: bool = False,
    title: str = "attacks",
    stages: Stages | None = None,
    finished: Callable[[str, Outcome], None] | None = None,
) -> dict[str, Outcome]:
    """Run every job, ``batch_size`` examples in a pass, and keep finished chunks and the answers to the one under way.

    A kill costs what the model was asked in a few seconds. Not so where it is stochastic, and on an accelerator where
    the answers are too many to be kept (:data:`ANSWERS`): there it costs the chunk.

    Where several processes work together (``torch.distributed``), each takes a share of the chunks, and all return the
    same: a chunk does not depend on who runs it. ``about``: what else outcomes depend on, by name. ``finished`` is told
    of each outcome as soon as it is there. ``stages``, by default new ones of that title, keep the time of the jobs and
    say when it is used up.

    Raises:
        ValueError: ``run_dir`` holds an evaluation already (without ``resume``), or one of another model, of other
            examples or of other attacks.
        BlockingIOError: another process or thread is writing in ``run_dir``.
        OutOfTime: the time is used up; a chunk whose answers are kept is broken off, any other comes to its end before.
    """
    if run_dir is not None and not isinstance(model, nn.Module):
        raise ValueError("run_dir needs an nn.Module: a plain function cannot be told from another one on resume")
    world = current_world()
    done: dict[str, Outcome] = {}
    with ExitStack() as stack:
        stack.enter_context(world.alone(None if run_dir is None else Path(run_dir), x.device))
        store = None
        if run_dir is not None:
            store = _Store(Path(run_dir), _plan(jobs, model, x, y, ids, batch_size, about or {}), resume, world)
        if stages is None:
            stack.enter_context(showing(progress))
            stages = stack.enter_context(closing(stages_of(title, run_dir)))
        stages.recall()
        for k, (label, job) in enumerate(jobs.items()):
            for later, other in islice(jobs.items(), k, None):
                stages.expect(later, passes(other.attack), int(_searched(other, jobs, done).sum()))
            up = partial(_time_is_up, stages, job)
            if any_process(stages, up(), x.device):
                raise OutOfTime
            fallen = _fallen([done[name] for name in job.after], job.n)
            searched = _searched(job, jobs, done) & ~fallen
            rows = (~fallen).nonzero().squeeze(1)
            standing, late = len(rows), False
            found: dict[int, AttackResult] = {}
            size, kept = _chunk(job.attack, x, batch_size)
            with stages.running(label):
                for c, part in enumerate(rows.split(size) if len(rows) else ()):
                    result = store.load(k, c, len(part)) if store else None
                    measured = result is None
                    if result is None and c % world.size == world.rank:
                        if late := up():
                            break
                        i = part.to(x.device)
                        journal = store.journal(k, c, up) if store and kept else None
                        engine = Engine(slots=batch_size, precision=job.precision, journal=journal, watch=stages.ask)
                        try:
                            result = _to_cpu(job.attack.run(model, x[i], y[i], ids=ids[i], engine=engine))
                        except OutOfTime:
                            late = True
                            break
                        if store:
                            store.save(k, c, result)
                    if result is not None:
                        found[c] = result
                        standing -= int(result.success.sum())
                    stages.advance(int(searched[part].sum()), measured=measured, note=f"{standing} standing")
                everyone = world.union({f"{c}/{name}": t for c, r in found.items() for name, t in vars(r).items()})
                if any_process(stages, late, x.device):
                    n = sum(len(t) for name, t in everyone.items() if name.endswith("/success"))
                    raise OutOfTime({label: (n, len(rows))})
                whole = [
                    AttackResult(**{name: everyone[f"{c}/{name}"] for name in AttackResult.__dataclass_fields__})
                    for c in range(-(-len(rows) // size))
                ]
                done[label] = _whole(job, model, x, y, rows, fallen, whole)
            if finished is not None:
                finished(label, done[label])
    return done


def stages_of(
    title: str, run_dir: str | Path | None, until: float | None = None, wall: WallClock | None = None
) -> Stages:
    """The stages of an evaluation whose jobs are kept in ``run_dir``; the first process keeps their time there."""
    first = current_world().rank == 0
    file = kept_under(run_dir) / "seconds.json" if first and run_dir is not None else None
    return Stages(title, file, until, wall)


def any_process(stages: Stages, late: bool, device: torch.device) -> bool:
    """Whether one of the processes is ``late``: they stop together. Nobody is where the time has no end."""
    return stages.until is not None and bool(current_world().reduce(torch.tensor(int(late), device=device)))


def _time_is_up(stages: Stages, job: Job) -> bool:
    """Whether there is no time left for a job."""
    return stages.out_of_time and not job.needed


def _searched(job: Job, jobs: Mapping[str, Job], done: Mapping[str, Outcome]) -> Tensor:
    """The examples of a job, bool (n,), that its attack is expected to search to the end.

    Those that nothing has broken yet in a ball no larger than the job's; every example of an attack that never stops.
    """
    searched = torch.ones(job.n, dtype=torch.bool)
    for name, outcome in done.items():
        if job.attack.early_stop and (jobs[name].needed or jobs[name].attack.eps <= job.attack.eps):
            n = min(job.n, len(outcome.success))
            searched[:n] &= ~outcome.success[:n]
    return searched


def _chunk(attack: Attack, x: Tensor, batch_size: int) -> tuple[int, bool]:
    """How many examples are a chunk, and whether a model's answers are kept while it is under way."""
    if isinstance(attack, TransferAttack):  # which asks another model, every example to the end
        return batch_size, False
    whole = WAVES * batch_size
    each = sum(_answer_bytes(part, x) for part in attack.parts())
    if x.device.type != "cpu":  # where small chunks are slow
        return whole, whole * each <= ANSWERS
    return max(1, min(whole, ANSWERS // each)), True


def _answer_bytes(attack: Attack, x: Tensor) -> int:
    """What the answers to an attack on one example come to, by its settings."""
    inner = getattr(attack, "attack", attack)
    return asked(attack) * (SCORES if isinstance(inner, GRADIENT_FREE) else x[0].numel() * x.element_size())


def _fallen(before: list[Outcome], n: int) -> Tensor:
    fallen = torch.zeros(n, dtype=torch.bool)
    for outcome in before:
        fallen |= outcome.success[:n]
    return fallen


def _to_cpu(result: AttackResult) -> AttackResult:
    return AttackResult(**{name: value.cpu() for name, value in vars(result).items()})


def _whole(
    job: Job, model: Model, x: Tensor, y: Tensor, rows: Tensor, fallen: Tensor, chunks: list[AttackResult]
) -> Outcome:
    """The outcome for all examples, from the chunks of those that were attacked, ``rows``."""
    x_adv = x[: job.keep].cpu().clone()
    success, rejected, reasons = fallen.clone(), torch.zeros_like(fallen), tuple[str, ...]()
    predicted = torch.full_like(fallen, -1, dtype=torch.int64)
    distance = torch.zeros(job.n, dtype=torch.float64)
    forwards, backwards = torch.zeros(job.n, dtype=torch.int64), torch.zeros(job.n, dtype=torch.int64)
    sizes = [len(chunk.success) for chunk in chunks]
    for i, found in zip(rows.split(sizes) if sizes else (), chunks, strict=True):
        success[i], distance[i], forwards[i], backwards[i] = (
            getattr(found, name) for name in ("success", "distance", "forwards", "backwards")
        )
        if job.checked or job.named:
            verdict = _verified(job.attack, model, x, y, i, found)
            claimed = i[found.success]
            predicted[claimed] = verdict.predicted.cpu()
            if job.checked:
                rejected[claimed] = ~verdict.accepted.cpu()
                pairs = zip(claimed.tolist(), verdict.reasons, strict=True)
                reasons += tuple(f"example {k}: {reason}" for k, reason in pairs if reason)
        kept = i < len(x_adv)
        x_adv[i[kept]] = found.x_adv[kept]
    success &= ~rejected
    return Outcome(x_adv, success, distance, forwards, backwards, ~fallen, rejected, reasons, predicted)


def _verified(attack: Attack, model: Model, x: Tensor, y: Tensor, rows: Tensor, found: AttackResult) -> Verification:
    """What the verifier says of the successes among ``found``, at ``rows``."""
    i = rows[found.success].to(x.device)
    return verify(
        model,
        x[i],
        found.x_adv[found.success].to(x.device),
        y[i],
        eps=attack.eps,
        norm=attack.norm,
        bounds=attack.bounds,
        seed=attack.seed,
    )


def _plan(
    jobs: Mapping[str, Job],
    model: Model,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    batch_size: int,
    about: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Everything on which a chunk depends."""
    models = {"": model} | {label: m for label, job in jobs.items() if (m := getattr(job.attack, "surrogate", None))}
    return {
        "model": model_fingerprint(model) if isinstance(model, nn.Module) else None,
        "logits": {label: _logits(m, x[:ASKED]) for label, m in models.items()},
        "examples": fingerprint({"x": x, "y": y, "ids": ids}),
        "attacks": [[label, job.attack.describe(), job.n, job.after, job.precision] for label, job in jobs.items()],
        "batch size": batch_size,
        "chunks": {label: _chunk(job.attack, x, batch_size) for label, job in jobs.items()},
        "threads": torch.get_num_threads(),
    } | {name: fingerprint({name: value}) for name, value in about.items()}


def _logits(model: Model, x: Tensor) -> list[float] | None:
    with untouched(model):
        return answers(lambda: logits_of(model(x)))


def _same(name: str, found: dict[str, Any], plan: dict[str, Any]) -> bool:
    """Whether a directory's plan says the same of ``name``; logits of other machines differ in their last digits."""
    if name != "logits":
        return bool(found.get(name) == plan[name])
    kept = found.get(name)
    return isinstance(kept, dict) and all(same_answers(kept.get(label), own) for label, own in plan[name].items())


def kept_under(run_dir: str | Path) -> Path:
    """Where the plan of an evaluation is, and all that is made by it."""
    return Path(run_dir) / "chunks"


class _Store:
    """``run_dir/chunks``: the plan, and one safetensors file for each finished chunk."""

    def __init__(self, run_dir: Path, plan: dict[str, Any], resume: bool, world: World) -> None:
        self.directory = kept_under(run_dir)
        plan = json.loads(json.dumps(plan))  # as it reads back: tuples are lists
        path = self.directory / "plan.json"
        if not world.exists(path):
            if world.rank == 0:
                write_json(path, plan)
            return
        if not resume:
            raise ValueError(
                f"{run_dir} already holds an evaluation: resume it (--resume), or choose another directory"
            )
        found = read_json(path, dict)
        if "chunks" not in found:
            raise ValueError(f"{run_dir} holds an evaluation that an earlier version began: choose another directory")
        different = [name for name in plan if not _same(name, found, plan)]
        if different:
            raise ValueError(f"{run_dir} holds another evaluation: {', '.join(different)} differ")

    def _path(self, job: int, chunk: int) -> Path:
        return self.directory / f"{job:03d}-{chunk:06d}.safetensors"

    def journal(self, job: int, chunk: int, out_of_time: Callable[[], bool] = lambda: False) -> DiskJournal:
        """Of the answers to a chunk that is under way, until it is ``out_of_time``."""
        return DiskJournal(self._path(job, chunk).with_suffix(""), out_of_time)

    def load(self, job: int, chunk: int, n: int) -> AttackResult | None:
        """The outcome of a chunk of ``n`` examples, if it is finished."""
        path = self._path(job, chunk)
        if not path.exists():
            return None
        found = load_tensors(path)
        whole = found.keys() == AttackResult.__dataclass_fields__.keys() and found["success"].dtype == torch.bool
        if not whole or any(t.shape[:1] != (n,) or t.is_complex() for t in found.values()):
            raise ValueError(f"{path}: not a chunk of {n} examples; delete it to have it measured again")
        return AttackResult(**found)

    def save(self, job: int, chunk: int, result: AttackResult) -> None:
        save_tensors(self._path(job, chunk), vars(result))
        self.journal(job, chunk).discard()
