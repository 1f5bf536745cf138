"""Certified accuracy: counted from certificates, resumed, and never beaten."""

import json
import math

import pytest
import torch
from torch import nn

from robustgen import cli, data, smooth
from robustgen.binomial import lower_bound
from robustgen.evaluation import certify_robustness
from robustgen.evaluation.certification_page import certification_html, load_certification, write_certification
from robustgen.fortified import SmoothedClassifier
from robustgen.networks import mlp


class Threshold(nn.Module):
    """Class 1 where the first number is above 1/2."""

    def forward(self, x):
        return torch.stack([torch.zeros(len(x)), x[:, 0] - 0.5], 1)


@pytest.fixture
def smoothed():
    return smooth(Threshold(), 0.5)


PICTURE = {"shape": [1, 2, 2], "uint8": "AAAA"}
X = torch.tensor([[0.95, 0.5], [0.8, 0.5], [0.6, 0.5], [0.5, 0.5], [0.1, 0.5]])
Y = torch.tensor([1, 1, 1, 1, 1])


class TestNumbers:
    def test_they_are_those_of_distances(self, smoothed):
        report = certify_robustness(smoothed, X, Y, radii=(0.05, 0.25, 0.4), n0=1000, n=20_000)
        assert report.right.tolist() == [True, True, True, False, False]
        assert report.certified(0.25).tolist() == [True, True, False, False, False]
        assert report.certified(0.4).tolist() == [True, False, False, False, False]
        assert report.average_radius == pytest.approx((0.45 + 0.3 + 0.1) / 5, abs=0.02)
        found = report.to_dict()
        assert [row["certified"]["value"] for row in found["radii"]] == [0.6, 0.4, 0.2]
        assert found["accuracy"]["value"] == 0.6
        assert found["abstains"]["value"] == pytest.approx(0.2)
        assert found["every_element"] == pytest.approx(0.4 / math.sqrt(2))
        assert json.loads(json.dumps(found)) == found
        assert "L2 0.25: certified" in str(report)

    def test_an_attack_stays_above_the_certified_and_wins_beyond(self, smoothed):
        report = certify_robustness(smoothed, X, Y, radii=(0.2, 0.45), n0=1000, n=20_000, n_attacked=5)
        for radius in (0.2, 0.45):
            assert report.standing(radius).sum() >= report.certified(radius).sum()
            assert not report.beaten(radius).any()
        assert report.standing(0.45).tolist() == [True, False, False, False, False]
        assert "0 certificates beaten" in str(report)

    def test_a_beaten_certificate_shows(self, smoothed):
        report = certify_robustness(smoothed, X, Y, radii=(0.2,), n=1000, n_attacked=2)
        report.attacked[0.2] = torch.tensor([0, -1])
        assert report.beaten(0.2).tolist() == [True, False]
        assert report.standing(0.2).tolist() == [False, True]  # who abstains has not fallen
        assert report.to_dict()["radii"][0]["beaten"] == 1

    def test_a_change_of_every_element(self):
        model = smooth(Threshold(), 0.5, noise="uniform")
        report = certify_robustness(model, X, Y, radii=(0.4, 1e9), n=2000)
        assert report.every_element == pytest.approx(0.4 / 2)  # in L1; what n draws cannot prove does not count

    def test_a_certificate_can_be_computed_again_from_the_record(self, smoothed):
        found = certify_robustness(smoothed, X, Y, radii=(0.2,), n=2000).to_dict()["per_example"]
        for k in range(3):
            share = lower_bound(torch.tensor([found["counts"][k][1]]), 2000, 0.001)
            assert found["radius"][k] <= 0.5 * torch.special.ndtri(share).item() < found["radius"][k] + 2e-6

    def test_an_early_stop_shows_the_same_accuracies(self, smoothed):
        options = {"radii": (0.1, 0.25, 1.2, 9.0), "n": 1000}
        whole, early = (certify_robustness(smoothed, X, Y, stop_early=flag, **options) for flag in (False, True))
        for radius in options["radii"]:
            assert torch.equal(whole.certified(radius), early.certified(radius))
        assert torch.equal(whole.prediction, early.prediction)
        assert whole.saved == 0
        assert early.saved == int(whole.draws.sum() - early.draws.sum()) > 0
        assert f"{early.saved:,} saved by an early stop" in str(early)
        assert "not provable: no number of draws" in str(early)
        assert early.provable[1.2][0] is True

    def test_a_radius_that_takes_more_draws(self, smoothed):
        report = certify_robustness(smoothed, X, Y, radii=(1.0,), n=200)
        assert "not provable with 200 draws (301 would)" in str(report)

    def test_the_standard_suite_and_certificates_without_chance(self):
        report = certify_robustness(
            smooth(Threshold(), 0.5, draws=1), X[:2], Y[:2], radii=(0.2,), n=200, n_attacked=1, attack="standard"
        )
        assert report.standing(0.2).tolist() == [True]
        assert report.to_dict()["attack"] == "standard"
        exact = certify_robustness(smooth(Threshold(), 0.1, noise="splitting", levels=20), X, Y, radii=(0.15, 2.0))
        assert exact.certified(0.15).tolist() == [True, True, False, False, False]
        assert exact.most == pytest.approx(7 / 40)
        assert "no input reaches it at this sigma" in str(exact)

    def test_a_secret_seed_is_not_written(self):
        report = certify_robustness(smooth(Threshold(), 0.5, seed=None), X, Y, radii=(0.2,), n=100)
        assert report.to_dict()["seed"] == 0

    def test_embeddings_are_not_attacked(self):
        with pytest.raises(ValueError, match="the attack needs the bounds of the inputs"):
            certify_robustness(smooth(Threshold(), 0.5, bounds=None), X, Y, n_attacked=1)


class TestResume:
    def test_a_resumed_evaluation_asks_only_for_what_is_missing(self, smoothed, tmp_path, monkeypatch):
        x, y = X.repeat(3, 1), Y.repeat(3)
        options = {"radii": (0.2,), "n": 500, "n_attacked": 2, "run_dir": tmp_path}
        whole = certify_robustness(smoothed, x, y, radii=(0.2,), n=500, n_attacked=2)
        certify, calls = SmoothedClassifier.certify, []

        def counted(self, rows, **more):
            calls.append(len(rows))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return certify(self, rows, **more)

        monkeypatch.setattr(SmoothedClassifier, "certify", counted)
        with pytest.raises(KeyboardInterrupt):
            certify_robustness(smoothed, x, y, **options)
        report = certify_robustness(smoothed, x, y, resume=True, **options)
        assert calls == [5, 5, 5, 5]  # the first of three was kept
        assert torch.equal(report.radius, whole.radius)
        assert report.attacked.keys() == whole.attacked.keys()
        assert torch.equal(report.attacked[0.2], whole.attacked[0.2])

    def test_another_evaluation_is_refused(self, smoothed, tmp_path):
        certify_robustness(smoothed, X, Y, n=200, radii=(0.1,), run_dir=tmp_path)
        with pytest.raises(ValueError, match="already holds certificates: resume"):
            certify_robustness(smoothed, X, Y, n=200, radii=(0.1,), run_dir=tmp_path)
        with pytest.raises(ValueError, match="of another evaluation: certificates differ"):
            certify_robustness(smoothed, X, Y, n=300, radii=(0.1,), run_dir=tmp_path, resume=True)
        with pytest.raises(ValueError, match="of another evaluation: model differs"):
            certify_robustness(smooth(Threshold(), 0.4), X, Y, n=200, radii=(0.1,), run_dir=tmp_path, resume=True)


def test_errors(smoothed):
    with pytest.raises(TypeError, match=r"takes what robustgen.smooth gives, got Threshold"):
        certify_robustness(Threshold(), X, Y)
    with pytest.raises(ValueError, match="there is no input to certify"):
        certify_robustness(smoothed, X[:0], Y[:0])
    with pytest.raises(ValueError, match="name one radius at least"):
        certify_robustness(smoothed, X, Y, radii=())
    with pytest.raises(ValueError, match="radius must be a finite number > 0"):
        certify_robustness(smoothed, X, Y, radii=(-1.0,))
    with pytest.raises(ValueError, match="the attack is in L2, certificates of uniform noise are in L1"):
        certify_robustness(smooth(Threshold(), 0.5, noise="uniform"), X, Y, n_attacked=2)


def test_a_network_for_digits():
    torch.manual_seed(0)
    test = data.digits("test")
    model = smooth(nn.Sequential(nn.Flatten(), mlp(64, [16], 10)), 0.25)
    report = certify_robustness(model, test.images()[:7], test.labels()[:7], n=100, radii=(0.1,), n_attacked=3)
    assert report.draws.tolist() == [200] * 7
    assert len(report.standing(0.1)) == 3


class TestCommand:
    def run(self, *arguments):
        return cli.main([*arguments, "--quiet"])

    def test_a_network_behind_a_denoiser(self, tmp_path, capsys):
        denoiser, out = str(tmp_path / "denoiser"), str(tmp_path / "out")
        few = ["--data", "digits", "--limit", "200", "--epochs", "1", "--set", "width=4"]
        assert self.run("train", "denoiser", "--run", denoiser, *few) == 0
        capsys.readouterr()
        options = ["--run", "example:digits", "--denoiser", denoiser, "--data", "digits", "--limit", "6", "--n", "100"]
        options += ["--sigma", "0.2", "--radius", "0.1", "--out", out]
        assert self.run("certify", *options) == 0
        assert "L2 0.1: certified" in (said := capsys.readouterr().out)
        record = json.loads((tmp_path / "out" / "certification.json").read_text())
        assert len(record["certified"][0]["per_example"]["radius"]) == 6
        assert self.run("certify", *options) == 2
        assert "already holds certificates" in capsys.readouterr().err
        assert self.run("certify", *options, "--resume") == 0
        assert capsys.readouterr().out == said
        page = (tmp_path / "out" / "certification.html").read_text()
        assert "whatever the attack, on" in page
        assert page.count("<img ") == 12  # each of four as it is, noisy, denoised
        assert self.run("report", out) == 0  # from the JSON alone
        assert (tmp_path / "out" / "certification.html").read_text() == page
        capsys.readouterr()
        assert self.run("report", out, "--markdown") == 0
        assert "| L2 radius | certified" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("change", "line"),
        [
            (lambda r: r.update(certified=[]), "certified must hold 1 to 64 entries"),
            (lambda r: r.update(format=7), "format must be a whole number"),
            (lambda r: r["certified"][0].pop("accuracy"), r"lacks certified\[0\].accuracy"),
            (lambda r: r["certified"][0].update(name=3), r"name must be a string, not 3"),
            (lambda r: r["certified"][0]["accuracy"].update(value=7.0), "accuracy.value must be"),
            (lambda r: r["certified"][0]["radii"][0].pop("beaten"), "radii lacks beaten"),
            (lambda r: r["certified"][0]["radii"].extend(r["certified"][0]["radii"] * 99), "must hold 1 to 64 radii"),
            (
                lambda r: r["certified"][0]["pictures"].append(dict.fromkeys(("image", "noisy"), PICTURE)),
                r"pictures\[0\].image.uint8 holds 3 values",
            ),
        ],
    )
    def test_a_file_from_elsewhere_is_not_trusted(self, smoothed, tmp_path, change, line):
        report = certify_robustness(smoothed, X, Y, radii=(0.2,), n=100, n_attacked=1, attack_steps=1)
        write_certification([report.to_dict()], tmp_path)
        path = tmp_path / "certification.json"
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))
        with pytest.raises(ValueError, match=line):
            load_certification(path)

    def test_names_are_text_and_beaten_certificates_stand_on_top(self, smoothed):
        report = certify_robustness(smoothed, X, Y, radii=(0.2,), n=1000, n_attacked=2, name="<script>")
        report.attacked[0.2] = torch.tensor([0, -1])
        beyond = certify_robustness(smoothed, X, Y, radii=(9.0,), n=1000)
        record = {"format": 1, "certified": [report.to_dict(), beyond.to_dict()]}
        page = certification_html(record)
        assert "<script>" not in page
        assert "1 certificate was beaten by an attack; one in 1,000 may be." in page
        assert "not provable: no number of draws reaches it" in page

    def test_errors(self, tmp_path, capsys):
        for arguments, line in (
            (["--run", "example:digits"], "say how much noise: --sigma 0.5"),
            (["--run", "example:digits", "--sigma", "0"], "--sigma 0 must be a finite number > 0"),
            (["--run", "example:digits", "--sigma", "0.5", "--n", "10"], "n must be at least n0"),
            (["--run", "example:digits", "--sigma", "0.5", "--resume"], "--resume goes on with the certificates"),
            (["--run", "example:digits", "--sigma", "0.5", "--denoiser", str(tmp_path)], "no checkpoint"),
        ):
            assert self.run("certify", "--limit", "3", *arguments) in (1, 2), arguments
            assert line in capsys.readouterr().err
