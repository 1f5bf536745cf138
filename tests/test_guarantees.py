"""Tables of certificates run on digits, their comparison is paired, and the 1-Lipschitz encoder is one."""

import json
import math
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import nn

import robustgen.experiments
from robustgen.data import digits
from robustgen.detectors import NearestNeighbour
from robustgen.experiments.catalogue import find
from robustgen.experiments.experiment import Cell
from robustgen.experiments.guarantees.certified_accuracy import compared
from robustgen.experiments.pages import draw_experiment
from robustgen.experiments.runner import run_experiment
from robustgen.experiments.training_cache import TrainingCache
from robustgen.generative import Denoiser
from robustgen.lipschitz import MaxMin, Orthonormal, lipschitz_bound, lipschitz_encoder

SCHEMA = json.loads((Path(robustgen.experiments.__file__).parent / "cell.schema.json").read_text())


@pytest.mark.filterwarnings("ignore:the fortified network decides otherwise")  # autoencoders of a few steps
@pytest.mark.parametrize(
    ("name", "cells"),
    [
        (
            "certified-accuracy",
            [Cell(row, "r0.25", 0) for row in ("plain", "noise-trained", "autoencoder", "denoised")],
        ),
        (
            "certified-detectors",
            [Cell("mnist", c.key, 0) for c in find("guarantees/certified-detectors").columns]
            + [Cell("1", "labelled", 0)],
        ),
    ],
)
def test_tables_of_certificates_run_on_digits(name, cells, tmp_path):
    experiment, out = find(f"guarantees/{name}"), tmp_path / "results"
    cache, before = TrainingCache(tmp_path / "work", say=lambda line: None), torch.random.get_rng_state()
    for cell in cells:
        kept = run_experiment(experiment, "smoke", cache, out, only=cell, say=lambda line: None)
        record = kept[cell.name]
        jsonschema.validate(record, SCHEMA)
        for entry, losses in record["history"].items():
            assert not entry.endswith("loss") or losses[-1] < losses[0], f"{cell.name}: {entry} does not fall"
        numbers = {key: number["value"] for key, number in record["numbers"].items()}
        by_radius = [v for key, v in numbers.items() if key.startswith(("AUROC at", "certified at"))]
        assert by_radius == sorted(by_radius, reverse=True), "a larger radius is proved more often"
    assert torch.equal(torch.random.get_rng_state(), before)
    page = draw_experiment(experiment, out, ("smoke",))
    assert all(row.title in page for row in experiment.rows)


def paired(seed, won, lost, n=100):
    counts = {"certified here alone": won, "trained on noise alone": lost}
    numbers = {name: {"value": float(value), "n": n} for name, value in counts.items()}
    return {"row": "denoised", "column": "r1", "seed": seed, "numbers": numbers}


def test_the_comparison_is_paired_over_images_and_over_seeds():
    differences = torch.tensor([1.0] * 10 + [-1.0] * 4 + [0.0] * 86, dtype=torch.float64)
    mean, error = compared({"a": paired(0, 10, 4)}, "denoised", "r1")
    assert mean == pytest.approx(100 * differences.mean().item())
    assert error == pytest.approx(100 * differences.std().item() / 10)
    mean, two = compared({"a": paired(0, 10, 4), "b": paired(1, 14, 4)}, "denoised", "r1")
    assert mean == pytest.approx(8.0)
    assert two > math.sqrt(8.0 / 2)  # the variance of 6 and 10 is 8, and images add theirs
    assert compared({}, "denoised", "r1") is None


class TestEncoder:
    def test_no_pair_of_inputs_moves_further_apart(self):
        torch.manual_seed(0)
        encoder = lipschitz_encoder(64, (32, 16), 8).double()
        bound = lipschitz_bound(encoder)
        assert 1 <= bound < 1 + 1e-4
        a = torch.rand(500, 1, 8, 8, dtype=torch.float64)
        for b in (torch.rand_like(a), a + 1e-3 * torch.randn_like(a)):
            moved = (encoder(a) - encoder(b)).norm(dim=1) / (a - b).flatten(1).norm(dim=1)
            assert moved.max() <= bound

    def test_the_steepest_direction_is_as_steep_as_the_bound(self):
        """Rows are orthonormal and MaxMin permutes: by power iteration the gradient's largest singular value is 1."""
        torch.manual_seed(1)
        encoder = lipschitz_encoder(64, (32,), 8).double()
        jacobian = torch.autograd.functional.jacobian(encoder, torch.rand(1, 64, dtype=torch.float64))[0, :, 0]
        v = torch.randn(64, dtype=torch.float64)
        for _ in range(300):
            v = jacobian.T @ (jacobian @ v)
            v = v / v.norm()
        assert (jacobian @ v).norm().item() == pytest.approx(1.0, abs=1e-6)

    def test_it_stays_so_in_training_and_certifies_neighbours(self):
        torch.manual_seed(0)
        encoder = lipschitz_encoder(64, (32,), 8)
        adam = torch.optim.Adam(encoder.parameters(), lr=0.05)
        x = digits("train").images()[:200]
        for _ in range(10):
            adam.zero_grad()
            encoder(x).square().mean().neg().backward()
            adam.step()
        assert lipschitz_bound(encoder) == pytest.approx(1.0, abs=1e-4)
        detector = NearestNeighbour(encoder).fit(x)
        assert detector.lipschitz() == pytest.approx(1.0, abs=1e-4)
        shift = torch.randn(50, 1, 8, 8)
        shift = 0.5 * shift / shift.flatten(1).norm(dim=1)[:, None, None, None]
        y = 0.2 + 0.6 * torch.rand(50, 1, 8, 8)
        low, high = detector.score_bounds(y, 0.5, "L2")
        with torch.no_grad():
            features, bank = encoder(y + shift), encoder(x)
        scores = torch.cdist(features, bank).amin(1)
        assert (low <= scores).all()
        assert (scores <= high).all()

    @pytest.mark.parametrize("shape", [(8, 16), (16, 8)])
    @pytest.mark.parametrize("apart", [0.0, 1e-8, 1e-5])
    def test_rows_that_are_nearly_equal(self, shape, apart):
        torch.manual_seed(0)
        v = torch.randn(shape)
        first, second = (v[0], v[1]) if shape[0] < shape[1] else (v[:, 0], v[:, 1])
        second.copy_(first + apart * torch.randn_like(first))
        found = Orthonormal()(v).double()
        found = found if shape[0] < shape[1] else found.T
        assert torch.allclose(found @ found.T, torch.eye(8, dtype=torch.float64), atol=1e-5)

    def test_other_parametrizations_have_no_bound(self):
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        assert lipschitz_bound(layer) is None

    def test_odd_features_are_refused(self):
        with pytest.raises(ValueError, match="must be even"):
            lipschitz_encoder(64, (15,))
        with pytest.raises(ValueError, match="odd number"):
            MaxMin()(torch.zeros(1, 3))


def test_patches_that_do_not_overlap_have_the_bound_of_one_patch():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 2, stride=2, padding=1).double()
    x = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(conv, x).reshape(-1, x.numel())
    assert lipschitz_bound(conv) == pytest.approx(torch.linalg.matrix_norm(jacobian, 2).item())


def test_a_denoiser_of_patches():
    torch.manual_seed(0)
    model = Denoiser((1, 8, 8), width=4, levels=2, patch=2)
    v = torch.randn(3, 1, 8, 8)
    assert torch.allclose(model.denoise(v, 0.5), 0.5 + (v - 0.5) * 0.16 / 0.41, atol=1e-6)  # as without patches
    nn.init.normal_(model.network.out.weight)
    assert model.denoise(v, 0.5).shape == v.shape
    with pytest.raises(ValueError, match="not made of patches"):
        Denoiser((1, 8, 8), patch=3)
