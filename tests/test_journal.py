"""An attack that is killed goes on where it was: to the same outcome, without asking the model again."""

import json

import pytest
import torch
from torch import nn

from robustgen.attacks import (
    APGD,
    APGDT,
    DDN,
    FAB,
    FGSM,
    PGD,
    AtEps,
    HopSkipJump,
    JointAttack,
    NoiseSearch,
    Square,
    TransferAttack,
)
from robustgen.evaluation import chunks, evaluate_robustness, journal
from robustgen.evaluation.chunks import Job, run_jobs
from robustgen.files import save_tensors

ATTACKS = {
    "PGD": PGD(eps=0.05, steps=8, restarts=2),
    "every step": PGD(eps=0.05, steps=8, early_stop=False),
    "L2": PGD(eps=0.2, norm="L2", steps=8),
    "APGD": APGD(eps=0.05, steps=8),
    "APGDT": APGDT(eps=0.05, steps=8),
    "FAB": AtEps(attack=FAB(steps=8, n_targets=2), eps=0.05),
    "DDN": AtEps(attack=DDN(steps=8), eps=0.2),
    "Square": Square(eps=0.05, n_queries=20),
    "HopSkipJump": AtEps(attack=HopSkipJump(n_queries=25), eps=0.05),
    "joint": JointAttack(eps=0.05, steps=8, score=lambda z: z.flatten(1).mean(1), threshold=0.5),
}


class Counting(nn.Module):
    """A convolutional network with a batch norm, of which attacks prepare a copy; it stops after ``limit`` calls."""

    asked, limit = 0, None

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
        )  # fmt: skip
        self.net[1].running_var.fill_(0.5)
        self.eval()

    def forward(self, z):
        cls = type(self)
        cls.asked += 1
        if cls.limit is not None and cls.asked > cls.limit:
            raise KeyboardInterrupt
        return self.net(z)


@pytest.fixture
def run(monkeypatch):
    """(attacks, directory, stop after so many calls, resume) -> outcomes and how often the model was asked."""
    monkeypatch.setattr(journal, "EVERY", 0.0)  # every answer is written at once
    model = Counting()
    x = torch.rand(10, 1, 6, 6)
    y = model(x).argmax(1)

    def run(attacks, where=None, stop=None, resume=False, batch_size=2):
        monkeypatch.setattr(Counting, "asked", 0)
        monkeypatch.setattr(Counting, "limit", stop)
        jobs = {label: Job(attack, len(x), keep=len(x)) for label, attack in attacks.items()}
        found = run_jobs(jobs, model, x, y, torch.arange(10), batch_size=batch_size, run_dir=where, resume=resume)
        return found, Counting.asked

    return run


def the_same(one, other):
    return all(
        torch.equal(getattr(one[label], name), getattr(other[label], name))
        for label in one
        for name in ("x_adv", "success", "distance", "forwards", "backwards")
    )


@pytest.mark.parametrize("label", ATTACKS)
def test_a_killed_attack_goes_on_where_it_was(run, tmp_path, label):
    attacks = {label: ATTACKS[label]}
    whole, asked = run(attacks, tmp_path / "whole")
    for part, resume in ((0.4, False), (0.3, True)):  # killed twice
        with pytest.raises(KeyboardInterrupt):
            run(attacks, tmp_path / "killed", stop=int(part * asked), resume=resume)
    again, after = run(attacks, tmp_path / "killed", resume=True)
    assert the_same(whole, again)
    assert after < asked  # though a resumed chunk looks at the model anew
    assert sorted(p.name for p in (tmp_path / "killed" / "chunks").iterdir()) == [
        "000-000000.safetensors", "000-000001.safetensors", "plan.json", "seconds.json"
    ]  # fmt: skip


def test_the_model_is_not_asked_again(run, tmp_path):
    """Within one chunk: what was answered before the kill is not asked once more."""
    attacks = {"Square": Square(eps=1e-6, n_queries=100)}
    _, asked = run(attacks, batch_size=10)
    with pytest.raises(KeyboardInterrupt):
        run(attacks, tmp_path, stop=asked - 10, batch_size=10)
    _, after = run(attacks, tmp_path, resume=True, batch_size=10)
    assert after < 60  # the last ten, and what is asked before anything begins


def test_answers_are_written_every_few_seconds(run, tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "EVERY", 5.0)
    seconds = iter(range(10**6))
    monkeypatch.setattr(journal.time, "monotonic", lambda: float(next(seconds)))
    with pytest.raises(KeyboardInterrupt):
        run({"Square": Square(eps=1e-6, n_queries=100)}, tmp_path, stop=60)
    files = [p for p in (tmp_path / "chunks").iterdir() if "answers" in p.name]
    assert 5 <= len(files) <= 12


@pytest.mark.parametrize("label", ["PGD", "APGDT", "FAB", "Square"])
def test_outcomes_do_not_depend_on_the_size_of_a_chunk(label, monkeypatch):
    net = Counting().double()
    x = torch.rand(10, 1, 6, 6, dtype=torch.float64)
    y = net(x).argmax(1)
    monkeypatch.setattr(Counting, "limit", None)
    found = []
    for answers in (1, 10**9):
        monkeypatch.setattr(chunks, "ANSWERS", answers)
        job = Job(ATTACKS[label], 10, keep=10)
        assert chunks._chunk(job.attack, x, 2) == ((1, True) if answers == 1 else (8, True))
        found.append(run_jobs({label: job}, net, x, y, torch.arange(10), batch_size=2)[label])
    one, other = found
    for name in ("success", "forwards", "backwards"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.allclose(one.x_adv, other.x_adv, atol=1e-12, rtol=0)


def test_chunks_are_as_large_as_their_answers_allow():
    mnist, photo = torch.zeros(1, 1, 28, 28), torch.zeros(1, 3, 224, 224)
    assert chunks._chunk(FGSM(), mnist, 250) == (1000, True)
    assert chunks._chunk(PGD(), mnist, 250) == (1000, True)
    targeted, _ = chunks._chunk(APGDT(), mnist, 250)
    assert targeted * 900 * 28 * 28 * 4 <= chunks.ANSWERS < 2 * targeted * 900 * 28 * 28 * 4
    assert chunks._chunk(APGDT(), photo, 250) == (1, True)
    assert chunks._chunk(TransferAttack(surrogate=nn.Identity(), attack=PGD()), mnist, 250) == (250, False)
    assert chunks._chunk(NoiseSearch(), photo, 250) == (1000, True)
    assert chunks._chunk(APGDT(), torch.zeros(1, 1, 28, 28, device="meta"), 250) == (1000, False)
    assert chunks._chunk(PGD(steps=4), torch.zeros(1, 1, 28, 28, device="meta"), 250) == (1000, True)


def test_a_stochastic_model_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "EVERY", 0.0)

    class Noisy(nn.Module):
        limit = 60

        def forward(self, z):
            type(self).limit -= 1
            if type(self).limit == 0:
                raise KeyboardInterrupt
            return z.flatten(1)[:, :3] + 0.1 * torch.randn(len(z), 3)

    x = torch.rand(6, 5)
    jobs = {"PGD": Job(PGD(eps=0.1, steps=10), 6, keep=6)}
    options = {"batch_size": 2}
    arguments = (jobs, Noisy(), x, x[:, :3].argmax(1), torch.arange(6))
    with pytest.raises(KeyboardInterrupt):
        run_jobs(*arguments, run_dir=tmp_path, **options)
    assert [p.name for p in (tmp_path / "chunks").iterdir() if p.name != "seconds.json"] == ["plan.json"]
    Noisy.limit = 10**9
    assert the_same(run_jobs(*arguments, **options), run_jobs(*arguments, run_dir=tmp_path, resume=True, **options))


def test_files_that_do_not_belong_are_named(run, tmp_path):
    attacks = {"PGD": ATTACKS["PGD"]}
    with pytest.raises(KeyboardInterrupt):
        run(attacks, tmp_path, stop=40)
    first = tmp_path / "chunks" / "000-000000.answers-000000.safetensors"
    kept = first.read_bytes()
    save_tensors(first, {"weights": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"answers-000000\.safetensors: holds 'weights'"):
        run(attacks, tmp_path, resume=True)
    first.write_bytes(kept[:-3])
    with pytest.raises(ValueError, match=r"answers-000000\.safetensors: not a complete"):
        run(attacks, tmp_path, resume=True)
    first.write_bytes(kept)
    save_tensors(tmp_path / "chunks" / "000-000000.safetensors", {"success": torch.zeros(2)})
    with pytest.raises(ValueError, match="not a chunk of 8 examples"):
        run(attacks, tmp_path, resume=True)


def test_evaluations_with_other_chunks_are_not_resumed(run, tmp_path, monkeypatch):
    attacks = {"PGD": ATTACKS["PGD"]}
    run(attacks, tmp_path)
    with monkeypatch.context() as other:
        other.setattr(chunks, "ANSWERS", 1)
        with pytest.raises(ValueError, match="another evaluation: chunks differ"):
            run(attacks, tmp_path, resume=True)
    path = tmp_path / "chunks" / "plan.json"
    plan = json.loads(path.read_text())
    del plan["chunks"]
    path.write_text(json.dumps(plan))
    with pytest.raises(ValueError, match="an earlier version began"):
        run(attacks, tmp_path, resume=True)


def test_diagnostics_of_single_inputs_are_kept(tmp_path, monkeypatch):
    net = Counting()
    x = torch.rand(6, 1, 6, 6)
    y = net(x).argmax(1)
    options = {"eps": 0.05, "attacks": [PGD(eps=0.05, steps=5)]}
    monkeypatch.setattr(Counting, "limit", None)
    monkeypatch.setattr(Counting, "asked", 0)
    whole = evaluate_robustness(net, x, y, **options)
    asked = Counting.asked
    monkeypatch.setattr(Counting, "limit", asked - 100)
    monkeypatch.setattr(Counting, "asked", 0)
    with pytest.raises(KeyboardInterrupt):
        evaluate_robustness(net, x, y, run_dir=tmp_path, **options)
    kept = sorted(p.name for p in (tmp_path / "chunks").iterdir() if p.name[0] in "tb")
    assert {"trace-000.safetensors", "binarization-000.safetensors"} <= set(kept)
    monkeypatch.setattr(Counting, "limit", None)
    monkeypatch.setattr(Counting, "asked", 0)
    again = evaluate_robustness(net, x, y, run_dir=tmp_path, resume=True, **options)
    assert again.masking == whole.masking
    assert Counting.asked < asked / 2
    save_tensors(tmp_path / "chunks" / kept[-1], {"other": torch.zeros(1)})
    with pytest.raises(ValueError, match=rf"{kept[-1]}: holds other, not"):
        evaluate_robustness(net, x, y, run_dir=tmp_path, resume=True, **options)
