"""What detectors over a denoiser ask it, and what they make of its answers."""

import pytest
import torch
from torch import nn

from robustgen.detectors import DiffusionReconstruction, LiftMapDetect, MultiscaleScores, NearestDiffusionFeatures
from robustgen.detectors.lift_map_detect import checkerboard
from robustgen.generative import DDGAN, DDPM, EDM, VAE, Denoiser

SHAPE, F64 = (1, 4, 6), torch.float64


class Answering(nn.Module):
    """Answers with ``answer(x, sigma)`` and remembers what it was asked."""

    sigma_min, sigma_max = 0.01, 3.0

    def __init__(self, answer):
        super().__init__()
        self.answer, self.asked = answer, []

    def denoise(self, x, sigma):
        self.asked.append((x, sigma))
        return self.answer(x, sigma)


def images(n):
    return torch.rand(n, *SHAPE, dtype=F64, generator=torch.Generator().manual_seed(n))


def test_lifted_pixels_are_compared_and_the_others_put_back_with_noise():
    x, model = images(3), Answering(lambda x, sigma: torch.full_like(x, 0.2))
    found = LiftMapDetect(model, squares=2, attempts=2, steps=4).fit(x)
    model.asked.clear()
    scores = found.score(x)
    board = checkerboard(4, 6, 2).double()
    assert board.sum() == 12
    off = (0.2 - x).square()
    each = torch.stack([(off * mask).flatten(1).sum(1) / 12 for mask in (1 - board, board)], 1)
    assert torch.allclose(scores, each.mean(1))
    sigmas = [sigma for _, sigma in model.asked]
    assert (len(sigmas), sigmas[0], sigmas[3]) == (8, 3.0, pytest.approx(0.01))
    assert sigmas[:4] == sorted(sigmas[4:], reverse=True)
    for part, kept in ((model.asked[:4], board), (model.asked[4:], 1 - board)):
        noise = [((v - x) / sigma)[:, :, kept == 1] for v, sigma in part]
        assert all(torch.allclose(noise[0], later, atol=1e-9) for later in noise)
        assert noise[0].std().item() == pytest.approx(1, rel=0.5)


def test_errors_of_reconstructions_are_in_standard_deviations_of_usual_ones():
    x, model = images(9), Answering(lambda x, sigma: torch.full_like(x, 0.4))
    found = DiffusionReconstruction(model, sigmas=(0.1, 0.5), steps=3).fit(x)
    model.asked.clear()
    other = images(4)
    errors = [(0.4 - part).square().flatten(1).mean(1) for part in (x, other)]
    expected = (errors[1] - errors[0].mean()) / errors[0].std(correction=0)
    assert torch.allclose(found.score(other), expected)
    assert [sigma for _, sigma in model.asked[::3]] == [0.1, 0.5]
    noise = [(v - other) / sigma for v, sigma in model.asked[::3]]
    assert torch.allclose(*noise)


def test_a_denoiser_that_knows_the_image_finds_nothing():
    x = images(1).expand(4, *SHAPE)
    model = Answering(lambda v, sigma: x[:1].expand_as(v))
    assert LiftMapDetect(model, squares=2, steps=3).fit(x).score(x).abs().max() == 0
    assert DiffusionReconstruction(model, steps=3).fit(x).score(x).abs().max() == 0


def test_norms_of_scores_are_standardised_together():
    x, model = images(200), Answering(lambda x, sigma: x * (1 - sigma))
    found = MultiscaleScores(model, scales=2, sigma_max=1.0).fit(x)
    logs = torch.stack([(x * s).flatten(1).norm(dim=1).log() for s in (0.01, 1.0)], 1)
    covariance = torch.cov(logs.T, correction=0)
    covariance += torch.eye(2) * 1e-4 * covariance.diagonal().mean()
    off = logs - logs.mean(0)
    assert torch.allclose(found.score(x), (off @ torch.linalg.inv(covariance) * off).sum(1), rtol=1e-3)


@pytest.mark.parametrize("build", [DDPM, Denoiser])
def test_states_of_a_diffusion_are_compared_with_the_nearest(build):
    torch.manual_seed(0)
    model, x = build((1, 8, 8), width=4, levels=2).double().eval(), torch.rand(9, 1, 8, 8, dtype=F64)
    for part, layer in ((model.network.down[1], None), (model.network.stem, "network.stem")):
        states = []
        hook = part.register_forward_hook(lambda _, __, output, states=states: states.append(output.flatten(1)))
        model.denoise(x, 0.5)
        hook.remove()
        apart = torch.cdist(states[0][6:], states[0][:6])
        for k in (1, 2):
            found = NearestDiffusionFeatures(model, sigma=0.5, layer=layer, k=k).fit(x[:6])
            assert torch.allclose(found.score(x[6:]), apart.kthvalue(k).values)
        assert not part._forward_hooks


def test_other_diffusions_have_such_states_too():
    torch.manual_seed(0)
    x = torch.rand(4, 1, 8, 8)
    for model in (EDM((1, 8, 8), width=4).eval(), DDGAN((1, 8, 8), width=4, latent_dim=0).eval()):
        assert NearestDiffusionFeatures(model).fit(x).score(x).abs().max() < 1e-3


def test_states_of_a_generator_that_draws_are_refused():
    torch.manual_seed(0)
    model = DDGAN((1, 8, 8), width=4).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # untrained, its latents have no weight yet
            parameter += 0.2 * torch.randn_like(parameter)
    with pytest.raises(ValueError, match="the model is stochastic in eval mode"):
        NearestDiffusionFeatures(model).fit(torch.rand(4, 1, 8, 8))


def test_one_clear_line():
    denoiser = Denoiser((1, 8, 8), width=4)
    for kind in (DiffusionReconstruction, LiftMapDetect, MultiscaleScores, NearestDiffusionFeatures):
        with pytest.raises(TypeError, match=f"{kind.__name__} needs a model that denoises, .*; VAE does not"):
            kind(VAE((1, 8, 8), latent_dim=2, width=4))
    with pytest.raises(TypeError, match=r"sigmas must be a list of numbers, got 0\.5"):
        DiffusionReconstruction(denoiser, sigmas=0.5)
    with pytest.raises(ValueError, match=r"sigmas\[1\] must be a finite number > 0"):
        DiffusionReconstruction(denoiser, sigmas=[0.5, 0.0])
    with pytest.raises(ValueError, match=r"of noise from 0\.1 to 1, got 2"):
        DiffusionReconstruction(denoiser, sigmas=[2.0]).fit(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="squares must be at least 2"):
        LiftMapDetect(denoiser, squares=1)
    with pytest.raises(ValueError, match=r"sigma_max=0\.1 is not above the model's least noise, 0\.1"):
        MultiscaleScores(denoiser, sigma_max=0.1)
    with pytest.raises(ValueError, match="Answering has no U-Net of this library: name the layer"):
        NearestDiffusionFeatures(Answering(None))
    with pytest.raises(ValueError, match=r"no layer 'network\.dwon'; did you mean"):
        NearestDiffusionFeatures(denoiser, layer="network.dwon")
    with pytest.raises(ValueError, match=r"'network\.down' has no state"):
        NearestDiffusionFeatures(denoiser, layer="network.down").fit(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="k=3 neighbours need as many"):
        NearestDiffusionFeatures(denoiser, k=3).fit(torch.zeros(2, 1, 8, 8))
