"""Recipes: each builds and trains, the random start is where it says, the best epoch is kept, the command chooses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from robustgen import cli, data
from robustgen.attacks import FGSM, PGD, RandomStartFGSM
from robustgen.attacks.ball import Ball
from robustgen.commands.recipes import list_recipes, measured
from robustgen.experiments.recipes import STANDARD, measured_of
from robustgen.training import (
    Batch,
    ClassifierObjective,
    CropAndFlip,
    FirstThen,
    RobustAccuracy,
    Trainer,
    WarmUp,
    best_checkpoint,
    latest_checkpoint,
    load_checkpoint,
)
from robustgen.training.recipes import METHODS, RECIPES, Recipe, find, fitting
from robustgen.training.recipes.recipe import uses

DIGITS = ["--data", "digits", "--limit", "120", "--quiet"]


def run(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


class Seen(nn.Module):
    """A linear network that remembers the inputs it was shown."""

    def __init__(self, n):
        super().__init__()
        self.linear, self.inputs = nn.Linear(n, 3), []

    def forward(self, x):
        self.inputs.append(x.detach().clone())
        return self.linear(x.flatten(1))


def black(n=6):
    """Images with all pixels at the lower bound."""
    return torch.zeros(n, 1, 4, 4), torch.arange(n) % 3


class TestTheStart:
    @pytest.mark.parametrize("kind", [RandomStartFGSM, PGD])
    @pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
    def test_outside_the_bounds_it_is_asked_and_never_returned(self, kind, norm):
        x, y = black()
        model = Seen(16)
        attack = kind(eps=0.3, norm=norm, early_stop=False, start_in_bounds=False)
        result = attack.run(model, x, y)
        assert min(z.min() for z in model.inputs) < 0  # the gradient is taken out there
        assert result.x_adv.min() >= 0
        assert result.distance.max() <= 0.3
        clamped = kind(eps=0.3, norm=norm, early_stop=False)
        inside = Seen(16)
        clamped(inside, x, y)
        assert min(z.min() for z in inside.inputs) >= 0

    def test_the_step_is_taken_from_there(self):
        """sign(gradient) of a network whose gradient turns at the bound: from outside it points the other way."""

        class Turning(nn.Module):
            def forward(self, x):
                away = -(x + 0.05).abs().flatten(1).sum(1, keepdim=True)  # the loss of class 0 has its peak at -0.05
                return torch.cat([-away, away], 1)

        x, y = torch.zeros(50, 1, 4, 4), torch.zeros(50, dtype=torch.int64)
        attack = RandomStartFGSM(eps=0.3, alpha=0.1, early_stop=False, start_in_bounds=False)
        rows = torch.arange(50)
        start = Ball(x, torch.full((50,), 0.3), "Linf", (0, 1)).uniform(rows, 0, rows, (), in_bounds=False)
        assert (start < 0).any()
        expected = (start - 0.1 * 0.3 * (start + 0.05).sign()).clamp(0, 0.3)
        assert torch.allclose(attack(Turning(), x, y), expected, atol=1e-6)

    @pytest.mark.parametrize("kind", [RandomStartFGSM, PGD])
    def test_it_is_for_training_alone(self, kind):
        with pytest.raises(ValueError, match="set early_stop=False"):
            kind(start_in_bounds=False)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains(name):
    """A step of every phase, on its own network, at its own shapes."""
    recipe = RECIPES[name]
    assert recipe.name == name
    few = {
        "epochs": 2,
        "batch_size": 4,
        "single_step_epochs": min(1, recipe.single_step_epochs),
        "width": 4,
    } | ({"steps": 2} if uses("steps", recipe.method) else {})
    small = replace(recipe, **few)
    x, y = torch.rand(8, *recipe.shape), torch.arange(8) % recipe.n_classes
    network = small.network(seed=1)
    history = small.trainer(8, seed=1, progress=False, guard=None).fit(network, (x, y), (x, y))
    assert [row["step"] for row in history] == [2, 4]
    assert 0 <= history[-1]["val_adv_accuracy"] <= history[-1]["val_accuracy"] <= 1


def test_every_method_has_a_recipe_for_every_data_set():
    for name in {recipe.data for recipe in RECIPES.values()}:
        for method in ("fast", "madry", "trades", "mart"):
            assert len(fitting(method, name, (), 0)) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_describes_what_it_trains(method):
    objective = Recipe(method=method, epochs=3, **({"warm_up_epochs": 2} if method != "plain" else {})).objective(256)
    attack = objective.describe()["attack"]
    assert (attack is None) == (method == "plain")
    assert attack is None or attack["warm_up_steps"] == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "free"}, "unknown method 'free'"),
        ({"schedule": "step"}, "unknown schedule 'step'"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'"),
        ({"method": "madry", "beta": 1.0}, "beta is of trades and mart, this training is by madry"),
        ({"method": "fast", "clean_weight": 1.0}, "clean_weight is of fgsm and pgd, this training is by fast"),
        ({"method": "fast", "single_step_epochs": 1}, "single_step_epochs is of madry, trades and mart"),
        (
            {"method": "madry", "single_step_epochs": 11},
            "=11 is longer than the training of 10 epochs",
        ),
        ({"method": "madry", "warm_up_epochs": 11}, "warm_up_epochs=11 is longer"),
        ({"warm_up_epochs": 1}, "warm_up_epochs is of adversarial training, this training is plain"),
        ({"eps": 0.1}, "eps is of adversarial training"),
        ({"norm": "L2"}, "norm is of adversarial training"),
        ({"steps": 3}, "steps is of"),
        ({"method": "fgsm", "steps": 3}, "steps is of pgd, madry, trades and mart, this training is by fgsm"),
        ({"method": "fast", "step_size": 0.1}, "step_size is of"),
        ({"method": "trades", "start_in_bounds": False}, "start_in_bounds is of pgd, fast, madry and mart"),
        ({"ema": float("nan")}, r"ema must be a decay in \[0, 1\), got nan"),
        ({"ema": 1.0}, r"ema must be a decay in \[0, 1\), got 1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"eps": -0.1}, "eps"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


def test_what_a_derived_recipe_has_no_use_for_is_at_its_default():
    recipe = find("mnist-trades")
    assert recipe.derived(single_step_epochs=0).start_in_bounds
    assert not recipe.derived(single_step_epochs=1).start_in_bounds
    fast = recipe.derived(method="fast")
    assert (fast.steps, fast.beta, fast.single_step_epochs, fast.eps) == (7, None, 0, 0.3)
    with pytest.raises(ValueError, match="beta is of trades and mart"):
        recipe.derived(method="madry", beta=1.0)


def test_phases_and_warm_up_switch_where_they_say():
    """The objective that is trained on at each step, told by the eps that its attack is called with."""
    met = []

    class Spy:
        def __init__(self, eps):
            self.eps = eps

        def __call__(self, model, x, y, *, ids):
            met.append(self.eps)
            return x

    first, then = (ClassifierObjective(Spy(eps), 0.0) for eps in (1, 2))
    x, y = torch.rand(8, 4), torch.arange(8) % 2
    Trainer(FirstThen(first, then, steps=3), epochs=3, batch_size=4, progress=False).fit(nn.Linear(4, 2), (x, y))
    assert met == [1, 1, 1, 2, 2, 2]
    ramp = WarmUp(FGSM(eps=0.4, early_stop=False), steps=4)
    found = [
        (ramp.at_step(k)(Seen(4), torch.full((1, 4), 0.5), torch.zeros(1).long()) - 0.5).abs().max() for k in range(5)
    ]
    assert torch.allclose(torch.stack(found), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.4]), atol=1e-6)


def test_crop_and_flip_shows_every_shift_and_mirrors_half():
    x = torch.zeros(4000, 1, 5, 5)
    x[:, 0, 2, 1] = 1  # one pixel, left of the middle
    torch.manual_seed(0)
    moved = CropAndFlip(pad=1)(x)
    found = moved.flatten(1).argmax(1)
    assert (moved.sum((1, 2, 3)) == 1).all()
    rows, columns = found // 5, found % 5
    assert rows.unique().tolist() == [1, 2, 3]
    assert columns.unique().tolist() == [0, 1, 2, 3, 4]  # shifted by -1 to 1 from 1, or mirrored from 3
    assert abs((columns == 1).float().mean() - 1 / 6) < 0.03
    assert torch.equal(CropAndFlip(pad=0)(x).sum(3), x.sum(3))  # mirroring alone moves no row


class TestTheBestEpoch:
    """Validation accuracy goes up and down by a schedule of the test's own."""

    heights = (0.1, 0.6, 0.4, 0.6, 0.5)

    def trainer(self, run_dir, **options):
        class Validation:
            def __call__(_, model, batch, step):
                height = self.heights[step // 2 - 1]
                return {"loss": torch.tensor(0.0), "height": torch.tensor(height)}

        options = {"epochs": 5, "batch_size": 4, "progress": False, "run_dir": run_dir} | options
        return Trainer(ClassifierObjective(), val_objective=Validation(), best="val_height", **options)

    def fit(self, run_dir, **options):
        x, y = torch.rand(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
        torch.manual_seed(0)
        network = nn.Linear(4, 2)
        return network, self.trainer(run_dir, **options).fit(network, (x, y), (x, y))

    def test_it_is_the_first_of_the_highest_and_stays(self, tmp_path):
        self.fit(tmp_path)
        assert load_checkpoint(tmp_path, best=True).step == 4  # of epoch 2, not of 4, which is no higher
        assert load_checkpoint(tmp_path).step == 10
        assert best_checkpoint(tmp_path) != latest_checkpoint(tmp_path)

    @pytest.mark.parametrize("ema", [None, 0.5])
    def test_it_holds_the_weights_of_that_epoch(self, tmp_path, ema):
        self.fit(tmp_path / "a", ema=ema)
        short, _ = self.fit(tmp_path / "b", epochs=2, ema=ema)
        best = load_checkpoint(tmp_path / "a", best=True).model_state
        assert all(torch.equal(v, best[k]) for k, v in short.state_dict().items())

    def test_checkpoints_at_other_steps_do_not_miss_it(self, tmp_path):
        self.fit(tmp_path, checkpoint_every=3)
        assert load_checkpoint(tmp_path, best=True).step == 4

    def test_a_run_that_was_killed_before_it_was_named_names_it(self, tmp_path):
        self.fit(tmp_path, epochs=2)
        (tmp_path / "checkpoints" / "best").unlink()
        self.fit(tmp_path, resume=True)
        assert load_checkpoint(tmp_path, best=True).step == 4

    def test_resumed_it_is_the_same(self, tmp_path):
        self.fit(tmp_path / "cut", epochs=3)
        self.fit(tmp_path / "cut", resume=True)
        assert load_checkpoint(tmp_path / "cut", best=True).step == 4

    def test_an_unknown_entry_is_refused(self, tmp_path):
        x, y = torch.rand(8, 4), torch.arange(8) % 2
        trainer = Trainer(ClassifierObjective(), best="val_height", progress=False)
        with pytest.raises(ValueError, match="best='val_height' is no entry of the history; it has epoch, step, acc"):
            trainer.fit(nn.Linear(4, 2), (x, y), (x, y))
        with pytest.raises(ValueError, match="best='val_adv_accuracy' is found on validation data: pass val"):
            Recipe(method="fast").trainer(8, progress=False).fit(nn.Linear(4, 2), (x, y))

    def test_a_run_without_one_loads_its_latest(self, tmp_path):
        x, y = torch.rand(8, 4), torch.arange(8) % 2
        Trainer(ClassifierObjective(), progress=False, run_dir=tmp_path).fit(nn.Linear(4, 2), (x, y))
        assert best_checkpoint(tmp_path) is None
        assert load_checkpoint(tmp_path, best=True).path == latest_checkpoint(tmp_path)

    def test_a_garbled_name_is_one_line(self, tmp_path):
        self.fit(tmp_path, epochs=2)
        (tmp_path / "checkpoints" / "best").write_text("../../elsewhere\n")
        with pytest.raises(ValueError, match="which is not a checkpoint there"):
            load_checkpoint(tmp_path, best=True)


def test_robust_accuracy_is_that_of_the_attack_in_evaluation():
    torch.manual_seed(0)
    x, y = torch.rand(60, 4), torch.arange(60) % 2
    network, attack = nn.Linear(4, 2), PGD(eps=0.1, loss="margin")
    found = RobustAccuracy(attack)(network, Batch(x, y, torch.arange(60)), step=7)
    assert found["adv_accuracy"].item() == pytest.approx(1 - attack.run(network, x, y).success.float().mean().item())
    assert found["accuracy"].item() == pytest.approx((network(x).argmax(1) == y).float().mean().item())


class TestTheCommand:
    def test_the_recipe_of_the_data_is_taken_and_said(self, capsys, tmp_path):
        options = ["--adversarial", "fast", "--epochs", "2", "--width", "4"]
        code, out, err = run(capsys, "train", "--run", tmp_path, "--data", "digits", "--limit", "120", *options)
        assert code == 0, err
        assert "recipe digits-fast; your own: width 4 (recipe: 16), epochs 2 (recipe: 60)" in err
        assert "epoch 2: of held-back images" in err
        info = json.loads((tmp_path / "run.json").read_text())
        recipe = find("digits-fast")
        assert info["training"]["name"] == "digits-fast, changed"
        assert {k: info["training"][k] for k in ("eps", "lr", "start_in_bounds", "batch_size")} == {
            k: getattr(recipe, k) for k in ("eps", "lr", "start_in_bounds", "batch_size")
        }
        assert info["best"]["epoch"] in (1, 2)
        assert f"best epoch: {info['best']['epoch']}" in out

    def test_by_name_it_is_the_same_run(self, capsys, tmp_path):
        few = ["--epochs", "1", "--width", "4"]
        assert run(capsys, "train", "--run", tmp_path / "a", *DIGITS, "--adversarial", "madry", *few)[0] == 0
        assert run(capsys, "train", "--run", tmp_path / "b", *DIGITS, "--recipe", "digits-madry", *few)[0] == 0
        one, two = (load_checkpoint(tmp_path / name).model_state for name in "ab")
        assert all(torch.equal(v, two[k]) for k, v in one.items())

    def test_the_best_epoch_is_attacked(self, capsys, tmp_path):
        from robustgen.commands.opening import load_run

        few = ["--adversarial", "fast", "--epochs", "6", "--width", "4"]
        assert run(capsys, "train", "--run", tmp_path, *DIGITS, *few)[0] == 0
        network, info = load_run(tmp_path)
        best = load_checkpoint(tmp_path, best=True)
        assert best.step == info["best"]["step"]
        assert all(torch.equal(v, best.model_state[k]) for k, v in network.state_dict().items())

    def test_other_data_is_matched_by_shape_or_asked_for(self, capsys, tmp_path):
        path = tmp_path / "mine.npz"
        data.save_npz(path, data.digits("train").take(120))
        few = ["--epochs", "1", "--width", "4", "--data", path]
        code, out, err = run(capsys, "train", "--run", tmp_path / "a", *few, "--adversarial", "fast", "--quiet")
        assert code == 0, err
        assert "recipe digits-fast, by shape and classes of mine" in out
        named = {"y": torch.arange(40) % 10, "name": "s", "classes": tuple("0123456789")}
        images = data.ArrayDataset(x=torch.zeros(40, 1, 28, 28, dtype=torch.uint8), **named)
        data.save_npz(path, images)
        code, _, err = run(capsys, "train", "--run", tmp_path / "b", *few, "--adversarial", "fast", "--quiet")
        assert (code, "pass --recipe mnist-fast or fashion-mnist-fast" in err) == (2, True)
        images = data.ArrayDataset(x=torch.zeros(40, 1, 9, 9, dtype=torch.uint8), **named)
        data.save_npz(path, images)
        code, out, err = run(capsys, "train", "--run", tmp_path / "b", *few, "--adversarial", "fast", "--quiet")
        assert code == 0, err
        assert "no recipe is for inputs 1 x 9 x 9 in 10 classes: plain settings" in out

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--recipe", "mnist-fats"], "unknown recipe 'mnist-fats'; did you mean 'mnist-fast'"),
            (["--recipe", "mnist-fast"], "is for inputs 1 x 28 x 28, digits/train has 1 x 8 x 8"),
            (["--recipe", "digits-fast", "--adversarial", "madry"], "leave out --adversarial madry"),
            (["--recipe", "digits-fast", "--attack", "pgd"], "leave out --attack"),
            (["--recipe", "digits-fast", "--beta", "2"], "--beta is of trades and mart, this training is by fast"),
            (
                ["--adversarial", "madry", "--warm-up-epochs", "99"],
                "warm_up_epochs=99 is longer than",
            ),
            (["--adversarial", "fast", "--start", "somewhere"], "it is bounds or ball"),
            (
                ["--adversarial", "fast", "--single-step-epochs", "2"],
                "--single-step-epochs is of madry, trades and mart",
            ),
            (["--adversarial", "fast", "--steps", "7"], "--steps is of pgd, madry, trades and mart"),
            (["--attack", "fgsm", "--steps", "7"], "--steps is of"),
            (["--attack", "fgsm", "--start", "bounds"], "--start is of pgd, fast, madry and mart"),
            (["--adversarial", "trades", "--start", "ball"], "--start is of pgd, fast, madry and mart"),
            (["--eps", "0.3"], "--eps is of adversarial training, this training is plain"),
            (["--norm", "Linf"], "--norm is of adversarial training"),
            (["--warm-up-epochs", "0"], "--warm-up-epochs is of adversarial training"),
            (["--ema", "nan"], "ema must be a decay in [0, 1), got nan"),
            (["vae", "--set", "quantization=stochastic", "--ema", "nan"], "ema must be a decay in [0, 1), got nan"),
            (["--hidden", "5"], "--hidden goes with --fortify"),
            (["--freeze-backbone"], "--freeze-backbone goes with --fortify"),
            (["--fortify", "auto", "--lambda-adv", "1"], "--lambda-adv is of adversarial training"),
            (["--fortify", "auto", "--freeze-backbone", "--lambda-rec", "1"], "--lambda-rec is of a joint training"),
        ],
    )
    def test_what_does_not_go_together_is_one_line(self, capsys, tmp_path, options, message):
        code, _, err = run(capsys, "train", "--run", tmp_path / "r", *DIGITS, *options)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
        assert not (tmp_path / "r").exists()

    def test_resume_remembers_its_options(self, capsys, tmp_path):
        begun = [
            "--adversarial",
            "trades",
            "--beta",
            "2",
            "--eps",
            "0.1",
            "--epochs",
            "1",
            "--width",
            "4",
            "--steps",
            "2",
        ]
        begun += ["--fortify", "auto", "--schedule", "constant", "--seed", "3"]
        assert run(capsys, "train", "--run", tmp_path / "a", *DIGITS, *begun)[0] == 0
        code, out, err = run(capsys, "train", "--run", tmp_path / "a", "--resume", "--epochs", "2", "--quiet")
        assert code == 0, err
        assert "epochs: 2" in out
        begun[begun.index("--epochs") + 1] = "2"
        assert run(capsys, "train", "--run", tmp_path / "b", *DIGITS, *begun)[0] == 0
        one, two = (load_checkpoint(tmp_path / name).model_state for name in "ab")
        assert all(torch.equal(v, two[k]) for k, v in one.items())
        code, _, err = run(capsys, "train", "--run", tmp_path / "a", "--resume", "--eps", "0.2", "--quiet")
        assert (code, "training.eps was 0.1, now 0.2" in err) == (2, True)

    def test_a_generative_run_remembers_too(self, capsys, tmp_path):
        begun = ["vae", "--epochs", "1", "--set", "latent_dim=2", "--set", "quantization=stochastic", "--ema", "0.5"]
        assert run(capsys, "train", *begun, "--run", tmp_path, *DIGITS)[0] == 0
        code, out, err = run(capsys, "train", "--run", tmp_path, "--resume", "--epochs", "2", "--quiet")
        assert code == 0, err
        assert "epochs: 2" in out

    def test_code_is_not_remembered(self, capsys, tmp_path):
        assert run(capsys, "train", "--run", tmp_path, *DIGITS, "--epochs", "1", "--width", "4")[0] == 0
        info = json.loads((tmp_path / "run.json").read_text())
        info["options"]["model"] = "planted:network"
        (tmp_path / "run.json").write_text(json.dumps(info))
        code, _, err = run(capsys, "train", "--run", tmp_path, "--resume")
        assert (code, "names code as its network, 'planted:network'" in err) == (2, True)
        info["options"] = {"epochs": {"a": 1}}
        (tmp_path / "run.json").write_text(json.dumps(info))
        code, _, err = run(capsys, "train", "--run", tmp_path, "--resume")
        assert (code, "options.epochs" in err) == (2, True)

    def test_nothing_else_is_believed_of_the_options(self, capsys, tmp_path):
        """What a file may not ask for is not looked at; what contradicts the rest of it is refused."""
        assert run(capsys, "train", "--run", tmp_path, *DIGITS, "--epochs", "1", "--width", "4")[0] == 0
        path = tmp_path / "run.json"
        info = json.loads(path.read_text())
        for option in ({"download": True}, {"device": "cuda:99"}, {"trust": True}, {"run": "elsewhere"}):
            path.write_text(json.dumps(info | {"options": info["options"] | option}))
            assert run(capsys, "train", "--run", tmp_path, "--resume", "--quiet")[0] == 0
            assert not option.items() <= json.loads(path.read_text())["options"].items()
        path.write_text(json.dumps(info | {"options": ["--download"]}))
        assert "options must be" in run(capsys, "train", "--run", tmp_path, "--resume", "--quiet")[2]
        for option, message in {("width", 10**9): "network.width 4", ("data", 7): "options.data"}.items():
            path.write_text(json.dumps(info | {"options": info["options"] | dict([option])}))
            code, _, err = run(capsys, "train", "--run", tmp_path, "--resume", "--quiet")
            assert (code, message in err) == (2, True), err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--run", "{tmp}/nothing", "--resume"], "holds no run to resume"),
            (["--run", "example:digits", "--data", "digits"], "comes with the package"),
            (
                ["--run", "{tmp}/r", "--data", "digits", "--augment"],
                "8x8 pixels are too small to be shifted",
            ),
            (["--run", "{tmp}/r", "--data", "digits", "--adversarial", "pgd"], "unknown method 'pgd'"),
        ],
    )
    def test_what_would_train_something_else_is_refused(self, capsys, tmp_path, options, message):
        code, _, err = run(capsys, "train", *(option.format(tmp=tmp_path) for option in options), "--quiet")
        assert (code, message in err) == (2, True), err
        assert not list(tmp_path.iterdir())

    def test_mart_is_not_called_trades(self, capsys, tmp_path):
        few = ["--adversarial", "mart", "--epochs", "1", "--width", "4"]
        code, out, err = run(capsys, "train", "--run", tmp_path, *DIGITS, *few)
        assert code == 0, err
        assert "mart with the settings of digits-trades, not measured" in out
        assert json.loads((tmp_path / "run.json").read_text())["training"]["name"].startswith("mart with")

    def test_the_list_as_json(self, capsys):
        for arguments in (["--list-recipes", "--json"], ["--json", "--list-recipes"]):
            code, out, _ = run(capsys, "train", *arguments)
            assert code == 0
            found = {entry.pop("name"): entry for entry in json.loads(out)}
            assert list(found) == list(RECIPES)
            assert found["digits-fast"]["eps"] == 0.15
            assert {name for name, entry in found.items() if entry["measured"]} == set(measured())

    def test_without_a_place_nothing_is_trained(self, capsys):
        code, _, err = run(capsys, "train", "--data", "digits")
        assert (code, "pass --run DIR" in err) == (2, True)

    def test_the_start_of_single_steps_is_of_use_to_trades(self, capsys, tmp_path):
        few = [
            "--adversarial",
            "trades",
            "--single-step-epochs",
            "1",
            "--start",
            "ball",
            "--epochs",
            "1",
            "--width",
            "4",
        ]
        code, _, err = run(capsys, "train", "--run", tmp_path, *DIGITS, *few)
        assert code == 0, err
        assert json.loads((tmp_path / "run.json").read_text())["training"]["start_in_bounds"] is False

    def test_the_list_says_what_was_measured_and_what_not(self, capsys):
        code, out, _ = run(capsys, "train", "--list-recipes")
        assert code == 0
        assert out == list_recipes() + "\n"
        for name in RECIPES:
            line = next(line for line in out.splitlines() if line.split()[0] == name)
            assert ("not measured" in line) == (name not in measured())


def test_the_measured_numbers_are_those_of_the_results():
    """The file that the package carries, against the cells it is drawn from."""
    cells = Path(__file__).parents[1] / "results"
    assert measured() == measured_of(cells)


def test_the_experiment_has_a_row_for_each_recipe():
    assert [row.key for row in STANDARD.rows] == list(RECIPES)
