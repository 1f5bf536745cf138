"""Robustness evaluation: numbers against closed forms, verdicts that can fail, resuming, the report."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from robustgen import data
from robustgen.attacks import FGSM, PGD, NoiseSearch, TransferAttack
from robustgen.detectors import ReconstructionError
from robustgen.evaluation import evaluate_detection, evaluate_robustness, load_report, wilson_interval, write_report
from robustgen.evaluation.masking import at_most, monotone, reaches_zero
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
