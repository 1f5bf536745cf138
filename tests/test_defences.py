"""Defences to compare with: encoded inputs stay attackable, matched hidden states train exactly, and their backbone."""

import copy
import json
import re

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from robustgen import data
from robustgen.attacks import FGSM, PGD, TransferAttack, bpda
from robustgen.fortified import HiddenMatchingNetwork, HiddenMatchingObjective, InputEncoding, fortify
from robustgen.fortified.hidden_matching import reverse_gradient
from robustgen.networks import build, convnet, mlp, resnet
from robustgen.training import Batch, ClassifierObjective, Trainer, load_checkpoint

KINDS = ["quantized", "one-hot", "thermometer"]


def adam(parameters):
    return torch.optim.Adam(parameters, lr=3e-3)


def digits(split):
    found = data.digits(split)
    return found.x.float() / 255, found.y


def seeded(make, seed=0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return make()


def trained(model, objective, epochs, **options):
    trainer = Trainer(objective, optimizer=adam, epochs=epochs, batch_size=64, progress=False, **options)
    return model, trainer.fit(model, digits("train"))


def accuracy(model, x, y):
    with torch.no_grad():
        return (model.eval()(x).argmax(1) == y).float().mean().item()


# --- encoded inputs ------------------------------------------------------------------------------------------------


class TestInputEncoding:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("levels", [2, 3, 10, 16])
    def test_codes_of_every_level(self, levels, dtype):
        level = torch.arange(levels)
        edges, middles = level.to(dtype) / levels, (level.to(dtype) + 0.5) / levels
        x = torch.cat([edges, middles, torch.ones(1, dtype=dtype)]).reshape(1, 1, 1, -1)
        level = torch.cat([level, level, torch.tensor([levels - 1])])  # exactly one is at the top level
        code = {kind: InputEncoding(kind, levels)(x) for kind in KINDS}
        assert torch.equal(code["one-hot"][0, :, 0].T, F.one_hot(level, levels).to(dtype))
        assert torch.equal(code["thermometer"][0, :, 0].T, (torch.arange(levels) <= level[:, None]).to(dtype))
        assert torch.allclose(code["quantized"].flatten(), level.to(dtype) / (levels - 1))
        assert all(values.dtype == dtype for values in code.values())

    def test_the_codes_are_linear_in_each_other(self):
        x = torch.rand(3, 2, 5, 4, dtype=torch.float64)
        quantized, one_hot, thermometer = (InputEncoding(kind, 7)(x) for kind in KINDS)
        one_hot, thermometer = (code.unflatten(1, (2, 7)) for code in (one_hot, thermometer))
        assert torch.equal(one_hot.sum(2), torch.ones_like(x))
        assert torch.equal(one_hot.flip(2).cumsum(2).flip(2), thermometer)
        assert torch.allclose(quantized, (thermometer.sum(2) - 1) / 6)
        assert (quantized - x).abs().max() <= 1 / 7  # level / 6 against a pixel in [level / 7, (level + 1) / 7)

    @pytest.mark.parametrize("kind", KINDS)
    def test_channels_keep_together_and_brighter_is_never_less(self, kind):
        encoding = InputEncoding(kind, 5)
        x = torch.rand(2, 3, 4, 6)
        code = encoding(x)
        assert code.shape == (2, encoding.channels(3), 4, 6)
        assert torch.equal(code, torch.cat([encoding(x[:, c : c + 1]) for c in range(3)], 1))
        brighter = encoding((x + 0.3).clamp(max=1))
        if kind != "one-hot":
            assert (brighter >= code).all()
            assert (brighter > code).any()
        assert list(encoding.state_dict()) == []

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("width", [0.3, 0.55, 4.0])
    def test_the_gradient_is_that_of_ramps_around_the_thresholds(self, kind, width):
        levels = 8
        encoding = InputEncoding(kind, levels, backward_width=width)
        x = torch.rand(2, 1, 3, 3, dtype=torch.float64)
        x[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
        x.requires_grad_(True)
        a = torch.randn(encoding.channels(1), dtype=torch.float64)
        (encoding(x) * a[:, None, None]).sum().backward()
        if kind == "one-hot":  # a_l for threshold l, less a_(l - 1), which goes out with it
            a = torch.cat([a[:1], a[1:] - a[:-1]])
        elif kind == "quantized":
            a = a.expand(levels) / (levels - 1)
        expected = torch.zeros_like(x)
        for j in range(1, levels):
            expected += a[j] / width * ((x - j / levels).abs() <= width / 2)
        assert torch.allclose(x.grad, expected)
        assert (expected != 0).all()

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("levels", [2, 3, 16, 100])
    def test_every_pixel_has_a_gradient(self, kind, levels):
        for width in (None, 2.001 / levels):
            encoding = InputEncoding(kind, levels, width)
            x = torch.linspace(0, 1, 1001, dtype=torch.float32).reshape(1, 1, 1, -1).requires_grad_(True)
            rising = torch.arange(1.0, encoding.channels(1) + 1)[:, None, None]
            (encoding(x) * rising).sum().backward()
            assert (x.grad > 0).all()

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_stand_in_does_not_reach_the_output(self, kind, dtype):
        x = torch.rand(4, 1, 6, 6, dtype=dtype)
        with torch.no_grad():
            code = InputEncoding(kind)(x)
        for width in (0.13, 0.7, 5.0):
            assert torch.equal(InputEncoding(kind, backward_width=width)(x.clone().requires_grad_(True)), code)

    def test_wrong_options(self):
        for options, message in [
            (("gray",), "unknown encoding 'gray'; known: quantized, one-hot, thermometer"),
            (("one-hot", 1), "levels must be at least 2"),
            (("one-hot", 16, 0.125), r"more than 2 / levels = 0\.125"),
            (("one-hot", 16, float("nan")), "backward_width"),
            (("one-hot", 16, float("inf")), "backward_width"),
        ]:
            with pytest.raises(ValueError, match=message):
                InputEncoding(*options)
        with pytest.raises(ValueError, match=r"images \(N, C, H, W\), got shape \(3, 4\)"):
            InputEncoding("one-hot")(torch.zeros(3, 4))
        with pytest.raises(TypeError, match=r"floating-point pixels in \[0, 1\], got torch.uint8"):
            InputEncoding("one-hot")(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))


@pytest.fixture(scope="module")
def plain():
    return trained(seeded(lambda: convnet(1, 10, 8, width=16), 1), ClassifierObjective(), 8)[0].eval()


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_attacks_see_through_the_encoding(kind, plain):
    """A defence that only hides its gradient loses less to PGD than to noise of the same size, or to a transfer."""
    encoding = InputEncoding(kind, 16)
    net = seeded(lambda: nn.Sequential(encoding, convnet(encoding.channels(1), 10, 8, width=16)))
    trained(net, ClassifierObjective(), 8)
    x, y = digits("test")
    signs = 2.0 * torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)) - 1
    eps = 0.12
    noise = accuracy(net, (x + eps * signs).clamp(0, 1), y)
    pgd = PGD(eps=eps, steps=10)
    attacked = accuracy(net, pgd(net.eval(), x, y), y)
    transferred = accuracy(net, TransferAttack(surrogate=plain, attack=pgd)(net, x, y), y)
    assert accuracy(net, x, y) > 0.9
    assert noise > 0.8
    assert attacked < noise - 0.3
    assert attacked <= transferred


def test_training_through_wide_ramps_hides_from_them_only():
    """Why the default is narrow: what looks robust to the stand-in it was trained with falls to the default."""
    wide = InputEncoding("one-hot", 16, backward_width=0.5)
    net = seeded(lambda: nn.Sequential(wide, convnet(16, 10, 8, width=8)))
    trained(net, ClassifierObjective(PGD(eps=0.2, steps=3)), 5)
    net.eval()
    x, y = digits("test")
    pgd = PGD(eps=0.2, steps=10)
    own = accuracy(net, pgd(net, x, y), y)
    net[0] = InputEncoding("one-hot", 16)
    assert accuracy(net, pgd(net, x, y), y) < own - 0.3


# --- matched hidden states -----------------------------------------------------------------------------------------


def shifted(model, x, y, *, ids):
    return x + 0.25


def small_matching(weight=0.3, **options):
    """A float64 network, its objective and a batch."""
    net = seeded(lambda: HiddenMatchingNetwork(mlp(6, [8, 7], 3).double(), "4", torch.zeros(2, 6).double(), hidden=5))
    x = torch.rand(10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    batch = Batch(x, torch.arange(10) % 3, torch.arange(10))
    return net, HiddenMatchingObjective(shifted, weight=weight, **options), batch


class TestMatching:
    def test_reversed_gradients_leave_the_value_alone(self):
        h = torch.randn(50, dtype=torch.float64, requires_grad=True)
        back = reverse_gradient(h, 0.7)
        assert torch.equal(back, h)
        back.square().sum().backward()
        assert torch.allclose(h.grad, -1.4 * h)

    def test_one_loss_makes_the_discriminator_descend_and_the_network_ascend(self):
        net, objective, batch = small_matching(0.3, clean_weight=0.6)
        objective(net, batch, 0)["loss"].backward()
        h, h_adv = (net.backbone[:5](x) for x in (batch.x, batch.x + 0.25))
        clean, adv = (net.discriminator(v).squeeze(1) for v in (h, h_adv))
        l_d = (F.softplus(-clean).mean() + F.softplus(adv).mean()) / 2  # -log D(h), -log (1 - D(h_adv))
        ce = 0.6 * F.cross_entropy(net.backbone(batch.x), batch.y)
        ce = ce + F.cross_entropy(net.backbone(batch.x + 0.25), batch.y)
        weights, readers = list(net.backbone.parameters()), list(net.discriminator.parameters())
        of_ce = torch.autograd.grad(ce, weights, retain_graph=True)
        of_d = torch.autograd.grad(l_d, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
        for p, a, b in zip(weights, of_ce, of_d, strict=True):
            assert torch.allclose(p.grad, a - 0.3 * b, rtol=1e-9, atol=1e-12)
        assert of_d[0].abs().max() > 1e-6
        for p, b in zip(readers, torch.autograd.grad(l_d, readers), strict=True):
            assert torch.allclose(p.grad, b, rtol=1e-9, atol=1e-12)

    def test_logged_values(self):
        net, objective, batch = small_matching(0.3)
        row = objective(net, batch, 0)
        both = net.verdicts(torch.cat([batch.x, batch.x + 0.25]))
        right = (both[:10] > 0).double().sum() + (both[10:] <= 0).double().sum()
        assert row["discriminator_accuracy"].item() == pytest.approx(right.item() / 20)
        assert row["accuracy"].item() == pytest.approx(accuracy(net, batch.x, batch.y))
        assert row["adv_accuracy"].item() == pytest.approx(accuracy(net, batch.x + 0.25, batch.y))
        total = row["clean_loss"] + row["adv_loss"] + row["discriminator_loss"]
        assert row["loss"].item() == pytest.approx(total.item())
        assert [name for name, value in row.items() if value.requires_grad] == ["loss"]

    @pytest.mark.parametrize("clean_weight", [1.0, 0.4])
    def test_without_weight_it_is_adversarial_training(self, clean_weight):
        model = seeded(lambda: convnet(1, 10, 8, width=4))
        net = HiddenMatchingNetwork(model, "5", torch.zeros(2, 1, 8, 8), hidden=8)
        x, y = (v[:24] for v in digits("train"))
        batch, attack = Batch(x, y, torch.arange(24)), PGD(eps=0.1, steps=2)
        HiddenMatchingObjective(attack, weight=0, clean_weight=clean_weight)(net, batch, 3)["loss"].backward()
        ClassifierObjective(attack, clean_weight=clean_weight)(model, batch, 3)["loss"].backward()
        for p, q in zip(net.backbone.parameters(), model.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)
        assert all(p.grad.abs().sum() > 0 for p in net.discriminator.parameters())

    def test_under_ddp(self, tmp_path):
        """Every parameter takes part in the one forward: DDP refuses a second step otherwise."""
        net, objective, batch = small_matching()
        alone = copy.deepcopy(net)
        objective(alone, batch, 0)["loss"].backward()
        dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
        try:
            wrapped = DistributedDataParallel(net)
            for _ in range(2):
                wrapped.zero_grad()
                objective(wrapped, batch, 0)["loss"].backward()
        finally:
            dist.destroy_process_group()
        for p, q in zip(net.parameters(), alone.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad, rtol=1e-12)

    def test_training_makes_the_states_alike_and_keeps_the_accuracy(self):
        rows = {}
        for weight in (0.0, 0.5):
            net = seeded(lambda: convnet(1, 10, 8, width=8))
            net = seeded(lambda net=net: HiddenMatchingNetwork(net, "5", torch.zeros(2, 1, 8, 8), hidden=32))
            _, history = trained(net, HiddenMatchingObjective(FGSM(eps=0.2), weight=weight), 6)
            rows[weight] = history[-1]
            assert accuracy(net, *digits("test")) > 0.9
        assert rows[0.0]["discriminator_accuracy"] > 0.68
        assert rows[0.5]["discriminator_accuracy"] < rows[0.0]["discriminator_accuracy"] - 0.1
        assert rows[0.5]["adv_accuracy"] > rows[0.0]["adv_accuracy"] - 0.1

    def test_killed_and_resumed_it_ends_the_same(self, tmp_path):
        class Killed(HiddenMatchingObjective):
            def __call__(self, model, batch, step):
                if step == self.dies_at:
                    raise RuntimeError("killed")
                return super().__call__(model, batch, step)

        def run(directory, dies_at, resume=False):
            x, y = (v[:150] for v in digits("train"))
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 10))
            net = seeded(lambda: HiddenMatchingNetwork(seeded(lambda: model), "2", x[:2], hidden=8))
            for p in net.parameters():  # whatever the modules began with
                p.data.copy_(torch.linspace(-0.3, 0.3, p.numel()).reshape(p.shape))
            objective = Killed(PGD(eps=0.1, steps=2), weight=0.2)
            objective.dies_at = dies_at
            options = {"epochs": 2, "batch_size": 32, "checkpoint_every": 3, "ema": 0.9, "progress": False}
            history = Trainer(objective, run_dir=directory, resume=resume, **options).fit(net, (x, y), val=(x, y))
            return net, history

        whole, history = run(tmp_path / "whole", -1)
        with pytest.raises(RuntimeError, match="killed"):
            run(tmp_path / "cut", 8)
        assert load_checkpoint(tmp_path / "cut").step == 6
        resumed, again = run(tmp_path / "cut", -1, resume=True)
        assert again == history
        for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(p, q)
        assert "val_discriminator_accuracy" in history[0]

    def test_logits_are_the_networks_own_and_the_user_keeps_it(self):
        model = seeded(lambda: convnet(1, 4, 8, width=4)).train()
        model[1].eval()
        x = torch.rand(5, 1, 8, 8)
        net = HiddenMatchingNetwork(model, "3", x)
        assert not any(m._forward_hooks for m in model.modules())
        assert [m.training for m in net.backbone.modules()] == [m.training for m in model.modules()]
        assert torch.equal(net(x), model(x))
        result = PGD(eps=0.1, steps=3).run(net, x, torch.arange(5) % 4)
        assert torch.equal(result.x_adv, PGD(eps=0.1, steps=3)(model, x, torch.arange(5) % 4))
        copied = copy.deepcopy(net)
        copied.backbone[2].weight.data.mul_(-1)
        assert torch.equal(copied.verdicts(x), copied.discriminator(copied.backbone[:4](x).flatten(1)).squeeze(1))
        assert not torch.equal(copied.verdicts(x), net.verdicts(x))
        bare = copied.unwrapped()
        assert type(bare) is nn.Sequential
        assert not any(m._forward_hooks for m in bare.modules())
        assert torch.equal(bare(x), copied(x))
        bare[0].weight.data.zero_()
        assert not torch.equal(bare(x), copied(x))
        assert HiddenMatchingNetwork(model, "3", x, copy=False).backbone is model

    def test_recurrent_repeated_and_fortified_layers(self):
        class SequenceFirst(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn, self.out = nn.GRU(3, 4), nn.Linear(4, 2)

            def forward(self, x):
                return self.out(self.rnn(x.transpose(0, 1))[0][-1])

        x = torch.rand(6, 5, 3)
        net = HiddenMatchingNetwork(SequenceFirst(), "rnn", x)
        states = net.backbone.rnn(x.transpose(0, 1))[0].transpose(0, 1).flatten(1)
        assert torch.equal(net.verdicts(x), net.discriminator(states).squeeze(1))

        body = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        x = torch.rand(3, 4)
        net = HiddenMatchingNetwork(nn.Sequential(body, body, nn.Linear(4, 2)), "0", x)
        once = net.backbone[0](x)
        both = torch.cat([once, net.backbone[0](once)], 1)
        assert torch.equal(net.verdicts(x), net.discriminator(both).squeeze(1))

        inner = fortify(mlp(4, [5, 6], 2), ["2"], example_input=x).eval()
        net = HiddenMatchingNetwork(inner, "backbone.2", x).eval()  # where there is a hook already
        assert torch.equal(net(x), inner(x))
        assert net.discriminator[1].in_features == 5  # the decoded state alone, not what the other hook records
        assert list(net.unwrapped()(x, return_states=True)[1]) == ["2"]  # only our own hook goes

    def test_wrong_use(self):
        model, x = mlp(4, [5], 2), torch.rand(3, 4)
        with pytest.raises(TypeError, match=r"needs an nn\.Module"):
            HiddenMatchingNetwork(lambda v: v, "2", x)
        with pytest.raises(ValueError, match="no layer 'relu'"):
            HiddenMatchingNetwork(model, "relu", x)
        with pytest.raises(ValueError, match="hidden must be at least 1"):
            HiddenMatchingNetwork(model, "2", x, hidden=0)
        for options in ({"weight": -1.0}, {"weight": float("nan")}, {"clean_weight": -1.0}, {"label_smoothing": 1.0}):
            with pytest.raises(ValueError, match=next(iter(options))):
                HiddenMatchingObjective(shifted, **options)
        with pytest.raises(ValueError, match="pass an attack"):
            HiddenMatchingObjective(None)
        net, objective, batch = small_matching()
        with pytest.raises(ValueError, match="needs labels"):
            objective(net, Batch(batch.x, None, batch.ids), 0)
        with pytest.raises(TypeError, match="not Sequential"):
            objective(net.backbone, batch, 0)

    def test_description_is_json_able_and_tells_settings_apart(self):
        found = HiddenMatchingObjective(FGSM(eps=0.25), weight=0.3, clean_weight=0.5, label_smoothing=0.1).describe()
        assert json.loads(json.dumps(found)) == {
            "objective": "HiddenMatchingObjective",
            "attack": json.loads(json.dumps(FGSM(eps=0.25).describe())),
            "weight": 0.3,
            "clean_weight": 0.5,
            "label_smoothing": 0.1,
        }


# --- the residual network ------------------------------------------------------------------------------------------


class TestResnet:
    def test_blocks_are_their_formula(self):
        net = resnet(2, 3, (4, 6), blocks=2, activation="tanh", norm="none").double()
        x = torch.rand(2, 2, 9, 7, dtype=torch.float64)
        h = net.stem(x)
        for stage, block, stride in [("stage1", 0, 1), ("stage1", 1, 1), ("stage2", 0, 2), ("stage2", 1, 1)]:
            b = net.get_submodule(f"{stage}.{block}")
            inner = F.conv2d(h.tanh(), b.conv1.weight, b.conv1.bias, stride, 1)
            change = F.conv2d(inner.tanh(), b.conv2.weight, b.conv2.bias, 1, 1)
            if b.shortcut is not None:
                h = F.conv2d(h.tanh(), b.shortcut.weight, b.shortcut.bias, 2)
            h = h + change
        assert h.shape == (2, 6, 5, 4)
        assert torch.allclose(net(x), net.out(h.tanh().mean((2, 3))))
        assert [b.shortcut is None for b in (*net.stage1, *net.stage2)] == [True, True, False, True]

    def test_group_norm_sees_one_input_batch_norm_the_batch(self):
        x = torch.rand(6, 3, 8, 8)
        for norm, alone in [("group", True), ("none", True), ("batch", False)]:
            net = seeded(lambda norm=norm: resnet(3, 10, (8, 16), norm=norm)).train()
            assert torch.allclose(net(x)[:2], net(x[:2]), atol=1e-6) == alone
        x = torch.rand(2, 3, 1, 1)  # one position: groups of one channel would be normalised to zero
        net = seeded(lambda: resnet(3, 10, (8,)))
        assert (net(x)[0] - net(x)[1]).abs().max() > 1e-3

    def test_names_fortify_and_build(self):
        net = resnet(3, 5, (8, 16, 32))
        x = torch.rand(2, 3, 32, 32)
        assert fortify(net, "auto", example_input=x).layers == ("stage2.0.act2", "act")
        assert fortify(net, ["stage1.0.act1", "stage3"], example_input=x)(x).shape == (2, 5)
        built = build("resnet", torch.zeros(1, 1, 8, 8), 4, width=8, activation="leaky_relu")
        assert built(torch.zeros(3, 1, 8, 8)).shape == (3, 4)
        assert [built.get_submodule(f"stage{k}.0.conv2").out_channels for k in (1, 2, 3)] == [8, 16, 32]
        assert isinstance(built.act, nn.LeakyReLU)
        assert build("resnet", x, 5).out.in_features == 64

    def test_wrong_options(self):
        for options, message in [
            ({"norm": "layer"}, "unknown norm 'layer'; known: group, batch, none"),
            ({"widths": ()}, "at least one width"),
            ({"blocks": 0}, "one block"),
            ({"activation": "gelu"}, "unknown activation"),
        ]:
            with pytest.raises(ValueError, match=message):
                resnet(**options)
        with pytest.raises(ValueError, match=r"resnet takes images \(N, C, H, W\), got shape \(1, 8\)"):
            build("resnet", torch.zeros(1, 8), 3)

    def test_it_learns(self):
        net, history = trained(seeded(lambda: resnet(1, 10, (12, 24))), ClassifierObjective(), 6)
        assert history[-1]["accuracy"] > 0.9
        assert accuracy(net, *digits("test")) > 0.9


# Gradients through what has none: forwards the module itself, backwards its stand-in.


class Quantize(nn.Module):
    def __init__(self, levels=8):
        super().__init__()
        self.register_buffer("levels", torch.tensor(float(levels)))
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.gain * (x * self.levels).round() / self.levels


class Double(nn.Module):
    def forward(self, x):
        return torch.cat([x.sign(), x.sign()], 1)


def test_forward_is_the_modules_own_bit_for_bit():
    x = torch.rand(4, 3, 5, 5) * 1e3
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for stand_in in (None, lambda z: 1e7 * z.sin()):
                out = bpda(Quantize(7), stand_in)(x.clone().requires_grad_(grad))
                assert torch.equal(out, Quantize(7)(x))
                assert out.requires_grad == grad


def test_backward_is_that_of_the_stand_in_at_the_same_input():
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(6, 4, dtype=torch.float64)
    (identity,) = torch.autograd.grad(bpda(Quantize())(x), x, upstream)
    assert torch.equal(identity, upstream)
    (through_tanh,) = torch.autograd.grad(bpda(Quantize(), backward=torch.tanh)(x), x, upstream)
    assert torch.allclose(through_tanh, upstream * (1 - torch.tanh(x) ** 2))
    stand_in = nn.Linear(4, 4).double()
    (through_linear,) = torch.autograd.grad(bpda(Quantize(), stand_in)(x), x, upstream)
    assert torch.allclose(through_linear, upstream @ stand_in.weight)


def test_another_output_shape_needs_a_stand_in_of_that_shape():
    x = torch.randn(3, 4, requires_grad=True)
    with pytest.raises(ValueError, match=re.escape("module returns shape (3, 8) and backward (the identity) (3, 4)")):
        bpda(Double())(x)
    with pytest.raises(ValueError, match=re.escape("module returns shape (3, 8) and backward (3, 5)")):
        bpda(Double(), nn.Linear(4, 5))(x)
    out = bpda(Double(), lambda z: torch.cat([z, 2 * z], 1))(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 3.0))


def test_wrong_types():
    with pytest.raises(TypeError, match=r"nn\.Module, got function"):
        bpda(lambda x: x)
    with pytest.raises(TypeError, match="callable"):
        bpda(nn.Identity(), backward=3)

    class Symbols(nn.Module):
        def forward(self, x):
            return x.long()

    with pytest.raises(TypeError, match=r"module must return a tensor of floats, got torch\.int64"):
        bpda(Symbols())(torch.rand(2, 3, requires_grad=True))
    with pytest.raises(TypeError, match="backward must return a tensor of floats, got tuple"):
        bpda(nn.Identity(), lambda x: (x,))(torch.rand(2, 3, requires_grad=True))


def test_it_is_a_module():
    wrapped = nn.Sequential(bpda(Quantize(), nn.Linear(4, 4)), nn.Dropout(0.5))
    assert {name for name, _ in wrapped.named_parameters()} == {
        "0.module.gain",
        "0.backward.weight",
        "0.backward.bias",
    }
    twin = nn.Sequential(bpda(Quantize(3), nn.Linear(4, 4)), nn.Dropout(0.5))
    twin.load_state_dict(wrapped.state_dict())
    wrapped.eval()
    assert not any(m.training for m in wrapped.modules())
    twin.eval()
    x = torch.rand(2, 4)
    assert torch.equal(twin(x), wrapped(x))
    copied = copy.deepcopy(wrapped)
    with torch.no_grad():
        copied[0].module.gain.zero_()
    assert not copied(x).any()
    assert wrapped(x).any()
    assert bpda(nn.Dropout().eval()).training is False


def test_parameters_of_the_module_get_no_gradient_and_in_place_layers_may_follow():
    wrapped = bpda(Quantize(), nn.Linear(4, 4))
    x = (torch.rand(2, 4) - 0.5).requires_grad_(True)
    nn.Sequential(wrapped, nn.ReLU(inplace=True))(x).sum().backward()
    assert wrapped.module.gain.grad is None
    assert wrapped.backward.weight.grad is not None
    before = x.detach().clone()
    nn.Sequential(bpda(nn.Identity()), nn.ReLU(inplace=True))(x).sum().backward()
    assert torch.equal(x.detach(), before)


def test_second_derivatives_and_function_transforms():
    x = torch.rand(3, dtype=torch.float64, requires_grad=True)
    wrapped = bpda(Quantize(), torch.sin)
    (first,) = torch.autograd.grad(wrapped(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.allclose(second, -torch.sin(x))
    each = torch.func.vmap(torch.func.grad(lambda v: wrapped(v).sum()))(x.detach()[:, None])
    assert torch.allclose(each.squeeze(1), x.cos())


def test_a_masked_network_falls_once_the_mask_is_approximated():
    """Inputs rounded to a few levels have gradient zero: PGD stands still, and through bpda it does not."""
    linear = nn.Linear(16, 2)
    linear.bias.data.copy_(-linear.weight.data.sum(1) / 2)  # the classes meet amid the inputs
    x = (0.4 + 0.2 * torch.rand(30, 16)).mul(32).round() / 32
    quantize = Quantize(32)
    masked, seen_through = nn.Sequential(quantize, linear), nn.Sequential(bpda(quantize), linear)
    y = masked(x).argmax(1)
    assert not PGD(eps=0.2, random_start=False).run(masked, x, y).success.any()
    x_adv = PGD(eps=0.2, random_start=False)(seen_through, x, y)
    assert (masked(x_adv).argmax(1) != y).float().mean() > 0.9
