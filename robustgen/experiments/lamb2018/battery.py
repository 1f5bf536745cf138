"""Every attack of the chapter on one fixed network.

The source trains a new network for each number, on the very attack of that number. That hides two failures: a network
that learned one attack and no other, and a single-step attack that its own training has made useless. So each network
is attacked here in every way, at every eps, and every number comes with the tests that would expose a weak attack.
"""

from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from robustgen.attacks import FGSM, PGD, Attack, NoiseSearch, TransferAttack
from robustgen.evaluation.chunks import Job, run_jobs
from robustgen.evaluation.masking import MaskingTest, at_most, monotone, paired, reaches_zero
from robustgen.evaluation.robustness import NoAttack
from robustgen.experiments.lamb2018.recipes import Budget

__all__ = ["Battery", "run_battery"]

CHUNK = 500


class Battery:
    """What stood against each attack: ``standing[name]`` is bool (n,), for the first n test images."""

    def __init__(self, standing: dict[str, Tensor], verdicts: list[MaskingTest]) -> None:
        self.standing, self.verdicts = standing, verdicts

    def numbers(self) -> dict[str, dict[str, float]]:
        """Accuracy in percent under each attack, with the number of images."""
        return {k: {"value": 100 * s.double().mean().item(), "n": len(s)} for k, s in self.standing.items()}

    def verdict_records(self) -> list[dict[str, object]]:
        """The verdicts, JSON-able."""
        return [asdict(v) for v in self.verdicts]


def run_battery(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: Sequence[float],
    budget: Budget,
    surrogate: nn.Module | None,
    stochastic: bool = False,
    progress: bool = False,
    title: str = "attacks",
) -> Battery:
    """Attack ``net`` at x (N, ...) in [0, 1] with labels y (N,).

    At every eps: uniform noise (20 draws), FGSM, PGD from the clean input and from a random start on all images, PGD
    with restarts on the first ``budget.n_few``, FGSM transferred from ``surrogate``. Without a bound: PGD, on a fifth
    of those. For a stochastic network gradients are means over 8 draws, and PGD sees the first ``n_few`` images only.
    """
    n, few = len(x), min(budget.n_few, len(x))
    most = few if stochastic else n
    draws = 8 if stochastic else 1
    jobs: dict[str, Job] = {"clean": Job(NoAttack(), n)}
    for e in eps:
        jobs[f"noise {e:g}"] = Job(NoiseSearch(eps=e, n_queries=20), n)
        jobs[f"FGSM {e:g}"] = Job(FGSM(eps=e, eot_samples=draws), n)
        jobs[f"PGD clean start {e:g}"] = Job(
            PGD(eps=e, steps=budget.steps, random_start=False, eot_samples=draws), most
        )
        jobs[f"PGD {e:g}"] = Job(PGD(eps=e, steps=budget.steps, eot_samples=draws), most)
        restarts = 1 if stochastic else budget.restarts
        jobs[f"PGD restarts {e:g}"] = Job(
            PGD(eps=e, steps=budget.steps, restarts=restarts, eot_samples=draws, seed=1), few
        )
        if surrogate is not None:
            attack: Attack = TransferAttack(surrogate=surrogate, attack=FGSM(eps=e))
            jobs[f"transfer FGSM {e:g}"] = Job(attack, n)
    jobs["PGD unbounded"] = Job(PGD(eps=1.0, steps=2 * budget.steps, eot_samples=draws), max(2, few // 5))
    ids = torch.arange(n)
    done = run_jobs(jobs, net, x, y, ids, batch_size=CHUNK, progress=progress, title=title)
    standing = {name: ~result.success for name, result in done.items()}
    return Battery(standing, _verdicts(standing, list(eps), surrogate is not None))


def _verdicts(standing: dict[str, Tensor], eps: list[float], transfer: bool) -> list[MaskingTest]:
    tests = []
    for e in eps:
        single, best = standing[f"FGSM {e:g}"], _union(standing, [f"PGD clean start {e:g}", f"PGD {e:g}"])
        n = len(best)
        white = best & single[:n]
        tests.append(at_most(f"PGD at least as strong as FGSM, eps {e:g}", ("PGD", best), ("FGSM", single[:n])))
        tests.append(
            at_most(
                f"gradients at least as strong as noise, eps {e:g}",
                ("white-box", white),
                ("noise", standing[f"noise {e:g}"][:n]),
            )
        )
        if transfer:
            tests.append(_white_and_black(e, white, standing[f"transfer FGSM {e:g}"][:n]))
    few = len(standing[f"PGD restarts {eps[0]:g}"])
    curve = [standing["clean"][:few], *(_union(standing, [f"PGD {e:g}"])[:few] for e in eps)]
    tests.append(monotone("accuracy falls as eps grows", [0.0, *eps], curve))
    tests.append(reaches_zero("unbounded PGD breaks everything", standing["PGD unbounded"]))
    return tests


def _white_and_black(eps: float, white: Tensor, black: Tensor) -> MaskingTest:
    """White-box at least as strong as black-box, with the count of examples on which it is not."""
    test = at_most(f"white-box at least as strong as black-box, eps {eps:g}", ("white-box", white), ("transfer", black))
    only_black = int((white & ~black).sum())
    share, error = paired((white & ~black).double())
    detail = (
        f"{test.detail}; per example: {only_black} of {len(white)} fall to the black-box attack alone "
        f"({share:.2%}, standard error {100 * error:.2f} points)"
    )
    return MaskingTest(test.name, test.verdict, detail, test.difference, test.standard_error, test.n)


def _union(standing: dict[str, Tensor], names: list[str]) -> Tensor:
    n = min(len(standing[name]) for name in names)
    return torch.stack([standing[name][:n] for name in names]).all(0)
