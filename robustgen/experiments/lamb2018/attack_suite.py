"""Every attack of the chapter on one fixed network.

The source trains a new network for each number, on the very attack of that number. That hides two failures: a network
that learned one attack and no other, and a single-step attack that its own training has made useless. So each network
is attacked here in every way, at every eps, and every kind of attack is tested against those that it must not be
weaker than.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.attacks import FGSM, PGD, NoiseSearch, TransferAttack
from robustgen.evaluation.chunks import Job, run_jobs
from robustgen.evaluation.masking import MaskingTest, at_most, monotone, paired, reaches_zero
from robustgen.evaluation.robustness import NoAttack
from robustgen.experiments.lamb2018.recipes import Budget

__all__ = ["describe_attack_suite", "masking_tests", "run_attack_suite", "white_box_against_transfer"]

CHUNK = 500
DRAWS = 8  # of a stochastic network that a gradient averages


def run_attack_suite(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: Sequence[float],
    budget: Budget,
    surrogate: nn.Module,
    stochastic: bool = False,
    progress: bool = False,
    title: str = "attacks",
) -> dict[str, Tensor]:
    """Attack ``net`` at x (N, ...) in [0, 1] with labels y (N,): which of the first n images stood, bool (n,) each.

    At every eps: uniform noise (20 draws), FGSM, PGD from the clean input and from a random start on all images, PGD
    with restarts on the first ``budget.n_few``, FGSM transferred from ``surrogate``. Without a bound: PGD, on a fifth
    of those. A stochastic network takes gradients that are means over draws, and its PGD sees fewer images.
    """
    jobs = _jobs(eps, budget, len(x), stochastic, surrogate)
    done = run_jobs(jobs, net, x, y, torch.arange(len(x)), batch_size=CHUNK, progress=progress, title=title)
    return {name: ~result.success for name, result in done.items()}


def describe_attack_suite(eps: Sequence[float], budget: Budget, stochastic: bool = False) -> dict[str, Any]:
    """Every attack with all its settings and on how many images (0: all), JSON-able."""
    jobs = _jobs(eps, budget, 0, stochastic, None)
    return {name: [job.attack.describe(), job.n] for name, job in jobs.items()}


def _jobs(
    eps: Sequence[float], budget: Budget, n: int, stochastic: bool, surrogate: nn.Module | None
) -> dict[str, Job]:
    few = min(budget.n_few, n) if n else budget.n_few
    draws = DRAWS if stochastic else 1
    most, restarted = (few, few // 5) if stochastic else (n, few)
    jobs: dict[str, Job] = {"clean": Job(NoAttack(), n)}
    for e in eps:
        fgsm = FGSM(eps=e, eot_samples=draws)
        pgd = PGD(eps=e, steps=budget.steps, eot_samples=draws)
        jobs[f"noise {e:g}"] = Job(NoiseSearch(eps=e, n_queries=20), n)
        jobs[f"FGSM {e:g}"] = Job(fgsm, n)
        jobs[f"PGD clean start {e:g}"] = Job(replace(pgd, random_start=False), most)
        jobs[f"PGD {e:g}"] = Job(pgd, most)
        jobs[f"PGD restarts {e:g}"] = Job(replace(pgd, restarts=budget.restarts, seed=1), restarted)
        transferred = FGSM(eps=e) if surrogate is None else TransferAttack(surrogate=surrogate, attack=FGSM(eps=e))
        jobs[f"transfer FGSM {e:g}"] = Job(transferred, n)
    jobs["PGD unbounded"] = Job(PGD(eps=1.0, steps=2 * budget.steps, eot_samples=draws), max(2, few // 5))
    return jobs


def masking_tests(standing: dict[str, Tensor], eps: Sequence[float]) -> list[MaskingTest]:
    """Whether each white-box attack does at least what weaker ones do, and falls with eps, on this one network."""
    tests = []
    kinds = {"FGSM": ["FGSM"], "PGD": ["PGD clean start", "PGD"]}
    for kind, names in kinds.items():
        left = {e: _union([standing[f"{name} {e:g}"] for name in names]) for e in eps}
        for e in eps:
            n, where = len(left[e]), f"eps {e:g}"
            noise, transfer, fgsm = (standing[f"{k} {e:g}"][:n] for k in ("noise", "transfer FGSM", "FGSM"))
            tests.append(at_most(f"{kind} at least as strong as noise, {where}", (kind, left[e]), ("noise", noise)))
            title = f"{kind} at least as strong as black-box transfer, {where}"
            tests.append(white_box_against_transfer(title, (kind, left[e]), ("transfer", transfer)))
            if kind == "PGD":
                tests.append(at_most(f"PGD at least as strong as FGSM, {where}", ("PGD", left[e]), ("FGSM", fgsm)))
        n = min(map(len, left.values()))
        curve = [standing["clean"][:n], *(left[e][:n] for e in eps)]
        tests.append(monotone(f"accuracy under {kind} falls as eps grows", [0.0, *eps], curve))
    tests.append(reaches_zero("unbounded PGD breaks everything", standing["PGD unbounded"]))
    return tests


def white_box_against_transfer(name: str, white: tuple[str, Tensor], black: tuple[str, Tensor]) -> MaskingTest:
    """White-box at least as strong as black-box, with the count of examples on which it is not.

    Args:
        white, black: name of the attack and bool (N,), which examples it left standing.
    """
    test = at_most(name, white, black)
    alone = (white[1] & ~black[1]).double()
    share, error = paired(alone)
    detail = (
        f"{test.detail}; per example: {int(alone.sum())} of {len(alone)} fall to {black[0]} alone ({share:.2%}, "
        f"standard error {100 * error:.2f} points)"
    )
    return replace(test, detail=detail)


def _union(standing: list[Tensor]) -> Tensor:
    return torch.stack(standing).all(0)
