"""The ground of every room: random numbers, files, checks, leaving no trace on a model, and looking into networks."""

import copy
import json
import resource
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch
import torchvision
from helpers import numpy_numbers
from scipy import stats
from torch import nn

from robustgen import FortifiedObjective, counter_rng, data, fortify
from robustgen.attacks import FGSM, PGD, EmbeddedInput, Engine
from robustgen.attacks.prepare import prepare
from robustgen.checks import (
    check_bounds,
    check_flags,
    check_ids,
    check_integers,
    check_numbers,
    check_positive,
    check_shape,
    nearest,
    plain,
)
from robustgen.detectors import Energy, FeatureTimesImageDistance, KNearestFeatures, Mahalanobis, ReconstructionError
from robustgen.evaluation import binarization_test, evaluate_robustness
from robustgen.features import FeatureExtractor
from robustgen.files import environment, load_state, load_tensors, read_json, save_tensors, write_bytes, write_json
from robustgen.fingerprint import model_fingerprint
from robustgen.fortified import FortifiedNetwork, HiddenMatchingNetwork
from robustgen.fortified.autoencoder import DenseAutoencoder
from robustgen.layers import find_layer
from robustgen.model import Normalize, evaluating, logits_of, untouched
from robustgen.networks import build, convnet
from robustgen.recurrent_networks import TextClassifier
from robustgen.strided_conv import StridedConv2d
from robustgen.training import (
    AWP,
    ClassifierObjective,
    ContrastiveObjective,
    Deformations,
    Mart,
    OverfittingGuard,
    Trades,
    Trainer,
)

MASK = (1 << 64) - 1


def splitmix(z):
    """The published finaliser, in Python integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


class TestCounterRng:
    def test_bits_are_those_of_splitmix64(self):
        golden = 0x9E3779B97F4A7C15
        seed, stream, ids = 7, (3,), [0, 5, -2, 2**40]
        bits = counter_rng._bits(seed, torch.tensor(ids), stream, 4)
        for row, sample in zip(bits.tolist(), ids, strict=True):
            key = splitmix((seed + golden) & MASK)
            for word in (*stream, sample):
                key = splitmix(((key ^ (word & MASK)) + golden) & MASK)
            expected = [splitmix((key + k * golden) & MASK) for k in range(1, 5)]
            assert [b & MASK for b in row] == expected

    def test_distributions(self):
        ids = torch.arange(2000)
        u = counter_rng.uniform(1, ids, (20,))
        assert u.dtype == torch.float32
        assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
        assert counter_rng.uniform(0, ids, (500,)).max() < 1
        z = counter_rng.normal(1, ids, (20,), dtype=torch.float64)
        assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
        k = counter_rng.integers(1, ids, (20,), 7).flatten()
        assert stats.chisquare(k.bincount(minlength=7).numpy()).pvalue > 1e-3
        for other in (counter_rng.uniform(1, ids + 1, (20,)), counter_rng.uniform(1, ids, (20,), (1,))):
            rows = torch.corrcoef(torch.stack([u[:, 0], other[:, 1]]))[0, 1]
            assert rows.abs() < 0.1

    def test_a_value_depends_on_its_own_key_only(self):
        ids = torch.tensor([4, 8, 15, 16])
        whole = counter_rng.normal(3, ids, (2, 3), (1, 2))
        assert torch.equal(counter_rng.normal(3, ids[[2]], (2, 3), (1, 2)), whole[[2]])
        assert torch.equal(counter_rng.uniform(3, ids, (8,))[:, :5], counter_rng.uniform(3, ids, (5,)))
        assert not torch.equal(counter_rng.normal(4, ids, (2, 3), (1, 2)), whole)
        state = torch.get_rng_state()
        counter_rng.derive_seed(3, 1, 2)
        assert torch.equal(state, torch.get_rng_state())


class TestFiles:
    def test_aliases_layouts_and_empty_tensors_round_trip(self, tmp_path):
        w = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
        base = torch.arange(10.0)
        tensors = {
            "w": w,
            "tied": w,
            "view": base[2:5],
            "step": base[::2],
            "none": torch.zeros(0, 3),
            "n": torch.tensor(3),
        }
        save_tensors(tmp_path / "t", tensors)
        found = load_tensors(tmp_path / "t")
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())
        assert found["w"].data_ptr() == found["tied"].data_ptr()

    def test_a_changed_byte_is_noticed(self, tmp_path):
        for name in "tuv":  # and the same tensors are the same bytes
            save_tensors(tmp_path / name, {"w": torch.ones(3)})
        assert len({(tmp_path / name).read_bytes() for name in "tuv"}) == 1
        found = bytearray((tmp_path / "t").read_bytes())
        found[-1] ^= 1
        (tmp_path / "t").write_bytes(found)
        with pytest.raises(ValueError, match="t: damaged, its tensors are not those that were written"):
            load_tensors(tmp_path / "t")

    def test_a_failed_write_leaves_what_was_there(self, tmp_path):
        path = tmp_path / "x.json"
        write_json(path, {"a": 1})
        with pytest.raises(ValueError, match="JSON"):
            write_json(path, {"a": float("nan")})
        script = textwrap.dedent(
            """
            import resource, sys
            from robustgen.files import write_bytes
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            write_bytes(sys.argv[1], b"0" * 5000)
            """
        )
        failed = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
        assert f"File too large: '{path}'" in failed.stderr
        assert read_json(path) == {"a": 1}
        assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
        assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY

    def test_broken_files_are_named(self, tmp_path):
        save_tensors(tmp_path / "t", {"w": torch.ones(100)})
        for cut in (0, 5, 50, -1):
            write_bytes(tmp_path / "cut", (tmp_path / "t").read_bytes()[:cut])
            with pytest.raises(ValueError, match=r"cut: not a complete safetensors file"):
                load_tensors(tmp_path / "cut")
        torch.save({"w": torch.ones(1)}, tmp_path / "pickle.pt")
        with pytest.raises(ValueError, match=r"pickle\.pt: a pickle, where a safetensors file belongs"):
            load_tensors(tmp_path / "pickle.pt")
        with pytest.raises(FileNotFoundError, match="no such file"):
            load_tensors(tmp_path / "nothing")
        write_bytes(tmp_path / "half.json", b'{"a": [1, 2')
        with pytest.raises(ValueError, match=r"half\.json: not a complete JSON"):
            read_json(tmp_path / "half.json")

    def test_load_state_is_all_or_nothing(self):
        model = nn.Linear(3, 2)
        before = model.weight.clone()
        with pytest.raises(
            ValueError, match=r"missing bias; unexpected other; weight is \(2, 4\), the network has \(2, 3\)"
        ):
            load_state(model, {"weight": torch.zeros(2, 4), "other": torch.zeros(1)})
        assert torch.equal(model.weight, before)

    def test_environment_is_json(self, tmp_path):
        write_json(tmp_path / "e", environment())
        assert read_json(tmp_path / "e")["torch"] == torch.__version__


class TestModel:
    def test_evaluating_restores_every_flag(self):
        model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
        model.train()
        model[1][0].eval()
        flags = [m.training for m in model.modules()]

        def interrupted():
            with evaluating(model):
                assert not any(m.training for m in model.modules())
                raise KeyError

        with pytest.raises(KeyError):
            interrupted()
        assert [m.training for m in model.modules()] == flags

    def test_a_module_that_overrides_train_is_told(self):
        class Moody(nn.Module):
            mode = "train"

            def train(self, flag=True):
                self.mode = "train" if flag else "eval"
                return super().train(flag)

        model = nn.Sequential(Moody())
        with untouched(model):
            assert model[0].mode == "eval"
        assert model[0].mode == "train"

    def test_untouched_restores_replaced_and_changed_buffers(self):
        class Counter(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("changed", torch.zeros(1))
                self.register_buffer("replaced", torch.zeros(1))

            def forward(self, x):
                self.changed += 1
                self.replaced = self.replaced + 1
                return x

        model = Counter()
        kept = model.replaced
        with untouched(model):
            model(torch.ones(1))
            assert model.changed == 1
        assert model.changed == 0
        assert model.replaced is kept

    def test_untouched_is_reproducible_inside(self):
        draws = []
        for _ in range(2):
            with untouched(None, seed=3):
                draws.append(torch.rand(3))
        assert torch.equal(*draws)

    def test_normalize_checks_its_channels(self):
        layer = Normalize([0.5, 0.5], [0.5, 0.25])
        assert torch.allclose(layer(torch.ones(1, 2, 3))[0, :, 0], torch.tensor([1.0, 2.0]))
        assert layer.state_dict() == {}
        with pytest.raises(ValueError, match="expected 2 channels"):
            layer(torch.ones(1, 3, 3))
        with pytest.raises(ValueError, match="std > 0"):
            Normalize([0.5], [0.0])

    def test_logits_of(self):
        with pytest.raises(ValueError, match="C >= 2"):
            logits_of(torch.zeros(3, 1))
        with pytest.raises(TypeError, match="not tuple"):
            logits_of((torch.zeros(3, 2),))


def test_fingerprints_see_buffers_and_bytes():
    model = nn.Sequential(Normalize([0.5], [0.5]), nn.Linear(2, 2))
    before = model_fingerprint(model)
    model[0].mean += 1e-6
    assert model_fingerprint(model) != before


def test_checks_and_networks():
    with pytest.raises(TypeError, match="int64"):
        check_ids(torch.zeros(2), 2, torch.device("cpu"))
    assert nearest("zzz", [str(k) for k in range(20)]).endswith("...")
    assert convnet(3, 5, (32, 40))(torch.zeros(1, 3, 32, 40)).shape == (1, 5)
    with pytest.raises(ValueError, match="unknown network 'alexnet'"):
        build("alexnet", torch.zeros(1, 1, 8, 8), 3)
    with pytest.raises(ValueError, match="convnet takes images"):
        build("convnet", torch.zeros(1, 8), 3)
    with pytest.raises(ValueError, match="unknown activation 'gelu'"):
        build("mlp", torch.zeros(1, 8), 3, activation="gelu")


# Numbers of NumPy, and values that are no numbers, in what is made of numbers.

X, Y = torch.rand(6, 4), torch.arange(6) % 2


@pytest.mark.parametrize("one", [np.int64(3), np.uint8(3), np.array(3)])
def test_integers_of_numpy(one):
    check_integers(k=one)
    check_numbers(k=one)
    check_positive(k=one)
    assert check_shape((one, one, one)) == (3, 3, 3)
    assert type(plain(one)) is int


@pytest.mark.parametrize("wrong", [np.True_, np.float32(2.5), np.array([3]), "3", None, torch.tensor(3)])
def test_what_is_no_integer(wrong):
    with pytest.raises(TypeError, match="k must be an integer, got"):
        check_integers(k=wrong)


def test_flags_of_numpy():
    check_flags(on=np.True_)
    with pytest.raises(TypeError, match="on must be True or False"):
        check_flags(on=np.int64(1))


@pytest.mark.parametrize("wrong", [{"seed": "0"}, {"votes": np.float64(2.5)}, {"steps": np.True_}, {"eps": np.True_}])
def test_what_is_no_number_of_an_attack(wrong):
    with pytest.raises(TypeError, match=f"{next(iter(wrong))} must be a"):
        PGD(**wrong)


CHANNELS = (torch.zeros(3, 1, 1), torch.ones(3, 1, 1))


@pytest.mark.parametrize("bounds", [None, 1.0, (0,), (0, 1, 2), (None, None), CHANNELS, (np.zeros(3), np.ones(3))])
def test_bounds_are_two_numbers(bounds):
    with pytest.raises(TypeError, match=r"bounds are two numbers, .* put Normalize inside the model") as said:
        PGD(bounds=bounds)
    assert "\n" not in str(said.value)
    for good in ((np.float32(0), np.float32(1)), np.array([0, 1]), torch.tensor([0, 1])):
        assert check_bounds(good) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (Trades, {"beta": 6.0}),
        (Mart, {"beta": 6.0}),
        (Deformations, {"gamma": 0.5, "bend_grid": 3}),
        (lambda **kw: FortifiedObjective(PGD(), **kw), {"lambda_rec": 0.5, "detach_states": True}),
        (lambda **kw: ClassifierObjective(PGD(), **kw), {"clean_weight": 0.5, "label_smoothing": 0.1}),
        (lambda **kw: ContrastiveObjective(Deformations(), **kw), {"temperature": 0.5}),
        (lambda **kw: AWP(ClassifierObjective(PGD()), **kw), {"gamma": 0.5}),
    ],
)
def test_losses_and_objectives_remember_plain_numbers(make, settings):
    assert json.dumps(make(**numpy_numbers(settings)).describe()) == json.dumps(make(**settings).describe())


def test_the_trainer_takes_numbers_of_numpy(tmp_path):
    guard = OverfittingGuard(weak=PGD(), strong=PGD(), **numpy_numbers({"every": 50, "drop": 0.2}))
    assert type(guard.every) is int
    settings = {"epochs": 1, "batch_size": 3, "seed": 5, "ema": 0.5, "clip_norm": 1.0, "checkpoint_every": 1}
    adam = lambda parameters: torch.optim.Adam(parameters, lr=np.float32(0.125))

    def trained(folder, **settings):
        net = nn.Linear(4, 2)
        nn.init.ones_(net.weight)
        nn.init.zeros_(net.bias)
        trainer = Trainer(ClassifierObjective(), optimizer=adam, run_dir=tmp_path / folder, progress=False, **settings)
        trainer.fit(net, (X, Y))
        return net.weight

    assert torch.equal(trained("a", **settings), trained("b", **numpy_numbers(settings)))
    for name in ("epochs", "batch_size", "checkpoint_every"):
        for wrong in (2.5, np.float64(2), "2", True):
            with pytest.raises(TypeError, match=f"{name} must be an integer"):
                Trainer(ClassifierObjective(), **{name: wrong})


def test_engines_fortified_networks_and_reports(tmp_path):
    assert type(Engine(slots=np.int64(8)).slots) is int
    settings = numpy_numbers({"noise_std": 0.5, "hidden": 3})
    net = fortify(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), ["0"], example_input=X, **settings)
    net.save(tmp_path / "net")
    attack = PGD(eps=np.float32(0.125), steps=np.int64(2))
    given = numpy_numbers({"eps": 0.125, "seed": 1, "batch_size": 4, "sweep_examples": 3, "masking_tests": False})
    report = evaluate_robustness(net, X, Y, attacks={"pgd": attack}, run_dir=tmp_path / "evaluation", **given)
    report.save(tmp_path / "report")


@pytest.mark.parametrize(
    "use",
    [
        lambda seed: data.digits(seed=seed).x,
        lambda seed: data.noise(3, (1, 8, 8), seed=seed).x,
        lambda seed: data.windows(torch.arange(40), 3, n=4, seed=seed),
    ],
)
def test_seeds_of_numpy(use):
    for seed in (5, -5):
        assert torch.equal(use(np.int64(seed)), use(seed))
    assert not torch.equal(use(5), use(6))


def test_warnings_are_located_at_the_users_line():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), torch.rand(4, 4)
    net = fortify(model, ["0"], example_input=x)
    for use in (
        lambda: FGSM(eps=8)(model, x, torch.zeros(4, dtype=torch.int64)),
        lambda: ReconstructionError(net).fit(x),
        lambda: net.fit_autoencoders(x, epochs=3, lr=100.0, progress=False),
    ):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            use()
        assert found
        assert {warning.filename for warning in found} == {__file__}


def test_an_example_without_its_batch_axis_is_refused_in_a_line():
    net = convnet(1, 10, image_size=8, width=4)
    for layers in ("auto", ["0"]):
        with pytest.raises(ValueError, match=r"example_input of shape \(1, 8, 8\), which must be a batch") as caught:
            fortify(net, layers, example_input=torch.zeros(1, 8, 8))
        assert "\n" not in str(caught.value)


def vit():
    return torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=4)


class Tokens(nn.Module):
    """A transformer that averages its tokens."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Linear(6, 8)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(8, 3)

    def states(self, x):
        x = self.embed(x)
        return self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1)).transpose(0, 1)

    def forward(self, x):
        return self.head(self.states(x).mean(1))


class Gated(nn.Module):
    """A convolutional network whose gate is called behind its read-out; ``ending`` follows both."""

    def __init__(self, ending=None):
        super().__init__()
        self.conv, self.head, self.gate = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(4, 2)
        self.ending = ending or nn.Identity()

    def forward(self, x):
        logits = self.head(self.conv(x).mean((2, 3)))
        self.gate(logits)
        return self.ending(logits)


class Squeezed(nn.Module):
    """Squeeze and excitation: its gates are linear layers too."""

    def __init__(self):
        super().__init__()
        self.conv, self.down, self.up, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2), nn.Linear(2, 8), nn.Linear(8, 4)

    def states(self, x):
        h = self.conv(x)
        return h * self.up(self.down(h.mean((2, 3))).relu()).sigmoid()[:, :, None, None]

    def forward(self, x):
        return self.head(self.states(x).mean((2, 3)))


class Scaled(nn.Module):
    def forward(self, z):
        return 3 * z


def scripted(model, x, frozen=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and yet in use
        traced = torch.jit.trace(model, x, check_trace=False)
        return torch.jit.freeze(traced) if frozen else traced


def built(network):
    torch.manual_seed(0)
    return network().eval().requires_grad_(False)


IMAGES, SEQUENCES = (3, 32, 32), (7, 6)
EXPECTED = {
    "class token": (vit, IMAGES, lambda net, x: _class_token(net, x)),
    "mean of tokens": (Tokens, SEQUENCES, lambda net, x: net.states(x).mean(1)),
    "two tokens of two inputs": (Tokens, (2, 6), lambda net, x: net.states(x).mean(1)),
    "gate behind": (Gated, IMAGES, lambda net, x: net.conv(x).mean((2, 3))),
    "scaled, gate behind": (lambda: Gated(Scaled()), IMAGES, lambda net, x: net.conv(x).mean((2, 3))),
    "log-probabilities": (lambda: Gated(nn.LogSoftmax(1)), IMAGES, lambda net, x: net.conv(x).mean((2, 3))),
    "gates inside": (Squeezed, IMAGES, lambda net, x: net.states(x).mean((2, 3))),
}


def _class_token(net, x):
    kept = []
    handle = net.encoder.register_forward_hook(lambda _, __, out: kept.append(out[:, 0]))
    net(x)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("name", EXPECTED)
def test_features_by_default(name):
    build, shape, expected = EXPECTED[name]
    net = built(build)
    x = torch.rand(60, *shape)
    features, logits = FeatureExtractor(net)(x)
    torch.testing.assert_close(features, expected(net, x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, net(x), rtol=1e-4, atol=1e-5)
    for detector in (KNearestFeatures(net, k=3), Mahalanobis(net)):
        scores = detector.fit(x[:50]).score(x)
        assert scores.isfinite().all()
        torch.testing.assert_close(
            torch.cat([detector.score(x[i : i + 1]) for i in (0, 59)]), scores[[0, 59]], rtol=1e-3, atol=0
        )


def test_features_of_named_layers_are_averaged_over_their_places():
    x = torch.rand(5, *SEQUENCES)
    net = built(Tokens)
    for n in (1, 2, 5):
        features, _ = FeatureExtractor(net, "encoder.layers.1")(x[:n])
        torch.testing.assert_close(features, net.states(x[:n]).mean(1))
    other = built(lambda: Tokens(batch_first=False))
    torch.testing.assert_close(FeatureExtractor(other, "encoder.layers.1")(x)[0], other.states(x).mean(1))
    conv = built(lambda: nn.Sequential(nn.Conv1d(4, 9, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()))
    for length in (5, 11):  # as many positions as features at 11
        sound = torch.rand(6, 4, length)
        torch.testing.assert_close(FeatureExtractor(conv, "1")(sound)[0], conv[:2](sound).mean(2))
    lstm = built(lambda: TextClassifier("lstm", units=8, n_classes=3))
    view = EmbeddedInput(lstm)
    e = view.embed(torch.randint(27, (6, 9)))
    torch.testing.assert_close(FeatureExtractor(view, "model.rnn")(e)[0], lstm.rnn(e)[0].mean(1))


def test_feature_times_image_distance_of_a_transformer():
    net, x = built(vit), torch.rand(30, *IMAGES)
    assert FeatureTimesImageDistance(net, k=3, shortlist=5).fit(x).score(x[:2]).isfinite().all()


def test_the_read_out_of_a_binarization_is_not_a_gate_behind_it():
    net, x = built(Gated), torch.rand(2, *IMAGES)
    test = lambda model: binarization_test(model, x, PGD(steps=2), eps=0.1, points=20).features
    assert test(net) == "features before head"
    assert test(built(lambda: Gated(Scaled()))) == "logits"
    assert test(scripted(net, x)) == "logits"


# compiled networks


def used(model, x):
    """Compiled, and called before anybody looks into it."""
    fast = torch.compile(model, backend="eager")
    with torch.no_grad():
        fast(x)
    return fast


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))


def test_a_compiled_network_is_fortified_inside(tmp_path):
    net, x = built(mlp), torch.rand(20, 3, 2, 2)
    fast = used(net, x)
    logits = []
    for model, layers in ((net, ["2"]), (fast, ["2"]), (fast, ["_orig_mod.2"]), (fast, "auto")):
        torch.manual_seed(1)
        fortified = fortify(model, layers, example_input=x, init="random").eval()
        assert fortified.layers == ("2",)
        logits.append(fortified(x))
        fortified.save(tmp_path)
        assert FortifiedNetwork.load(tmp_path, model=model).eval()(x).equal(logits[-1])
    assert all(z.equal(logits[0]) for z in logits)
    assert not logits[0].allclose(net(x))
    torch.testing.assert_close(torch.compile(fortified, backend="eager")(x), logits[0])
    detector = ReconstructionError(torch.compile(fortified, backend="eager")).fit(x)
    assert detector.score(x).equal(ReconstructionError(fortified).fit(x).score(x))
    assert HiddenMatchingNetwork(fast, "_orig_mod.2", x).verdicts(x).shape == (20,)


@pytest.mark.parametrize("layer", [None, "_orig_mod.2", "2"])
def test_features_of_a_compiled_network(layer):
    net, x = built(mlp), torch.rand(20, 3, 2, 2)
    plain = None if layer is None else "2"
    expected = KNearestFeatures(net, plain, k=3).fit(x).score(x)
    assert KNearestFeatures(used(net, x), layer, k=3).fit(x).score(x).equal(expected)
    found = binarization_test(used(net, x), x[:1], PGD(steps=2), eps=0.1, points=20)
    assert found.features == "features before 3"


def test_an_embedding_in_a_compiled_network_is_replaced():
    net = built(lambda: TextClassifier("lstm", units=8, n_classes=3))
    tokens = torch.randint(27, (4, 6))
    fast = used(net, tokens)
    for layer in ("embedding", "_orig_mod.embedding"):
        view = EmbeddedInput(fast, layer)
        torch.testing.assert_close(view(view.embed(tokens)), net(tokens))
        assert not view(torch.zeros(4, 6, 27)).allclose(net(tokens))


def test_what_is_compiled_by_itself_is_named():
    x = torch.rand(4, 12)
    inner = nn.Sequential(torch.compile(nn.Sequential(nn.Linear(12, 6), nn.ReLU()), backend="eager"), nn.Linear(6, 2))
    for act in (
        lambda: fortify(inner, ["0._orig_mod.1"], example_input=x),
        lambda: KNearestFeatures(inner, "0._orig_mod.1"),
    ):
        with pytest.raises(ValueError, match=r"layer '0' is compiled, scripted or exported"):
            act()
    assert KNearestFeatures(inner, k=1).fit(x).score(x).allclose(torch.zeros(4), atol=1e-6)  # its head is not
    in_place = built(mlp)
    in_place.compile(backend="eager")
    with pytest.raises(ValueError, match="compiled, scripted or exported"):
        KNearestFeatures(scripted(built(mlp), x, frozen=True))
    for model in (in_place, scripted(built(mlp), x)):
        for act in (
            lambda model=model: fortify(model, ["2"], example_input=x),
            lambda model=model: KNearestFeatures(model),
            lambda model=model: KNearestFeatures(model, "2"),
            lambda model=model: find_layer(model, "2"),
        ):
            with pytest.raises(ValueError, match=r"this \w+ is compiled, scripted or exported, .* copy\.deepcopy"):
                act()
        assert Energy(model).fit(x).score(x).shape == (4,)
    assert KNearestFeatures(copy.deepcopy(in_place), k=1).fit(x).score(x).shape == (4,)
    with pytest.raises(ValueError, match=r"no layer '_orig_mod\.22'; did you mean"):
        find_layer(used(built(mlp), x), "_orig_mod.22")


@pytest.mark.parametrize("wrap", [lambda net, x: used(net, x), lambda net, x: scripted(net, x)])
def test_compiled_networks_are_searched_as_they_are(wrap):
    net = built(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)))
    x = torch.rand(4, 3, 4, 4)
    model = wrap(net, x)
    assert prepare(net, x).steps == ("folded 1 batch norm", "channels_last")
    assert prepare(model, x).steps == ("none: compiled",)
    y = net(x).argmax(1)
    attack = PGD(eps=0.05, steps=3)
    torch.testing.assert_close(attack(model, x, y), attack(net, x, y))


# states of 1-D convolutions


class Sound(nn.Module):
    """Convolutions over time, of any length."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv1d(2, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU()
        self.deep, self.head = nn.Conv1d(6, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.deep(self.act(self.norm(self.conv(x)))).relu().mean(2))


@pytest.mark.filterwarnings("ignore:the fortified network decides")
@pytest.mark.parametrize("length", [6, 20])  # as many positions as features, and not
def test_an_autoencoder_at_each_position_of_a_convolution(length, tmp_path):
    net = built(Sound)
    x = torch.rand(6, 2, length)
    fortified = fortify(net, ["act", "deep"], example_input=x).eval()
    assert [spec["kind"] for spec in fortified.config["layers"]] == ["positions"] * 2
    assert [a.features for a in fortified.autoencoders()] == [6, 8]
    _, states = fortified(x, return_states=True)
    for (state, decoded), autoencoder in zip(states.values(), fortified.autoencoders(), strict=True):
        by_hand = DenseAutoencoder.forward(autoencoder, state.mT).mT  # position by position
        torch.testing.assert_close(decoded, by_hand)
        torch.testing.assert_close(decoded[:, :, 1], DenseAutoencoder.forward(autoencoder, state[:, :, 1]))
    errors = fortified.reconstruction_errors(x)
    for name, (state, decoded) in states.items():
        torch.testing.assert_close(errors[name], (state - decoded).square().mean((1, 2)))
    assert fortified(x[:2, :, :5]).shape == (2, 3)  # shorter
    history = fortified.fit_autoencoders(torch.rand(60, 2, length), epochs=5, batch_size=10, progress=False)
    assert history[-1]["loss"] < history[0]["loss"]
    fortified.save(tmp_path)
    assert FortifiedNetwork.load(tmp_path, model=net).eval()(x).equal(fortified(x))
    fortified, x = fortified.double(), x.double()  # scores in standard deviations may lie next to 0
    detector = ReconstructionError(fortified).fit(x)
    torch.testing.assert_close(
        detector.score(x), torch.cat([detector.score(one[None]) for one in x]), rtol=1e-3, atol=0
    )
    assert detector.score(x[..., :5]).shape == (6,)


def test_the_rule_for_auto_takes_1d_convolutions():
    fortified = fortify(built(Sound), "auto", example_input=torch.rand(3, 2, 9))
    assert fortified.layers == ("act",)
    assert fortified.config["layers"][0]["kind"] == "positions"


def test_which_dimension_holds_features():
    class Mixed(nn.Module):
        """Maps to sequences and back."""

        def __init__(self):
            super().__init__()
            self.conv, self.flat, self.tokens = nn.Conv2d(3, 8, 2), nn.Identity(), nn.Identity()
            self.norm, self.rnn, self.out = nn.LayerNorm(8), nn.GRU(8, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x):
            h = self.flat(self.conv(x).flatten(2))  # (N, 8, L)
            return self.out(self.rnn(self.norm(self.tokens(h.mT)))[0][:, -1])

    net = built(Mixed)
    x = torch.rand(2, 3, 4, 5)
    kinds = {}
    for name in ("conv", "flat", "tokens", "norm", "rnn"):
        (spec,) = fortify(net, [name], example_input=x).config["layers"]
        kinds[name] = (spec["kind"], spec["features"])
    expected = {"conv": "conv", "flat": "positions", "tokens": "dense", "norm": "dense", "rnn": "dense"}
    assert kinds == {name: (kind, 5 if name == "rnn" else 8) for name, kind in expected.items()}


# half precision


class Cast(nn.Module):
    """Computes in half precision inside."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype, self.net = dtype, mlp().to(dtype)

    def forward(self, x):
        return self.net(x.to(self.dtype)).float()


@pytest.mark.filterwarnings("ignore:the fortified network decides")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision_is_fortified_in_single_precision(dtype, tmp_path):
    net = built(lambda: Cast(dtype))
    x = torch.rand(60, 3, 2, 2)
    fortified = fortify(net, ["net.2"], example_input=x, init="random").eval()
    (autoencoder,) = fortified.autoencoders()
    assert {p.dtype for p in autoencoder.parameters()} == {torch.float32}
    assert fortified.backbone.net[1].weight.dtype == dtype
    _, states = fortified(x, return_states=True)
    state, decoded = states["net.2"]
    assert (state.dtype, decoded.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(decoded, autoencoder(state.float()))
    errors = fortified.reconstruction_errors(x, relative=True)["net.2"]
    expected = (state.double() - decoded.double()).square().mean(1) / state.double().square().mean(1)
    torch.testing.assert_close(errors.double(), expected, rtol=1e-4, atol=0)
    history = fortified.fit_autoencoders(x, epochs=8, lr=0.01, progress=False)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert ReconstructionError(fortified).fit(x).score(x).isfinite().all()
    fortified.save(tmp_path)
    assert FortifiedNetwork.load(tmp_path, model=net).eval()(x).equal(fortified(x))
    assert KNearestFeatures(net, k=1).fit(x).score(x).abs().max() < 1e-3
    on_input = fortify(net.net, [], example_input=x.to(dtype), input_autoencoder=True)
    assert on_input(x.to(dtype)).dtype == dtype


def test_a_network_of_one_batch_size_is_named():
    class OfFour(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            assert len(x) == 4, "input.size()[0] == 4"
            return self.net(x)

    net, x = built(OfFour), torch.rand(10, 12)
    assert fortify(net, ["net.2"], example_input=x[:4]).layers == ("net.2",)
    with pytest.raises(
        ValueError, match=r"4 inputs at once but not one alone \(a fixed batch size\?\): .*size\(\)\[0\] == 4"
    ):
        Energy(net, batch_size=4).fit(x[:4])
    with pytest.raises(ValueError, match="a fixed batch size"):
        PGD()(net, x[:4], torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"the model fails on inputs of shape \(12,\)"):
        KNearestFeatures(net, k=2, batch_size=4).fit(x)


def test_an_exported_network_is_told_from_one_with_layers():
    net, x = mlp().eval(), torch.rand(4, 12)
    torch._dynamo.reset()  # older torch exports nothing once it has compiled something
    made = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    for use in (
        lambda: fortify(made, "auto", example_input=x),
        lambda: fortify(made, ["0"], example_input=x),
        lambda: KNearestFeatures(made, k=2).fit(x),
    ):
        with pytest.raises(ValueError, match="exported, and takes no notice of hooks"):
            use()


# The built-in networks' own layers.

SHAPES = [(1, 4, 8, 2, 3, (28, 28)), (3, 5, 6, 2, 0, (14, 13)), (2, 3, 6, 3, 1, (17, 20)), (2, 3, 4, 2, 1, (9, 9))]


@pytest.mark.parametrize(("inputs", "outputs", "kernel", "stride", "padding", "size"), SHAPES)
def test_strided_convolution_has_the_gradients_of_a_convolution(inputs, outputs, kernel, stride, padding, size):
    ours = StridedConv2d(inputs, outputs, kernel, stride, padding).double()
    reference = nn.Conv2d(inputs, outputs, kernel, stride, padding).double()
    reference.load_state_dict(ours.state_dict())
    x = torch.randn(2, inputs, *size, dtype=torch.float64, requires_grad=True)
    out, expected = ours(x), reference(x)
    assert torch.equal(out, expected)
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, [x, *ours.parameters()], grad)
    due = torch.autograd.grad(expected, [x, *reference.parameters()], grad)
    for a, b in zip(got, due, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_strided_convolution_differentiates_twice_and_refuses_a_stride_that_does_not_divide():
    layer = StridedConv2d(2, 3, 4, 2, 1).double()
    assert torch.autograd.gradgradcheck(layer, (torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True),))
    with pytest.raises(ValueError, match="the stride must divide"):
        StridedConv2d(1, 1, 5, 2)
    with pytest.raises(ValueError, match="must be whole numbers"):
        StridedConv2d(1, 1, 4, 2, (1, 0))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # torch's own, in forward-mode derivatives
def test_strided_convolution_works_with_function_transforms():
    layer = StridedConv2d(2, 3, 4, 2, 1).double()
    reference = nn.Conv2d(2, 3, 4, 2, 1).double()
    reference.load_state_dict(layer.state_dict())
    x, v = torch.randn(2, 3, 2, 6, 6, dtype=torch.float64)
    for transform in (
        lambda f: torch.func.vmap(f)(x[:, None]),
        lambda f: torch.func.jacrev(f)(x),
        lambda f: torch.func.jvp(f, (x,), (v,))[1],
        lambda f: torch.func.jvp(lambda w: torch.func.functional_call(f, {"weight": w}, x), (f.weight,), (f.weight,))[
            1
        ],
    ):
        torch.testing.assert_close(transform(layer), transform(reference), rtol=1e-12, atol=1e-12)
    assert layer(x[0]).shape == reference(x[0]).shape  # one image without a batch


def test_the_mnist_network_uses_it_and_keeps_its_names():
    net = convnet(1, 10, 28, width=4)
    assert isinstance(net[0], StridedConv2d)
    assert sorted(net.state_dict())[:2] == ["0.bias", "0.weight"]
