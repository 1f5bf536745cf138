"""The ground that every room stands on: random numbers, files, checks, and leaving no trace on a model."""

import resource
import subprocess
import sys
import textwrap

import pytest
import torch
from scipy import stats
from torch import nn

from robustgen import counter_rng
from robustgen.checks import check_ids, nearest
from robustgen.files import environment, load_state, load_tensors, read_json, save_tensors, write_bytes, write_json
from robustgen.fingerprint import model_fingerprint
from robustgen.model import Normalize, evaluating, logits_of, untouched
from robustgen.networks import build, convnet

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
