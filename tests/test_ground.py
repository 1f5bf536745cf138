"""The ground that every room stands on: random numbers, files, checks, and leaving no trace on a model."""

import json
import resource
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch
from helpers import numpy_numbers
from scipy import stats
from torch import nn

from robustgen import FortifiedObjective, ReconstructionError, counter_rng, data, fortify
from robustgen.attacks import FGSM, PGD, Engine
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
from robustgen.evaluation import evaluate_robustness
from robustgen.files import environment, load_state, load_tensors, read_json, save_tensors, write_bytes, write_json
from robustgen.fingerprint import model_fingerprint
from robustgen.model import Normalize, evaluating, logits_of, untouched
from robustgen.networks import build, convnet
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
