"""The guard against catastrophic overfitting: it fires where it should, keeps what was good, and else is unseen."""

import warnings

import pytest
import torch
from torch import nn

from robustgen.attacks import FGSM, PGD
from robustgen.training import ClassifierObjective, OverfittingGuard, Trainer, load_checkpoint
from robustgen.training.overfitting import Watch

EPS = 0.1
GUARD = OverfittingGuard(weak=FGSM(eps=EPS), strong=PGD(eps=EPS, steps=10), every=5)


class Rippled(nn.Module):
    """Two classes around 0.3 and 0.7. With ``ripple`` the logits are wrong half-way to the rim of the ball and right
    at x and on the rim, where the one step of FGSM ends.
    """

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(10.0))
        self.ripple = nn.Parameter(torch.tensor(0.0))
        self.norm = nn.BatchNorm1d(1, affine=False, momentum=None)  # a buffer that moves; its output is not used

    def forward(self, x):
        self.norm(x)
        wave = torch.cos(2 * torch.pi * (x - 0.7) / EPS) * torch.tanh(1000 * (x - 0.5))
        z = self.slope * (x - 0.5) + self.ripple * wave
        return torch.cat([-z, z], 1)


def examples(n=60):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    return 0.3 + 0.4 * y[:, None] + 0.002 * torch.rand(n, 1, generator=g), y


def collapsing(at):
    """An optimizer that turns the ripple on after ``at`` steps; kept in its state, so that a resumed run goes on."""

    class Collapsing(torch.optim.SGD):
        def step(self, closure=None):
            slope, ripple = self.param_groups[0]["params"]
            ripple.grad = None
            super().step(closure)
            count = self.state[slope].setdefault("count", torch.zeros(()))
            count += 1
            if count == at:
                with torch.no_grad():
                    ripple.fill_(20.0)

    return lambda p: Collapsing(p, lr=0.01)


def fit(at, epochs=6, model=None, **options):
    model = model or Rippled()
    trainer = Trainer(
        ClassifierObjective(FGSM(eps=EPS), clean_weight=0.0),
        optimizer=collapsing(at),
        epochs=epochs,
        batch_size=15,
        progress=False,
        **{"guard": GUARD} | options,
    )
    return model, trainer.fit(model, examples())


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_it_fires_and_puts_back_the_weights_from_before():
    with pytest.warns(UserWarning, match=r"overfitting at step 15: accuracy 100.0% .* 0.0% .* weights of step 10"):
        model, history = fit(at=12)
    assert [row["step"] for row in history] == [4, 8, 12, 15]  # 24 without the guard
    assert history[-1]["kept_step"] == 10
    assert history[-1]["guard_strong_accuracy"] == 0.0
    assert history[-1]["guard_weak_accuracy"] == 1.0
    assert history[-2]["guard_strong_accuracy"] == 1.0
    assert "kept_step" not in history[-2]
    expected = Rippled()
    steps = []

    def objective(model, batch, step):
        if step == 10:
            steps.append(state(model))
        return ClassifierObjective(FGSM(eps=EPS), clean_weight=0.0)(model, batch, step)

    Trainer(objective, optimizer=collapsing(12), epochs=6, batch_size=15, progress=False).fit(expected, examples())
    assert same(state(model), steps[0])
    assert expected.ripple == 20


def test_a_healthy_run_is_the_same_with_a_guard_and_without():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (guarded, history), (free, other) = fit(at=-1), fit(at=-1, guard=None)
    assert same(state(guarded), state(free))
    assert history[-1]["guard_strong_accuracy"] == 1.0
    assert [{k: v for k, v in row.items() if "guard" not in k} for row in history] == other


def test_a_stopped_run_resumes_to_its_end(tmp_path):
    with pytest.warns(UserWarning, match="overfitting at step 15"):
        model, history = fit(at=12, run_dir=tmp_path)
    assert same(load_checkpoint(tmp_path).model_state, state(model))
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.warns(UserWarning, match="overfitting at step 15"):
        again, found = fit(at=12, run_dir=tmp_path, resume=True)
    assert found == history
    assert same(state(again), state(model))
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines
    with pytest.raises(ValueError, match="guard was"):
        fit(at=12, run_dir=tmp_path, resume=True, guard=None)


def test_what_the_guard_has_seen_survives_a_resume(tmp_path):
    fit(at=18, epochs=3, run_dir=tmp_path)  # 12 steps, a check at 5 and one at 10
    with pytest.warns(UserWarning, match=r"step 20: .*weights of step 15"):
        resumed, history = fit(at=18, run_dir=tmp_path, resume=True)
    with pytest.warns(UserWarning, match=r"step 20: .*weights of step 15"):
        whole, other = fit(at=18)
    assert same(state(resumed), state(whole))
    assert history == other
    fit(at=13, epochs=3, run_dir=tmp_path / "early")  # nothing good is seen after the resume
    with pytest.warns(UserWarning, match=r"step 15: .*weights of step 10"):
        fit(at=13, run_dir=tmp_path / "early", resume=True)


def test_averages_are_put_back_too():
    with pytest.warns(UserWarning, match="weights of step 10"):
        model, _ = fit(at=12, ema=0.5)
    assert model.ripple == 0


def test_which_accuracies_fire():
    class Scripted(OverfittingGuard):
        def accuracies(self, model, batch, step, world):
            return self.weak[step - 1]

    def fires(*checks, drop=0.2):
        weight = torch.zeros(())
        watch = Watch(Scripted(weak=checks, strong=None, every=1, drop=drop), lambda: {"weight": weight})
        for step in range(1, len(checks) + 1):
            weight.fill_(step)
            if watch.look(None, None, step, None):
                assert watch.kept_step == weight
                return step, watch.kept_step
        return None

    assert fires((0.9, 0.8), (0.95, 0.0)) == (2, 1)
    assert fires((0.9, 0.8), (0.9, 0.75), (0.9, 0.65), (0.95, 0.1)) == (4, 2)  # the third had begun to fall
    assert fires((0.9, 0.8), (0.1, 0.0)) is None  # all is lost, to both attacks: another failure
    assert fires((0.9, 0.0), (0.95, 0.0)) is None  # never robust
    assert fires((0.7, 0.5), (0.6, 0.28)) is None  # what a small batch may show
    assert fires((0.2, 0.18), (0.2, 0.03)) is None
    assert fires((0.9, 0.8), (0.9, 0.38), drop=0.5) is None
    assert fires((0.9, 0.8), (0.9, 0.28), drop=0.5) == (2, 1)


def test_wrong_settings():
    for wrong in ({"every": 0}, {"drop": 0.0}, {"drop": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            OverfittingGuard(weak=None, strong=None, **wrong)
    guard = OverfittingGuard(weak=FGSM(), strong=PGD(), every=1)
    trainer = Trainer(lambda model, batch, step: {"loss": model(batch.x).mean()}, guard=guard, progress=False)
    with pytest.raises(ValueError, match="needs labels"):
        trainer.fit(nn.Linear(1, 2), examples()[0])


def test_with_another_objective_the_run_goes_on(tmp_path):
    """From the weights of before, to its planned end, with the objective that the guard has in hand; also resumed."""
    steps = []

    class Instead(ClassifierObjective):
        def __call__(self, model, batch, step):
            steps.append(step)
            return super().__call__(model, batch, step)

    guard = OverfittingGuard(weak=GUARD.weak, strong=GUARD.strong, every=5, instead=Instead(PGD(eps=EPS, steps=3), 0.0))
    with pytest.warns(UserWarning, match=r"overfitting at step 15: .* goes on with a multi-step attack .* step 10"):
        whole, history = fit(13, guard=guard, run_dir=tmp_path / "whole")
    assert steps == list(range(15, 24))
    assert history[-1]["step"] == 24
    assert history[-1]["kept_step"] == 10
    assert whole.ripple.item() == 0  # of step 10, and nothing has moved it since
    with pytest.warns(UserWarning, match="goes on"):
        fit(13, epochs=5, guard=guard, run_dir=tmp_path / "cut")
    with pytest.warns(UserWarning, match="goes on"):
        resumed, again = fit(13, guard=guard, run_dir=tmp_path / "cut", resume=True)
    assert same(state(resumed), state(whole))
    assert again == history
