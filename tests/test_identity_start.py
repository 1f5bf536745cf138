"""Autoencoders that start as the identity: the algebra, every kind of layer, widths, and what was saved before them."""

import json
import warnings

import pytest
import torch
from torch import nn

from robustgen import data
from robustgen.cli import main
from robustgen.commands.opening import load_run
from robustgen.detectors import ReconstructionError
from robustgen.fortified import (
    ConvAutoencoder,
    DenseAutoencoder,
    FortifiedNetwork,
    FortifiedObjective,
    fortify,
)
from robustgen.fortified.autoencoder import ACTIVATIONS
from robustgen.model import output_tensor
from robustgen.networks import convnet, mlp
from robustgen.recurrent_networks import CharLM
from robustgen.training import Batch, ClassifierObjective, Trainer


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class TestAlgebra:
    exact = ("leaky_relu", "relu", "linear")

    @pytest.mark.parametrize("hidden", [6, 7, 12, 13, 31])
    @pytest.mark.parametrize("decoder_activation", exact)
    @pytest.mark.parametrize("activation", exact)
    def test_exact_on_states_that_are_never_negative(self, activation, decoder_activation, hidden):
        options = {"activation": activation, "decoder_activation": decoder_activation, "nonnegative": True}
        h = draw(50, 6).relu()
        found = DenseAutoencoder(6, hidden, init="identity", noise_std=0.0, **options).train()(h)
        assert torch.allclose(found, h, rtol=1e-6, atol=0)

    @pytest.mark.parametrize(
        ("activation", "decoder_activation", "width"),
        [
            ("leaky_relu", "linear", 12),
            ("relu", "linear", 12),
            ("linear", "linear", 6),
            ("leaky_relu", "leaky_relu", 6),
            ("relu", "leaky_relu", 12),
        ],
    )
    def test_exact_on_any_states_from_a_width_on(self, activation, decoder_activation, width):
        options = {"activation": activation, "decoder_activation": decoder_activation, "noise_std": 0.0}
        h, maps = draw(50, 6), draw(3, 6, 7, 5)
        for hidden in (width, width + 1, 2 * width + 5):
            dense = DenseAutoencoder(6, hidden, init="identity", **options).train()
            assert torch.allclose(dense(h), h, rtol=1e-5, atol=1e-6)
            assert torch.allclose(dense.double()(h.double()), h.double(), rtol=1e-5)  # at no scale of its own
            assert bool(dense.weight.any(1).all())
            conv = ConvAutoencoder(6, hidden, init="identity", **options).train()
            assert torch.allclose(conv(maps), maps, rtol=1e-5, atol=1e-6)
        with_fewer = DenseAutoencoder(6, width - 1, init="random", **options)
        assert not torch.allclose(with_fewer(h), h, atol=0.1)

    def test_no_other_pair_of_activations_has_one(self):
        for activation in ACTIVATIONS:
            for decoder_activation in ("relu", "leaky_relu"):
                if decoder_activation == "leaky_relu" and activation in ("leaky_relu", "relu"):
                    continue
                options = {"activation": activation, "decoder_activation": decoder_activation}
                with pytest.raises(ValueError, match=r"no identity.*may be negative: pass init='random'"):
                    DenseAutoencoder(6, 24, init="identity", **options)

    def test_tanh_is_near(self):
        h = 0.3 * draw(200, 6)
        for options in ({"activation": "tanh"}, {"decoder_activation": "tanh"}):
            found = DenseAutoencoder(6, 12, init="identity", noise_std=0.0, **options)(h)
            assert (found - h).square().mean() < 0.02 * h.square().mean()

    def test_units_that_share_a_direction_are_told_apart_by_training(self):
        ae = DenseAutoencoder(3, 18, init="identity").train()
        optimizer = torch.optim.Adam(ae.parameters(), lr=0.01)
        for k in range(20):
            optimizer.zero_grad()
            (ae(draw(64, 3, seed=k)) - draw(64, 3, seed=k)).square().mean().backward()
            optimizer.step()
        directions = nn.functional.normalize(ae.weight.detach(), dim=1)
        cosines = directions @ directions.t() - torch.eye(18)
        assert cosines.max() < 1 - 1e-6

    def test_unknown_start(self):
        with pytest.raises(ValueError, match="unknown init 'zeros'; known: identity, random"):
            DenseAutoencoder(3, 6, init="zeros")


class Cell(nn.Module):
    """Calls its cell once a step."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRUCell(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = x.new_zeros(len(x), 8)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return self.out(h)


class Recurrent(nn.Module):
    def __init__(self, kind, batch_first):
        super().__init__()
        self.rnn, self.out, self.batch_first = kind(3, 8, batch_first=batch_first), nn.Linear(8, 2), batch_first

    def forward(self, x):
        output = self.rnn(x if self.batch_first else x.transpose(0, 1))[0]
        return self.out(output[:, -1] if self.batch_first else output[-1])


class Block(nn.Module):
    """As in a residual network: one ReLU, called twice, the second time on the way out."""

    def __init__(self, inplace=False):
        super().__init__()
        self.a, self.b, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace)

    def forward(self, x):
        return self.relu(x + self.b(self.relu(self.a(x))))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder, self.out = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.encoder(x).mean(1))


def signals():
    return nn.Sequential(nn.Conv1d(2, 5, 3), nn.Tanh(), nn.Conv1d(5, 4, 3), nn.Flatten(), nn.Linear(24, 2))


def pooled():
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))


def blocks():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), Block(), nn.Flatten(), nn.Linear(144, 2))


KINDS = {
    "units of a linear layer": (lambda: mlp(8, [16, 16], 3), ["1"], (8,), 32),
    "units after a ReLU": (lambda: mlp(8, [16, 16], 3), ["2", "4"], (8,), 16),
    "maps of a convolution": (lambda: convnet(1, 4, 8, width=4), ["2"], (1, 8, 8), 16),
    "maps after a ReLU": (lambda: convnet(1, 4, 8, width=4), ["3", "5"], (1, 8, 8), 8),
    "auto": (lambda: convnet(1, 4, 8, width=4), "auto", (1, 8, 8), 8),
    "maps of a block that ends in a ReLU": (blocks, ["2"], (1, 8, 8), 4),
    "maps of one pixel": (pooled, ["2"], (1, 8, 8), 12),
    "positions": (signals, ["1"], (2, 10), 10),
    "positions of a convolution": (signals, ["2"], (2, 10), 8),
    "LSTM": (lambda: Recurrent(nn.LSTM, True), ["rnn"], (5, 3), 16),
    "GRU, sequence first": (lambda: Recurrent(nn.GRU, False), ["rnn"], (5, 3), 16),
    "a cell, step by step": (Cell, ["cell"], (5, 3), 16),
    "blocks of a transformer": (Transformer, "auto", (5, 8), 16),
}


class TestEveryKindOfLayer:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("training", [True, False])
    def test_the_fortified_network_is_the_network(self, kind, training):
        build, layers, shape, width = KINDS[kind]
        model, x = build().train(training), draw(7, *shape)
        net = fortify(model, layers, example_input=x[:2], noise_std=0.0)
        assert {spec["hidden"] for spec in net.config["layers"]} == {width}
        assert torch.allclose(net(x), model(x), rtol=1e-5, atol=1e-6)
        for state, decoded in net(x, return_states=True)[1].values():
            assert torch.allclose(decoded, state, rtol=1e-5, atol=1e-6)
        wider = fortify(model, layers, example_input=x[:2], noise_std=0.0, hidden=2 * width + 3)
        assert torch.allclose(wider(x), model(x), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("shape", [(8,), (5, 3), (1, 8, 8)])
    def test_an_autoencoder_on_the_input(self, shape):
        model = nn.Sequential(nn.Flatten(), nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 3)).eval()
        x = draw(7, *shape)
        model(x)
        net = fortify(model, ["2"], example_input=x, input_autoencoder=True, noise_std=0.0)
        assert torch.allclose(net(x), model(x), rtol=1e-5, atol=1e-6)
        assert net.config["input"]["hidden"] == 2 * (1 if len(shape) == 3 else shape[-1])
        assert "init" not in net.config["layers"][0]

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("wider", [False, True])
    def test_every_unit_learns(self, kind, wider):
        build, layers, shape, width = KINDS[kind]
        x = draw(16, *shape)
        net = fortify(build(), layers, example_input=x[:2], hidden=2 * width + 3 if wider else None)
        before = [ae.weight.detach().clone() for ae in net.autoencoders()]
        y = torch.arange(16) % 2
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        FortifiedObjective()(net.train(), Batch(x, y, torch.arange(16)), 0)["loss"].backward()
        optimizer.step()
        for ae, old in zip(net.autoencoders(), before, strict=True):
            assert bool((ae.weight != old).flatten(1).any(1).all())

    def test_language_models(self):
        tokens = torch.randint(27, (3, 6), generator=torch.Generator().manual_seed(0))
        model = CharLM("lstm", units=8)
        net = fortify(model, ["rnn"], example_input=tokens, noise_std=0.0)
        assert torch.allclose(net(tokens), output_tensor(model(tokens)), atol=1e-6)

    def test_half_precision_and_double(self):
        for dtype in (torch.float64, torch.bfloat16):
            model, x = mlp(8, [16], 3).to(dtype), draw(7, 8).to(dtype)
            net = fortify(model, ["1"], example_input=x, noise_std=0.0)
            assert torch.equal(net(x), model(x)) or torch.allclose(net(x), model(x), rtol=1e-7)

    def test_the_random_state_is_left_alone(self):
        model, state = mlp(8, [16], 3), torch.get_rng_state()
        fortify(model, ["1"], example_input=draw(2, 8))
        assert torch.equal(torch.get_rng_state(), state)


class TestWhatIsNeverNegative:
    @staticmethod
    def spec(model, layer, x):
        return fortify(model, [layer], example_input=x).config["layers"][0]

    def test_a_module_says_so_and_an_example_does_not(self):
        x = draw(4, 8).abs()
        model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
        model[0].weight.data.abs_()
        model[0].bias.data.zero_()
        assert bool((model[:2](x) >= 0).all())
        assert not self.spec(model, "1", x)["nonnegative"]
        for module in (nn.ReLU(), nn.ReLU6(), nn.Sigmoid(), nn.Softplus()):
            model[1] = module
            assert self.spec(model, "1", x)["nonnegative"], module

    def test_a_block_that_ends_in_a_relu(self):
        x = draw(2, 1, 8, 8)
        assert self.spec(blocks(), "2", x)["nonnegative"]
        nested = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU()), nn.Linear(6, 3))
        assert self.spec(nested, "0", x)["nonnegative"]

    def test_not_a_layer_before_a_relu_that_works_in_place(self):
        x = draw(4, 8)
        model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))
        assert not self.spec(model, "0", x)["nonnegative"]
        assert self.spec(model, "1", x)["nonnegative"]
        assert not self.spec(
            nn.Sequential(Block(inplace=True), nn.Flatten(), nn.Linear(64, 2)), "0.a", draw(2, 4, 4, 4)
        )["nonnegative"]


class TestWidths:
    def test_no_cap_but_that_of_memory(self):
        wide = nn.Sequential(nn.Linear(2, 1500), nn.Tanh(), nn.Linear(1500, 2))
        assert fortify(wide, ["1"], example_input=draw(2, 2)).config["layers"][0]["hidden"] == 3000
        assert fortify(wide, ["1"], example_input=draw(2, 2), init="random").config["layers"][0]["hidden"] == 1024
        huge = nn.Sequential(nn.Linear(2, 9000), nn.Tanh(), nn.Linear(9000, 2))
        assert fortify(huge, ["1"], example_input=draw(2, 2)).config["layers"][0]["hidden"] == 1024

    def test_random_is_what_it_was(self):
        model, x = convnet(1, 4, 8, width=4), draw(2, 1, 8, 8)
        torch.manual_seed(3)
        net = fortify(model, ["3"], example_input=x, init="random")
        torch.manual_seed(3)
        bound = (25 * 16) ** -0.5
        assert torch.equal(net.autoencoders()[0].weight, torch.empty(8, 8, 5, 5).uniform_(-bound, bound))
        spec = {"name": "3", "kind": "conv", "features": 8, "batch_dim": 0, "hidden": 8}
        assert net.config["layers"] == [spec]  # as in checkpoints from before there was a choice

    @pytest.mark.parametrize("layer", ["1", "2"])
    def test_with_fewer_units_the_principal_directions_are_kept(self, layer):
        """States of rank 3 come back whole from three pairs; the first fit finds the directions."""
        model = mlp(3, [24], 2, "relu")
        model[1].bias.data.zero_()
        if layer == "2":
            model[1].weight.data.abs_()
        x = draw(300, 3).abs()
        net = fortify(model, [layer], example_input=x[:2], hidden=7, noise_std=0.0)
        assert net.autoencoders()[0].projects
        before = net.reconstruction_errors(x, relative=True)[layer].mean()
        net.fit_autoencoders(x, epochs=1, lr=1e-8, progress=False)
        assert net.reconstruction_errors(x, relative=True)[layer].mean() < 1e-6 < before
        assert (net(x).argmax(1) == model(x).argmax(1)).double().mean() > 0.99

    def test_a_second_fit_does_not_start_over(self):
        x = draw(200, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = fortify(mlp(3, [24], 2), ["1"], example_input=x[:2], hidden=4)
            net.fit_autoencoders(x, epochs=3, progress=False)
            before = net.autoencoders()[0].weight.detach().clone()
            net.fit_autoencoders(x, epochs=1, lr=1e-8, progress=False)
        assert torch.allclose(net.autoencoders()[0].weight, before, atol=1e-5)

    def test_where_there_is_none(self):
        model, x = mlp(8, [16], 3), draw(2, 8)
        for options in (
            {"decoder_activation": "relu"},
            {"hidden": 1},
            {"hidden": 4, "decoder_activation": "leaky_relu"},
        ):
            assert "init" not in fortify(model, ["1"], example_input=x, **options).config["layers"][0]
            with pytest.raises(ValueError, match=r"layer '1': no identity to start from .* pass init='random'$"):
                fortify(model, ["1"], example_input=x, init="identity", **options)
        with pytest.raises(ValueError, match="unknown init 'zeros'"):
            fortify(model, ["1"], example_input=x, init="zeros")


class TestCleanWeight:
    def fitted(self, init, **options):
        x = data.digits("train").images()[:400].flatten(1)
        torch.manual_seed(0)
        net = fortify(mlp(64, [32], 10), ["1"], example_input=x[:2], init=init, noise_std=0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of decisions: the network has learned nothing
            net.fit_autoencoders(x, epochs=4, progress=False, **options)
        return net, x

    def test_more_of_it_leaves_states_nearer_to_what_they_are(self):
        errors = []
        for weight in (0.0, 2.0, 50.0):
            net, x = self.fitted("identity", clean_weight=weight)
            errors.append(net.eval().reconstruction_errors(x, relative=True)["1"].mean().item())
        assert errors[0] > 1.2 * errors[1]
        assert errors[1] > 1.2 * errors[2]

    @pytest.mark.parametrize(("init", "weight"), [("identity", 4.0), ("random", 0.0)])
    def test_its_default(self, init, weight):
        default, named = (self.fitted(init, **options)[0] for options in ({}, {"clean_weight": weight}))
        assert torch.equal(default.autoencoders()[0].weight, named.autoencoders()[0].weight)

    @pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
    def test_out_of_range(self, weight):
        with pytest.raises(ValueError, match="clean_weight must be a finite number >= 0"):
            self.fitted("identity", clean_weight=weight)


class TestDetectors:
    def test_errors_of_an_untrained_identity_are_refused_with_a_warning(self):
        x = data.digits("train").images()[:300]
        net = fortify(convnet(1, 10, 8, width=4).eval(), "auto", example_input=x[:2])
        with pytest.warns(UserWarning, match="still the identity.*fit_autoencoders"):
            ReconstructionError(net).fit(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net.fit_autoencoders(x, epochs=1, progress=False)
        ReconstructionError(net.eval()).fit(x)
        ReconstructionError(fortify(net.unfortified(), "auto", example_input=x[:2], init="random")).fit(x)


class TestPretrained:
    @pytest.mark.parametrize("build", [lambda: mlp(64, [128, 128], 10), lambda: convnet(1, 10, 8, width=8)])
    def test_fortifying_costs_nothing_at_any_number_of_epochs(self, build):
        train, test = data.digits("train"), data.digits("test")
        model = build()
        Trainer(ClassifierObjective(), epochs=10, batch_size=64, progress=False).fit(model, train)
        model.eval()

        def accuracy(net):
            return (net(test.images()).argmax(1) == test.labels()).double().mean().item()

        assert accuracy(model) > 0.9
        for epochs in (0, 1, 5):
            net = fortify(model, "auto", example_input=test.images()[:2])
            if epochs:
                net.fit_autoencoders(train, epochs=epochs, batch_size=64, progress=False)
            assert accuracy(net.eval()) >= accuracy(model) - 0.01, epochs
        random = fortify(model, "auto", example_input=test.images()[:2], init="random")
        assert accuracy(random) < accuracy(model) - 0.1


class TestSaved:
    def test_a_checkpoint_from_before_there_was_a_choice(self, tmp_path):
        model, x = mlp(8, [16], 3).eval(), draw(5, 8)
        net = fortify(model, ["2"], example_input=x, init="random").eval()
        net.save(tmp_path)
        assert "init" not in (tmp_path / "config.json").read_text()
        loaded = FortifiedNetwork.load(tmp_path, model=mlp(8, [16], 3))
        assert loaded.config["layers"][0]["hidden"] == 32  # the default of then, 2 D, also after a ReLU
        assert torch.equal(loaded(x), net(x))
        assert loaded.autoencoders()[0].init == "random"

    def test_a_new_one_comes_back_as_it_was(self, tmp_path):
        model, x = mlp(8, [16], 3).eval(), draw(50, 8)
        net = fortify(model, ["1"], example_input=x, hidden=6).eval()
        net.save(tmp_path)
        loaded = FortifiedNetwork.load(tmp_path, model=mlp(8, [16], 3))
        assert torch.equal(loaded(x), net(x))
        assert loaded.config == net.config
        assert loaded.autoencoders()[0].projects  # a fit still begins at the principal directions

    def test_a_config_with_another_start(self, tmp_path):
        net = fortify(mlp(8, [16], 3).eval(), ["1"], example_input=draw(5, 8))
        net.save(tmp_path)
        path = tmp_path / "config.json"
        path.write_text(path.read_text().replace('"identity"', '"zeros"'))
        with pytest.raises(ValueError, match=r"config\.json: .*unknown init 'zeros'"):
            FortifiedNetwork.load(tmp_path, model=mlp(8, [16], 3))


class TestCommand:
    @staticmethod
    def train(run, *options):
        common = ["--data", "digits", "--limit", "200", "--model", "mlp", "--width", "16", "--fortify", "auto"]
        return main(["train", *common, "--quiet", "--run", str(run), *options])

    def test_the_start_is_an_option_that_the_run_remembers(self, tmp_path):
        for options, expected in (
            ([], "identity"),
            (["--autoencoder-init", "identity"], "identity"),
            (["--autoencoder-init", "random"], "random"),
        ):
            run = tmp_path / "".join(options).replace("--", "run")
            assert self.train(run, "--epochs", "1", *options) == 0
            network, info = load_run(run)
            assert info["fortify"]["init"] == (expected if options else None)
            assert {ae.init for ae in network.autoencoders()} == {expected}

    def test_one_that_cannot_be_is_one_line(self, tmp_path, capsys):
        options = ["--epochs", "1", "--autoencoder-init"]
        assert self.train(tmp_path / "a", *options, "zeros") == 2
        assert "unknown init 'zeros'; known: identity, random" in capsys.readouterr().err
        assert self.train(tmp_path / "b", *options, "identity", "--hidden", "1") == 2
        assert "no identity to start from with hidden=1" in (said := capsys.readouterr().err)
        assert said.count("\n") == 1
        assert not (tmp_path / "b").exists()

    def test_a_run_from_before_goes_on_at_random(self, tmp_path, capsys):
        run = tmp_path / "run"
        self.train(run, "--epochs", "1", "--autoencoder-init", "random")
        info = json.loads((run / "run.json").read_text())
        del info["fortify"]["init"], info["options"]  # as older runs are: neither was there
        (run / "run.json").write_text(json.dumps(info))
        assert self.train(run, "--epochs", "2", "--resume") == 2
        assert "other settings" in capsys.readouterr().err
        assert self.train(run, "--epochs", "2", "--resume", "--autoencoder-init", "random") == 0
