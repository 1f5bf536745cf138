"""A classifier made of a diffusion, where the best prediction for each class is known."""

import pytest
import torch

from robustgen.generative import DDPM, EDM, DiffusionClassifier

SHAPE, STD = (1, 4, 4), 0.2  # of u_0 about the mean of its class
MEANS = torch.tensor([-0.5, 0.0, 0.5], dtype=torch.float64)


def of_gaussians():
    """The best network for images N(mean of the class, STD^2)."""
    model = DDPM(SHAPE, classes=3, prediction="data", width=2, levels=1).double().eval()

    def outputs(u, kept, y=None, guidance=1.0):
        kept, mean = kept.to(u)[:, None, None, None], MEANS[y][:, None, None, None]
        gain = STD**2 * kept.sqrt() / (kept * STD**2 + 1 - kept)
        return mean + gain * (u - kept.sqrt() * mean)

    model._outputs = outputs
    return model


@pytest.mark.parametrize("fresh", [False, True])
def test_images_are_of_the_class_whose_mean_is_near(fresh):
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    x = ((MEANS[y][:, None, None, None] + STD * torch.randn(60, *SHAPE, dtype=torch.float64) + 1) / 2).clamp(0, 1)
    classify = DiffusionClassifier(of_gaussians(), draws=20, fresh=fresh)
    assert torch.equal(classify(x).argmax(1), y)
    assert torch.equal(classify(x), classify(x)) is not fresh


def test_logits_are_mean_errors_with_the_same_noise_for_all():
    model, x = of_gaussians(), torch.rand(4, *SHAPE, dtype=torch.float64)
    logits = DiffusionClassifier(model, draws=2)(x)
    alone = torch.cat([DiffusionClassifier(model, draws=2)(row[None]) for row in x])
    assert torch.allclose(logits, alone)
    others = DiffusionClassifier(model, draws=2, seed=1)(x)
    assert not torch.allclose(logits, others)
    spread = (x.flatten(1).mean(1) * 2 - 1)[:, None] - MEANS  # an error is quadratic in the mean of its class
    second = logits[:, 0] - 2 * logits[:, 1] + logits[:, 2]
    assert torch.allclose(second, second[:1].expand(4))
    assert (second < 0).all()
    assert torch.equal(logits.argmax(1), spread.abs().argmin(1))


def test_gradients_are_exact():
    torch.manual_seed(0)
    model = EDM(SHAPE, classes=3, width=2, levels=1).double().eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    classify, x = DiffusionClassifier(model, draws=2), torch.rand(1, *SHAPE, dtype=torch.float64)
    assert torch.autograd.gradcheck(classify, x.requires_grad_())
    assert classify(x[:0]).shape == (0, 3)


def test_one_clear_line():
    with pytest.raises(TypeError, match="this DDPM was told no classes"):
        DiffusionClassifier(DDPM(SHAPE, width=2))
    with pytest.raises(ValueError, match="draws must be at least 1"):
        DiffusionClassifier(of_gaussians(), draws=0)
    with pytest.raises(ValueError, match=r"images \(1, 4, 4\), got \(1, 5, 4\)"):
        DiffusionClassifier(of_gaussians())(torch.zeros(1, 1, 5, 4))
