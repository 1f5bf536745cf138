"""Generative models on the command line: train, sample, score; what is written and what is refused."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from robustgen import cli, data
from robustgen.commands import DataSpec, kept_by_run
from robustgen.detectors import PCAResidual, Typicality
from robustgen.generative import VAE, EnergyModel, PixelCNN, load
from robustgen.training import latest_checkpoint

SMALL = ["--set", "architecture=mlp", "--set", "width=64", "--set", "latent_dim=4"]
BINARY = ["--set", "quantization=stochastic"]


def run(capsys, *arguments):
    """Exit code, stdout and stderr of one call."""
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def vae_run(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs") / "vae"
    arguments = ["train", "vae", "--run", str(where), *SMALL, *BINARY, "--epochs", "20", "--batch-size", "32"]
    assert cli.main([*arguments, "--hold-out", "0", "--quiet"]) == 0
    return where


def test_a_training_leaves_model_curves_and_samples(vae_run):
    model = load(vae_run)
    assert isinstance(model, VAE)
    assert (model.latent_dim, model.width) == (4, 64)
    rows = [json.loads(line) for line in (vae_run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    assert rows[-1]["val_loss"] < rows[0]["val_loss"] - 1
    grids = sorted(path.name for path in (vae_run / "samples").iterdir())
    assert grids == [f"epoch-{k:04}.png" for k in range(1, 21)]
    for path in (vae_run / "curves.png", vae_run / "samples" / grids[-1]):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_samples_are_written_as_grid_or_array(vae_run, tmp_path, capsys):
    for name in ("a.npz", "b.npz", "c.png"):
        code, _, err = run(capsys, "sample", "--checkpoint", vae_run, "--n", 5, "--out", tmp_path / name)
        assert code == 0, err
    a, b = (np.load(tmp_path / name)["x"] for name in ("a.npz", "b.npz"))
    assert a.shape == (5, 1, 8, 8)
    assert a.dtype == np.uint8
    assert set(np.unique(a)) <= {0, 255}
    assert (a == b).all()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_scores_of_known_and_unknown_inputs(vae_run, capsys):
    arguments = ["score", "--checkpoint", vae_run, "--data", "digits", "--json"]
    code, out, err = run(capsys, *arguments, "--against", "noise", "--against", "heldout")
    assert code == 0, err
    entry = json.loads(out)
    assert entry["detector"] == "Likelihood"
    assert entry["false_alarms"] < 0.12
    assert entry["populations"]["uniform noise"]["auroc"] > 0.95
    assert "held-out 0" in entry["populations"]
    kept = vae_run / "detectors" / "Likelihood" / "detector.json"
    before = kept.stat().st_mtime_ns
    code, out, _ = run(capsys, *arguments, "--limit", 5)
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 5
    assert kept.stat().st_mtime_ns == before  # the detector of the run is used again
    kept.write_text("{}")  # damaged: it is fitted again
    code, again, err = run(capsys, *arguments, "--limit", 5)
    assert (code, again) == (0, out), err
    x = data.load("digits").take(5).images()
    expected = -load(vae_run).log_prob(x)
    torch.testing.assert_close(torch.tensor([row["score"] for row in rows]), expected.detach())


def test_a_detector_takes_its_options(vae_run, capsys):
    arguments = ["score", "--checkpoint", vae_run, "--detector", "likelihood-regret", "--data", "digits"]
    code, out, err = run(capsys, *arguments, "--set", "steps=2", "--limit", 3)
    assert code == 0, err
    assert len(out.splitlines()) == 4
    record = json.loads((vae_run / "detectors" / "LikelihoodRegret" / "detector.json").read_text())
    assert record["config"]["steps"] == 2


def test_wrong_use_is_one_line(vae_run, tmp_path, capsys):
    new = tmp_path / "new"
    checkpoint = ["score", "--checkpoint", vae_run, "--data", "digits"]
    load(vae_run).save(tmp_path / "saved")
    for arguments, message in (
        (["train", "vae", "--run", new, *SMALL], "say how to binarise them"),
        (["train", "vea", "--run", new], "did you mean 'vae'?"),
        (["train", "vae", "--run", new, "--set", "widht=3"], "did you mean 'width'?"),
        (["train", "vae", "--run", new, "--set", "width"], "write name=value"),
        (["train", "vae", "--run", new, "--lr", "-1"], "lr must be a finite number > 0, got -1.0"),
        (["train", "vae", "--run", new, *SMALL, *BINARY, "--epochs", "0"], "--epochs must be at least 1"),
        (["train", "vae", "--run", new, *SMALL, *BINARY, "--samples", "-1"], "samples must not be negative"),
        (["train", "vae", "--run", new, *SMALL, *BINARY, "--ema", "2"], "ema must be a decay"),
        (["train", "vae", "--run", new, *SMALL, *BINARY, "--limit", "3"], "leave no tenth to keep from training"),
        (["train", "vae", "--run", new, *SMALL, *BINARY, "--clip-norm", "nan"], "--clip-norm must be a finite"),
        (["train", "vae", "--run", new, *SMALL, *BINARY, "--device", "gpuu"], "--device gpuu: "),
        (["train", "vae", "--run", tmp_path / "saved", *SMALL, *BINARY], "holds a training without run.json"),
        (["train", "--run", new, "--epochs", "0"], "epochs must be at least 1"),
        (["train", "vae", "--run", new, "--limit", "99"], "--set quantization=stochastic (Bernoulli"),
        (
            ["train", "vae", "--run", new, *SMALL, *BINARY, "--set", "latent_dim="],
            "--set latent_dim must be",
        ),
        (["train", "--run", new, "--lr", "nan"], "lr must be a finite number"),
        ([*checkpoint, "--checkpoint", vae_run], "Likelihood is of one model"),
        (["train", "vae", "--run", new, "--attack", "fgsm"], "--attack is an option of a classifier"),
        (["train", "--run", new, "--precision", "bfloat16"], "--precision is an option of a generative model"),
        (["train", "vae", "--run", vae_run, *SMALL, *BINARY], "already holds a run"),
        (["sample", "--checkpoint", vae_run, "--out", tmp_path / "a.gif"], "name it .png or .npz"),
        (["sample", "--checkpoint", tmp_path, "--out", tmp_path / "a.png"], "no checkpoint here"),
        ([*checkpoint, "--detector", "discriminator"], "VAE has no discriminate"),
        ([*checkpoint, "--detector", "likelyhood"], "did you mean 'likelihood'"),
        ([*checkpoint, "--fpr", "0.0001"], "9999 are needed"),
        ([*checkpoint, "--against", "fgsm"], "attacks a classifier"),
        ([*checkpoint, "--against", "noise", "--split", "train"], "are also in digits/train"),
        ([*checkpoint, "--against", "digits"], "are also in digits/test"),
        ([*checkpoint, "--detector", "waic"], "pass --checkpoint more than once"),
        (
            [*checkpoint, "--layers", "conv1"],
            "--layers is of a detector that is fitted on --fit-data; this",
        ),
        (["score", "--checkpoint", tmp_path / "saved", "--data", "digits"], "no run of `robustgen train` here"),
        ([*checkpoint, "--run", vae_run], "--run is of"),
        (["score", "--run", vae_run, "--data", "digits"], "holds a VAE, not a classifier"),
        (["score", "--detector", "likelihood", "--data", "digits", "--run", vae_run], "holds a VAE"),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2, (arguments, err)
        assert message in err
        assert err.count("\n") == 1
        assert not new.exists()
        assert not (tmp_path / "saved" / "run.json").exists()


@pytest.mark.filterwarnings("always")
def test_what_cannot_be_kept_is_fitted_each_time(vae_run, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("robustgen.detectors.base.save_tensors", full)
    code, out, err = run(
        capsys, "score", "--checkpoint", vae_run, "--data", "digits", "--detector", "mean-brightness", "--limit", 4
    )
    assert code == 0, err
    assert len(out.splitlines()) == 5
    assert "the fitted detector cannot be kept: [Errno 28]" in err


def test_certified_columns(vae_run, capsys, tmp_path):
    arguments = ["score", "--checkpoint", vae_run, "--data", "digits", "--limit", "4", "--certify-radius", "0.5"]
    code, _, err = run(capsys, *arguments, "--detector", "input-complexity")
    assert code == 2
    assert "no bound is known of how far a InputComplexity can be moved: --smooth-sigma 0.25 makes it" in err
    near = ["--detector", "nearest-neighbour"]
    for more in (near, ["--smooth-sigma", "0.2", "--smooth-draws", "20", *near]):
        code, out, err = run(capsys, *arguments, *more)
        assert code == 0, err
        rows = [line.split(",") for line in out.splitlines()]
        assert rows[0] == ["input", "score", "p_value", "flag", "p_lowest", "p_highest"]
        assert all(float(row[4]) <= float(row[2]) <= float(row[5]) for row in rows[1:])
    code, out, err = run(capsys, *arguments, "--detector", "nearest-neighbour", "--out", tmp_path / "rows.csv")
    assert "certified" in out
    code, _, err = run(capsys, *arguments, "--against", "noise")
    assert "name a file for them, --out" in err


def test_typicality_is_fitted_on_images_that_the_model_has_not_seen(vae_run, capsys):
    code, _, err = run(capsys, "score", "--checkpoint", vae_run, "--data", "digits", "--detector", "typicality")
    assert code == 0, err
    rest = data.heldout_classes(data.load("digits", split="train"), [0])[0]
    _, held_back = data.split(rest, (0.9, 0.1), seed=0)
    fresh, calibration = data.split(held_back, (0.5, 0.5), seed=0, stratified=False)
    found = Typicality.load(vae_run / "detectors" / "Typicality", model=load(vae_run))
    expected = -load(vae_run).log_prob(fresh.images()).double().mean()
    torch.testing.assert_close(found.statistics["entropy"], expected.detach())
    assert len(found.calibration.scores) == len(calibration)


@pytest.mark.filterwarnings("always")
def test_a_score_that_points_the_other_way_is_told(vae_run, tmp_path, capsys):
    data.save_npz(tmp_path / "black.npz", data.ArrayDataset(torch.zeros(9, 1, 8, 8), name="black"))
    arguments = ["score", "--checkpoint", vae_run, "--data", "digits", "--detector", "mean-brightness"]
    _, out, _ = run(capsys, *arguments, "--against", "noise", "--against", tmp_path / "black.npz")
    told = [line for line in out.splitlines() if "below 0.5" in line]
    assert len(told) == 1
    assert told[0].startswith("black")


def test_a_model_of_images_without_labels_scores_labelled_ones(tmp_path, capsys):
    data.save_npz(tmp_path / "plain.npz", data.ArrayDataset(data.load("digits", split="train").x))
    new = tmp_path / "run"
    code, _, err = run(capsys, "train", "vae", "--run", new, "--data", tmp_path / "plain.npz", *SMALL, *BINARY)
    assert code == 0, err
    code, out, err = run(capsys, "score", "--checkpoint", new, "--data", "digits", "--against", "noise")
    assert code == 0, err
    assert "in-distribution inputs" in out


def test_baselines_on_the_pixels_of_a_run(vae_run, capsys):
    arguments = ["score", "--checkpoint", vae_run, "--detector", "nearest-neighbour", "--data", "digits", "--json"]
    code, out, err = run(capsys, *arguments, "--against", "heldout")
    assert code == 0, err
    assert json.loads(out)["populations"]["held-out 0"]["auroc"] > 0.9


@pytest.mark.filterwarnings("always")
def test_otherwise_made_pixels_are_told(vae_run, tmp_path, capsys):
    x = data.load("digits").first(50).images()
    data.save_npz(tmp_path / "paler.npz", data.ArrayDataset(0.9 * x))
    code, _, err = run(
        capsys, "score", "--checkpoint", vae_run, "--data", "digits", "--against", tmp_path / "paler.npz"
    )
    assert code == 0
    assert "preprocessed otherwise" in err


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_images_train_with_the_defaults(tmp_path, capsys, channels):
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "colour.npz", x=generator.integers(0, 256, (40, channels, 8, 8), dtype=np.uint8))
    shared = ["--data", tmp_path / "colour.npz", "--epochs", 1, "--batch-size", 20, "--quiet"]
    code, _, err = run(capsys, "train", "pixelcnn", "--run", tmp_path / "run", *shared, "--set", "layers=1")
    assert code == 0, err
    assert load(tmp_path / "run").width == 64


def test_a_hopeless_rate_is_refused_before_a_detector_is_fitted(vae_run, tmp_path, capsys, monkeypatch):
    def never(*_, **__):
        raise AssertionError("fitted")

    scored = ["score", "--checkpoint", vae_run, "--data", "digits", "--fpr", "0.001"]
    monkeypatch.setattr(PCAResidual, "fit", never)
    assert run(capsys, "score", "--checkpoint", vae_run, "--data", "digits", "--out", tmp_path / "rows.csv")[0] == 0
    code, _, err = run(capsys, *scored, "--detector", "likelihod")
    assert (code, "unknown detector 'likelihod'; did you mean 'likelihood'" in err) == (2, True)
    for detector in ("likelihood", "pca-residual"):  # one is kept in the run
        code, out, err = run(capsys, *scored, "--detector", detector)
        assert (code, out) == (2, "")
        assert "cannot give a false-alarm rate of 0.001" in err


def test_a_file_asks_for_no_more_time_than_is_meant(tmp_path):
    for model, name in ((EnergyModel((1, 4, 4), width=2), "sample_steps"), (PixelCNN((1, 4, 4), width=2), "layers")):
        model.save(tmp_path / name)
        path = latest_checkpoint(tmp_path / name) / "config.json"
        head = json.loads(path.read_text())
        head["config"]["model"][name] = 500_000
        path.write_text(json.dumps(head))
        with pytest.raises(ValueError, match=rf"config\.json: config\.model\.{name} must be a whole number from 1 to"):
            load(tmp_path / name)


def test_named_sets_are_where_those_of_the_run_were(vae_run, tmp_path):
    shutil.copytree(vae_run, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    info = json.loads(path.read_text())
    info["data"]["root"] = "somewhere"
    path.write_text(json.dumps(info))
    assert kept_by_run(DataSpec("mnist"), tmp_path / "run").root == "somewhere"
    assert kept_by_run(DataSpec("mnist", "elsewhere"), tmp_path / "run").root == "elsewhere"
    assert kept_by_run(DataSpec("mnist", download=True), tmp_path / "run").root is None
    assert kept_by_run(DataSpec("mnist"), tmp_path).root is None


def test_samples_are_of_a_run_too(vae_run, tmp_path, capsys):
    assert run(capsys, "sample", "--run", vae_run, "--out", tmp_path / "a.png", "--n", 2)[0] == 0


def test_what_lies_between_two_noises_and_what_a_model_makes_of_images(vae_run, tmp_path, capsys):
    model, out = load(vae_run), tmp_path / "a.npz"
    assert run(capsys, "sample", "--run", vae_run, "--interpolate", 2, "--seed", 3, "--out", out)[0] == 0
    x = np.load(out)["x"]
    assert x.shape == (16, 1, 8, 8)
    ends = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(3))
    middle = math.cos(math.pi / 7) * ends[0] + math.sin(math.pi / 7) * ends[1]
    with torch.no_grad():
        for row, eps in ((0, ends[0]), (2, middle), (7, ends[1])):
            expected = 255 * model.from_noise(eps).clamp(0, 1).numpy()
            np.testing.assert_allclose(x[[row, row + 8]], expected, atol=0.51)
    asked = ["sample", "--run", vae_run, "--reconstruct", "--n", 3, "--out", out]
    assert run(capsys, *asked)[0] == 0
    x = np.load(out)["x"]
    assert x.shape == (6, 1, 8, 8)
    np.testing.assert_array_equal(x[::2], (255 * data.digits("test").take(3).images()).round().numpy())
    with torch.no_grad():
        expected = 255 * model.reconstruct(torch.from_numpy(x[::2]) / 255).numpy()
    np.testing.assert_allclose(x[1::2], expected, atol=1)
    for options, size in ((["--interpolate", 3], (8 * 10 + 2, 3 * 10 + 2)), (asked[3:6], (4 * 10 + 2, 2 * 10 + 2))):
        assert run(capsys, "sample", "--run", vae_run, *options, "--out", tmp_path / "a.png")[0] == 0
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.size == size


def test_other_models_and_options_are_refused_in_one_line(vae_run, tmp_path, capsys):
    PixelCNN((1, 8, 8), width=2, layers=1).save(tmp_path / "cnn")
    np.savez(tmp_path / "large.npz", x=np.zeros((3, 1, 9, 9), np.uint8))
    for where, options, message in (
        (tmp_path / "cnn", ["--interpolate", 2], "PixelCNN makes no images of normal noise alone"),
        (tmp_path / "cnn", ["--reconstruct", "--data", "digits"], "PixelCNN does not reconstruct images"),
        (vae_run, ["--interpolate", 2, "--n", 3], "leave out --n and --reconstruct"),
        (vae_run, ["--interpolate", 2, "--reconstruct"], "leave out --n and --reconstruct"),
        (vae_run, ["--data", "digits"], "--data and the options on it go with --reconstruct"),
        (vae_run, ["--reconstruct", "--n", 0], "n must be at least 1"),
        (vae_run, ["--reconstruct", "--data", tmp_path / "large.npz"], "holds inputs of shape (1, 9, 9)"),
    ):
        code, _, err = run(capsys, "sample", "--run", where, *options, "--out", tmp_path / "a.png")
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err
    assert not (tmp_path / "a.png").exists()
