"""The trainer: exact resume whatever kills it, the same under DDP, and nothing of the caller's is disturbed."""

import json
import multiprocessing
import os
import random
import signal
import socket
import threading
import time
from collections import Counter, UserDict
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from robustgen.data import ArrayDataset
from robustgen.locks import alone
from robustgen.structure import differences
from robustgen.training import (
    Batch,
    ClassifierObjective,
    Trainer,
    as_source,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    unwrap,
)
from robustgen.training.batches import epoch_order

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "torch._dynamo", "robustgen.data", "robustgen.training"])  # imported once


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def data(n=96):
    g = torch.Generator().manual_seed(1)
    x = torch.rand(n, 8, generator=g)
    return x, (x.sum(1) > 4).long()


def network(seed=3):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Slow(ClassifierObjective):
    """Leaves time to be killed in."""

    def __call__(self, model, batch, step):
        time.sleep(0.008)
        return super().__call__(model, batch, step)


def long_run(run_dir, resume=True, epochs=6):
    """Everything that has a state: dropout, batch norm, momentum, EMA, a schedule, checkpoints within epochs."""
    torch.set_num_threads(1)
    model = network()
    trainer = Trainer(
        Slow(),
        optimizer=sgd,
        schedule=lambda t: 1 - t,
        epochs=epochs,
        batch_size=16,
        seed=5,
        ema=0.9,
        clip_norm=1.0,
        run_dir=run_dir,
        resume=resume,
        checkpoint_every=4,
        progress=False,
    )
    history = trainer.fit(model, data(), val=data(32))
    return model, history


def killable_run(run_dir, started):
    started.set()
    long_run(run_dir)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    model, history = long_run(run)
    return run, weights(model), history


def assert_same_run(run, reference):
    whole, final, history = reference
    ours, theirs = load_checkpoint(run), load_checkpoint(whole)
    assert ours.step == theirs.step
    for name in ("model.safetensors", "training_state.safetensors", "training_state.json", "config.json"):
        assert (ours.path / name).read_bytes() == (theirs.path / name).read_bytes(), name
    assert same(ours.model_state, final)
    assert not list(run.rglob("*.part"))
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == history


# --- killed and resumed ------------------------------------------------------------------------------------------


def test_killed_at_random_moments_it_ends_bitwise_the_same(tmp_path, uninterrupted):
    run, dice, killed, steps = tmp_path / "run", random.Random(0), 0, set()
    for attempt in range(40):
        started = CONTEXT.Event()
        child = CONTEXT.Process(target=killable_run, args=(run, started))
        child.start()
        assert started.wait(60)
        child.join(60 if attempt == 39 else dice.uniform(0.0, 0.3))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            killed += 1
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        steps.add(load_checkpoint(run).step if latest_checkpoint(run) else None)
    assert child.exitcode == 0
    assert killed >= 2
    assert len(steps - {None, 0}) >= 2, f"killed too seldom between checkpoints to tell: {steps}"
    assert_same_run(run, uninterrupted)


def test_a_finished_run_resumes_to_itself(tmp_path, uninterrupted):
    _, final, history = uninterrupted
    model, again = long_run(tmp_path / "run")
    before = latest_checkpoint(tmp_path / "run")
    model, again = long_run(tmp_path / "run")
    assert again == history
    assert same(weights(model), final)  # the averages, though the checkpoint holds both
    assert latest_checkpoint(tmp_path / "run") == before


class Interrupting(ClassifierObjective):
    """Sends a signal, once, from inside the given call."""

    def __init__(self, call, signum=signal.SIGINT):
        super().__init__()
        self.left, self.signum = call, signum

    def __call__(self, model, batch, step):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.signum)
        return super().__call__(model, batch, step)

    def describe(self):
        return "interrupting"


@pytest.mark.parametrize(  # the sixth step ends the first epoch; 7 and 8 are in validation
    ("call", "signum"),
    [(1, signal.SIGINT), (3, signal.SIGTERM), (6, signal.SIGINT), (7, signal.SIGTERM), (8, signal.SIGINT)],
)
def test_a_signal_loses_nothing(tmp_path, call, signum):
    def run(directory, call, resume=False):
        model = network()
        options = {"epochs": 2, "batch_size": 16, "checkpoint_every": 100, "progress": False, "ema": 0.5}
        trainer = Trainer(Interrupting(call, signum), run_dir=directory, resume=resume, **options)
        return model, trainer.fit(model, data(), val=data(32))

    reference, history = run(tmp_path / "whole", -1)
    handler, random_state = signal.getsignal(signum), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", call)
    assert signal.getsignal(signum) == handler
    assert torch.equal(torch.get_rng_state(), random_state)
    assert load_checkpoint(tmp_path / "cut").step == min(call, 6)
    model, resumed = run(tmp_path / "cut", -1, resume=True)
    assert resumed == history
    assert same(weights(model), weights(reference))


def test_ctrl_c_within_the_optimizer_and_the_writer(tmp_path, monkeypatch):
    """A signal in the middle of optimizer.step, or of a checkpoint, waits for its end; a second one does not."""

    class Adam(torch.optim.Adam):
        def step(self, closure=None):
            signal.raise_signal(signal.SIGINT)
            return super().step(closure)

    def fit(optimizer, directory, **options):
        model = network()
        Trainer(
            ClassifierObjective(), optimizer=optimizer, run_dir=directory, batch_size=16, progress=False, **options
        ).fit(model, data())
        return model

    with pytest.raises(KeyboardInterrupt):
        fit(Adam, tmp_path / "a")
    assert load_checkpoint(tmp_path / "a").step == 1

    real, renames = os.rename, 0

    def rename(*args):
        nonlocal renames
        renames += 1
        if renames > 1:
            signal.raise_signal(signal.SIGINT)
        if renames > 2:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        fit(torch.optim.Adam, tmp_path / "b", checkpoint_every=2)
    assert load_checkpoint(tmp_path / "b").step == 2
    with pytest.raises(KeyboardInterrupt):  # twice: at once, and the checkpoint before stays
        fit(torch.optim.Adam, tmp_path / "b", checkpoint_every=2, resume=True)
    assert load_checkpoint(tmp_path / "b").step == 2
    monkeypatch.undo()
    assert same(
        weights(fit(torch.optim.Adam, tmp_path / "b", checkpoint_every=2, resume=True)),
        weights(fit(torch.optim.Adam, tmp_path / "c")),
    )


def test_fit_outside_the_main_thread():
    model, failures = network(), []

    def work():
        try:
            Trainer(ClassifierObjective(), progress=False).fit(model, data())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
    assert not same(weights(model), weights(network()))


def test_more_epochs_go_on_where_fewer_ended(tmp_path):
    def run(epochs, directory, **options):
        model = network()
        trainer = Trainer(
            ClassifierObjective(), epochs=epochs, batch_size=16, ema=0.5, run_dir=directory, progress=False, **options
        )
        return model, trainer.fit(model, data())

    run(1, tmp_path / "a")
    model, history = run(3, tmp_path / "a", resume=True)
    reference, whole = run(3, tmp_path / "b")
    assert history == whole
    assert same(weights(model), weights(reference))
    with pytest.raises(ValueError, match="epochs was 3, now 2"):
        run(2, tmp_path / "a", resume=True)


def test_other_settings_are_named(tmp_path):
    def run(model=None, examples=96, optimizer=sgd, objective=None, **options):
        defaults = {"batch_size": 32, "run_dir": tmp_path, "resume": True, "progress": False}
        trainer = Trainer(objective or ClassifierObjective(), optimizer=optimizer, **defaults | options)
        return trainer.fit(model or network(), data(examples))

    run(resume=False)
    with pytest.raises(ValueError, match="already holds a run: pass resume=True or another run_dir"):
        run(resume=False)
    for options, message in [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"batch_size": 16, "ema": 0.5}, r"batch_size was 32, now 16; ema was null, now 0\.5"),
        ({"examples": 90}, "number of examples was 96, now 90"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9)}, r"lr of group 0 was 0\.1, now 0\.2"),
        ({"optimizer": torch.optim.Adam}, 'optimizer was "SGD", now "Adam"'),
        (
            {"objective": ClassifierObjective(label_smoothing=0.1)},
            r"settings: objective.label_smoothing was 0\.0, now 0\.1$",
        ),
        ({"schedule": lambda t: 1.0, "epochs": 2}, "schedule was null.*epochs was 1, now 2"),
        ({"model": nn.Linear(8, 2)}, "missing weight.*unexpected 0.weight"),
        ({"model": network()[:4].append(nn.Linear(16, 3))}, r"4.weight is \(2, 16\), the network has \(3, 16\)"),
        ({"model": network().double()}, r"dtypes\[0\] was"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(**options)
    run()  # nothing of this spoilt it


def test_of_a_long_value_the_part_that_differs_is_shown():
    old, new = {"a": {"text": "x" * 500 + "old"}}, {"a": {"text": "x" * 500 + "new"}}
    (line,) = differences(old, new)
    assert line.startswith("a.text was ...")
    assert 'xold", now ...' in line
    assert line.endswith('xnew"')
    assert differences([1, 2], [1], "a") == ["a was [1, 2], now [1]"]


def test_a_function_made_anew_is_the_same_function(tmp_path):
    """An address in its repr, which differs from process to process, is no other setting."""
    keep = []
    for _ in range(2):
        functions = [lambda model, x, y, ids=None: x, lambda t: 1.0]
        keep.append(functions)  # so that the second pair has other addresses
        objective = ClassifierObjective(functions[0])
        Trainer(objective, schedule=functions[1], run_dir=tmp_path, resume=True, progress=False).fit(network(), data())


# --- two processes -----------------------------------------------------------------------------------------------


def job(run_dir, epochs=2):
    """In float64, 33 examples in batches of 17 and 16: neither the batch nor its halves are alike."""
    torch.set_num_threads(1)
    x, y = data(33)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.linspace(-1, 1, p.numel()).reshape(p.shape).roll(i))
    model.double()
    trainer = Trainer(
        ClassifierObjective(attack=fgsm, clean_weight=0.5),
        optimizer=sgd,
        epochs=epochs,
        batch_size=20,
        clip_norm=0.5,
        ema=0.5,
        run_dir=run_dir,
        resume=True,
        progress=False,
    )
    history = trainer.fit(model, (x.double(), y), val=(x[:7].double(), y[:7]))
    return model, history


def fgsm(model, x, y, *, ids):
    assert not isinstance(model, nn.parallel.DistributedDataParallel)
    z = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(z), y, reduction="sum"), z)
    return z + 0.1 * gradient.sign()


@contextmanager
def held_by_another_thread(directory):
    held, release = threading.Event(), threading.Event()

    def hold():
        with alone(directory, wait=False):
            held.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    yield
    release.set()
    thread.join()


def rank_job(rank, port, run_dir, queue):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    job(run_dir, epochs=1)
    model, history = job(run_dir)  # resumed, in the same process group
    normalized = network()  # its batch statistics differ from rank to rank until they are made alike
    Trainer(ClassifierObjective(), batch_size=32, progress=False).fit(normalized, data())
    held = held_by_another_thread(run_dir) if rank == 0 else nullcontext()
    with held, pytest.raises(BlockingIOError):  # on both ranks
        job(run_dir)
    queue.put((history, *({k: v.tolist() for k, v in m.state_dict().items()} for m in (model, normalized))))


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = CONTEXT.SimpleQueue()
    ranks = [CONTEXT.Process(target=rank_job, args=(r, port, tmp_path / "two", queue)) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    model, history = job(tmp_path / "one")
    rows = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == len(history) == 2
    results = [queue.get() for _ in ranks]
    assert results[0][2] == results[1][2]
    for found, state, _ in results:
        for name, value in model.state_dict().items():
            torch.testing.assert_close(torch.tensor(state[name], dtype=torch.float64), value, rtol=1e-9, atol=1e-9)
        for row, ours in zip(found, history, strict=True):
            assert row == pytest.approx(ours, rel=1e-9)


# --- one run -----------------------------------------------------------------------------------------------------


def test_it_learns():
    trainer = Trainer(ClassifierObjective(), optimizer=sgd, epochs=20, batch_size=16, progress=False)
    history = trainer.fit(network(), data(), val=data(48))
    assert history[-1]["val_accuracy"] > 0.85
    assert history[-1]["loss"] < history[0]["loss"]
    assert [row["step"] for row in history] == [6 * (i + 1) for i in range(20)]


def test_history_is_the_mean_over_examples():
    """With a learning rate of zero the model stays, so that each mean has a closed form."""
    model = nn.Linear(8, 2)
    x, y = data(10)
    trainer = Trainer(
        ClassifierObjective(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0), batch_size=4, progress=False
    )
    (row,) = trainer.fit(model, (x, y), val=(x[:7], y[:7]))
    assert row["loss"] == pytest.approx(F.cross_entropy(model(x), y).item())
    assert row["val_loss"] == pytest.approx(F.cross_entropy(model(x[:7]), y[:7]).item())
    assert row["val_accuracy"] == pytest.approx((model(x[:7]).argmax(1) == y[:7]).double().mean().item())


@pytest.mark.parametrize("fails", [False, True])
def test_flags_and_random_state_are_left_alone(fails):
    seen = []

    def objective(model, batch, step):
        seen.append([m.training for m in model.modules()])
        torch.rand(3)
        if fails:
            raise RuntimeError("mine")
        return {"loss": model(batch.x).square().mean()}

    model = network()
    model.eval()
    model[3].train()
    for p in model[0].parameters():
        p.requires_grad_(False)
    flags, state = [m.training for m in model.modules()], torch.get_rng_state()
    try:
        Trainer(objective, progress=False).fit(model, data(8), val=data(8))
    except RuntimeError:
        assert fails
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert seen[0] == [True, False, True, True, True, True]  # the frozen layer stays in eval
    assert fails or seen[1] == [False] * 6


def test_a_step_is_a_function_of_seed_and_step():
    def draws(seed, **options):
        seen = []

        def objective(model, batch, step):
            seen.append((step, batch.ids.tolist(), torch.rand(1).item()))
            return {"loss": model(batch.x).mean()}

        Trainer(objective, epochs=2, batch_size=4, seed=seed, progress=False, **options).fit(nn.Linear(8, 2), data(8))
        return seen

    first = draws(0)
    torch.rand(1)
    assert draws(0) == first
    assert draws(1) != first
    assert len({r for _, _, r in first}) == 4
    assert [s for s, _, _ in first] == [0, 1, 2, 3]
    epochs = [[i for _, ids, _ in part for i in ids] for part in (first[:2], first[2:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(8))
    assert epochs[0] != epochs[1]


def test_frozen_parameters_and_their_batch_statistics_do_not_move():
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)), nn.Linear(4, 2))
    for p in model[0].parameters():
        p.requires_grad_(False)
    before = weights(model)
    Trainer(ClassifierObjective(), ema=0.5, progress=False).fit(model, data())
    assert same(weights(model[0]), {k[2:]: v for k, v in before.items() if k.startswith("0.")})
    assert not torch.equal(model[1].weight, before["1.weight"])
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter"):
        Trainer(ClassifierObjective(), progress=False).fit(model, data())


def test_clipping_bounds_the_step():
    def moved(clip_norm):
        model = nn.Linear(8, 2)
        before = torch.cat([p.detach().clone().flatten() for p in model.parameters()])
        trainer = Trainer(
            lambda m, b, s: {"loss": 100 * m(b.x).square().mean()},
            optimizer=lambda p: torch.optim.SGD(p, lr=1e-3),
            clip_norm=clip_norm,
            progress=False,
        )
        trainer.fit(model, data())
        return (torch.cat([p.detach().flatten() for p in model.parameters()]) - before).norm().item()

    assert moved(0.5) == pytest.approx(1e-3 * 0.5, rel=1e-3)
    assert moved(None) > 1e-2


def test_the_schedule_scales_the_learning_rate():
    rates = []

    class Recording(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    Trainer(
        ClassifierObjective(),
        optimizer=lambda p: Recording(p, lr=0.5),
        schedule=lambda t: 1 - t,
        epochs=2,
        batch_size=48,
        progress=False,
    ).fit(network(), data())
    assert rates == [0.5, 0.375, 0.25, 0.125]


def test_ema_follows_its_recurrence(tmp_path):
    trail = []

    class Recording(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            trail.append(self.param_groups[0]["params"][0].detach().clone())

    model = nn.Linear(8, 2)
    Trainer(
        ClassifierObjective(),
        optimizer=lambda p: Recording(p, lr=0.5),
        epochs=2,
        batch_size=32,
        ema=0.7,
        run_dir=tmp_path,
        progress=False,
    ).fit(model, data(), val=data())
    average = trail[0]
    for w in trail[1:]:
        average = 0.7 * average + 0.3 * w
    torch.testing.assert_close(model.weight.detach(), average)
    checkpoint = load_checkpoint(tmp_path)
    assert torch.equal(checkpoint.model_state["weight"], model.weight)
    assert torch.equal(checkpoint.training_state["live_weights"][0], trail[-1])


def test_bfloat16_trains_float32_weights():
    model = network()
    dtypes = set()
    model[0].register_forward_hook(lambda m, i, o: dtypes.add(o.dtype))
    history = Trainer(ClassifierObjective(), precision="bfloat16", epochs=2, progress=False).fit(model, data())
    assert dtypes == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert history[-1]["loss"] < 2


def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    def objective(model, batch, step):
        loss = model(batch.x).square().mean()
        return {"loss": loss * float("nan") if step == 5 else loss}

    model = nn.Linear(8, 2)
    options = {"batch_size": 16, "run_dir": tmp_path, "checkpoint_every": 2, "progress": False}
    with pytest.raises(FloatingPointError, match=r"at step 5; start another run_dir with a lower .*step-00000004\)"):
        Trainer(objective, **options).fit(model, data())
    assert load_checkpoint(tmp_path).step == 4
    assert all(p.isfinite().all() for p in model.parameters())


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    class Exploding(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(float("inf"))

    trainer = Trainer(ClassifierObjective(), optimizer=lambda p: Exploding(p, lr=0.1), run_dir=tmp_path, progress=False)
    with pytest.raises(FloatingPointError, match="weights or optimizer state are not finite after step 1"):
        trainer.fit(network(), data())
    assert load_checkpoint(tmp_path).step == 0
    assert all(t.isfinite().all() for t in load_checkpoint(tmp_path).model_state.values())


def test_progress_is_silent_on_request(capfd):
    Trainer(ClassifierObjective(), progress=False).fit(network(), data())
    assert capfd.readouterr() == ("", "")
    Trainer(ClassifierObjective(), progress=True).fit(network(), data())
    out, err = capfd.readouterr()
    assert out == ""
    assert "1/1" in err


def test_arguments_out_of_range():
    for options in (
        {"epochs": 0},
        {"batch_size": 0},
        {"checkpoint_every": 0},
        {"precision": "float16"},
        {"ema": 1.0},
        {"clip_norm": 0.0},
        {"resume": True},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            Trainer(ClassifierObjective(), **options)
    for bad in (
        lambda m, b, s: m(b.x).mean(),
        lambda m, b, s: {"los": m(b.x).mean()},
        lambda m, b, s: {"loss": m(b.x)},
    ):
        with pytest.raises(ValueError, match='dict of scalars with a tensor "loss"'):
            Trainer(bad, progress=False).fit(network(), data())


# --- the classifier's objective ----------------------------------------------------------------------------------


class Shift:
    """A stand-in for an attack, with a record of its calls."""

    def __init__(self):
        self.ids = []

    def __call__(self, model, x, y, *, ids=None):
        assert torch.is_grad_enabled()
        self.ids.append(ids)
        return x + 0.25


@pytest.mark.parametrize("clean_weight", [0.0, 0.5, 1.0])
def test_the_adversarial_objective_is_one_forward(clean_weight):
    model, attack, sizes = nn.Linear(8, 2), Shift(), []
    model.register_forward_hook(lambda m, i, o: sizes.append(len(o)))
    x, y = data(6)
    batch = Batch(x, y, torch.arange(6))
    logged = ClassifierObjective(attack, clean_weight, label_smoothing=0.1)(model, batch, 3)
    assert sizes == [12 if clean_weight else 6]
    assert attack.ids[0].tolist() == [i + 3 * 2**32 for i in range(6)]
    clean, adversarial = (F.cross_entropy(model(z), y, label_smoothing=0.1) for z in (x, x + 0.25))
    torch.testing.assert_close(logged["loss"], clean_weight * clean + adversarial)
    assert logged["adv_accuracy"] == (model(x + 0.25).argmax(1) == y).float().mean()
    assert ("accuracy" in logged) == (clean_weight > 0)


def test_adversarial_training_validates_with_gradients_off_outside_the_attack():
    attack = Shift()
    history = Trainer(ClassifierObjective(attack), progress=False).fit(network(), data(), val=data(8))
    assert {"val_adv_accuracy", "adv_accuracy"} <= history[0].keys()
    assert len(attack.ids) == 2


def test_a_robustgen_attack_runs_without_early_stop():
    attacks = pytest.importorskip("robustgen.attacks")
    attack = attacks.PGD(eps=0.1, steps=2)
    x, _ = data(16)
    model = nn.Linear(8, 2)
    flipped = (model(x).argmax(1) + 1) % 2  # every input is misclassified from the start
    seen = []
    model.register_forward_hook(lambda m, i, o: seen.append(i[0]))
    ClassifierObjective(attack, clean_weight=0.0)(model, Batch(x, flipped, torch.arange(16)), 0)
    assert attack.early_stop
    assert (seen[-1] - x).abs().flatten(1).amax(1).min() > 0.01


def test_the_objective_checks_its_arguments():
    for options in ({"clean_weight": -1.0}, {"label_smoothing": 1.0}, {"clean_weight": 0.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ClassifierObjective(**options)
    with pytest.raises(ValueError, match="needs labels"):
        Trainer(ClassifierObjective(), progress=False).fit(network(), data()[0])


def test_unwrap():
    model = nn.Linear(2, 2)
    assert unwrap(model) is model


# --- data --------------------------------------------------------------------------------------------------------


class Items(Dataset):
    def __init__(self, x, y=None):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] if self.y is None else (self.x[i], int(self.y[i]))


def test_every_kind_of_data_reads_alike():
    pixels = torch.randint(0, 256, (5, 1, 2, 2), dtype=torch.uint8)
    y, i = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([4, 0, 2])
    expected = pixels[i].float() / 255
    for labelled in (
        (pixels, y),
        [pixels, y],
        TensorDataset(pixels, y),
        Items(pixels, y),
        ArrayDataset(pixels, y, ("a", "b", "c")),
        as_source((pixels, y)),
        (pixels.numpy(), y.numpy().astype("int32")),
        DataLoader(TensorDataset(pixels, y), 2, shuffle=True, drop_last=True),
        DataLoader(list(zip(pixels, y.tolist(), strict=True)), 2),
        DataLoader(ArrayDataset(pixels, y, ("a", "b", "c")), 2, collate_fn=lambda items: default_collate(items)),
    ):
        x, labels = as_source(labelled).batch(i)
        assert torch.equal(x, expected)
        assert torch.equal(labels, y[i])
    loader = DataLoader(Items(pixels.numpy()), 2, shuffle=True)
    for unlabelled in (pixels, (pixels,), TensorDataset(pixels), Items(pixels), ArrayDataset(pixels), loader):
        x, labels = as_source(unlabelled).batch(i)
        assert torch.equal(x, expected)
        assert labels is None
    assert pixels.dtype == torch.uint8
    batch = as_source((pixels.double(), y)).fetch(i, torch.device("cpu"))
    assert batch.x.dtype == torch.float64
    assert torch.equal(batch.ids, i)


class Batching(Items):
    """Has a method of the name by which sources are read, but for something else."""

    def batch(self, batch_size):
        raise AssertionError


def test_dicts_of_arguments_read_alike():
    ids, mask, y = torch.arange(10).reshape(5, 2), torch.ones(5, 2, dtype=torch.int64), torch.tensor([0, 1, 2, 1, 0])
    x, i = {"input_ids": ids, "attention_mask": mask}, torch.tensor([4, 0, 2])
    rows = [{name: t[k] for name, t in x.items()} for k in range(5)]
    for labelled in (
        (x, y),
        x | {"labels": y},
        UserDict(x | {"label": y}),
        {name: t.numpy() for name, t in x.items()} | {"labels": y.numpy()},
        Items(rows, y),
        Batching([row | {"label": int(y[k])} for k, row in enumerate(rows)]),
        DataLoader(Items([row | {"label": y[k]} for k, row in enumerate(rows)]), 3, shuffle=True),
        DataLoader(Items(range(5)), collate_fn=lambda ks: {name: t[ks] for name, t in x.items()} | {"labels": y[ks]}),
    ):
        source = as_source(labelled)
        batch = source.fetch(i, torch.device("cpu"))
        assert batch.x.keys() == x.keys()
        assert all(torch.equal(batch.x[name], t[i]) for name, t in x.items())
        assert torch.equal(batch.y, y[i])
        assert (source.fingerprint() is None) == (not isinstance(labelled, tuple | dict | UserDict))
    assert as_source((x, y)).fingerprint() != as_source((x | {"input_ids": ids + 1}, y)).fingerprint()


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(8)


def test_loaders_that_are_more_than_their_data_set_are_refused():
    items = Items(torch.zeros(6, 8))
    batches = BatchSampler(SequentialSampler(items), 2, drop_last=False)
    for loader, line in (
        (DataLoader(items, sampler=SubsetRandomSampler([0, 1])), "picks its examples by a SubsetRandomSampler"),
        (DataLoader(items, sampler=RandomSampler(items, replacement=True)), "picks its examples by a RandomSampler"),
        (DataLoader(items, batch_sampler=[[0, 1]]), "picks its examples by a list"),
        (DataLoader(Stream()), "have no index"),
        (DataLoader(items, batch_size=None), "have no index"),
    ):
        with pytest.raises((TypeError, ValueError), match=line):
            as_source(loader)
    assert len(as_source(DataLoader(items, batch_sampler=batches))) == 6


def test_bad_data():
    for empty in (torch.zeros(0, 8), (torch.zeros(0, 8), torch.zeros(0).long()), Items([])):
        with pytest.raises(ValueError, match="the data set is empty"):
            Trainer(ClassifierObjective(), progress=False).fit(network(), empty)
    with pytest.raises(ValueError, match="y must have shape"):
        as_source((torch.zeros(3, 8), torch.zeros(2).long()))
    with pytest.raises(TypeError, match="list"):
        as_source([1, 2, 3])
    with pytest.raises(TypeError, match=r"'text'\] must be a tensor, an argument of the model; got list"):
        as_source({"input_ids": torch.zeros(2, 3).long(), "text": ["a", "b"]})
    with pytest.raises(ValueError, match=r"one row for each input, got input_ids \(2, 3\), attention_mask \(3, 3\)"):
        as_source({"input_ids": torch.zeros(2, 3).long(), "attention_mask": torch.zeros(3, 3)})


def test_items_that_do_not_fit_together_are_named():
    ragged = [torch.zeros(3, 8 + i // 2, 8) for i in range(5)]
    for items in (Items(ragged), Items([x.numpy() for x in ragged])):
        with pytest.raises(ValueError, match=r"item 1 has shape \(3, 8, 8\), item 4 has \(3, 10, 8\)"):
            as_source(items).batch(torch.tensor([1, 0, 4]))
    with pytest.raises(ValueError, match=r"item 0 has shape \(3, 8, 8\) and \(\), item 2 has \(3, 9, 8\) and \(\)"):
        as_source(Items(ragged, torch.zeros(5))).batch(torch.arange(5))
    for no_tensors in (["a", "b"], [object(), object()]):
        with pytest.raises(TypeError, match="must be tensors x or pairs"):
            as_source(Items(no_tensors)).batch(torch.arange(2))


def test_an_epoch_is_a_permutation_in_even_batches():
    for n, size in ((129, 128), (10, 3), (4, 100), (1, 1), (60, 20)):
        batches = epoch_order(n, size, 0, 0)
        assert sorted(torch.cat(batches).tolist()) == list(range(n))
        lengths = Counter(map(len, batches))
        assert max(lengths) <= size
        assert max(lengths) - min(lengths) <= 1
        assert len(batches) == -(-n // size)


def test_a_foreign_checkpoint_is_refused(tmp_path):
    save_checkpoint(tmp_path, 0, {"w": torch.ones(1)}, {}, {})
    with pytest.raises(ValueError, match="unexpected w"):
        Trainer(ClassifierObjective(), run_dir=tmp_path, resume=True, progress=False).fit(network(), data())


def test_a_model_saved_without_its_run_cannot_be_resumed(tmp_path):
    save_checkpoint(tmp_path, 0, network().state_dict(), {}, {"model_class": "Sequential"})
    with pytest.raises(ValueError, match="holds a saved model, not a run to resume"):
        Trainer(ClassifierObjective(), run_dir=tmp_path, resume=True, progress=False).fit(network(), data())


def test_inputs_that_the_model_does_not_take_are_named():
    x, y = torch.rand(8, 4), torch.zeros(8, dtype=torch.int64)
    trainer = Trainer(ClassifierObjective(), progress=False)
    with pytest.raises(ValueError, match=r"the model fails on inputs of shape \(4,\), torch.float32"):
        trainer.fit(nn.Linear(5, 2), (x, y))
    with pytest.raises(ValueError, match=r"torch.float64"):
        trainer.fit(nn.Linear(4, 2), (x.double(), y))
    with pytest.raises(ValueError, match="NaN or Inf, first in example 3"):
        trainer.fit(nn.Linear(4, 2), (x.index_fill(0, torch.tensor([3]), float("nan")), y))
    with pytest.raises(ValueError, match="label 7, outside"):
        trainer.fit(nn.Linear(4, 2), (x, y + 7))
