"""Attacks run chunk by chunk; with a directory, every finished chunk is kept there and a killed run goes on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from robustgen.attacks import Attack, AttackResult, Engine
from robustgen.evaluation.verifier import verify
from robustgen.files import load_tensors, read_json, save_tensors, write_json
from robustgen.fingerprint import fingerprint, model_fingerprint
from robustgen.model import Model
from robustgen.training.distributed import World, current_world

__all__ = ["PICTURES", "Job", "Outcome", "run_jobs"]

PICTURES = 8  # adversarial inputs kept for the report
WAVES = 4  # chunks are so many batches large: while samples fall, others take their places in the batch


class Job(NamedTuple):
    """One attack on the first ``n`` examples.

    Of the adversarial inputs the first ``keep`` are kept. ``after`` names jobs whose fallen examples count as fallen
    here too and are not attacked again. ``precision`` of the search. ``checked``: every success is put to the verifier,
    and what that rejects is none.
    """

    attack: Attack
    n: int
    keep: int = PICTURES
    after: tuple[str, ...] = ()
    precision: str = "float32"
    checked: bool = False


@dataclass(frozen=True)
class Outcome(AttackResult):
    """What a job found; only the first rows of ``x_adv`` are there.

    ``attacked`` and ``rejected`` (N,), bool: which examples it saw, and which of its successes the verifier rejected,
    for what ``reasons``. Those are none of ``success``.
    """

    attacked: Tensor
    rejected: Tensor
    reasons: tuple[str, ...]


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
) -> dict[str, Outcome]:
    """Run every job, ``batch_size`` examples in a pass, and keep what is finished after every few batches.

    Where several processes work together (``torch.distributed``), each takes a share of the chunks, and all return the
    same: a chunk does not depend on who runs it. ``about``: what else outcomes depend on, by name.

    Raises:
        ValueError: ``run_dir`` holds an evaluation already (without ``resume``), or one of another model, of other
            examples or of other attacks.
    """
    if run_dir is not None and not isinstance(model, nn.Module):
        raise ValueError("run_dir needs an nn.Module: a plain function cannot be told from another one on resume")
    world = current_world()
    store = None
    if run_dir is not None:
        store = _Store(Path(run_dir), _plan(jobs, model, x, y, ids, batch_size, about or {}), resume, world)
    done: dict[str, Outcome] = {}
    total, size = sum(job.n for job in jobs.values()), WAVES * batch_size
    with tqdm(total=total, disable=not progress or world.rank > 0, desc=title, unit="example") as bar:
        for k, (label, job) in enumerate(jobs.items()):
            fallen = _fallen([done[name] for name in job.after], job.n)
            rows = (~fallen).nonzero().squeeze(1)
            bar.update(job.n - len(rows))
            standing = len(rows)
            found: dict[int, AttackResult] = {}
            for c, part in enumerate(rows.split(size) if len(rows) else ()):
                bar.set_postfix_str(f"{label}, {standing} standing")
                result = store.load(k, c, len(part)) if store else None
                if result is None and c % world.size == world.rank:
                    i = part.to(x.device)
                    engine = Engine(slots=batch_size, precision=job.precision)
                    result = _to_cpu(job.attack.run(model, x[i], y[i], ids=ids[i], engine=engine))
                    if store:
                        store.save(k, c, result)
                if result is not None:
                    found[c] = result
                    standing -= int(result.success.sum())
                bar.update(len(part))
            everyone = world.union({f"{c}/{name}": t for c, r in found.items() for name, t in vars(r).items()})
            whole = [
                AttackResult(**{name: everyone[f"{c}/{name}"] for name in AttackResult.__dataclass_fields__})
                for c in range(-(-len(rows) // size))
            ]
            done[label] = _whole(job, model, x, y, rows, fallen, whole)
    return done


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
    distance = torch.zeros(job.n, dtype=torch.float64)
    forwards, backwards = torch.zeros(job.n, dtype=torch.int64), torch.zeros(job.n, dtype=torch.int64)
    sizes = [len(chunk.success) for chunk in chunks]
    for i, found in zip(rows.split(sizes) if sizes else (), chunks, strict=True):
        success[i], distance[i], forwards[i], backwards[i] = (
            getattr(found, name) for name in ("success", "distance", "forwards", "backwards")
        )
        if job.checked:
            rejected[i], why = _rejected(job.attack, model, x, y, i, found)
            reasons += why
        kept = i < len(x_adv)
        x_adv[i[kept]] = found.x_adv[kept]
    success &= ~rejected
    return Outcome(x_adv, success, distance, forwards, backwards, ~fallen, rejected, reasons)


def _rejected(
    attack: Attack, model: Model, x: Tensor, y: Tensor, rows: Tensor, found: AttackResult
) -> tuple[Tensor, tuple[str, ...]]:
    rejected = torch.zeros_like(found.success)
    claimed = found.success.nonzero().squeeze(1)
    i = rows[claimed].to(x.device)
    verdict = verify(
        model,
        x[i],
        found.x_adv[claimed].to(x.device),
        y[i],
        eps=attack.eps,
        norm=attack.norm,
        bounds=attack.bounds,
        seed=attack.seed,
    )
    rejected[claimed] = ~verdict.accepted.cpu()
    pairs = zip(rows[claimed].tolist(), verdict.reasons, strict=True)
    return rejected, tuple(f"example {k}: {reason}" for k, reason in pairs if reason)


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
    return {
        "model": model_fingerprint(model) if isinstance(model, nn.Module) else None,
        "examples": fingerprint({"x": x, "y": y, "ids": ids}),
        "attacks": [[label, job.attack.describe(), job.n, job.after, job.precision] for label, job in jobs.items()],
        "batch size": [batch_size, WAVES],
        "threads": torch.get_num_threads(),
    } | {name: fingerprint({name: value}) for name, value in about.items()}


class _Store:
    """``run_dir/chunks``: the plan, and one safetensors file for each finished chunk."""

    def __init__(self, run_dir: Path, plan: dict[str, Any], resume: bool, world: World) -> None:
        self.directory = run_dir / "chunks"
        plan = json.loads(json.dumps(plan))  # as it reads back: tuples are lists
        path = self.directory / "plan.json"
        begun = path.exists()
        world.wait()  # all have looked
        if not begun:
            if world.rank == 0:
                write_json(path, plan)
            return
        if not resume:
            raise ValueError(
                f"{run_dir} already holds an evaluation: resume it (--resume), or choose another directory"
            )
        found = read_json(path, dict)
        different = [name for name in plan if found.get(name) != plan[name]]
        if different:
            raise ValueError(f"{run_dir} holds another evaluation: {', '.join(different)} differ")

    def _path(self, job: int, chunk: int) -> Path:
        return self.directory / f"{job:03d}-{chunk:06d}.safetensors"

    def load(self, job: int, chunk: int, n: int) -> AttackResult | None:
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
