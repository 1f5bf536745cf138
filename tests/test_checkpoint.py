"""A checkpoint is whole or not there, and comes back exactly, whatever happens to its writer."""

import json
import math
import multiprocessing
import os
import resource
import shutil

import pytest
import torch
from torch import nn

from robustgen.files import load_state
from robustgen.training import epochs_done, latest_checkpoint, load_checkpoint, save_checkpoint
from robustgen.training.checkpoint import pack, unpack

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
