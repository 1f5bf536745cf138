"""Attacks run chunk by chunk; with a directory, every finished chunk is kept there and a killed run goes on."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from robustgen.attacks import Attack, AttackResult
from robustgen.files import load_tensors, read_json, save_tensors, write_json
from robustgen.fingerprint import fingerprint, model_fingerprint
from robustgen.model import Model

__all__ = ["PICTURES", "Job", "run_jobs"]

PICTURES = 8  # adversarial inputs kept for the report


class Job(NamedTuple):
    """One attack on the first ``n`` examples; of the adversarial inputs, the first ``keep`` are kept."""

    attack: Attack
    n: int
    keep: int = PICTURES


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
    progress: bool = False,
    title: str = "attacks",
) -> dict[str, AttackResult]:
    """Run every job in chunks of ``batch_size``; the results are whole, but for ``x_adv``: its first rows.

    Raises:
        ValueError: ``run_dir`` holds an evaluation already (without ``resume``), or one of another model, of other
            examples or of other attacks.
    """
    if run_dir is not None and not isinstance(model, nn.Module):
        raise ValueError("run_dir needs an nn.Module: a plain function cannot be told from another one on resume")
    store = None if run_dir is None else _Store(Path(run_dir), _plan(jobs, model, x, y, ids, batch_size), resume)
    done: dict[str, AttackResult] = {}
    with tqdm(total=sum(job.n for job in jobs.values()), disable=not progress, desc=title, unit="example") as bar:
        for k, (label, job) in enumerate(jobs.items()):
            bar.set_postfix_str(label)
            chunks = []
            for start in range(0, job.n, batch_size):
                rows = slice(start, min(start + batch_size, job.n))
                result = store.load(k, start) if store else None
                if result is None:
                    result = job.attack.run(model, x[rows], y[rows], ids=ids[rows])
                    if store:
                        store.save(k, start, result)
                kept = result.x_adv[: max(0, job.keep - start)].clone()  # not all of them: a job may be large
                chunks.append(replace(result, x_adv=kept))
                bar.update(len(result.success))
            done[label] = _whole(chunks)
    return done


def _whole(chunks: list[AttackResult]) -> AttackResult:
    names = AttackResult.__dataclass_fields__
    return AttackResult(**{name: torch.cat([getattr(c, name).cpu() for c in chunks]) for name in names})


def _plan(jobs: Mapping[str, Job], model: Model, x: Tensor, y: Tensor, ids: Tensor, batch_size: int) -> dict[str, Any]:
    """Everything on which a chunk depends."""
    return {
        "model": model_fingerprint(model) if isinstance(model, nn.Module) else None,
        "examples": fingerprint({"x": x, "y": y, "ids": ids}),
        "attacks": [[label, job.attack.describe(), job.n] for label, job in jobs.items()],
        "batch size": batch_size,
        "threads": torch.get_num_threads(),
    }


class _Store:
    """``run_dir/chunks``: the plan, and one safetensors file for each finished chunk."""

    def __init__(self, run_dir: Path, plan: dict[str, Any], resume: bool) -> None:
        self.directory = run_dir / "chunks"
        plan = json.loads(json.dumps(plan))  # as it reads back: tuples are lists
        path = self.directory / "plan.json"
        if not path.exists():
            write_json(path, plan)
            return
        if not resume:
            raise ValueError(f"{run_dir} already holds an evaluation: resume it, or choose another directory")
        found = read_json(path)
        different = [name for name in plan if not isinstance(found, dict) or found.get(name) != plan[name]]
        if different:
            raise ValueError(f"{run_dir} holds another evaluation: {', '.join(different)} differ")

    def _path(self, job: int, start: int) -> Path:
        return self.directory / f"{job:03d}-{start:08d}.safetensors"

    def load(self, job: int, start: int) -> AttackResult | None:
        path = self._path(job, start)
        return AttackResult(**load_tensors(path)) if path.exists() else None

    def save(self, job: int, start: int, result: AttackResult) -> None:
        save_tensors(self._path(job, start), vars(result))
