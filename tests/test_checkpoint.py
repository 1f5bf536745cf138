"""A checkpoint is whole or not there, whatever happens to its writer; one writer to a directory, no signal loses it."""

import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from robustgen import cli, fortify
from robustgen.detectors import MaxSoftmax
from robustgen.evaluation import chunks, evaluate_detector_robustness, evaluate_robustness
from robustgen.files import load_state, sweep, write_bytes
from robustgen.generative import VAE, fit
from robustgen.locks import alone
from robustgen.training import (
    ClassifierObjective,
    Trainer,
    epochs_done,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from robustgen.training.checkpoint import pack, unpack
from robustgen.training.metrics import write_rows

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "torch._dynamo", "robustgen.data", "robustgen.training"])  # imported once


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def save(run, step, value=1.0):
    return save_checkpoint(run, step, {"w": torch.full((3,), value)}, {"m": torch.zeros(2), "lr": 0.1}, {"seed": 0})


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=0.1 / 3, amsgrad=True),
        lambda p: torch.optim.AdamW([{"params": p[:1], "lr": 0.3}, {"params": p[1:]}], weight_decay=1 / 3),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.RMSprop(p, centered=True),
    ],
)
def test_an_optimizer_goes_on_bitwise(tmp_path, make):
    def steps(net, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            net(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()

    net, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer, other = make(list(net.parameters())), make(list(twin.parameters()))
    steps(net, optimizer, 3)
    save_checkpoint(tmp_path, 3, net.state_dict(), {"optimizer": optimizer.state_dict()}, {})
    loaded = load_checkpoint(tmp_path)
    assert equal(loaded.training_state["optimizer"], optimizer.state_dict())
    load_state(twin, loaded.model_state)
    other.load_state_dict(loaded.training_state["optimizer"])
    steps(net, optimizer, 3)
    steps(twin, other, 3)
    assert equal(net.state_dict(), twin.state_dict())


def test_state_comes_back_exactly(tmp_path):
    shared = torch.rand(4)
    model = {
        "half": torch.rand(3).bfloat16(),
        "last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "tied": shared,
        "other": shared,
        "view": shared[1:],
    }
    state = {
        "floats": [0.1 + 0.2, 1e-308, -0.0, math.inf, math.nan],
        "nested": {0: {"a": (1, None, True, "ü")}, 5: []},
        "tensors": (torch.rand(2), [torch.tensor(3.0, dtype=torch.float64)]),
    }
    path = save_checkpoint(tmp_path, 12, model, state, {"x": [1, 2]})
    loaded = load_checkpoint(tmp_path)
    assert (loaded.path, loaded.step, loaded.config) == (path, 12, {"x": [1, 2]})
    assert loaded.model_state.keys() == model.keys()
    assert all(equal(loaded.model_state[k], model[k]) for k in model)
    assert equal(loaded.training_state, state)
    assert math.copysign(1, loaded.training_state["floats"][2]) == -1
    assert sorted(p.name for p in path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "training_state.json",
        "training_state.safetensors",
    ]


def test_without_a_training_state_there_are_two_files(tmp_path):
    path = save_checkpoint(tmp_path, 3, {"w": torch.ones(2)}, {}, {"epochs": 1})
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors"]
    assert (load_checkpoint(tmp_path).training_state, epochs_done(tmp_path)) == ({}, None)
    (path / "training_state.json").write_text('{"dict": []}')  # of an earlier version, and half of its files
    with pytest.raises(FileNotFoundError, match=r"training_state\.safetensors"):
        load_checkpoint(tmp_path)


def test_what_cannot_be_stored_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"'a\.1' is a set"):
        save_checkpoint(tmp_path, 0, {}, {"a": [1, {2}]}, {})
    assert latest_checkpoint(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="lacks its tensor 'a'"):
        unpack(pack({"a": torch.ones(1)}, {}), {})


def test_the_last_two_are_kept(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for step in (0, 3, 7):
        save(tmp_path, step)
    root = tmp_path / "checkpoints"
    assert sorted(p.name for p in root.iterdir()) == ["latest", "step-00000003", "step-00000007"]
    assert latest_checkpoint(tmp_path) == root / "step-00000007"


def test_saving_a_step_again_never_touches_the_latest(tmp_path):
    for value in (1.0, 2.0, 3.0):
        save(tmp_path, 5, value)
        assert load_checkpoint(tmp_path).model_state["w"][0] == value
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*")) == ["step-00000005", "step-00000005-again"]


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    save(tmp_path, 1)
    root = tmp_path / "checkpoints"
    (root / ".robustgen-0123456789abcdef.part").mkdir()
    (root / ".robustgen-0123456789abcdef.part" / "model.safetensors").write_bytes(b"half")
    (root / ".robustgen-fedcba9876543210.part").write_bytes(b"st")
    shutil.copytree(root / "step-00000001", root / "step-00000002")  # renamed, but not yet the latest
    assert load_checkpoint(tmp_path).step == 1
    save(tmp_path, 2, value=9.0)
    assert load_checkpoint(tmp_path).model_state["w"][0] == 9
    assert sorted(p.name for p in root.iterdir()) == ["latest", "step-00000001", "step-00000002"]


def test_a_writer_that_fails_anywhere_leaves_a_whole_latest(tmp_path, monkeypatch):
    """Each fsync, rename and replace fails in turn: the latest is then the old one or the new one, whole."""
    outcomes = []
    for fail_at in range(100):
        run = tmp_path / str(fail_at)
        save(run, 1, value=1.0)
        calls = 0

        def failing(real, at=fail_at):
            def call(*args):
                nonlocal calls
                calls += 1
                if calls == at + 1:
                    raise KeyboardInterrupt
                return real(*args)

            return call

        with monkeypatch.context() as patch:
            for name in ("fsync", "rename", "replace"):
                patch.setattr(os, name, failing(getattr(os, name)))
            try:
                save(run, 2, value=2.0)
                finished = True
            except KeyboardInterrupt:
                finished = False
        loaded = load_checkpoint(run)
        assert loaded.model_state["w"][0] == loaded.step
        assert not list((run / "checkpoints").glob(".*"))
        outcomes.append(loaded.step)
        if finished:
            break
    assert len(outcomes) > 12  # four files of three calls each, and then the directory and the latest
    assert outcomes == sorted(outcomes)
    assert outcomes[-1] == 2


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "training_state.safetensors", "training_state.json"]
)
@pytest.mark.parametrize("keep", [0.0, 0.6])
def test_a_truncated_file_is_named(tmp_path, name, keep):
    file = save(tmp_path, 1) / name
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load_checkpoint(tmp_path)


def test_nothing_to_load(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(tmp_path)
    path = save(tmp_path, 1)
    (path / "config.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        load_checkpoint(tmp_path)
    (path.parent / "latest").write_text("../../etc\n")
    with pytest.raises(ValueError, match="latest"):
        load_checkpoint(tmp_path)


def write_on_a_full_disk(run, queue):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        save_checkpoint(run, 2, {"w": torch.zeros(100_000)}, {}, {})
    except OSError as error:
        queue.put(str(error))


def test_a_full_disk(tmp_path):
    save(tmp_path, 1)
    queue = CONTEXT.SimpleQueue()
    child = CONTEXT.Process(target=write_on_a_full_disk, args=(tmp_path, queue))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    message = queue.get()
    assert "checkpoint of step 2 could not be written (File too large)" in message
    assert "step-00000001" in message
    assert load_checkpoint(tmp_path).step == 1
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000001"]


X, Y = torch.rand(24, 6, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 2


def network():
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))


def files(directory):
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def parts(directory):
    return [p.name for p in directory.rglob("*.part")]


class Child:
    """A Python process that says "ready" and waits to be killed."""

    def __init__(self, script, *arguments):
        command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ready(self):
        assert self.process.stdout.readline().strip() == "ready"
        return self

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start():
    """Starts a :class:`Child`, which does not outlive the test."""
    with ExitStack() as stack:

        def started(*arguments):
            child = Child(*arguments)
            stack.callback(child.kill)
            return child

        yield started


HOLDER = """
    import sys
    from pathlib import Path
    from robustgen.locks import alone
    with alone(Path(sys.argv[1]), wait=False):
        print("ready", flush=True)
        sys.stdin.read()
"""

WRITER = """
    import os, sys
    from robustgen.files import write_bytes
    def wait(*_):
        print("ready", flush=True)
        sys.stdin.read()
    os.replace = wait
    write_bytes(sys.argv[1], b"0" * 10_000)
"""

# --- one writer to a directory -----------------------------------------------------------------------------------


def test_a_directory_is_held_by_one_process_and_free_when_that_is_killed(tmp_path, start):
    where = tmp_path / "run"
    child = start(HOLDER, where).ready()
    with pytest.raises(BlockingIOError, match=r"run is in use by another process"), alone(where, wait=False):
        pass
    child.kill()
    with alone(where, wait=False), alone(where, wait=False), alone(tmp_path / "x" / ".." / "run", wait=True):
        pass  # who is in may enter again
    with alone(where, wait=False):
        pass


def test_a_directory_in_which_nothing_was_written_does_not_stay(tmp_path):
    with alone(tmp_path / "empty", wait=False):
        assert (tmp_path / "empty").is_dir()
    with alone(tmp_path / "full", wait=False):
        write_bytes(tmp_path / "full" / "a", b"1")
    (tmp_path / "there").mkdir()
    with alone(tmp_path / "there", wait=False):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "there"]


def test_threads_take_turns(tmp_path):
    inside, most = [], []

    def work():
        with alone(tmp_path / "run", wait=True):  # made and removed by each
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 16


def refused_in_a_thread(call):
    """What ``call`` raises in another thread while this one holds the directory."""
    raised = []

    def work():
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return raised


@pytest.fixture(scope="module")
def images():
    return (torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("kind", ["classifier", "autoencoders", "generative", "robustness", "detector robustness"])
def test_a_run_in_use_is_refused_and_not_changed(tmp_path, kind, begun, images):
    where, net = tmp_path / "run", network()
    detector = MaxSoftmax(net).fit(X).calibrate(X)
    options = {"run_dir": where, "resume": True, "progress": False}
    call = {
        "classifier": lambda: Trainer(ClassifierObjective(), **options).fit(net, (X, Y)),
        "autoencoders": lambda: fortify(net, ["1"], example_input=X).fit_autoencoders(X, epochs=1, **options),
        "generative": lambda: fit(VAE((1, 8, 8), quantization="stochastic"), images, **options),
        "detector robustness": lambda: evaluate_detector_robustness(net, detector, X, Y, eps=0.1, steps=2, **options),
        "robustness": lambda: evaluate_robustness(net, X, Y, eps=0.1, masking_tests=False, **options),
    }[kind]
    if begun:
        call()
    with alone(where, wait=False):
        before = files(where)
        (error,) = refused_in_a_thread(call)
        assert isinstance(error, BlockingIOError)
        assert "is in use by another process" in str(error)
        assert files(where) == before
    call()


@pytest.mark.parametrize(
    "arguments", [("train",), ("train", "vae", "--set", "quantization=stochastic"), ("attack", "--run")]
)
def test_a_command_is_refused_in_one_line(tmp_path, capsys, start, arguments):
    common = ["--data", "digits", "--limit", "60", "--quiet"]
    if arguments[0] == "attack":
        assert cli.main(["train", *common, "--epochs", "1", "--width", "4", "--run", str(tmp_path / "net")]) == 0
        arguments = [*arguments, tmp_path / "net", "--no-masking-tests", "--out", tmp_path / "run"]
    else:
        arguments = [*arguments, "--epochs", "1", "--run", tmp_path / "run"]
    arguments = [*map(str, arguments), *common]
    child = start(HOLDER, tmp_path / "run").ready()
    capsys.readouterr()
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert files(tmp_path / "run") == {}
    child.kill()
    assert cli.main(arguments) == 0
    child = start(HOLDER, tmp_path / "run").ready()
    before = files(tmp_path / "run")
    assert cli.main([*arguments, "--resume"]) == 1
    assert f"{tmp_path / 'run'} is in use by another process" in capsys.readouterr().err
    assert files(tmp_path / "run") == before
    child.kill()
    assert cli.main([*arguments, "--resume"]) == 0


# --- unfinished files --------------------------------------------------------------------------------------------


def test_a_dead_writers_file_is_swept_and_a_live_ones_is_not(tmp_path, start, monkeypatch):
    start(WRITER, tmp_path / "dead").ready().kill()
    written, go_on, replace = threading.Event(), threading.Event(), os.replace

    def wait(*paths):
        written.set()
        go_on.wait(60)
        replace(*paths)

    monkeypatch.setattr(os, "replace", wait)
    live = threading.Thread(target=write_bytes, args=(tmp_path / "live", b"0" * 10_000))
    assert len(parts(tmp_path)) == 1
    live.start()
    assert written.wait(60)
    monkeypatch.setattr(os, "replace", replace)
    write_bytes(tmp_path / "other", b"1")
    assert len(parts(tmp_path)) == 1
    go_on.set()
    live.join()
    assert {p.name: len(content) for p, content in files(tmp_path).items()} == {"live": 10_000, "other": 1}


def test_a_file_swept_before_it_is_locked_is_begun_again(tmp_path, monkeypatch):
    from robustgen import files as module

    real, swept = module.lock, []

    def slow(handle, *, wait):
        if not swept:
            swept.extend(parts(tmp_path))
            with monkeypatch.context() as patch:
                patch.setattr(module, "lock", real)
                sweep(tmp_path)
        return real(handle, wait=wait)

    monkeypatch.setattr(module, "lock", slow)
    write_bytes(tmp_path / "a", b"1")
    assert len(swept) == 1
    assert {p.name: content for p, content in files(tmp_path).items()} == {"a": b"1"}


def plant(kind, path, victim):
    {
        "symbolic link": lambda: path.symlink_to(victim),
        "hard link": lambda: os.link(victim, path),
        "FIFO": lambda: os.mkfifo(path),
        "directory": lambda: path.mkdir(),
    }[kind]()


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "FIFO", "directory"])
def test_what_is_planted_at_a_part_name_is_not_followed(tmp_path, monkeypatch, kind):
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    victim.write_bytes(b"precious")
    with ExitStack() as stack, monkeypatch.context() as patch:
        patch.setattr("robustgen.files.part_name", lambda: ".foreseen.part")
        patch.setattr("robustgen.training.checkpoint.part_name", lambda: ".foreseen")
        (run / "checkpoints").mkdir()
        for planted in (run / ".foreseen.part", run / "checkpoints" / ".foreseen"):
            plant(kind, planted, victim)
        for write in (lambda: write_bytes(run / "a", b"1"), lambda: save_checkpoint(run, 0, {}, {}, {})):
            stack.enter_context(pytest.raises(OSError, match="File exists"))
            write()
    plant(kind, run / ".robustgen-0123456789abcdef.part", victim)
    write_bytes(run / "a", b"1")
    write_rows(run / "metrics.jsonl", [{"loss": 1.0}])
    save_checkpoint(run, 0, {}, {}, {})
    assert victim.read_bytes() == b"precious"
    assert (run / "a").read_bytes() == b"1"


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "FIFO"])
def test_the_files_of_a_run_are_replaced_and_never_written_through(tmp_path, kind):
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    victim.write_bytes(b"precious")
    plant(kind, run / "metrics.jsonl", victim)
    (run / "checkpoints").mkdir()
    plant(kind, run / "checkpoints" / "step-00000001", victim)
    trainer = Trainer(ClassifierObjective(), run_dir=run, resume=True, progress=False, batch_size=24)
    trainer.fit(network(), (X, Y))
    assert victim.read_bytes() == b"precious"
    assert load_checkpoint(run).step == 1
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1


def test_files_have_the_permissions_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"1")
        path = save_checkpoint(tmp_path, 0, {}, {}, {})
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert path.stat().st_mode & 0o777 == 0o750


# --- SIGTERM -----------------------------------------------------------------------------------------------------


def test_sigterm_stops_an_attack_in_one_line_and_keeps_what_is_finished(tmp_path, capsys, monkeypatch):
    common = ["--data", "digits", "--limit", "60", "--quiet"]
    assert cli.main(["train", *common, "--epochs", "1", "--width", "4", "--run", str(tmp_path / "net")]) == 0
    save, left = chunks._Store.save, [2]

    def counted(self, *arguments):
        save(self, *arguments)
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(chunks._Store, "save", counted)
    attack = ["attack", "--run", str(tmp_path / "net"), *common, "--no-masking-tests", "--out", str(tmp_path / "out")]
    assert cli.main(attack) == 1
    assert capsys.readouterr().err.startswith("robustgen: error: interrupted; run it again, with --resume")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    clocks = ("seconds.json", "wall_clock.json")
    kept = {path: content for path, content in files(tmp_path / "out").items() if path.name not in clocks}
    assert len(kept) == 4  # the options, the plan and two chunks
    assert cli.main([*attack, "--resume"]) == 0
    assert kept.items() <= files(tmp_path / "out").items()


def test_sigterm_in_a_training_command_saves_as_ctrl_c_does(tmp_path, capsys, monkeypatch):
    call, left = ClassifierObjective.__call__, [4]  # the first is a trial

    def counted(self, *arguments):
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # a process group and a supervisor may each send one
        return call(self, *arguments)

    monkeypatch.setattr(ClassifierObjective, "__call__", counted)
    train = ["train", "--data", "digits", "--limit", "60", "--quiet", "--width", "4", "--batch-size", "8"]
    assert cli.main([*train, "--run", str(tmp_path / "cut"), "--epochs", "2"]) == 1
    assert "robustgen: error: interrupted" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "cut").step == 3
    assert cli.main([*train, "--run", str(tmp_path / "cut"), "--epochs", "2", "--resume"]) == 0
    assert cli.main([*train, "--run", str(tmp_path / "whole"), "--epochs", "2"]) == 0
    cut, whole = (load_checkpoint(tmp_path / name).model_state for name in ("cut", "whole"))
    assert all(torch.equal(cut[k], whole[k]) for k in whole)


def test_a_handler_of_the_callers_own_stays(monkeypatch):
    seen = []

    def objective(model, batch, step):
        signal.raise_signal(signal.SIGTERM)
        return {"loss": model(batch.x).square().mean()}

    previous = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        Trainer(objective, progress=False, batch_size=12).fit(network(), X)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert seen == [1, 1]
