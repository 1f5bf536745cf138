"""Fortified layers, networks and the joint objective: formulas, gradients, and survival of what users do to modules."""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustgen import data
from robustgen.attacks import FGSM, PGD
from robustgen.files import load_state, load_tensors, save_tensors
from robustgen.fortified import ConvAutoencoder, DenseAutoencoder, FortifiedNetwork, FortifiedObjective, fortify
from robustgen.networks import convnet, mlp
from robustgen.training import Batch, ClassifierObjective, Trainer


def small():
    return convnet(1, 4, 8, width=4)


X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 3, 0, 1])


class Recurrent(nn.Module):
    """An RNN classifier, batch first or sequence first, that reads the outputs or the final state."""

    def __init__(self, kind=nn.LSTM, batch_first=True, read="output", packed=False):
        super().__init__()
        self.rnn = kind(3, 8, batch_first=batch_first)
        self.out = nn.Linear(8, 2)
        self.batch_first, self.read, self.packed = batch_first, read, packed

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        if self.packed:
            x = nn.utils.rnn.pack_padded_sequence(x, [x.shape[1]] * len(x), batch_first=True)
        output, final = self.rnn(x)
        if self.packed:
            output = nn.utils.rnn.pad_packed_sequence(output, batch_first=True)[0]
        if self.read == "final":
            return self.out((final[0] if isinstance(final, tuple) else final)[-1])
        return self.out(output[:, -1] if self.batch_first else output[-1])


class TestAutoencoder:
    @pytest.mark.parametrize("activation", ["leaky_relu", "tanh", "linear"])
    @pytest.mark.parametrize("decoder_activation", ["leaky_relu", "tanh", "linear"])
    def test_is_its_formula_with_tied_weights(self, activation, decoder_activation):
        phi = {"leaky_relu": F.leaky_relu, "tanh": torch.tanh, "linear": lambda v: v}
        dense = DenseAutoencoder(5, 7, activation=activation, decoder_activation=decoder_activation).double().eval()
        dense.encoder_bias.data.normal_()
        dense.decoder_bias.data.normal_()
        h = torch.randn(4, 5, dtype=torch.float64)
        z = phi[activation](h @ dense.weight.T + dense.encoder_bias)
        assert torch.allclose(dense(h), phi[decoder_activation](z @ dense.weight + dense.decoder_bias))
        assert sum(p.numel() for p in dense.parameters()) == 5 * 7 + 5 + 7

    def test_conv_decoder_is_the_exact_transpose(self):
        conv = ConvAutoencoder(3, 6, activation="linear").double().eval()
        h, z = torch.randn(2, 3, 7, 9, dtype=torch.float64), torch.randn(2, 6, 7, 9, dtype=torch.float64)
        assert torch.allclose((conv.encode(h) * z).sum(), (h * conv.decode(z)).sum())  # <K h, z> = <h, K^T z>
        assert conv.weight.shape == (6, 3, 5, 5)
        assert sum(p.numel() for p in conv.parameters()) == 6 * 3 * 25 + 6 + 3

    @pytest.mark.parametrize("make", [lambda: DenseAutoencoder(4, 3, noise_std=0.5), lambda: ConvAutoencoder(4, 3)])
    def test_gradients(self, make):
        ae = make().double().eval()
        h = (
            torch.randn(2, 4, 5, 5, dtype=torch.float64)
            if isinstance(ae, ConvAutoencoder)
            else torch.randn(2, 4).double()
        )
        h.requires_grad_(True)
        assert torch.autograd.gradcheck(
            lambda v, w: torch.func.functional_call(ae, {"weight": w}, (v,)), (h, ae.weight)
        )

    def test_noise_has_its_deviation_and_its_place(self):
        ae = DenseAutoencoder(1000, 1, noise_std=0.3, activation="linear").double()
        ae.scale.fill_(5.0)
        seen = []
        ae.encode = lambda u: seen.append(u) or F.linear(u, ae.weight)
        h = torch.ones(200, 1000, dtype=torch.float64)
        ae.train()(h)
        assert abs((seen[-1] - h / 5).std().item() - 0.3) < 0.01
        ae.eval()(h)
        assert torch.equal(seen[-1], h / 5)
        ae.noise_at_test = True
        ae(h)
        assert not torch.equal(seen[-1], h / 5)

    def test_wrong_options(self):
        for wrong in (
            {"activation": "gelu"},
            {"decoder_activation": "x"},
            {"noise_std": -1.0},
            {"noise_std": float("nan")},
        ):
            with pytest.raises(ValueError, match=r"activation|noise_std"):
                DenseAutoencoder(3, 4, **wrong)
        with pytest.raises(ValueError, match="hidden"):
            DenseAutoencoder(3, 0)

    def test_a_trained_one_reaches_the_optimum_on_a_gaussian(self):
        """For p = N(0, s^2) and noise of variance v the best reconstruction is s^2 / (s^2 + v) h (Alain and Bengio)."""
        ae = DenseAutoencoder(1, 8, activation="linear", noise_std=0.5).double().train()
        optimizer = torch.optim.Adam(ae.parameters(), lr=0.02)
        for _ in range(600):
            h = torch.randn(512, 1, dtype=torch.float64)
            optimizer.zero_grad()
            (ae(h) - h).square().mean().backward()
            optimizer.step()
        slope = (ae.eval()(torch.ones(1, 1).double()) - ae(torch.zeros(1, 1).double())).item()
        assert abs(slope - 1 / 1.25) < 0.03


def called_in_the_fast_path():
    """Whether this torch calls modules with hooks inside a transformer layer; older ones pass them by."""
    layer, calls = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), []
    layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        layer(torch.rand(1, 3, 8))
    return bool(calls)


class TestFortify:
    def test_the_decoded_state_replaces_the_output(self):
        model = small().double().eval()
        net = fortify(model, ["3", "5"], example_input=X.double()).eval()
        h3 = model[:4](X.double())
        d3 = net.autoencoders()[0](h3)
        h5 = model[4:6](d3)
        d5 = net.autoencoders()[1](h5)
        logits, states = net(X.double(), return_states=True)
        assert list(states) == ["3", "5"]
        for found, expected in zip([*states["3"], *states["5"]], [h3, d3, h5, d5], strict=True):
            assert torch.allclose(found, expected)
        assert torch.allclose(logits, model[6:](d5))
        assert torch.equal(net(X.double()), logits)
        errors = net.reconstruction_errors(X.double())
        assert torch.allclose(errors["3"], (d3 - h3).square().flatten(1).mean(1))
        relative = net.reconstruction_errors(X.double(), relative=True)
        assert torch.allclose(relative["5"], (d5 - h5).square().flatten(1).sum(1) / h5.square().flatten(1).sum(1))

    def test_the_users_model_is_not_touched(self):
        model = small().train()
        model[1].eval()
        before = copy.deepcopy(model.state_dict())
        random_state = torch.get_rng_state()
        with torch.random.fork_rng():
            net = fortify(model, "auto", example_input=X)
        assert torch.equal(random_state, torch.get_rng_state())
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert not any(m._forward_hooks for m in model.modules())
        assert model.training
        assert not model[1].training
        assert torch.equal(net.unfortified()(X), model(X))
        for p in net.parameters():
            p.data.add_(1)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def test_copy_false_fortifies_in_place(self):
        model = small()
        net = fortify(model, ["3"], example_input=X, copy=False).eval()
        assert net.backbone is model
        assert torch.equal(model(X), net(X))

    def test_unfortified_has_current_weights_and_shares_nothing(self):
        model = small()
        net = fortify(model, "auto", example_input=X)
        assert all(torch.equal(a, b) for a, b in zip(net.unfortified().parameters(), model.parameters(), strict=True))
        Trainer(FortifiedObjective(), epochs=1, progress=False).fit(net, (X, Y))
        plain = net.unfortified()
        assert type(plain) is nn.Sequential
        assert list(plain.state_dict()) == list(model.state_dict())
        assert not any(m._forward_hooks for m in plain.modules())
        assert not torch.equal(plain[0].weight, model[0].weight)
        assert torch.equal(plain[0].weight, net.backbone[0].weight)
        plain[0].weight.data.zero_()
        assert net.backbone[0].weight.abs().sum() > 0
        assert any(m._forward_hooks for m in net.backbone.modules())

    def test_in_place_operations_after_a_layer_do_not_reach_the_record(self):
        """tanh's backward needs its output: an in-place ReLU behind it would break or falsify it."""
        model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(192, 2))
        net = fortify(model, ["0"], example_input=X, decoder_activation="tanh").eval()
        logits, states = net(X, return_states=True)
        assert (states["0"][1] < 0).any()
        assert torch.equal(states["0"][1], net.autoencoders()[0](states["0"][0]))
        (logits.sum() + (states["0"][1] - states["0"][0]).square().sum()).backward()
        net(X).sum().backward()

    @pytest.mark.filterwarnings("ignore:the fortified network decides")
    def test_in_place_operations_do_not_reach_the_states_that_autoencoders_are_fitted_on(self):
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(inplace=True), nn.Linear(32, 3)).eval()
        x = torch.rand(300, 8)
        net = fortify(model, ["0"], example_input=x[:2]).eval()
        logits, states = net(x, return_states=True, replace=False)
        assert torch.equal(logits, model(x))
        assert torch.equal(states["0"][0], model[0](x))
        net.fit_autoencoders(x, epochs=1, progress=False)
        assert torch.allclose(net.autoencoders()[0].scale, model[0](x).square().mean().sqrt(), rtol=1e-4)

    @pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
    @pytest.mark.parametrize("batch_first", [True, False])
    @pytest.mark.parametrize("n", [4, 5])
    def test_recurrent_layers_are_fortified_at_every_step(self, kind, batch_first, n):
        model = Recurrent(kind, batch_first).eval()
        x = torch.rand(n, 5, 3)  # with n = 5 the shape alone does not tell batch from time
        net = fortify(model, ["rnn"], example_input=x).eval()
        _, states = net(x, return_states=True)
        assert states["rnn"][0].shape == ((n, 5, 8) if batch_first else (5, n, 8))
        errors = net.reconstruction_errors(x)["rnn"]
        each = torch.stack([net.reconstruction_errors(x[k : k + 1])["rnn"][0] for k in range(n)])
        assert torch.allclose(errors, each, atol=1e-6)
        explicit = fortify(model, ["rnn"], example_input=x, batch_dim=0 if batch_first else 1)
        assert explicit.config["layers"][0]["batch_dim"] == net.config["layers"][0]["batch_dim"]

    def test_a_layer_called_more_than_once_and_shared_modules(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
                self.again = self.body
                self.out = nn.Linear(5, 2)

            def forward(self, x):
                return self.out(self.again(self.body(x)))

        x = torch.rand(3, 5)
        net = fortify(Twice(), ["body.0"], example_input=x).eval()
        _, states = net(x, return_states=True)
        assert list(states) == ["body.0", "body.0#2"]
        mean = (states["body.0"][1] - states["body.0"][0]).square().mean(1) / 2
        mean = mean + (states["body.0#2"][1] - states["body.0#2"][0]).square().mean(1) / 2
        assert torch.allclose(net.reconstruction_errors(x)["body.0"], mean)
        assert list(fortify(Twice(), ["again"], example_input=x)(x, return_states=True)[1]) == ["again", "again#2"]
        with pytest.raises(ValueError, match="same module as 'body'"):
            fortify(Twice(), ["body", "again"], example_input=x)

    def test_nested_layers(self):
        model = nn.Sequential(nn.Sequential(nn.Linear(4, 6), nn.ReLU()), nn.Linear(6, 2))
        x = torch.rand(3, 4)
        net = fortify(model, ["0", "0.0"], example_input=x).eval()
        _, states = net(x, return_states=True)
        assert torch.allclose(states["0"][0], torch.relu(states["0.0"][1]))

    @pytest.mark.parametrize(
        ("model", "layers", "message"),
        [
            (small(), ["6x"], "no layer '6x'; did you mean '6'"),
            (small(), [], "no layers to fortify"),
            (small(), [""], "no layer ''"),
            (Recurrent(packed=True), ["rnn"], "'rnn' gives PackedSequence"),
            (nn.Sequential(nn.ModuleList([nn.Linear(3, 3)]), nn.Flatten()), ["0"], "never called"),
        ],
    )
    def test_layers_that_cannot_be_fortified(self, model, layers, message):
        x = torch.rand(4, 5, 3) if isinstance(model, Recurrent) else X
        if isinstance(model[0] if isinstance(model, nn.Sequential) else None, nn.ModuleList):
            model.forward = lambda z: z.flatten(1)
        with pytest.raises(ValueError, match=message):
            fortify(model, layers, example_input=x)

    def test_outputs_that_are_not_states(self):
        class Odd(nn.Module):
            def __init__(self, give):
                super().__init__()
                self.odd, self.out = nn.Identity(), nn.Linear(4, 2)
                self.odd.forward = give

            def forward(self, x):
                self.odd(x)
                return self.out(x)

        x = torch.rand(3, 4)
        for give, message in [
            (lambda z: {"a": z}, "gives dict"),
            (lambda z: z.long(), "tensor of torch.int64"),
            (lambda z: z.sum(), "shape"),
            (lambda z: z[:1], "no dimension counts the examples"),
            (lambda z: z.reshape(3, 1, 2, 2, 1), "supported"),
        ]:
            with pytest.raises(ValueError, match=f"layer 'odd'.*{message}"):
                fortify(Odd(give), ["odd"], example_input=x)
        with pytest.raises(TypeError, match=r"nn\.Module"):
            fortify(lambda z: z, ["odd"], example_input=x)

    def test_a_layer_that_changes_width_between_calls(self):
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))
        model.append(model[1])
        with pytest.raises(ValueError, match="different widths"):
            fortify(model, ["1"], example_input=torch.rand(3, 4))

    def test_batch_dim_is_checked(self):
        with pytest.raises(ValueError, match="batch_dim=1 does not fit"):
            fortify(Recurrent(), ["rnn"], example_input=torch.rand(4, 5, 3), batch_dim=1)

    def test_a_layer_without_effect_draws_a_warning(self):
        with pytest.warns(UserWarning, match="do not depend on the output of layer 'rnn'"):
            fortify(Recurrent(read="final"), ["rnn"], example_input=torch.rand(4, 5, 3))

    def test_attention_projection_never_fires_a_hook(self):
        class Encoder(nn.Module):
            def __init__(self):
                super().__init__()
                layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
                self.encoder, self.out = nn.TransformerEncoder(layer, 1), nn.Linear(8, 2)

            def forward(self, x):
                return self.out(self.encoder(x).mean(1))

        x = torch.rand(3, 5, 8)
        with pytest.raises(ValueError, match=r"out_proj' is never called"):
            fortify(Encoder().eval(), ["encoder.layers.0.self_attn.out_proj"], example_input=x)
        layers = ["encoder.layers.0"]
        if called_in_the_fast_path():
            layers.insert(0, "encoder.layers.0.self_attn")
        else:
            with pytest.raises(ValueError, match=r"self_attn' is never called"):
                fortify(Encoder().eval(), ["encoder.layers.0.self_attn"], example_input=x)
        net = fortify(Encoder().eval(), layers, example_input=x)
        with torch.no_grad():  # the fused fast path must not skip the fortified layers
            fast = net(x)
        assert torch.allclose(fast, net(x), atol=1e-6)

    def test_what_is_fortified_already_is_refused(self):
        model = small()
        net = fortify(model, ["5"], example_input=X)
        denoised = fortify(model, [], example_input=X, input_autoencoder=True)
        inside = nn.Sequential(nn.Identity(), net)
        in_place = small()
        fortify(in_place, ["5"], example_input=X, copy=False)
        for again in (net, denoised, inside, in_place):
            with pytest.raises(ValueError, match=r"fortified already: name all layers at once, or fortify net\.unfort"):
                fortify(again, "auto", example_input=X)
        fortify(net.unfortified(), "auto", example_input=X)

    def test_auto_is_the_middle_and_the_last_activation(self):
        assert fortify(small(), "auto", example_input=X).layers == ("3", "5")
        assert fortify(mlp(64, [9, 9, 9, 9], 3), "auto", example_input=X).layers == ("4", "8")
        assert fortify(Recurrent(), "auto", example_input=torch.rand(4, 5, 3)).layers == ("rnn",)
        with pytest.raises(ValueError, match="found no hidden layer"):
            fortify(nn.Linear(3, 2), "auto", example_input=torch.rand(2, 3))

    def test_auto_on_shared_activations_channels_last_and_attention(self):
        import torchvision

        x = torch.rand(2, 3, 64, 64)
        assert fortify(torchvision.models.resnet50(), "auto", example_input=x).layers == ("layer3.0", "layer4.2")
        swin = fortify(torchvision.models.swin_t().eval(), "auto", example_input=x, hidden=8)
        assert [spec["kind"] for spec in swin.config["layers"]] == ["dense", "dense"]
        assert [spec["features"] for spec in swin.config["layers"]] == [1536, 3072]
        conv = fortify(torchvision.models.convnext_tiny().eval(), "auto", example_input=x, hidden=8).eval()
        assert [spec["features"] for spec in conv.config["layers"]] == [1536, 3072]
        assert conv(torch.rand(1, 3, 96, 96)).shape == (1, 1000)  # another image size
        block = fortify(conv.unfortified(), ["features.1.0"], example_input=x, hidden=8)
        assert block.config["layers"][0]["kind"] == "conv"  # a ConvNeXt block gives (N, C, H, W)

        class Attention(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner, self.act, self.softmax, self.out = (
                    nn.Linear(6, 6),
                    nn.ReLU(),
                    nn.Softmax(-1),
                    nn.Linear(6, 2),
                )

            def forward(self, z):
                h = self.act(self.inner(z))
                return self.out((self.softmax(h @ h.transpose(1, 2)) @ h).mean(1))

        assert fortify(Attention(), "auto", example_input=torch.rand(3, 5, 6)).layers == ("act",)

    def test_an_ambiguous_batch_dimension_is_refused(self):
        class SequenceFirst(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn, self.out = nn.LSTM(4, 8), nn.Linear(8, 2)

            def forward(self, x):
                return self.out(self.rnn(x)[0][-1])

        x = torch.rand(5, 5, 4)  # time first, and as many steps as examples: doubling doubles time
        with pytest.raises(ValueError, match="more than one dimension may count"):
            fortify(SequenceFirst(), ["rnn"], example_input=x)
        net = fortify(SequenceFirst(), ["rnn"], example_input=x, batch_dim=1)
        assert net.reconstruction_errors(torch.rand(7, 3, 4))["rnn"].shape == (3,)

    def test_an_output_object_and_keyword_inputs(self):
        class Tagger(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.act, self.out = nn.Embedding(11, 6), nn.Tanh(), nn.Linear(6, 3)

            def forward(self, input_ids=None, attention_mask=None):
                h = self.act(self.embed(input_ids)) * attention_mask[..., None]
                return SimpleNamespace(logits=self.out(h.mean(1)))

        example = {"input_ids": torch.randint(11, (4, 7)), "attention_mask": torch.ones(4, 7)}
        net = fortify(Tagger(), ["act"], example_input=example)
        assert net(**example).logits.shape == (4, 3)
        assert net.reconstruction_errors(**example)["act"].shape == (4,)

    def test_reconstruction_errors_follow_the_input_s_gradient_flag(self):
        net = fortify(small(), "auto", example_input=X, init="random").train()
        assert not net.reconstruction_errors(X)["3"].requires_grad
        x = X.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(net.reconstruction_errors(x)["5"].sum(), x)
        assert gradient.abs().sum() > 0
        assert net.training
        assert torch.equal(net.reconstruction_errors(X)["3"], net.reconstruction_errors(X)["3"])  # no noise


class TestSurvival:
    def net(self):
        return fortify(small(), "auto", example_input=X).eval()

    def test_deepcopy_is_independent(self):
        net = self.net()
        twin, expected = copy.deepcopy(net), net(X)
        for p in twin.parameters():
            p.data.zero_()
        assert torch.equal(net(X), expected)
        assert not torch.equal(twin(X), expected)
        assert len(twin(X, return_states=True)[1]) == 2

    def test_state_dict_and_safetensors(self, tmp_path):
        net, other = self.net(), self.net()
        assert not torch.equal(net(X), other(X))
        other.load_state_dict(net.state_dict())
        assert torch.equal(net(X), other(X))
        third = self.net().to(memory_format=torch.channels_last)
        save_tensors(tmp_path / "w.safetensors", third.state_dict())
        load_state(other, load_tensors(tmp_path / "w.safetensors"))
        assert torch.allclose(third(X), other(X), atol=1e-6)

    def test_save_and_load_around_the_users_model(self, tmp_path):
        net = fortify(small(), ["3"], example_input=X, hidden=5, activation="tanh", noise_std=0.2).eval()
        net.save(tmp_path)
        loaded = FortifiedNetwork.load(tmp_path, model=small()).eval()
        assert torch.equal(loaded(X), net(X))
        assert loaded.config == net.config
        with pytest.raises(ValueError, match=r"backbone\.0\.weight is \(4, 1, 3, 3\), the network has \(8, 1, 3, 3\)"):
            FortifiedNetwork.load(tmp_path, model=convnet(1, 4, 8, width=8))
        with pytest.raises(ValueError, match="lacks: 3"):
            FortifiedNetwork.load(tmp_path, model=nn.Sequential(nn.Linear(2, 2)))
        (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-9])
        with pytest.raises(ValueError, match=r"model\.safetensors: not a complete"):
            FortifiedNetwork.load(tmp_path, model=small())
        with pytest.raises(FileNotFoundError, match="no fortified network"):
            FortifiedNetwork.load(tmp_path / "nothing", model=small())

    def test_load_takes_mode_and_dtype_from_the_model(self, tmp_path):
        net = fortify(small().double(), "auto", example_input=X.double()).eval()
        net.save(tmp_path)
        loaded = FortifiedNetwork.load(tmp_path, model=small().double().eval())
        assert torch.equal(loaded(X.double()), net(X.double()))  # no corruption noise
        assert not any(m.training for m in loaded.modules())
        mixed = small().train()
        mixed[1].eval()
        assert [m.training for m in fortify(mixed, "auto", example_input=X).backbone.modules()] == [
            m.training for m in mixed.modules()
        ]

    def test_load_from_a_training_run(self, tmp_path):
        net = fortify(small(), "auto", example_input=X)
        Trainer(FortifiedObjective(), epochs=2, progress=False, run_dir=tmp_path).fit(net, (X, Y))
        loaded = FortifiedNetwork.load(tmp_path, model=small().eval())
        assert torch.equal(loaded(X), net.eval()(X))

    def test_dtype_device_and_modes(self):
        net = self.net()
        assert net.double()(X.double()).dtype == torch.float64
        assert net.to(torch.bfloat16)(X.bfloat16()).dtype == torch.bfloat16
        net = self.net().to("meta")
        assert net(X.to("meta")).shape == (6, 4)
        net = self.net().train()
        assert not torch.equal(net(X), net(X))  # corruption noise
        assert torch.equal(net.eval()(X), net(X))
        with torch.no_grad():
            assert torch.equal(net(X), net(X))
        double = fortify(small().double(), "auto", example_input=X.double())
        assert {p.dtype for p in double.parameters()} == {torch.float64}

    def test_compiled_output_is_the_same(self):
        net = self.net()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = torch.__version__ >= (2, 15)  # older ones break the graph at the context variable of the record
            compiled = torch.compile(net, fullgraph=whole, backend="aot_eager")
            assert torch.allclose(compiled(X), net(X), atol=1e-6)
            logits, states = torch.compile(net, backend="aot_eager")(X, return_states=True)
            assert torch.equal(FGSM(eps=0.1)(compiled, X, Y), FGSM(eps=0.1)(net, X, Y))
        assert torch.allclose(logits, net(X), atol=1e-6)
        assert states.keys() == net(X, return_states=True)[1].keys()

    def test_concurrent_forwards_keep_their_records_apart(self):
        from concurrent.futures import ThreadPoolExecutor

        net = self.net()
        inputs = [torch.rand(k + 1, 1, 8, 8) for k in range(8)] * 4
        expected = [net.reconstruction_errors(x)["3"] for x in inputs]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda x: net.reconstruction_errors(x)["3"], inputs))
        assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(found, expected, strict=True))

    def test_attacks_leave_it_as_it_was(self):
        net = self.net().train()
        before = copy.deepcopy(net.state_dict())
        PGD(eps=0.1, steps=3)(net, X, Y)
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        assert net.training
        assert all(p.requires_grad and p.grad is None for p in net.parameters())

    def test_noise_at_test_makes_it_stochastic(self):
        net = fortify(small(), "auto", example_input=X, noise_std=1.0, noise_at_test=True).eval()
        assert not torch.equal(net(X), net(X))
        result = PGD(eps=0.1, steps=2, votes=5).run(net, X, Y)
        assert result.forwards.max() > 10  # votes were cast

    @pytest.mark.parametrize("build", ["resnet18", "vit_b_16"])
    def test_torchvision(self, build):
        import torchvision

        model = getattr(torchvision.models, build)(weights=None).eval()
        x = torch.rand(2, 3, 64, 64) if build == "resnet18" else torch.rand(1, 3, 224, 224)
        layers = (
            ["layer1.0.bn1", "layer4", "avgpool"] if build == "resnet18" else ["encoder.layers.encoder_layer_5.mlp"]
        )
        net = fortify(model, layers, example_input=x, hidden=32).eval()
        with torch.no_grad():
            assert net(x).shape == (len(x), 1000)
            assert all(e.shape == (len(x),) for e in net.reconstruction_errors(x).values())
            assert torch.equal(net.unfortified()(x), model(x))


class TestInputAutoencoder:
    def test_pairs_are_states_of_raw_and_reconstructed_inputs(self):
        model = small().double().eval()
        net = fortify(model, ["3", "5"], example_input=X.double(), input_autoencoder=True).eval()
        reconstructed = net.autoencoders()[0](X.double())
        logits, states = net(X.double(), return_states=True)
        assert torch.allclose(logits, model(reconstructed))
        assert torch.allclose(states["5"][0], model[:6](X.double()))
        assert torch.allclose(states["5"][1], model[:6](reconstructed))
        assert torch.equal(net(X.double()), logits)

    def test_without_replacement_it_is_the_original_network(self):
        model = small().eval()
        net = fortify(model, ["3"], example_input=X, input_autoencoder=True).eval()
        logits, _ = net(X, return_states=True, replace=False)
        assert torch.equal(logits, model(X))

    def test_without_layers_the_loss_is_on_pixels(self):
        net = fortify(small(), [], example_input=X, input_autoencoder=True, init="random").eval()
        assert net.layers == ("input",)
        expected = (net.autoencoders()[0](X) - X).square().flatten(1).mean(1)
        assert torch.allclose(net.reconstruction_errors(X)["input"], expected)
        net.fit_autoencoders(X, epochs=30, batch_size=6, progress=False)
        assert net.reconstruction_errors(X)["input"].mean() < expected.mean()

    def test_fit_of_hidden_losses_is_refused(self):
        net = fortify(small(), ["3"], example_input=X, input_autoencoder=True)
        with pytest.raises(ValueError, match="FortifiedObjective"):
            net.fit_autoencoders(X)


class TestObjective:
    batch = Batch(X.double(), Y, torch.arange(6))

    def net(self, **options):
        return fortify(small().double(), "auto", example_input=X.double(), noise_std=0.0, init="random", **options)

    def test_is_its_formula(self):
        net, attack = self.net(), FGSM(eps=0.1, early_stop=False)
        objective = FortifiedObjective(attack, lambda_rec=0.3, lambda_adv=0.7, reduction="sum")
        found = objective(net, self.batch, 0)
        x_adv = attack(net, X.double(), Y)
        clean, states = net(X.double(), return_states=True)
        adv, adv_states = net(x_adv, return_states=True)
        expected = F.cross_entropy(clean, Y) + F.cross_entropy(adv, Y)
        for name, (h, d) in states.items():
            expected = expected + 0.3 * (d - h).square().sum() / 6
            expected = expected + 0.7 * (adv_states[name][1] - h).square().sum() / 6  # the target is the CLEAN state
        assert torch.allclose(found["loss"], expected)
        h5 = states["5"][0].flatten(1)
        assert torch.allclose(found["state_norm/5"], h5.norm(dim=1).mean())
        d5 = states["5"][1].flatten(1)
        assert torch.allclose(found["relative_error/5"], (d5 - h5).square().sum() / h5.square().sum())

    def test_mean_reduction_divides_by_the_units(self):
        net = self.net()
        one, two = (FortifiedObjective(reduction=r)(net, self.batch, 0)["rec_loss"] for r in ("sum", "mean"))
        h3, h5 = (net(X.double(), return_states=True)[1][k] for k in ("3", "5"))
        parts = [(d - h).square().sum() / 6 for h, d in (h3, h5)]
        assert torch.allclose(one, sum(parts))
        assert torch.allclose(two, parts[0] / h3[0][0].numel() + parts[1] / h5[0][0].numel())

    def gradients(self, net, **switches):
        net.zero_grad()
        FortifiedObjective(FGSM(eps=0.1), **switches)(net, self.batch, 0)["loss"].backward()
        return {k: p.grad.clone() for k, p in net.named_parameters()}

    def test_every_ablation_is_a_switch(self):
        net = self.net()
        none = self.gradients(net, lambda_rec=0.0, lambda_adv=0.0)
        ClassifierObjective(FGSM(eps=0.1))(net, self.batch, 0)
        net.zero_grad()
        ClassifierObjective(FGSM(eps=0.1))(net, self.batch, 0)["loss"].backward()
        assert all(torch.allclose(p.grad, none[k]) for k, p in net.named_parameters())  # layers without any DAE loss
        full = self.gradients(net, lambda_rec=1.0, lambda_adv=1.0)
        for switches in ({"lambda_rec": 1.0, "lambda_adv": 0.0}, {"lambda_rec": 0.0, "lambda_adv": 1.0}):
            some = self.gradients(net, **switches)
            assert not torch.allclose(some["backbone.0.weight"], full["backbone.0.weight"])
            assert not torch.allclose(some["backbone.0.weight"], none["backbone.0.weight"])

    def test_detached_states_train_the_autoencoders_only(self):
        net = self.net()
        none = self.gradients(net, lambda_rec=0.0, lambda_adv=0.0)
        detached = self.gradients(net, lambda_rec=1.0, lambda_adv=1.0, detach_states=True)
        for name in none:
            changed = not torch.allclose(none[name], detached[name])
            assert changed == name.startswith("fortified_layers"), name

    def test_hidden_loss_of_an_input_autoencoder(self):
        net = self.net(input_autoencoder=True)
        without = self.gradients(net, lambda_rec=0.0, lambda_adv=0.0)
        joint = self.gradients(net, lambda_rec=1.0, lambda_adv=1.0)
        detached = self.gradients(net, lambda_rec=1.0, lambda_adv=1.0, detach_states=True)
        for name in without:
            on_input = name.startswith("input_layer")
            if on_input or name == "backbone.0.weight":
                assert not torch.allclose(joint[name], without[name]), name
            assert torch.allclose(detached[name], without[name]) != on_input, name

    def test_one_forward_for_both_halves(self):
        net, sizes = self.net(), []
        net.register_forward_pre_hook(lambda m, a, k: sizes.append((len(a[0]), m.training)), with_kwargs=True)
        net.train()
        FortifiedObjective(FGSM(eps=0.1))(net, self.batch, 0)
        assert [n for n, training in sizes if training] == [12]

    def test_wrong_settings(self):
        for wrong in ({"lambda_rec": -1.0}, {"reduction": "max"}, {"clean_weight": 0.0}, {"label_smoothing": 2.0}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                FortifiedObjective(**wrong)
        with pytest.raises(TypeError, match="FortifiedNetwork, not Sequential"):
            FortifiedObjective()(small(), self.batch, 0)


class TestFitAutoencoders:
    @pytest.fixture(scope="class")
    @staticmethod
    def pretrained():
        torch.manual_seed(0)
        torch.set_num_threads(1)
        model = convnet(1, 10, 8, width=8)
        Trainer(ClassifierObjective(), epochs=12, batch_size=64, progress=False).fit(model, data.digits("train"))
        net = fortify(model, "auto", example_input=X)
        history = net.fit_autoencoders(data.digits("train"), epochs=25, batch_size=32, progress=False)
        return model.eval(), net.eval(), history

    def test_the_backbone_is_bitwise_the_original(self, pretrained):
        model, net, _ = pretrained
        x = data.digits("test").images()
        assert torch.equal(net.unfortified().eval()(x), model(x))
        assert all(p.requires_grad for p in net.backbone.parameters())

    def test_clean_accuracy_is_kept_within_a_point(self, pretrained):
        model, net, history = pretrained
        test = data.digits("test")
        before, after = ((m(test.images()).argmax(1) == test.labels()).double().mean() for m in (model, net))
        assert before > 0.9
        assert after >= before - 0.01
        assert history[-1]["loss"] < history[0]["loss"]

    def test_held_out_corrupted_states_are_really_denoised(self, pretrained):
        _, net, _ = pretrained
        with torch.no_grad():
            _, states = net(data.digits("test").images(), return_states=True, replace=False)
            for (name, (state, _)), ae in zip(states.items(), net.autoencoders(), strict=True):
                corrupted = state + ae.noise_std * ae.scale * torch.randn_like(state)
                error_before, error_after = (corrupted - state).square().mean(), (ae(corrupted) - state).square().mean()
                assert error_after < error_before, name

    def test_noise_and_scale_are_in_the_unit_of_the_states(self, pretrained):
        model, net, _ = pretrained
        rms = model[:4](data.digits("train").images()).square().mean().sqrt()
        assert torch.allclose(net.autoencoders()[0].scale, rms, rtol=0.05)

    def test_errors_tell_noise_from_digits(self, pretrained):
        _, net, _ = pretrained
        clean = net.reconstruction_errors(data.digits("test").images())["3"]
        noise = net.reconstruction_errors(data.noise(300, (1, 8, 8)).images())["3"]
        assert (noise[:, None] > clean[None]).float().mean() > 0.95

    def test_batch_norm_and_dropout_of_the_backbone_stay_still(self):
        model = nn.Sequential(
            nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2)
        )
        net = fortify(model, ["4"], example_input=X)
        before = copy.deepcopy(net.backbone.state_dict())
        net.fit_autoencoders(torch.rand(50, 1, 8, 8), epochs=2, progress=False)
        assert all(torch.equal(v, before[k]) for k, v in net.backbone.state_dict().items())
        assert net.training

    @staticmethod
    def errors(net, x):
        found = net.reconstruction_errors(x, relative=True, replace=False)
        return torch.stack([v.double().mean() for v in found.values()])

    @pytest.mark.parametrize("lr", [1e-3, 1e-2, 1.0])
    @pytest.mark.parametrize("forgotten", [False, True])
    @pytest.mark.filterwarnings("ignore:the fortified network decides otherwise")
    def test_a_second_fit_goes_on_from_the_first(self, lr, forgotten):
        torch.manual_seed(0)
        x = data.digits("train").images()[:200]
        net = fortify(small(), "auto", example_input=X)
        (*_, row) = net.fit_autoencoders(x, epochs=12, lr=1e-2, batch_size=20, progress=False)
        for part in (x, x[::3] / 2, x):
            if forgotten:  # as when it is saved and loaded
                for autoencoder in net.autoencoders():
                    autoencoder.moments = {}
            before, scales = self.errors(net, part), [float(a.scale) for a in net.autoencoders()]
            first, *_ = net.fit_autoencoders(part, epochs=1, lr=lr, batch_size=20, progress=False)
            assert (self.errors(net, part) <= before * (1 + 1e-6)).all()
            assert [float(a.scale) for a in net.autoencoders()] == scales
            if part is x and lr < 1 and not forgotten:
                assert first["loss"] < 1.2 * row["loss"], "its first steps undo the first fit"

    def test_a_network_that_was_trained_jointly_goes_on_too(self):
        torch.manual_seed(0)
        train = data.digits("train").first(300)
        net = fortify(convnet(1, 10, 8, width=4), "auto", example_input=X)
        Trainer(FortifiedObjective(), epochs=3, batch_size=20, progress=False).fit(net, train)
        before = self.errors(net, train.images())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net.fit_autoencoders(train, epochs=2, progress=False)
        assert (self.errors(net, train.images()) < before).all()

    def test_a_second_fit_that_was_stopped_resumes_exactly(self, tmp_path):
        torch.manual_seed(0)
        x = data.digits("train").images()[:100]
        fitted = fortify(small(), "auto", example_input=X)
        options = {"batch_size": 20, "progress": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted.fit_autoencoders(x, epochs=2, **options)
            whole, cut = copy.deepcopy(fitted), copy.deepcopy(fitted)
            history = whole.fit_autoencoders(x, epochs=3, run_dir=tmp_path / "whole", **options)
            cut.fit_autoencoders(x, epochs=2, run_dir=tmp_path / "cut", **options)
            again = copy.deepcopy(fitted)
            assert again.fit_autoencoders(x, epochs=3, run_dir=tmp_path / "cut", resume=True, **options) == history
        assert all(torch.equal(v, whole.state_dict()[k]) for k, v in again.state_dict().items())

    def test_no_data(self):
        net = fortify(small(), "auto", example_input=X)
        with pytest.raises(ValueError, match="empty"):
            net.fit_autoencoders(X[:0])


def _worker(rank, port, queue):
    import os

    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = fortify(small().double(), "auto", example_input=X.double(), noise_std=0.0)
    trainer = Trainer(FortifiedObjective(FGSM(eps=0.1)), epochs=2, batch_size=4, progress=False)
    trainer.fit(net, (X.double(), Y))
    if rank == 0:
        queue.put({k: v.tolist() for k, v in net.state_dict().items()})
    if dist.is_initialized():
        dist.destroy_process_group()


def test_two_processes_train_the_same_network():
    import socket

    import torch.multiprocessing as mp

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_worker, args=(rank, port, queue)) for rank in range(2)]
    for w in workers:
        w.start()
    found = queue.get(timeout=120)
    for w in workers:
        w.join(60)
    torch.manual_seed(0)
    net = fortify(small().double(), "auto", example_input=X.double(), noise_std=0.0)
    Trainer(FortifiedObjective(FGSM(eps=0.1)), epochs=2, batch_size=4, progress=False).fit(net, (X.double(), Y))
    for name, value in net.state_dict().items():
        assert torch.allclose(value, torch.tensor(found[name], dtype=value.dtype), atol=1e-9), name
