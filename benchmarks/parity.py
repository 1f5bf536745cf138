"""Strength of our attacks against those of torchattacks and foolbox at matched hyperparameters, on a small network.

Theirs run through the adapters, so that one verdict judges both: ``python benchmarks/parity.py [--out
results/benchmarks]``. Within eps: success rates over several seeds. Minimal norm: median distances, a failure counting
as infinite. The network is trained here on the embedded digits; strength is what is compared, time is in
benchmarks/attacks.py.
"""

import argparse
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.attacks import (
    APGD,
    APGDT,
    DDN,
    FGSM,
    FMN,
    MIFGSM,
    PGD,
    Attack,
    CarliniWagner,
    DeepFool,
    Engine,
    FoolboxAttack,
    FoolboxMinimalNormAttack,
    Square,
    TorchattacksAttack,
    TorchattacksMinimalNormAttack,
)
from robustgen.attacks.minimal_norm import MinimalNormAttack
from robustgen.data import digits
from robustgen.files import environment, write_json
from robustgen.networks import convnet

EPS = {"Linf": 0.1, "L2": 0.5, "L1": 2.0}
STEPS = 20  # of attacks within eps; the step size is 2.5 eps / steps on both sides
NEAREST_STEPS = 100  # of minimal-norm attacks
CW_RATE = 0.05  # constant in the libraries


def network(seed: int = 0) -> nn.Module:
    """A convnet on the embedded digits, 200 steps of Adam: right on nine in ten, and easy to fool."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        data, net = digits("train"), convnet(1, 10, 8, width=8)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        x, y = data.images(), data.y
        for _ in range(200):
            i = torch.randint(len(x), (128,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[i]), y[i]).backward()
            optimizer.step()
    return net.eval()


def our_cw() -> Attack:
    """Its learning rate falls to a hundredth over a run: twice the constant rate has the same mean."""
    return CarliniWagner(steps=NEAREST_STEPS, learning_rate=2 * CW_RATE)


def torchattacks_pairs() -> dict[str, tuple[Attack, Attack]]:
    """Ours and theirs with the same hyperparameters, by name."""

    def theirs(attack: str, norm: str = "Linf", **options: Any) -> Attack:
        return TorchattacksAttack(attack=attack, norm=norm, eps=EPS[norm], options=options)

    linf, l2 = EPS["Linf"], EPS["L2"]
    alpha = {norm: 2.5 * eps / STEPS for norm, eps in EPS.items()}
    nearest = TorchattacksMinimalNormAttack
    cw = {"steps": NEAREST_STEPS, "lr": CW_RATE}
    from_x = PGD(eps=l2, norm="L2", steps=STEPS, random_start=False)
    return {
        "FGSM Linf": (FGSM(eps=linf), theirs("FGSM")),
        "PGD Linf": (PGD(eps=linf, steps=STEPS), theirs("PGD", steps=STEPS, alpha=alpha["Linf"])),
        "PGD L2": (PGD(eps=l2, norm="L2", steps=STEPS), theirs("PGDL2", "L2", steps=STEPS, alpha=alpha["L2"])),
        "PGD L2 from x": (
            from_x,
            theirs("PGDL2", "L2", steps=STEPS, alpha=alpha["L2"], random_start=False),
        ),
        "MIFGSM Linf": (MIFGSM(eps=linf, steps=10), theirs("MIFGSM", steps=10, alpha=linf / 10)),
        "APGD Linf": (APGD(eps=linf, steps=STEPS), theirs("APGD", steps=STEPS)),
        "APGD L2": (APGD(eps=l2, norm="L2", steps=STEPS), theirs("APGD", "L2", steps=STEPS)),
        "APGDT Linf": (APGDT(eps=linf, steps=STEPS), theirs("APGDT", steps=STEPS)),
        "Square Linf": (Square(eps=linf, n_queries=500), theirs("Square", n_queries=500)),
        "DeepFool L2": (DeepFool(), nearest(attack="DeepFool")),
        "CarliniWagner L2": (our_cw(), nearest(attack="CW", options=cw)),
    }


def foolbox_pairs() -> dict[str, tuple[Attack, Attack]]:
    """Ours and theirs with the same hyperparameters, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox 3.3.4 imports from a deprecated place in scipy
        from foolbox import attacks as f

    step = 2.5 / STEPS
    pairs: dict[str, tuple[Attack, Attack]] = {}
    for norm, eps in EPS.items():
        pgd = getattr(f, f"{norm}PGD")(steps=STEPS, rel_stepsize=step)
        pairs[f"PGD {norm}"] = PGD(eps=eps, norm=norm, steps=STEPS), FoolboxAttack(attack=pgd, norm=norm, eps=eps)
    for norm in ("Linf", "L2"):
        fgm = getattr(f, f"{norm}FastGradientAttack")()
        pairs[f"FGSM {norm}"] = (
            FGSM(eps=EPS[norm], norm=norm),
            FoolboxAttack(attack=fgm, norm=norm, eps=EPS[norm]),
        )
    mifgsm = f.LinfMomentumIterativeFastGradientMethod(steps=10, rel_stepsize=0.1)
    pairs["MIFGSM Linf"] = MIFGSM(eps=EPS["Linf"], steps=10), FoolboxAttack(attack=mifgsm, eps=EPS["Linf"])

    def nearest(attack: Any, norm: str = "L2") -> Attack:
        return FoolboxMinimalNormAttack(attack=attack, norm=norm)

    cw = f.L2CarliniWagnerAttack(binary_search_steps=9, steps=NEAREST_STEPS, stepsize=CW_RATE)
    pairs |= {
        "DeepFool L2": (DeepFool(), nearest(f.L2DeepFoolAttack())),
        "DeepFool Linf": (DeepFool(norm="Linf"), nearest(f.LinfDeepFoolAttack(), "Linf")),
        "CarliniWagner L2": (our_cw(), nearest(cw)),
        "DDN L2": (DDN(steps=NEAREST_STEPS), nearest(f.DDNAttack(steps=NEAREST_STEPS))),
    }
    for norm, name in (("Linf", "LInf"), ("L2", "L2"), ("L1", "L1"), ("L0", "L0")):
        fmn = getattr(f, f"{name}FMNAttack")(steps=NEAREST_STEPS)
        pairs[f"FMN {norm}"] = FMN(norm=norm, steps=NEAREST_STEPS), nearest(fmn, norm)
    return pairs


LIBRARIES: dict[str, Callable[[], dict[str, tuple[Attack, Attack]]]] = {
    "torchattacks": torchattacks_pairs,
    "foolbox": foolbox_pairs,
}


def compare(net: nn.Module, x: Tensor, y: Tensor, ours: Attack, theirs: Attack, seeds: int) -> dict[str, Any]:
    """What both reach on ``x`` (N, ...) over ``seeds`` runs, and their mean queries for a sample and run."""
    nearest = isinstance(ours, MinimalNormAttack)
    row: dict[str, Any] = {"measure": "median distance" if nearest else "success"}
    rates = []
    for side, attack in (("ours", ours), ("theirs", theirs)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of points not used: they count as failures
            runs = [replace(attack, seed=seed).run(net, x, y) for seed in range(1 if nearest else seeds)]
        success, distance = (torch.cat([getattr(r, name) for r in runs]) for name in ("success", "distance"))
        reached = torch.where(success, distance, math.inf).median().item()
        row[side] = {
            "success": success.double().mean().item(),
            "median distance": reached if math.isfinite(reached) else None,
            "forwards": torch.cat([r.forwards for r in runs]).double().mean().item(),
            "backwards": torch.cat([r.backwards for r in runs]).double().mean().item(),
            "attack": attack.describe(),
        }
        rates.append(success.double().reshape(len(runs), len(x)).mean(0))
    gap = rates[0] - rates[1]
    row["success, difference and standard error"] = [gap.mean().item(), gap.std().item() / len(x) ** 0.5]
    return row


def at_least_as_strong(row: dict[str, Any]) -> bool:
    """Success not below theirs by more than two standard errors, over samples; a distance at most 1.02 times theirs.

    Two runs of the same random search differ by as much.
    """
    if row["measure"] == "success":
        gap, error = row["success, difference and standard error"]
        return bool(gap >= -2 * error)
    ours, theirs = row["ours"][row["measure"]], row["theirs"][row["measure"]]
    return theirs is None or (ours is not None and ours <= 1.02 * theirs)


def one_by_one(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, int]:
    """Of how many samples the outcome in float32 is another one when they are searched one by one, not 64 at a time."""
    attacks = [
        PGD(eps=EPS["Linf"]),
        APGD(eps=EPS["Linf"]),
        APGDT(eps=EPS["Linf"]),
        Square(eps=EPS["Linf"], n_queries=500),
    ]
    found = {}
    for attack in attacks:
        one, many = (attack.run(net, x, y, engine=Engine(slots=slots)).success for slots in (1, 64))
        found[type(attack).__name__] = int((one != many).sum())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    net, data = network(), digits("test").first(options.samples)
    x, y = data.images(), data.y
    rows, versions = [], {}
    for library, pairs in LIBRARIES.items():
        try:
            listed = pairs()
        except ImportError as error:
            print(f"{library}: skipped: {error}")
            continue
        versions[library] = version(library)
        for name, (ours, theirs) in listed.items():
            row = {"attack": name, "library": library} | compare(net, x, y, ours, theirs, options.seeds)
            row["at least as strong"] = at_least_as_strong(row)
            rows.append(row)
            a, b = (row[side][row["measure"]] for side in ("ours", "theirs"))
            shown = " against ".join("none" if v is None else f"{v:.4f}" for v in (a, b))
            print(
                f"{name:18} {library:12} {row['measure']:16} {shown}{'' if row['at least as strong'] else '  WEAKER'}"
            )
    few = 50
    differ = one_by_one(net, x[:few], y[:few])
    print(f"float32 outcomes that differ between one sample and 64 in a pass, of {few}: {differ}")
    if options.out is not None:
        settings = {
            "command": f"python benchmarks/parity.py --samples {options.samples} --seeds {options.seeds}",
            "samples": len(x),
            "seeds": options.seeds,
            "versions": versions,
            "environment": environment(),
        }
        found = {"rows": rows, f"float32 outcomes that differ between batch sizes 1 and 64, of {few}": differ}
        write_json(options.out / "parity.json", found | settings)


if __name__ == "__main__":
    main()
