"""What a GPU is asked to show, in a few minutes: ``python benchmarks/accelerator.py [--data-root DIR] [--minutes 8]``.

Part after part, each in a process of its own with a share of the time, so that one that fails or hangs costs no other;
what a part leaves of its time goes to those after it. When a part ends, its numbers are written into
``results/accelerator/<card>/<part>.json`` and a line says how it went. The exit code is 1 if any part failed.
``--smoke`` rehearses all of them on the CPU with the embedded digits, in some two minutes.

A part is a function and an entry in ``PARTS``. It has ``task.left()`` seconds, and notes what it finds as soon as it is
known: what is noted is kept even where the part is killed.

DIR may hold ``cifar10-jpeg``, a folder of images, and the named data sets; parts without data are skipped.
"""

import argparse
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerator_task import Skipped, Task

from robustgen.files import environment, read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("numpy", "scipy", "sklearn", "safetensors", "torchvision", "tqdm")  # by every part
GRACE = 10.0  # seconds of a part's time that are kept for it to stop in
LATE = "out of time"
SEED = 0


@dataclass(frozen=True)
class Part:
    """``run`` notes what it finds, and raises where it fails; ``share`` of the time, ``needs`` in packages."""

    run: Callable[[Task], None]
    share: float
    needs: tuple[str, ...] = ()


# --- the parts ---------------------------------------------------------------------------------------------------


def tests(task: Task) -> None:
    """The tests marked ``cuda``: attacks, detectors, models and resumed trainings on the GPU against the CPU."""
    log = task.work / "tests.xml"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "tests/test_accelerator.py", "-m", "cuda", "-p", "no:cacheprovider"]
    command += ["--accelerator", task.device.type, f"--junitxml={log}", "--tb=short", "-W", "default"]
    if task.device.type == "cuda" and importlib.util.find_spec("xdist") is not None:
        command += ["-n", "4"]
    if task.smoke:
        command += ["-k", "APGD or random_numbers or recurrent or Mahalanobis or PixelCNN or resumes"]
    code = _call(command, task)
    if not log.is_file():
        raise RuntimeError(f"pytest ended with {code} and no report, see tests.log")
    suite = next(xml.etree.ElementTree.parse(log).iter("testsuite"))
    number = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    wrong = number["failures"] + number["errors"]
    passed = number["tests"] - wrong - number["skipped"]
    failed = [
        {"test": case.get("name"), "why": (trouble.get("message") or "").splitlines()[:1]}
        for case in suite.iter("testcase")
        for trouble in case
        if trouble.tag in ("failure", "error")
    ]
    line = f"{passed} passed, {wrong} failed, {number['skipped']} skipped"
    task.note(line, passed=passed, skipped=number["skipped"], failed=failed)
    if code or not passed:
        raise RuntimeError(f"{line}, see tests.log")


def attacks(task: Task) -> None:
    """``benchmarks/attacks.py``: PGD against its floor and the installed peers, then AutoAttack where time is left."""
    if task.data_root is None and not task.smoke:
        raise Skipped("no --data-root")
    out = task.work / "attacks"
    options = ["--device", task.device.type, "--work", str(out / "networks"), "--rounds", "3"]
    options += ["--smoke"] if task.smoke else ["--data-root", str(task.data_root), "--samples", "256"]
    few = ["convnet", "convnet, adversarially trained"]
    calls = [
        ["--tables", "1", "2", *(["--networks", few[0], "small resnet with batch norm"] if task.smoke else [])],
        ["--tables", "3", "--rounds-autoattack", "1", "--networks", *few[: 1 if task.smoke else 2]],
    ]
    measured: dict[str, Any] = {}
    for k, call in enumerate(calls):
        into = out / f"call{k}"
        for old in into.glob("*.json"):
            old.unlink()
        code = _call([sys.executable, "benchmarks/attacks.py", *options, *call, "--out", str(into)], task)
        for path in sorted(into.glob("*.json")):
            measured.setdefault(path.stem, []).extend(read_json(path, {"tables": list})["tables"])
        line = f"{len(measured)} networks, {sum(map(len, measured.values()))} tables"
        task.note(f"{line}, out of time" if code == LATE else line, networks=measured)
        if code not in (0, LATE) or (code == LATE and not measured):
            raise RuntimeError(f"benchmarks/attacks.py ended with {code}, see attacks.log")
        if code == LATE or not measured:
            break
    if not measured:
        raise Skipped("no data set of its networks in --data-root")


def cifar10(task: Task) -> None:
    """The recipe ``cifar10-resnet18``, trained for as long as is left and attacked."""
    from accelerator_cifar10 import train_and_attack  # not before the packages that it needs are known to be there

    train_and_attack(task)


PARTS = {
    "tests": Part(tests, 0.25, ("pytest", "hypothesis")),
    "attacks": Part(attacks, 0.2),
    "cifar10-resnet18": Part(cifar10, 0.55),
}


def _call(command: list[str], task: Task) -> int | str:
    """Run a command of the project, its output in a log; its exit code, or ``LATE`` where it was killed."""
    with open(task.work / f"{task.notes.stem}.log", "a") as log:
        log.write(f"\n{shlex.join(command)}\n")
        log.flush()
        try:
            return subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, timeout=task.left()).returncode
        except subprocess.TimeoutExpired:
            return LATE


# --- one part, in a process of its own ---------------------------------------------------------------------------


def run_part(name: str, options: argparse.Namespace) -> None:
    """Run a part here; its notes say how it ended: "state" is done, skipped or failed."""
    device = torch.device("cpu" if options.smoke else "cuda")
    if options.smoke:
        torch.set_num_threads(1)  # its networks are small, and the computer may be busy
    notes = options.work / f"{name}.json"
    task = Task(device, options.smoke, options.data_root, options.work, options.until, notes)
    state = "failed"
    try:
        PARTS[name].run(task)
        state = "done"
    except Skipped as reason:
        state = "skipped"
        task.note(str(reason))
    except KeyboardInterrupt:
        task.note("; ".join(filter(None, [task.found.get("line"), "out of time"])))
    except Exception as error:
        task.note("; ".join(f"{type(error).__name__}: {error}".splitlines()))
        raise
    finally:
        write_json(task.notes, task.found | {"state": state})
    sys.exit(state == "failed")


# --- all parts ---------------------------------------------------------------------------------------------------


def run_all(options: argparse.Namespace, out: Path) -> bool:
    """Run the parts that were asked for, write and say what came of each; whether none failed."""
    until = time.monotonic() + 60 * options.minutes
    shares = {name: PARTS[name].share for name in options.parts}
    facts = _facts(options)
    well = True
    for name in options.parts:
        allowed = (until - time.monotonic()) * shares[name] / sum(shares.values())
        del shares[name]
        started = time.monotonic()
        missing = _missing((*NEEDED, *PARTS[name].needs))
        found = {"state": "failed", "line": f"needs {', '.join(missing)}"} if missing else _run(name, options, allowed)
        state, line, seconds = found.pop("state"), found.pop("line"), time.monotonic() - started
        well &= state != "failed"
        print(f"{name:18}{state:9}{seconds:5.0f} s  {line}", flush=True)
        about = {"part": name, "state": state, "what": line, "seconds": round(seconds, 1)}
        about |= {"seconds allowed": round(allowed, 1)}
        write_json(out / f"{name}.json", about | facts | found)
    return well


def _run(name: str, options: argparse.Namespace, allowed: float) -> dict[str, Any]:
    """What the part has noted within the ``allowed`` seconds. It is asked to stop, then killed, before they end.

    Its process is the script that was started, again: one that has parts of its own may call ``main`` too.
    """
    notes, log = options.work / f"{name}.json", options.work / f"{name}.log"
    notes.unlink(missing_ok=True)
    grace = min(GRACE, allowed / 10)
    command = [sys.executable, sys.argv[0], "--only", name, "--until", str(time.time() + allowed - 2 * grace)]
    command += ["--work", str(options.work), *(["--smoke"] if options.smoke else [])]
    command += ["--data-root", str(options.data_root)] if options.data_root is not None else []
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    with open(log, "w") as file:
        child = subprocess.Popen(command, cwd=ROOT, env=quiet, stdout=file, stderr=file, start_new_session=True)
    try:
        for patience, last in ((allowed - grace, signal.SIGTERM), (grace, signal.SIGKILL)):
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, patience))
                break
            os.killpg(child.pid, last)
    finally:
        with suppress(ProcessLookupError):  # what it has started may have outlived it
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    found = {"line": f"no result, see {log.name}"}
    with suppress(FileNotFoundError):
        found |= read_json(notes, dict)
    if child.returncode or "state" not in found:
        late = "; out of time" if child.returncode < 0 else ""
        found |= {"state": "failed", "line": f"{found['line']}{late}"}
    return found


def _facts(options: argparse.Namespace) -> dict[str, Any]:
    arguments = [Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:]]  # no folders of this computer
    packages = {}
    for name in ("scikit-learn", "scipy", "safetensors", "pytest"):
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        "command": shlex.join(["python", "benchmarks/accelerator.py", *arguments]),
        "scale": "smoke" if options.smoke else "full",
        "seed": SEED,
        "packages": packages,
        "environment": environment(),
    }


def _missing(packages: tuple[str, ...]) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="for all parts together; default 8, of --smoke 2")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--work", type=Path, help="folder of trainings and logs; default runs/accelerator")
    parser.add_argument("--out", type=Path, help="folder of the results; default results/accelerator/<card>")
    parser.add_argument("--smoke", action="store_true", help="on the CPU; work and results go into temporary folders")
    parser.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("data_root", "work", "out"):
        if (path := getattr(options, name)) is not None:
            setattr(options, name, path.resolve())
    if options.only:
        return run_part(options.only, options)
    if options.minutes is None:
        options.minutes = 2.0 if options.smoke else 8.0
    if not options.minutes > 0:
        sys.exit(f"--minutes must be > 0, got {options.minutes:g}")
    if options.data_root is not None and not options.data_root.is_dir():
        sys.exit(f"--data-root {options.data_root}: no such folder")
    if not options.smoke and not torch.cuda.is_available():
        sys.exit("no GPU here; --smoke rehearses on the CPU")
    if missing := _missing((*NEEDED, *(need for name in options.parts for need in PARTS[name].needs))):
        print(f"missing packages: {', '.join(missing)}; the parts that need them will fail", flush=True)
    card = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()) if not options.smoke else "smoke"
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) if options.smoke else ROOT
        options.work = options.work or kept / "runs" / "accelerator"
        options.work.mkdir(parents=True, exist_ok=True)
        well = run_all(options, options.out or kept / "results" / "accelerator" / card)
    sys.exit(not well)


if __name__ == "__main__":
    main()
