"""Robustness evaluation: numbers against closed forms, verdicts that can fail, resuming, the report."""

import json
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robustgen import data
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
from robustgen.detectors import ReconstructionError
from robustgen.evaluation import (
    chunks,
    evaluate_detection,
    evaluate_detector_robustness,
    evaluate_robustness,
    load_report,
    stages,
    wilson_interval,
    write_report,
)
from robustgen.evaluation.chunks import Job, _searched, run_jobs
from robustgen.evaluation.kept import OutOfTime, anew
from robustgen.evaluation.masking import at_most, monotone, reaches_zero
from robustgen.evaluation.stages import Stages, passes
from robustgen.files import save_tensors
from robustgen.fortified import fortify
from robustgen.networks import mlp


@pytest.fixture
def linear():
    """A linear classifier and inputs whose exact robust accuracy at any Linf eps is known."""
    model = nn.Linear(10, 2).double()
    x = 0.35 + 0.3 * torch.rand(120, 10, dtype=torch.float64)
    z = model(x).detach()
    model.bias.data[0] -= (z[:, 0] - z[:, 1]).median()  # as many of each class
    z = model(x).detach()
    y = z.argmax(1)
    w = (model.weight[0] - model.weight[1]).detach()
    radius = (z[:, 0] - z[:, 1]).abs() / w.abs().sum()
    y = torch.where(torch.arange(120) < 12, 1 - y, y)  # a tenth are wrong to begin with
    return model, x, y, torch.where(torch.arange(120) < 12, 0.0, radius)


def test_accuracies_are_the_closed_form(linear):
    model, x, y, radius = linear
    eps = radius.median().item()
    report = evaluate_robustness(model, x, y, eps=eps, sweep_examples=120)
    assert report.clean_accuracy == 0.9
    assert abs(report.robust_accuracy - (radius > eps).double().mean().item()) <= 1 / 120
    for e, standing in report.curve[1:]:
        assert (standing != (radius > e)).sum() <= 1
    verdicts = {t.name: t.verdict for t in report.masking}
    unasked = [name for name, verdict in verdicts.items() if verdict == "not run"]
    assert [name.split(": ")[-1] for name in unasked] == [
        "white-box is at least as strong as black-box",  # no surrogate
        "successes survive 8-bit rounding",  # the inputs are real-valued
        "what fools the attacked model fools the network",  # no surrogate
        "the attack finds examples that are known to be there",  # two logits of a line hold too little
    ]
    assert "violated" not in verdicts.values()
    assert report.to_dict()["clean_accuracy"]["low"] == wilson_interval(108, 120)[0]


def test_worst_case_is_the_union_over_examples(linear):
    model, x, y, _ = linear
    attacks = {"noise": NoiseSearch(eps=0.1, n_queries=5), "FGSM": FGSM(eps=0.1)}
    report = evaluate_robustness(model, x, y, eps=0.1, attacks=attacks, masking_tests=False)
    union = report.outcomes["noise"].success | report.outcomes["FGSM"].success
    assert torch.equal(report.standing, ~union)
    assert "PGD is at least as strong as FGSM (no PGD attack" in str(report)


def test_masking_is_found():
    """A network whose gradient points the wrong way looks robust to PGD; transfer, noise and eps = 1 tell."""

    def backwards(x):
        mean = x.mean(1)
        margin = 2 * mean.detach() - mean - 0.5  # value mean - 0.5, gradient that of -mean
        return torch.stack([margin, 0 * margin], 1)

    x = 0.505 + 0.02 * torch.rand(60, 4)
    honest = lambda z: torch.stack([z.mean(1), 0.5 + 0 * z[:, 0]], 1)
    y = torch.zeros(60, dtype=torch.int64)
    report = evaluate_robustness(backwards, x, y, eps=0.1, sweep_examples=60, surrogate=honest)
    verdicts = {t.name: t.verdict for t in report.masking}
    assert report.outcomes["transfer FGSM"].success.all()
    assert report.robust_accuracy == 0
    assert verdicts["white-box is at least as strong as black-box"] == "violated"
    assert verdicts["gradients are at least as strong as noise"] == "violated"
    assert verdicts["unbounded PGD breaks everything"] == "violated"
    assert "violated" in str(report)


def test_verdicts_need_two_standard_errors():
    few, most = torch.zeros(400, dtype=torch.bool), torch.zeros(400, dtype=torch.bool)
    few[:200] = True
    most[:203] = True
    assert at_most("t", ("white", few), ("black", most)).verdict == "holds"
    assert at_most("t", ("white", most), ("black", few)).verdict == "holds"  # 3 of 400: 1.7 standard errors
    most[:210] = True
    found = at_most("t", ("white", most), ("black", few))
    assert found.verdict == "violated"
    assert abs(found.difference - 0.025) < 1e-12
    assert "52.5%" in found.detail
    assert reaches_zero("t", torch.zeros(10, dtype=torch.bool)).verdict == "holds"
    assert reaches_zero("t", few).verdict == "violated"
    assert monotone("t", [0, 1, 2], [most, few, few]).verdict == "holds"
    rising = monotone("t", [0.0, 1.0, 2.0], [most, few, most])
    assert rising.verdict == "violated"
    assert "from 1 to 2" in rising.detail


def test_a_stochastic_model_is_judged_by_majorities():
    class Noisy(nn.Module):
        def forward(self, x):
            m = 1.0 + torch.randn(len(x)) + 0 * x.sum(1)
            return torch.stack([m, torch.zeros_like(m)], 1)

    report = evaluate_robustness(
        Noisy(), torch.rand(200, 3), torch.zeros(200, dtype=torch.int64), eps=0.1, masking_tests=False
    )
    assert report.clean_accuracy >= 0.95  # a single draw is right 84 times in 100
    assert report.outcomes["PGD-40"].standing.double().mean() >= 0.9  # x has no influence, however often one asks


def test_wrong_use(linear, tmp_path):
    model, x, y, _ = linear
    cases = [
        ({"eps": 0.0}, "eps must be"),
        ({"eps": 0.1, "suite": "standart"}, "unknown suite 'standart'"),
        ({"eps": 0.1, "attacks": [FGSM(eps=0.1)], "suite": "quick"}, "not both"),
        ({"eps": 0.1, "attacks": []}, "no attacks"),
        ({"eps": 0.1, "attacks": [FGSM(eps=0.1, norm="L2")]}, "does not fit the threat model"),
        ({"eps": 0.1, "attacks": [FGSM(eps=0.2)]}, "above the threat model"),
        ({"eps": 0.1, "bounds": (0.5, 1.0)}, "outside the bounds"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            evaluate_robustness(model, x, y, **options)
    with pytest.raises(ValueError, match="empty"):
        evaluate_robustness(model, x[:0], y[:0], eps=0.1)


def test_killed_and_resumed_is_bitwise_the_same(tmp_path):
    script = textwrap.dedent(
        """
        import os, signal, sys, torch
        from robustgen.evaluation import evaluate_robustness, chunks
        torch.set_num_threads(1); torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3))
        x, y = torch.rand(50, 6), torch.randint(3, (50,))
        where, kill = sys.argv[1], int(sys.argv[2])
        save = chunks._Store.save
        def counted(self, job, chunk, result):
            global kill
            save(self, job, chunk, result)
            kill -= 1
            if kill == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        chunks._Store.save = counted
        report = evaluate_robustness(model, x, y, eps=0.1, run_dir=where, resume=True, batch_size=4, sweep_examples=20)
        found = report.to_dict(); found.pop("wall_seconds"); found.pop("environment")
        import json; print(json.dumps(found))
        """
    )

    def run(where, kill):
        return subprocess.run([sys.executable, "-c", script, str(where), str(kill)], capture_output=True, text=True)

    whole = run(tmp_path / "whole", 0)
    assert whole.returncode == 0, whole.stderr
    for kill in (1, 7, 6):  # of what is left after the one before
        assert run(tmp_path / "killed", kill).returncode == -9
    again = run(tmp_path / "killed", 0)
    assert json.loads(again.stdout) == json.loads(whole.stdout)


def test_a_run_directory_is_tied_to_model_examples_and_attacks(linear, tmp_path):
    model, x, y, _ = linear
    evaluate = lambda m=model, z=x, **options: evaluate_robustness(m, z, y, eps=0.1, run_dir=tmp_path, **options)
    evaluate()
    with pytest.raises(ValueError, match="already holds an evaluation"):
        evaluate()
    assert evaluate(resume=True).clean_accuracy == 0.9
    with pytest.raises(ValueError, match="examples differ"):
        evaluate(z=x + 1e-9, resume=True)
    with pytest.raises(ValueError, match="attacks differ"):
        evaluate(seed=1, resume=True)
    model.weight.data[0, 0] += 1e-9
    with pytest.raises(ValueError, match="model differ"):
        evaluate(resume=True)


def test_labels_cannot_collide_with_the_evaluation_s_own(linear, tmp_path):
    model, x, y, _ = linear
    odd = {"clean": PGD(eps=0.1), "sweep: 0.1": FGSM(eps=0.001), "unbounded": FGSM(eps=0.1), "../up": FGSM(eps=0.1)}
    report = evaluate_robustness(model, x, y, eps=0.1, attacks=odd, run_dir=tmp_path / "run", sweep_examples=120)
    assert report.clean_accuracy == 0.9
    assert torch.equal(report.outcomes["clean"].success, ~dict(report.curve)[0.1])
    assert {p.name for p in tmp_path.iterdir()} == {"run"}
    close = {"PGD 1": PGD(eps=0.3), "PGD_1": PGD(eps=0.001)}
    report = evaluate_robustness(model, x, y, eps=0.3, attacks=close, run_dir=tmp_path / "b", masking_tests=False)
    assert report.outcomes["PGD 1"].success.sum() > report.outcomes["PGD_1"].success.sum()


def test_resume_sees_what_a_model_does_with_plain_attributes(tmp_path):
    class Warm(nn.Module):
        def __init__(self, net, temperature):
            super().__init__()
            self.net, self.temperature, self.calls = net, temperature, 0

        def forward(self, x):
            self.calls += 1  # no setting
            return self.net(x) / self.temperature

    x, y = torch.rand(20, 6), torch.randint(3, (20,))
    net = nn.Linear(6, 3)
    options = {"eps": 0.1, "masking_tests": False, "resume": True}
    run = lambda model, where="model", **more: evaluate_robustness(
        model, x, y, run_dir=tmp_path / where, **options, **more
    )
    of = lambda surrogate: {"t": TransferAttack(surrogate=surrogate, attack=FGSM(eps=0.1))}
    run(Warm(net, 1.0))
    run(net, "transfer", attacks=of(Warm(net, 1.0)))
    again = Warm(net, 1.0)
    again(x)
    run(again)
    run(net, "transfer", attacks=of(again))
    with pytest.raises(ValueError, match="holds another evaluation: logits differ"):
        run(Warm(net, 2.0))
    with pytest.raises(ValueError, match="holds another evaluation: logits differ"):
        run(net, "transfer", attacks=of(Warm(net, 2.0)))
    plan = tmp_path / "model" / "chunks" / "plan.json"
    record = json.loads(plan.read_text())
    record["logits"][""] = [1.0002 * z for z in record["logits"][""]]  # of another machine
    plan.write_text(json.dumps(record))
    run(Warm(net, 1.0))
    noisy = nn.Sequential(net, nn.Dropout(0.5).train())
    noisy.eval = lambda: noisy
    assert run(noisy, "noisy").clean_accuracy == run(noisy, "noisy").clean_accuracy


def test_resume_sees_another_surrogate_or_activation(tmp_path):
    x = torch.rand(20, 6)
    first, second = (nn.Linear(6, 3) for _ in range(2))
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    y = model(x).argmax(1)
    options = {"eps": 0.1, "run_dir": tmp_path, "masking_tests": False}
    evaluate_robustness(model, x, y, surrogate=first, **options)
    with pytest.raises(ValueError, match="attacks differ"):
        evaluate_robustness(model, x, y, surrogate=second, resume=True, **options)
    model[1] = nn.Tanh()
    with pytest.raises(ValueError, match="model, logits differ"):
        evaluate_robustness(model, x, y, surrogate=first, resume=True, **options)
    with pytest.raises(ValueError, match=r"needs an nn\.Module"):
        evaluate_robustness(lambda z: model(z), x, y, **options)


def test_masking_compares_attacks_at_one_eps(linear):
    model, x, y, _ = linear
    attacks = [FGSM(eps=0.1), PGD(eps=0.001)]
    report = evaluate_robustness(model, x, y, eps=0.1, attacks=attacks, masking_tests=False)
    assert "PGD is at least as strong as FGSM (no PGD attack was run at eps 0.1)" in str(report)


def test_the_report_is_json_first_and_self_contained(tmp_path):
    digits = data.digits("test").first(40)
    model = mlp(64, [16], 10)
    x, y = digits.images(), model(digits.images()).argmax(1)
    report = evaluate_robustness(model, x, y, eps=0.1, sweep_examples=20, name="<b>&me")
    page = report.save(tmp_path, command="robustgen attack").read_text()
    assert "&lt;b&gt;&amp;me" in page
    assert "<b>&me" not in page
    assert "src=" not in page.replace('src="data:', "")
    assert "<script" not in page
    assert "<link" not in page
    assert page.count("<svg") == 1  # the curve
    assert page.count("data:image/png") >= 8
    saved = json.loads((tmp_path / "report.json").read_text())
    network = saved["networks"][0]
    assert len(network["per_example"]["broken_by"]["FGSM"]) == 40
    assert network["attacks"]["FGSM"]["settings"]["eps"] == 0.1
    assert {"torch", "cpu", "threads"} <= network["environment"].keys()
    assert load_report(tmp_path) == saved
    (tmp_path / "report.json").write_text((tmp_path / "report.json").read_text()[:-40])
    with pytest.raises(ValueError, match="not a complete JSON"):
        load_report(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_report(tmp_path / "nothing")
    (tmp_path / "report.json").write_text("[1]")
    with pytest.raises(ValueError, match="must be an object"):
        load_report(tmp_path)


def test_detection_is_reported_with_chance_and_false_alarms(tmp_path):
    x = data.digits("all").images()
    net = fortify(mlp(64, [32, 16], 10), "auto", example_input=x[:2], init="random").eval()
    with pytest.warns(UserWarning, match="decides otherwise"):  # the backbone was never trained: its margins are tiny
        net.fit_autoencoders(x[:800], epochs=5, progress=False)
    detector = ReconstructionError(net).fit(x[:800]).calibrate(x[800:1300])
    noise = data.noise(200, (1, 8, 8)).images()
    entry = evaluate_detection(detector, x[1300:], {"noise": noise, "the same": x[1300:]}, network="mlp")
    same = entry["populations"]["the same"]
    assert same["auroc"] == 0.5
    assert entry["populations"]["noise"]["auroc"] > 0.6
    assert entry["populations"]["noise"]["prevalence"] == pytest.approx(200 / (200 + len(x[1300:])))
    assert same["flagged"] == entry["false_alarms"] <= 0.12
    page = write_report({"networks": [], "detection": [entry]}, tmp_path)
    assert "AUROC" in page.read_text()
    with pytest.raises(ValueError, match="'nothing' is empty"):
        evaluate_detection(detector, x, {"nothing": x[:0]})
    with pytest.raises(ValueError, match="population 'brighter': x has values"):
        evaluate_detection(detector, x[1300:], {"brighter": x + 1})


def test_a_sequence_of_attacks_is_named_by_class(linear):
    model, x, y, _ = linear
    report = evaluate_robustness(
        model, x, y, eps=0.05, attacks=[PGD(eps=0.05, steps=3), PGD(eps=0.02)], masking_tests=False
    )
    assert list(report.outcomes) == ["PGD", "PGD 2"]


def test_the_l1_ball_is_evaluated_like_the_others():
    model = torch.nn.Linear(16, 3)
    x = torch.rand(40, 16)
    y = model(x).argmax(1)
    report = evaluate_robustness(model, x, y, eps=0.5, norm="L1")
    assert report.clean_accuracy == 1
    assert 0 < report.robust_accuracy < 1
    weights = model.weight.detach()
    logits = model(x).detach()
    for k, standing in enumerate(report.standing.tolist()):
        gaps = torch.stack(
            [(logits[k, y[k]] - logits[k, c]) / (weights[y[k]] - weights[c]).abs().max() for c in range(3) if c != y[k]]
        )
        assert standing or gaps.min() <= 0.5 + 1e-4  # nothing falls that is farther than eps from every other class
    unbounded = next(test for test in report.masking if "unbounded" in test.name)
    assert unbounded.verdict == "holds"


# An attack that is killed goes on where it was: to the same outcome, without asking the model again.

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
    monkeypatch.setattr("robustgen.evaluation.kept.EVERY", 0.0)  # every answer is written at once
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
    monkeypatch.setattr("robustgen.evaluation.kept.EVERY", 5.0)
    seconds = iter(range(10**6))
    monkeypatch.setattr("robustgen.evaluation.kept.time.monotonic", lambda: float(next(seconds)))
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
    monkeypatch.setattr("robustgen.evaluation.kept.EVERY", 0.0)

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


# The stages of an evaluation: their time, what is left of it, and evaluations that end when it is used up.


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(stages, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def test_dear_stages_weigh_more_than_cheap_ones(clock):
    evaluation = Stages("t")
    evaluation.expect("cheap", 1, 100)
    evaluation.expect("dear", 50, 200)
    assert evaluation.left() is None
    with evaluation.running("cheap"):
        clock.seconds += 2
        evaluation.advance(50)
        assert evaluation.left() == pytest.approx(2 + 200 * 50 * 2 / 50)
        clock.seconds += 2
        evaluation.advance(50)
    assert evaluation.left() == pytest.approx(200 * 50 * 4 / 100)
    with evaluation.running("dear"):  # a pass is cheaper here, as in large batches: measured, it is believed
        clock.seconds += 10
        evaluation.advance(20)
        assert evaluation.left() == pytest.approx(180 * 10 / 20)
        clock.seconds += 10
        evaluation.ask(forwards=500, backwards=250)  # 1000 passes, 20 examples' worth
        assert evaluation.left() == pytest.approx(160 * 20 / 40)
    assert evaluation.left() == 0
    assert evaluation.seconds == {"cheap": 4.0, "dear": 20.0}


def test_a_few_examples_do_not_decide_about_a_stage(clock):
    evaluation = Stages("t")
    evaluation.expect("long", 1, 1000)
    evaluation.expect("next", 10, 1000)
    with evaluation.running("long"):
        clock.seconds += 100
        evaluation.advance(1000)
    with evaluation.running("next"):
        clock.seconds += 30  # the first example waits for what is done once
        evaluation.advance(1)
        assert evaluation.left() == pytest.approx(999 * 10 * 130 / 1010)


def test_what_was_done_before_is_neither_left_nor_measured(clock):
    evaluation = Stages("t")
    evaluation.expect("a", 10, 100)
    with evaluation.running("a"):
        clock.seconds += 7  # reading it
        evaluation.advance(60, measured=False)
        assert evaluation.left() is None
        clock.seconds += 5
        evaluation.advance(10)
        assert evaluation.left() == pytest.approx(30 * 5 / 10)


def test_seconds_add_up_over_processes_also_where_a_stage_is_broken_off(clock, tmp_path):
    file = tmp_path / "seconds.json"
    first = Stages("t", file)
    first.recall()
    first.expect("a", 1, 10)

    def broken_off():
        with first.running("a"):
            clock.seconds += 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    second = Stages("t", file)
    second.recall()
    for name, took in (("a", 2), ("b", 5)):
        second.expect(name, 1, 10)
        with second.running(name):
            clock.seconds += took
    assert json.loads(file.read_text()) == second.seconds == {"a": 5.0, "b": 5.0}


def test_prices_are_passes_by_the_settings():
    assert passes(FGSM()) == 3
    assert passes(PGD(steps=40, restarts=3)) == 360
    assert passes(PGD(steps=10, eot_samples=20)) == 600
    assert passes(Square(n_queries=5000)) == 5000
    assert passes(NoiseSearch(n_queries=20)) == 20
    assert passes(AtEps(attack=FAB(steps=10), eps=0.1)) >= 30
    assert passes(HopSkipJump(n_queries=100)) >= 100


def test_only_examples_that_may_still_stand_are_expected_to_cost():
    fell = lambda *rows: SimpleNamespace(success=torch.tensor([k in rows for k in range(6)]))
    jobs = {
        "clean": Job(FGSM(eps=0.3), 6, needed=True),
        "small": Job(PGD(eps=0.1), 6),
        "large": Job(PGD(eps=0.4), 6),
        "next": Job(PGD(eps=0.2), 4),
        "whole": Job(PGD(eps=0.2, early_stop=False), 6),
    }
    done = {"clean": fell(0), "small": fell(1), "large": fell(2, 5)}
    assert _searched(jobs["next"], jobs, done).tolist() == [False, False, True, True]  # 2 fell in a larger ball
    assert _searched(jobs["whole"], jobs, done).all()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3)).eval()


EACH = {
    "noise": NoiseSearch(eps=0.06, n_queries=5),
    "PGD": PGD(eps=0.06, steps=8),
    "APGD": APGD(eps=0.06, steps=8),
}


@pytest.fixture
def evaluate(model):
    """A small evaluation with every kind of stage, a third of it wrong without attack."""
    x = torch.rand(12, 1, 4, 4)
    y = torch.where(torch.arange(12) % 3 > 0, model(x).argmax(1), 0)

    def evaluate(**options):
        common = {"attacks": EACH, "eps": 0.06, "batch_size": 1, "sweep_examples": 6}
        return evaluate_robustness(model, x, y, **common | options)

    return evaluate


def stopping(monkeypatch, after):
    """The time is used up once it has been looked at so many times; the count stands in the result."""
    looks = SimpleNamespace(n=0, after=after)

    def out_of_time(self):
        looks.n += 1
        return self.until is not None and looks.n > looks.after

    monkeypatch.setattr(Stages, "out_of_time", property(out_of_time))
    return looks


def bare(report):
    return {k: v for k, v in report.to_dict().items() if k not in ("wall_seconds", "environment")}


@pytest.mark.filterwarnings("ignore:clean accuracy")
def test_an_evaluation_that_is_stopped_and_resumed_is_that_of_one_that_is_not(evaluate, tmp_path, monkeypatch):
    whole = evaluate(run_dir=tmp_path / "whole")
    assert not whole.unfinished
    looks = stopping(monkeypatch, 10**9)
    assert bare(evaluate(run_dir=tmp_path / "in time", max_minutes=1)) == bare(whole)
    total, looks.after, stops = looks.n, looks.n // 7, 0
    seen = set()
    while True:
        looks.n = 0
        report = evaluate(run_dir=tmp_path / "cut", max_minutes=1, resume=stops > 0)
        if not report.unfinished:
            break
        stops += 1
        assert stops < total
        seen |= {how.split()[0] for how in report.unfinished.values()}
        said = report.notes[-1]
        assert said.startswith("cut short after 1 minutes")
        assert said in str(report)
        assert set(report.outcomes).isdisjoint(report.unfinished)
        assert set(report.outcomes) | set(report.unfinished) >= set(EACH)
        for label, outcome in report.outcomes.items():  # finished ones are as they will be
            assert torch.equal(outcome.success, whole.outcomes[label].success)
        assert torch.equal(report.clean, whole.clean)
        assert whole.robust_accuracy <= report.robust_accuracy <= whole.clean_accuracy
    assert stops > 4
    assert seen == {"stopped", "not"}
    assert bare(report) == bare(whole)
    assert report.stage_seconds.keys() == whole.stage_seconds.keys()
    assert "diagnostics" in report.stage_seconds


@pytest.mark.filterwarnings("ignore:clean accuracy")
def test_without_a_finished_attack_there_is_the_accuracy_without_attack_and_it_is_said(evaluate, tmp_path, monkeypatch):
    stopping(monkeypatch, 0)
    report = evaluate(run_dir=tmp_path, max_minutes=0.5)
    assert not report.outcomes
    assert report.robust_accuracy == report.clean_accuracy > 0
    assert "attacks finished: none" in report.notes[-1]
    assert "no robustness" in report.notes[-1]
    page = report.save(tmp_path)
    assert "no robustness" in page.read_text()
    assert load_report(tmp_path)["networks"][0]["unfinished"]["PGD"] == "not begun"


@pytest.mark.filterwarnings("ignore:clean accuracy")
def test_where_only_tests_of_the_attacks_are_missing_the_accuracies_are_final(evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr(Stages, "out_of_time", property(lambda self: self._name == "diagnostics"))
    report = evaluate(run_dir=tmp_path, max_minutes=1)
    assert report.unfinished == {"diagnostics": "not finished"}
    assert "left: tests of the attacks; the accuracies are those of a finished evaluation" in report.notes[-1]
    (test,) = (t for t in report.masking if t.name == "the diagnostics of the attacks")
    assert (test.verdict, test.detail) == ("not run", "the time was used up before")
    assert len(report.curve) > 1


@pytest.mark.filterwarnings("ignore:clean accuracy")
def test_a_chunk_is_broken_off_with_its_answers_kept(evaluate, tmp_path, monkeypatch):
    looks = stopping(monkeypatch, 20)
    options = {"attacks": [Square(eps=1e-6, n_queries=100)], "masking_tests": False, "max_minutes": 1}
    cut = evaluate(run_dir=tmp_path, **options)
    assert cut.unfinished == {"Square": "stopped after 0 of 12 examples"}
    assert list((tmp_path / "chunks").glob("*.answers-*"))
    looks.after = 10**9
    assert not evaluate(run_dir=tmp_path, resume=True, **options).unfinished
    assert not list((tmp_path / "chunks").glob("*.answers-*"))


def test_minutes_must_be_positive_and_have_a_place(evaluate, tmp_path):
    for minutes in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="max_minutes must be a finite number > 0"):
            evaluate(run_dir=tmp_path, max_minutes=minutes)
    with pytest.raises(ValueError, match="max_minutes needs a run_dir"):
        evaluate(max_minutes=1)


def test_stages_and_their_time_are_in_the_report(evaluate, tmp_path):
    report = evaluate()
    assert list(report.stage_seconds)[:4] == ["clean", "attack: noise", "attack: PGD", "attack: APGD"]
    report.stage_seconds["attack: PGD"] = 150.0
    page = report.save(tmp_path)
    assert load_report(tmp_path)["stage_seconds"] == report.stage_seconds
    assert "<td>attack: PGD</td><td>2.5 min</td>" in page.read_text()


def test_pieces_are_not_begun_when_the_time_is_up(monkeypatch):
    looks = stopping(monkeypatch, 1)
    evaluation = Stages("t", until=0.0)
    evaluation.expect("single inputs", 1, 3)
    made = []
    with evaluation.running("single inputs"):
        keep = evaluation.each(anew)
        keep("a", [], lambda: made.append("a") or {})
        with pytest.raises(OutOfTime):
            keep("b", [], lambda: made.append("b") or {})
    assert made == ["a"]
    assert looks.n == 2


def test_attacks_on_a_detector_stop_and_go_on(tmp_path, monkeypatch):
    x = torch.rand(60, 8)
    backbone = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    net = fortify(backbone, "auto", example_input=x, init="random").eval()
    detector = ReconstructionError(net).fit(x[:20]).calibrate(x[20:40])
    y = net(x[40:]).argmax(1)

    def evaluate(where, **options):
        common = {"eps": 0.1, "fpr": 0.1, "steps": 5, "batch_size": 2, "x_ood": 1 - x[:8], "run_dir": tmp_path / where}
        return evaluate_detector_robustness(net, detector, x[40:], y, **common | options)

    whole = evaluate("whole")
    looks, stops = stopping(monkeypatch, 40), 0
    while True:
        looks.n = 0
        try:
            found = evaluate("cut", max_minutes=1, resume=stops > 0)
            break
        except OutOfTime:
            stops += 1
            assert stops < 100
    assert stops > 1
    assert bare(found) == bare(whole)
    assert set(found.stage_seconds) == set(whole.stage_seconds)
    assert "attacked-ood: score" in found.stage_seconds
    with pytest.raises(ValueError, match="needs a run_dir"):
        evaluate("x", run_dir=None, max_minutes=1)


SCRIPT = textwrap.dedent(
    """
    import json, sys, torch
    from torch import nn
    from robustgen.attacks import PGD, Square
    from robustgen.evaluation import evaluate_robustness
    from robustgen.evaluation.stages import Stages
    from robustgen.training.distributed import join
    torch.set_num_threads(1); torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.rand(30, 9); y = net(x).argmax(1)
    world, _ = join("cpu", net)
    looks = 0
    def out_of_time(self):  # on the second process alone
        global looks
        looks += 1
        return world.rank == 1 and looks > 25
    Stages.out_of_time = property(out_of_time)
    attacks = {"PGD": PGD(eps=0.03, steps=5), "S": Square(eps=0.03, n_queries=20)}
    options = {"eps": 0.03, "attacks": attacks, "batch_size": 1, "run_dir": sys.argv[1], "max_minutes": 1,
               "masking_tests": False}
    stops = 0
    while (report := evaluate_robustness(net, x, y, resume=stops > 0, **options)).unfinished:
        stops, looks = stops + 1, 0
        assert stops < 50
    found = report.to_dict(); found.pop("wall_seconds"); found.pop("environment")
    print(json.dumps([stops, found]) if world.rank == 0 else "", end="")
    """
)


def test_processes_stop_together_and_give_the_table_of_one(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    one, two = (
        subprocess.run(
            [*command, str(tmp_path / "script.py"), str(tmp_path / f"run{k}")],
            capture_output=True,
            text=True,
            timeout=300,
        )
        for k, command in enumerate(([sys.executable], torchrun))
    )
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    (once, whole), (stops, found) = json.loads(one.stdout), json.loads(two.stdout)
    assert once == 0
    assert stops > 1
    assert found == whole


def test_where_nothing_is_right_no_test_of_the_attacks_holds():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.rand(12, 1, 4, 4)
    with pytest.warns(UserWarning, match="not above chance"):
        report = evaluate_robustness(net, x, (net(x).argmax(1) + 1) % 3, eps=0.1, sweep_examples=12)
    assert {test.verdict for test in report.masking} == {"not run"}
