"""PGD and AutoAttack against torchattacks, foolbox, ART, adv-lib and auto-attack, whichever are installed.

``python benchmarks/attacks.py --data-root DIR --work DIR [--out results/benchmarks]``, one line for each
network; ``--smoke`` takes seconds: the embedded digits, small budgets. All sides in one process, interleaved, on one
thread; medians and quartiles over rounds.

Three tables for each network, Linf:

1. PGD, every sample all steps (``early_stop=False`` on our side), as multiples of the floor: steps x (forward +
   gradient in the input) on the same prepared module.
2. PGD as a user runs it: solved samples leave on our side, and so do those that go in circles.
3. AutoAttack standard: ours, the parts of torchattacks with the same budget, the reference.

Beside the time: rows forwards and backwards for a sample, and robust accuracy by a forward of the network itself. Peers
are given the network as a user has it, in eval mode and not frozen. "robustgen, unprepared" searches on the network
itself: the difference is what folding and channels-last give; from table 1 to 2, what leaving early gives.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from attack_networks import NETWORKS, prepared
from attack_peers import AUTOATTACK, FULL, PGD_SIDES, Budget, Case, Counted, Run, floor, judged, our_pgd

from robustgen.files import environment, write_bytes

PACKAGES = ("torchattacks", "foolbox", "adversarial-robustness-toolbox", "adv-lib", "autoattack")
SMOKE = Budget(steps=5, n_queries=20)


def available(sides: dict[str, Callable[[], Run]], skipped: dict[str, str]) -> dict[str, Run]:
    """The sides that can be made; why the others cannot goes into ``skipped``."""
    ready = {}
    for name, make in sides.items():
        try:
            ready[name] = make()
        except ImportError as error:
            skipped[name] = str(error)
    return ready


def seconds(case: Case, run: Callable[[], object], seed: int) -> tuple[float, Any]:
    """Wall time of one run and what it returned; the network is put back as peers found it."""
    torch.manual_seed(seed)
    _synchronize(case)
    started = time.perf_counter()
    result = run()
    _synchronize(case)
    took = time.perf_counter() - started
    case.net.eval()
    case.net.zero_grad(set_to_none=True)
    return took, result


def _synchronize(case: Case) -> None:
    if case.x.is_cuda:
        torch.cuda.synchronize()


def race(
    case: Case, sides: dict[str, Run], rounds: int, floor: Callable[[], None] | None = None
) -> list[dict[str, Any]]:
    """A row for each side: a counted run that is not timed, then ``rounds`` timed ones, taking turns."""
    rows = []
    for name, run in sides.items():
        with Counted(case.net) as counted:
            _, found = seconds(case, run, 0)
        rows.append({"side": name} | judged(case, found, counted))
    times: dict[str, list[float]] = {name: [] for name in (*sides, "floor")}
    for turn in range(rounds):
        if floor is not None:
            times["floor"].append(seconds(case, floor, turn)[0])
        for name, run in sides.items():
            times[name].append(seconds(case, run, turn)[0])
    reference = "floor" if floor is not None else next(iter(sides), "floor")
    for row in rows:
        taken = times[row["side"]]
        row["seconds, median"] = statistics.median(taken)
        ratios = sorted(a / b for a, b in zip(taken, times[reference], strict=True))
        row[f"multiple of {reference}, median"] = statistics.median(ratios)
        row["quartiles"] = [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]]
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    for row in rows:
        multiple = next(value for key, value in row.items() if key.startswith("multiple"))
        low, high = row["quartiles"]
        print(
            f"  {row['side']:23}{multiple:7.2f} ({low:.2f} to {high:.2f}) {row['seconds, median']:9.3f} s"
            f"  forwards {row['forwards']:8.1f}  backwards {row['backwards']:7.1f}"
            f"  robust {100 * row['robust accuracy']:5.1f} %"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder of the named data sets")
    parser.add_argument("--work", type=Path, required=True, help="folder in which trained networks are kept")
    parser.add_argument("--out", type=Path, help="folder for attacks.jsonl")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--tables", nargs="+", type=int, choices=(1, 2, 3), default=[1, 2, 3])
    parser.add_argument("--samples", type=int, help="attacked; default: each network's own numbers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rounds-autoattack", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    budget, rounds, long_rounds = FULL, options.rounds, options.rounds_autoattack
    if options.smoke:
        budget, rounds, long_rounds = SMOKE, 2, 1
    for name in options.networks:
        recipe, device = NETWORKS[name], torch.device(options.device)
        few = 8 if options.smoke else options.samples
        n, n_autoattack = (k if few is None or not k else few for k in recipe.samples)
        try:
            n_all = max(n, n_autoattack)
            net, x, y = prepared(name, options.work, options.data_root, options.smoke, n_all, device)
        except (FileNotFoundError, ValueError) as error:
            print(f"\n{name}: skipped: {error}")
            continue
        steps = 3 if options.smoke else recipe.steps
        whole = Case(net, x, y, recipe.eps, steps)
        case = replace(whole, x=whole.x[:n], y=whole.y[:n])
        tables: list[dict[str, Any]] = []
        skipped: dict[str, str] = {}
        peers = {peer: lambda make=make, case=case: make(case) for peer, make in PGD_SIDES.items()}
        for table, title in ((1, "PGD, every sample all steps"), (2, "PGD as a user runs it")):
            if table in options.tables:
                bare, preparation = floor(case)
                ours = {
                    side: lambda table=table, case=case, p=p: our_pgd(case, early_stop=table == 2, prepare=p)
                    for side, p in (("robustgen", True), ("robustgen, unprepared", False))
                }
                rows = race(case, available(ours | peers, skipped), rounds, bare)
                what = f"{n} samples, {steps} steps, eps {case.eps:.3f}, preparation: {', '.join(preparation)}"
                show(f"{name}: {title}, {what}; multiples of the floor", rows)
                facts = {"network": name, "title": title, "samples": n, "steps": steps, "preparation": preparation}
                tables.append({"table": table} | facts | {"rounds": rounds, "rows": rows})
        if 3 in options.tables and n_autoattack:
            case = replace(whole, x=whole.x[:n_autoattack], y=whole.y[:n_autoattack])
            sides = {side: lambda make=make, case=case: make(case, budget) for side, make in AUTOATTACK.items()}
            rows = race(case, available(sides, skipped), long_rounds)
            show(
                f"{name}: AutoAttack standard, {n_autoattack} samples, eps {case.eps:.3f}; multiples of the first", rows
            )
            facts = {"network": name, "title": "AutoAttack standard", "samples": n_autoattack} | vars(budget)
            tables.append({"table": 3} | facts | {"rounds": long_rounds, "rows": rows})
        for side, reason in skipped.items():
            print(f"  skipped: {side}: {reason}")
        if options.out is not None:
            settings = {
                "command": shlex.join(["python", "benchmarks/attacks.py", *_portable(sys.argv[1:])]),
                "seeds": "ours 0; peers are seeded with the number of the round, before each run",
                "skipped": skipped,
                "versions": {package: v for package in PACKAGES if (v := _version(package)) is not None},
                "environment": environment(),
            }
            _keep(options.out / "attacks.jsonl", {"network": name, "tables": tables} | settings)


def _keep(path: Path, found: dict[str, Any]) -> None:
    """Put the line of a network into the file, in place of an older one."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    lines = [line for line in lines if line["network"] != found["network"]] + [found]
    write_bytes(path, "".join(f"{json.dumps(line)}\n" for line in lines).encode())


def _portable(arguments: list[str]) -> list[str]:
    """The command line without the folders of this computer."""
    return [Path(a).name if Path(a).is_absolute() else a for a in arguments]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
