"""Models that draw, toss coins or change their input, and models that other parts of torch have made."""

import pytest
import torch
from torch import nn

from robustgen import evaluate_robustness
from robustgen.attacks import APGD, DDN, FGSM, PGD, NoiseSearch
from robustgen.detectors import Energy


def test_labels_are_checked_on_stochastic_models_too():
    noisy = lambda z: torch.randn(len(z), 3) + 0 * z.sum()
    with pytest.raises(ValueError, match="label 3"):
        FGSM()(noisy, torch.rand(2, 4), torch.tensor([0, 3]))


@pytest.mark.parametrize("attack", [PGD(eps=0.2), PGD(eps=0.2, step_size=0.01, random_start=False), APGD(eps=0.2)])
def test_a_lucky_vote_on_the_way_does_not_end_the_search(attack):
    """A noisy linear model that is fooled with certainty at the far corner, and half the time at its boundary."""
    w = torch.linspace(-1, 1, 20)
    w /= w.abs().sum()
    x = 0.5 + 0.1 * w.sign() + 0.01 * torch.rand(400, 20, generator=torch.Generator().manual_seed(0))

    class Noisy(nn.Module):
        def forward(self, z):
            value = (z - 0.5) @ w + 0.02 * torch.randn(len(z))
            return torch.stack([value, -value], 1)

    assert attack.run(Noisy(), x, torch.zeros(400, dtype=torch.int64)).success.double().mean() > 0.99


def test_a_model_that_tosses_a_coin_for_each_pass_is_noticed():
    w = torch.tensor([1.0, -1.0])
    noticed = 0
    for seed in range(20):
        coin = lambda z: z @ torch.stack([w, -w], 1) * (1 if torch.rand(()) < 0.5 else 2)
        passes = FGSM(seed=seed).run(coin, torch.tensor([[0.75, 0.25]]), torch.tensor([0])).forwards
        noticed += passes.item() > 9  # a vote was taken
    assert noticed >= 18


@pytest.mark.parametrize("attack", [FGSM(), NoiseSearch(n_queries=2), DDN()])
def test_a_model_that_changes_its_input_is_refused_and_changes_nothing(attack):
    x = torch.rand(6, 4)
    kept = x.clone()
    with pytest.raises(ValueError, match="in place"):
        attack(lambda z: z.sub_(0.5) @ torch.ones(4, 3), x, torch.zeros(6, dtype=torch.int64))
    assert torch.equal(x, kept)


def exported(net, x):
    torch._dynamo.reset()  # older torch exports nothing once it has compiled something
    return torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)).module()


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:.*is deprecated")  # torch's own
@pytest.mark.parametrize(
    "convert",
    [
        exported,
        lambda net, x: nn.Sequential(nn.Identity(), exported(net, x)),
        lambda net, x: torch.jit.script(net),
        lambda net, x: torch.jit.freeze(torch.jit.script(net)),
        lambda net, x: torch.jit.trace(net, x),
        lambda net, x: torch.fx.symbolic_trace(net),
        lambda net, x: torch.compile(net, backend="eager"),
    ],
    ids=["export", "export inside", "script", "freeze", "trace", "fx", "compile"],
)
def test_what_torch_makes_of_a_network_is_attacked_and_scored_as_the_network(convert):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    x = torch.rand(9, 1, 6, 6)
    y = net(x).argmax(1)
    made = convert(net, x)
    flags = [getattr(m, "training", None) for m in made.modules()]
    attack = PGD(eps=0.1, steps=5)
    expected, found = attack.run(net, x, y), attack.run(made, x, y)
    assert torch.equal(expected.success, found.success)
    assert torch.allclose(Energy(made).fit(x).score(x), Energy(net).fit(x).score(x), atol=1e-5)
    report = evaluate_robustness(made, x, y, attacks=[attack], eps=0.1, masking_tests=False)
    assert report.clean_accuracy == 1
    assert [getattr(m, "training", None) for m in made.modules()] == flags


def test_each_module_keeps_its_own_mode_beside_a_train_of_ones_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout()

        def train(self, mode=True):
            return super().train(mode)

        def forward(self, x):
            return self.drop(self.norm(x))

    model = nn.Sequential(Own(), nn.Linear(4, 2)).train()
    model[0].norm.eval()
    flags = [m.training for m in model.modules()]
    FGSM()(model, torch.rand(3, 4), torch.zeros(3, dtype=torch.int64))
    assert [m.training for m in model.modules()] == flags


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_dependence_on_the_batch(dtype):
    class Rounded(nn.Module):
        """Rounds its logits one digit of bfloat16 up or down, by the size of the batch alone."""

        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).to(dtype)

        def forward(self, x):
            logits = self.net(x.to(dtype)).float()
            return logits * (1 + (2**-8 if len(x) == 1 and dtype == torch.bfloat16 else 0))

    model, x = Rounded().eval(), torch.rand(7, 4)
    PGD(eps=0.1)(model, x, model(x).argmax(1))
