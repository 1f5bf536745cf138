"""Autoregressive models: probabilities add up, no pixel sees itself or a later one, cached samples are the same."""

import itertools
import math

import pytest
import torch
from torch import nn

from robustgen.data import digits
from robustgen.generative import GatedPixelCNN, PixelCNN, PixelCNNPlusPlus, PixelRNN, fit
from robustgen.generative.autoregressive.spatial_lstm import DiagonalBiLSTM, RowLSTM, skew, unskew
from robustgen.generative.blocks.discretized_logistic import (
    DiscretizedLogisticMixture,
    discretized_logistic_mixture_log_prob,
    discretized_logistic_mixture_sample,
    parameters_per_component,
)
from robustgen.generative.blocks.gated import Condition, GatedLayer, GatedStack
from robustgen.generative.blocks.incremental import Incremental
from robustgen.generative.blocks.pixel_likelihood import Bernoulli
from robustgen.generative.blocks.softmax import Softmax
from robustgen.training import Batch

MODELS = {
    "PixelCNN": lambda shape, **kw: PixelCNN(shape, **{"width": 6, "layers": 2} | kw),
    "gated": lambda shape, **kw: GatedPixelCNN(shape, **{"width": 6, "layers": 2, "kernel_size": 3} | kw),
    "gated, of classes": lambda shape, **kw: GatedPixelCNN(shape, **{"width": 6, "layers": 1, "n_classes": 3} | kw),
    "row": lambda shape, **kw: PixelRNN(shape, **{"variant": "row", "width": 6, "layers": 2} | kw),
    "diagonal": lambda shape, **kw: PixelRNN(shape, **{"variant": "diagonal", "width": 6, "layers": 2} | kw),
    **{
        f"++, {n} resolutions": lambda shape, n=n, **kw: PixelCNNPlusPlus(
            shape, **{"width": 6, "blocks": 1, "resolutions": n, "components": 2} | kw
        )
        for n in (1, 2, 3)
    },
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def built(make, shape, scale=2.0, **kw):
    """In float64, with weights larger than at the start so that everything matters."""
    torch.manual_seed(3)
    model = make(shape, **kw).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    return model


def all_images(shape, levels):
    """Every image of that shape, (levels ** pixels, *shape)."""
    values = torch.linspace(0, 1, levels, dtype=torch.float64).tolist()
    return (
        torch.tensor(list(itertools.product(values, repeat=shape[0] * shape[1] * shape[2]))).double().view(-1, *shape)
    )


@every_model
@pytest.mark.parametrize(
    ("shape", "levels", "scale"), [((1, 2, 3), 2, 1.0), ((1, 2, 3), 2, 10.0), ((3, 1, 2), 2, 3.0), ((1, 2, 2), 3, 3.0)]
)
def test_probabilities_of_all_images_add_up_to_one(make, shape, levels, scale):
    model = built(make, shape, scale, levels=levels)
    with torch.no_grad():
        log_prob = model.log_prob(all_images(shape, levels))
    assert float(log_prob.max() - log_prob.min()) > 0.1
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-10)


def test_a_conditional_model_is_a_distribution_for_each_class_and_their_mixture():
    model = built(MODELS["gated, of classes"], (1, 2, 3), levels=2)
    x = all_images((1, 2, 3), 2)
    with torch.no_grad():
        of_class = model.class_log_prob(x)  # (64, 3)
        torch.testing.assert_close(of_class.exp().sum(0), torch.ones(3, dtype=torch.float64))
        torch.testing.assert_close(model.log_prob(x).exp(), of_class.exp().mean(1))
        y = torch.full((64,), 1)
        torch.testing.assert_close(-model.training_step(Batch(x, y, y), 0)["loss"], of_class[:, 1].mean())
    assert float((of_class[:, 0] - of_class[:, 1]).abs().max()) > 0.01


def seen_by(f, shape):
    """Which input numbers each output number of f depends on, both in raster order, channels of a pixel together.

    f takes (1, C, H, W) and returns (1, ..., H, W); the result is bool, (H * W, ..., H * W, C): non-zero derivatives at
    any of a few inputs, since a ReLU may be dead at one.
    """
    c, h, w = shape

    def in_raster_order(v):
        return f(v.view(1, h, w, c).permute(0, 3, 1, 2)).movedim((-2, -1), (1, 2))[0]

    inputs = torch.rand(4, h * w * c, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    jacobians = [torch.autograd.functional.jacobian(in_raster_order, v, vectorize=True) for v in inputs]
    return (torch.stack(jacobians) != 0).any(0).flatten(0, 1).unflatten(-1, (h * w, c))


@pytest.mark.parametrize("width", [12, 16])  # in three equal parts, and not
@every_model
def test_no_pixel_sees_itself_nor_a_later_one(make, width):
    """In raster order, and of a pixel's channels in the order R, G, B where the model takes them one by one."""
    model = built(make, (3, 4, 3), 1.2, levels=3, quantization="nearest", width=width)
    y = torch.tensor([1]) if model.n_classes else None
    seen = seen_by(lambda x: model.logits(x, y), (3, 4, 3))  # (12, 3, 3, 12, 3), whole pixels: (12, P, 12, 3)
    known = 1 if model.whole_pixels else 3  # conditionals a pixel
    seen = seen.reshape(12 * known, -1, 36).any(1)
    first_unknown = 3 // known * torch.arange(12 * known)
    later = torch.arange(36) >= first_unknown[:, None]
    assert not bool((seen & later).any())
    assert bool(seen[torch.arange(1, 12 * known), first_unknown[1:] - 1].all())  # the one just before


def rows_above(height, width, reach):
    """bool (H * W, H * W): pixel (i - t, j') is in the context of (i, j) if reach(t, j' - j)."""
    place = [(i, j) for i in range(height) for j in range(width)]
    return torch.tensor([[reach(i - k, m - j) for k, m in place] for i, j in place])


@pytest.mark.parametrize("layers", [3, 4])
def test_two_stacks_see_every_earlier_pixel_once_they_are_deep_enough(layers):
    """Three columns to each side by the 7 x 7 windows and one more by each layer of 3 x 3: four for a width of 8."""
    model = built(lambda s: GatedPixelCNN(s, 2, "nearest", width=8, layers=layers, kernel_size=3), (1, 8, 8), 1.2)
    seen = seen_by(model.logits, (1, 8, 8)).view(64, 64)
    reach = 3 + layers
    expected = rows_above(8, 8, lambda t, d: (0 < t <= reach and abs(d) <= reach) or (t == 0 and -reach <= d < 0))
    assert bool((seen == expected).all())
    assert bool((seen == torch.ones(64, 64).tril(-1).bool()).all()) == (layers == 4)


@pytest.mark.parametrize("layers", [1, 8])
def test_one_stack_has_a_blind_spot(layers):
    """What a PixelCNN sees is what steps through its windows reach; to the right of a pixel no depth fills it."""
    model = built(lambda s: PixelCNN(s, 2, "nearest", width=8, layers=layers), (1, 8, 8), 1.5)
    seen = seen_by(model.logits, (1, 8, 8)).view(64, 64)
    first = rows_above(8, 8, lambda t, d: (0 < t <= 3 and abs(d) <= 3) or (t == 0 and -3 <= d < 0))
    block = rows_above(8, 8, lambda t, d: (t == 1 and abs(d) <= 1) or (t == 0 and -1 <= d <= 0))
    expected = torch.eye(64).bool()
    for _ in range(layers):
        expected = (expected.int() @ block.int()) > 0
    expected = (expected.int() @ first.int()) > 0
    assert bool((seen == expected).all())
    assert not bool(seen[8 * 4 + 2, 8 * 3 + 6])  # one row above, four columns to the right


@pytest.mark.parametrize("variant", ["diagonal", "++"])
def test_diagonals_and_plus_plus_see_every_earlier_pixel(variant):
    make = {
        "diagonal": lambda s: PixelRNN(s, 2, "nearest", "diagonal", width=8, layers=1),
        "++": lambda s: PixelCNNPlusPlus(s, 2, "nearest", width=4, blocks=2, resolutions=2, components=2),
    }[variant]
    seen = seen_by(built(make, (1, 6, 7)).logits, (1, 6, 7)).view(42, -1, 42).any(1)
    assert bool((seen == torch.ones(42, 42).tril(-1).bool()).all())


def test_a_row_lstm_sees_the_triangle_and_no_more():
    """Each row above is a column wider on both sides, and the masked window adds the one to the left."""
    layer = built(lambda s: RowLSTM(2, 3), None)
    seen = seen_by(layer, (2, 6, 7)).view(42, 3, 42, 2)
    expected = rows_above(6, 7, lambda t, d: t >= 0 and -t - 1 <= d <= t)
    assert bool((seen == expected[:, None, :, None]).all())


def test_a_diagonal_bilstm_sees_everything_above_and_left_and_itself():
    layer = built(lambda s: DiagonalBiLSTM(2, 3), None)
    left = seen_by(layer.from_left, (2, 5, 6)).view(30, 3, 30, 2)
    assert bool((left == rows_above(5, 6, lambda t, d: t >= 0 and d <= 0)[:, None, :, None]).all())
    both = seen_by(lambda x: layer(x, x[:, :1]), (2, 5, 6)).view(30, 3, 30, 2)
    assert bool((both == torch.ones(30, 30).tril().bool()[:, None, :, None]).all())
    image = seen_by(lambda image: layer(torch.zeros(1, 2, 5, 6, dtype=torch.float64), image), (1, 5, 6))
    assert bool((image.view(30, 3, 30) == rows_above(5, 6, lambda t, d: t >= 1 and d >= 0)[:, None]).all())


def test_a_diagonal_lstm_is_an_lstm_with_two_pasts():
    """The state from above and from the left, the cell from the left, all zero outside of the image."""
    layer = built(lambda s: DiagonalBiLSTM(2, 3), None).from_left
    x = torch.rand(1, 2, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        gates = layer.input_to_state(x)[0]
        above, left = layer.state_to_state.weight.unbind(2)
        states, cells = torch.zeros(2, 3, 4, 5, dtype=torch.float64)  # a row above and a column to the left of zeros
        for r, c in itertools.product(range(3), range(4)):
            y = gates[:, r, c] + above @ states[:, r, c + 1] + left @ states[:, r + 1, c]
            out, forget, write, content = y.view(3, 4).T
            cells[:, r + 1, c + 1] = forget.sigmoid() * cells[:, r + 1, c] + write.sigmoid() * content.tanh()
            states[:, r + 1, c + 1] = out.sigmoid() * cells[:, r + 1, c + 1].tanh()
        torch.testing.assert_close(layer(x)[0], states[:, 1:, 1:])


def test_skewed_columns_are_diagonals():
    x = torch.rand(2, 3, 4, 5)
    skewed = skew(x)
    assert skewed.shape == (2, 3, 4, 8)
    assert bool((unskew(skewed) == x).all())
    for r, d in itertools.product(range(4), range(8)):
        expected = x[:, :, r, d - r] if 0 <= d - r < 5 else torch.zeros(2, 3)
        assert bool((skewed[:, :, r, d] == expected).all())


def test_a_row_lstm_down_one_column_is_an_lstm():
    layer, reference = built(lambda s: RowLSTM(3, 5), None), nn.LSTM(3, 5).double()
    order = torch.cat([4 * torch.arange(5) + gate for gate in (2, 1, 3, 0)])  # of i, f, g and o
    with torch.no_grad():
        reference.weight_ih_l0.copy_(layer.input_to_state.weight[order, :, 0, 1])
        reference.bias_ih_l0.copy_(layer.input_to_state.bias[order])
        reference.weight_hh_l0.copy_(layer.state_to_state.weight[order, :, 1])
        reference.bias_hh_l0.zero_()
        x = torch.rand(2, 3, 6, 1, dtype=torch.float64)
        states, _ = reference(x[..., 0].permute(2, 0, 1))
        torch.testing.assert_close(layer(x)[..., 0], states.permute(1, 2, 0))


@every_model
@pytest.mark.parametrize(("shape", "levels"), [((1, 8, 8), 2), ((1, 5, 7), 17), ((3, 3, 4), 4)])
def test_cached_samples_are_those_of_the_naive_loop(make, shape, levels):
    model = built(make, shape, levels=levels)
    uniforms = torch.rand(5, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(5) % 3 if model.n_classes else None
    x = model.sample(5, uniforms=uniforms, y=y)
    assert bool((x == model.sample(5, uniforms=uniforms, y=y, cached=False)).all())
    assert bool((x[2:3] == model.sample(1, uniforms=uniforms[2:3], y=None if y is None else y[2:3])).all())
    assert len(x.unique()) > 1
    assert bool((model.pixels(x) == x).all())


def test_gated_layers_give_the_same_features_piece_by_piece():
    torch.manual_seed(0)
    stack = GatedStack(3, width=6, layers=2, kernel_size=3, vector=2, maps=4).double()
    x = torch.rand(2, 3, 5, 4, dtype=torch.float64)
    condition = Condition(torch.rand(2, 2, dtype=torch.float64), torch.rand(2, 4, 5, 4, dtype=torch.float64))
    with torch.no_grad():
        whole, now = stack(x, condition), Incremental((5, 4))
        for r in range(5):
            rows = stack.rows(x, condition, now.at(r))
            for c in range(4):
                torch.testing.assert_close(stack.pixels(x, rows, now.at(r, c))[..., 0, 0], whole[:, :, r, c])
        assert float((stack(x, condition._replace(maps=condition.maps + 1)) - whole).abs().min()) > 0
        assert float((stack(x, condition._replace(vector=condition.vector + 1)) - whole).abs().min()) > 0
        with pytest.raises(ValueError, match="parts of the condition"):
            stack(x, Condition(vector=condition.vector))


def test_a_condition_enters_both_gates_of_both_stacks():
    """Equation 4: linearly, in front of tanh and sigmoid; here with all else at zero."""
    layer = GatedLayer(2, 3, 3, "B", vector=2, maps=4).double()
    for part in (layer.vertical_conv, layer.horizontal_conv, layer.across):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
    nn.init.zeros_(layer.out.bias)
    layer.out.weight.data.copy_(torch.eye(3)[..., None, None])
    layer.residual = False
    x = torch.rand(1, 2, 2, 2, dtype=torch.float64)
    vector, maps = torch.rand(1, 2, dtype=torch.float64), torch.rand(1, 4, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        v, added = layer.vertical(x, Condition(vector, maps))
        h = layer.horizontal(x, added)
        y = (layer.vector.weight @ vector[0])[:, None, None]
        y = (y + torch.einsum("om,mhw->ohw", layer.maps.weight[..., 0, 0], maps[0])).view(2, 3, 2, 2, 2)
        expected = y[:, :, 0].tanh() * y[:, :, 1].sigmoid()
    torch.testing.assert_close(torch.cat([v, h]), expected)


@every_model
@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 1, 1)])
def test_samples_have_the_probabilities_of_the_model(make, shape):
    """Of two numbers, on a grid of uniform numbers that makes the expected counts exact up to its step."""
    model = built(make, shape, 3.0, levels=2)
    u = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    uniforms = torch.cartesian_prod(u, u).view(-1, *shape)
    y = torch.full((len(uniforms),), 2) if model.n_classes else None
    x = model.sample(len(uniforms), uniforms=uniforms, y=y)
    images = all_images(shape, 2)
    with torch.no_grad():
        expected = (model.class_log_prob(images)[:, 2] if model.n_classes else model.log_prob(images)).exp()
    found = torch.stack([(x == image).flatten(1).all(1).double().mean() for image in images])
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


def test_binary_samples_are_the_inverse_of_their_distribution_function_like_those_of_a_softmax():
    logits, u = torch.linspace(-4, 4, 50, dtype=torch.float64)[:, None, None, None], torch.rand(50, 1, 1, 1).double()
    both = torch.cat([torch.zeros_like(logits), logits], 1)
    drawn = Bernoulli(1).sample(logits, u)
    assert bool((drawn == Softmax(1, 2).sample(both, u)).all())
    assert 0 < drawn.mean() < 1
    assert bool((Bernoulli(1).sample(logits, torch.zeros_like(u)) == 0).all())


def test_softmax_samples_and_means_are_those_of_its_probabilities():
    torch.manual_seed(0)
    likelihood, parameters = Softmax(1, 4), torch.randn(1, 4, 1, 1, dtype=torch.float64)
    p = parameters.flatten().softmax(0)
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    x = likelihood.sample(parameters.expand(10_000, 4, 1, 1), u.view(-1, 1, 1, 1)).flatten()
    assert bool((x.diff() >= 0).all())  # the inverse of a distribution function
    torch.testing.assert_close((3 * x).round().long().bincount() / 10_000, p.float(), rtol=0, atol=1e-4)
    assert float(likelihood.mean(parameters)) == pytest.approx(float(p @ torch.arange(4.0).double()) / 3)


@pytest.mark.parametrize(
    "make",
    [
        PixelCNN,
        lambda shape: PixelRNN(shape, layers=2),
        lambda shape: GatedPixelCNN(shape, layers=2),
        lambda shape: PixelCNNPlusPlus(shape, width=16, blocks=1),
    ],
    ids=["pixelcnn", "pixelrnn", "gated", "plus_plus"],
)
def test_no_model_of_256_levels_is_thrown_far_off_in_its_first_epoch(make):
    torch.manual_seed(0)
    x = (digits("train").images()[:128].float() * 255).round() / 255
    history = fit(make((1, 8, 8)), x, epochs=1, batch_size=32, progress=False)
    assert history[0]["loss"] < 2 * 64 * math.log(256)  # of the uniform distribution


def test_what_does_not_fit_is_refused_in_one_line():
    plain, conditional = PixelCNN((1, 4, 4), 2, width=2, layers=1), GatedPixelCNN((1, 4, 4), 2, width=2, n_classes=3)
    x = torch.zeros(2, 1, 4, 4)
    y = torch.tensor([0, 3])
    for call, message in (
        (lambda: plain.class_log_prob(x), "knows no classes"),
        (lambda: plain.sample(2, y=y), "knows no classes"),
        (lambda: plain.sample(2, uniforms=x[:1]), r"uniforms must have shape \(2, 1, 4, 4\)"),
        (lambda: plain.sample(2, uniforms=x + 1), r"uniforms must be in \[0, 1\)"),
        (lambda: plain.sample(2, uniforms=x - 0.1), r"uniforms must be in \[0, 1\)"),
        (lambda: plain.sample(2, uniforms=x * float("nan")), r"uniforms must be in \[0, 1\)"),
        (lambda: plain.log_prob(x + 0.3), "say how to binarise"),
        (lambda: conditional.logits(x), "give labels y"),
        (lambda: conditional.sample(2, y=y), r"labels in \[0, 3\]"),
        (lambda: conditional.training_step(Batch(x, None, y), 0), "give labels y"),
        (lambda: GatedPixelCNN((1, 4, 4), n_classes=0), "n_classes"),
        (lambda: GatedPixelCNN((1, 4, 4), kernel_size=4), "centre"),
        (lambda: PixelCNN((3, 4, 4), width=2), "3 channels of the image need a feature each, got 4 and 2"),
        (lambda: PixelCNN((1, 4, 4), layers=-1), "layers"),
        (lambda: PixelRNN((1, 4, 4), variant="column"), "unknown variant 'column'"),
        (lambda: PixelCNNPlusPlus((1, 4, 4), blocks=0), "blocks"),
        (lambda: PixelCNNPlusPlus((1, 4, 4), components=0), "components"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)


# The discretised mixture of logistics: it adds up to one, in the tails too, and samples invert its distribution.


def levels_of(levels, channels):
    """Every value of a pixel, (levels ** channels, channels, 1, 1)."""
    values = torch.linspace(0, 1, levels, dtype=torch.float64).tolist()
    return torch.tensor(list(itertools.product(values, repeat=channels)), dtype=torch.float64)[..., None, None]


def random_parameters(channels, components=3, scale=1.0, seed=0):
    size = components * parameters_per_component(channels)
    drawn = torch.randn(1, size, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return scale * drawn


@pytest.mark.parametrize(("levels", "channels"), [(2, 1), (3, 1), (17, 1), (256, 1), (4, 3), (2, 3), (5, 2)])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_it_adds_up_to_one(levels, channels, scale):
    x = levels_of(levels, channels)
    for seed in range(5):
        parameters = random_parameters(channels, scale=scale, seed=seed).expand(len(x), -1, 1, 1)
        total = discretized_logistic_mixture_log_prob(x, parameters, levels).exp().sum()
        assert float(total) == pytest.approx(1, abs=1e-10)


def test_it_is_the_mass_of_each_bin():
    """Section 2.1 as it is written, with the channels of section 2.2, for colours and moderate parameters."""
    x = levels_of(4, 3)
    r, g, _ = v = (2 * x - 1).view(-1, 3).T
    parameters = random_parameters(3)
    weights, total = parameters.view(3, 10)[:, 0].softmax(0), 0
    for k in range(3):
        _, m_r, m_g, m_b, s_r, s_g, s_b, a_gr, a_br, a_bg = parameters.view(3, 10)[k]
        means = (m_r, m_g + a_gr.tanh() * r, m_b + a_br.tanh() * r + a_bg.tanh() * g)
        mass = weights[k]
        for c, (mean, log_scale) in enumerate(zip(means, (s_r, s_g, s_b), strict=True)):
            upper = ((v[c] + 1 / 3 - mean) / log_scale.exp()).sigmoid()
            lower = ((v[c] - 1 / 3 - mean) / log_scale.exp()).sigmoid()
            mass = mass * (torch.where(v[c] == 1, 1.0, upper) - torch.where(v[c] == -1, 0.0, lower))
        total = total + mass
    found = discretized_logistic_mixture_log_prob(x, parameters.expand(len(x), -1, 1, 1), 4)[:, 0, 0]
    torch.testing.assert_close(found.exp(), total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_stays_finite_at_extreme_parameters(dtype):
    extremes = torch.tensor([-1e4, -30.0, 0.0, 30.0, 200.0, 1e4], dtype=dtype)
    parameters = torch.cartesian_prod(extremes, extremes, extremes)[:, :, None, None]  # weight, mean, log scale
    parameters = torch.cat([parameters, parameters.flip(0)], 1).requires_grad_()
    for value in (0.0, 1 / 255, 0.5, 1.0):
        x = torch.full((len(parameters), 1, 1, 1), value, dtype=dtype)
        log_prob = discretized_logistic_mixture_log_prob(x, parameters, 256)
        assert bool(log_prob.isfinite().all())
        assert float(log_prob.detach().max()) <= 1e-4
        (gradient,) = torch.autograd.grad(log_prob.sum(), parameters)
        assert bool(gradient.isfinite().all())
        drawn = discretized_logistic_mixture_sample(parameters.detach(), x * 0.999, 256)
        assert bool(((drawn >= 0) & (drawn <= 1)).all())


def test_its_gradient_is_that_of_finite_differences():
    x = levels_of(3, 2)
    parameters = random_parameters(2, seed=1).expand(len(x), -1, 1, 1).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: discretized_logistic_mixture_log_prob(x, p, 3), parameters)
    narrow = torch.tensor([0.3, 0.1, -6.5], dtype=torch.float64).view(1, 3, 1, 1).expand(5, -1, 1, 1).clone()
    narrow.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: discretized_logistic_mixture_log_prob(levels_of(5, 1), p, 5), narrow)


@pytest.mark.parametrize("levels", [2, 5, 6])
def test_samples_have_its_probabilities_channel_after_channel(levels):
    parameters = random_parameters(2, scale=1.5, seed=2)
    n = 400
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    uniforms = torch.cartesian_prod(u, u)[..., None, None]
    x = discretized_logistic_mixture_sample(parameters.expand(n * n, -1, 1, 1), uniforms, levels)
    values = levels_of(levels, 2)
    expected = discretized_logistic_mixture_log_prob(values, parameters.expand(len(values), -1, 1, 1), levels).exp()
    found = torch.stack([(x == v).flatten(1).all(1).double().mean() for v in values])
    torch.testing.assert_close(found, expected.flatten(), rtol=0, atol=4 / n)
    first = x[::n, 0].flatten()
    assert bool((first.diff() >= 0).all())  # the inverse of a distribution function


@pytest.mark.parametrize("levels", [2, 7])
def test_the_mean_of_one_channel_is_exact(levels):
    parameters, x = random_parameters(1, seed=3), levels_of(levels, 1)
    p = discretized_logistic_mixture_log_prob(x, parameters.expand(len(x), -1, 1, 1), levels).exp().flatten()
    mean = DiscretizedLogisticMixture(1, levels, components=3).mean(parameters)
    assert float(mean) == pytest.approx(float(p @ x.flatten()))


def test_the_mean_of_colours_is_exact_where_channels_do_not_depend_on_each_other():
    parameters = random_parameters(3, seed=4).view(3, 10)
    parameters[:, 7:] = 0
    parameters, x = parameters.view(1, 30, 1, 1), levels_of(3, 3)
    p = discretized_logistic_mixture_log_prob(x, parameters.expand(len(x), -1, 1, 1), 3).exp().flatten()
    mean = DiscretizedLogisticMixture(3, 3, components=3).mean(parameters)
    torch.testing.assert_close(mean.flatten(), p @ x.flatten(1))


def test_a_wrong_number_of_parameters_is_refused():
    with pytest.raises(ValueError, match="multiple of 10 parameters a pixel, got 12"):
        discretized_logistic_mixture_log_prob(torch.zeros(1, 3, 1, 1), torch.zeros(1, 12, 1, 1), 4)
