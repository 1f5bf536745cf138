"""Attacks that see scores or decisions only (Square, HopSkipJump), and MIFGSM, against closed forms."""

import copy
import warnings
from collections import Counter

import pytest
import torch
from torch import nn

from robustgen import counter_rng
from robustgen.attacks import FGSM, MIFGSM, PGD, HopSkipJump, NoiseSearch, Square, TransferAttack
from robustgen.attacks.ball import Ball, perturbation_norm
from robustgen.attacks.hopskipjump import _Walk
from robustgen.attacks.losses import margin
from robustgen.attacks.queries import Oracle
from robustgen.attacks.square import _EnergyMoves, _LinfMoves
from robustgen.evaluation import train_substitute

DUAL = {"Linf": 1, "L2": 2, "L1": float("inf")}


def linear_problem(units=12, classes=3, n=20):
    """A linear model in float64 inside wide bounds, inputs, labels and each input's distance to the boundary."""
    model = nn.Linear(units, classes).double()
    x = 0.4 + 0.2 * torch.rand(n, units, dtype=torch.float64)
    z = model(x).detach()
    y = z.argmax(1)
    gap = z.gather(1, y[:, None]) - z
    rivals = model.weight.detach()[y][:, None] - model.weight.detach()[None]

    def radius(norm):
        size = rivals.norm(p=DUAL[norm], dim=2)
        return torch.where(size > 0, gap / size, float("inf")).amin(1)

    return model, x, y, radius


class Recorder:
    """A model that keeps every batch it was asked about and the margins it answered."""

    def __init__(self, model, y):
        self.model, self.y, self.margins, self.seen = model, y, [], []

    def __call__(self, x):
        logits = self.model(x)
        if len(x) == len(self.y):
            self.margins.append(margin(logits.detach(), self.y))
            self.seen.append(x.detach().clone())
        return logits


class TestSquare:
    @pytest.mark.parametrize("shape", [(12,), (4, 3), (1, 3, 4), (3, 2, 2)])
    def test_linf_reaches_the_optimal_sign_pattern(self, shape):
        """On a linear model x - eps * sign(w) is the optimum; a window of one pixel finds each sign."""
        w = torch.randn(12, dtype=torch.float64)
        flat = lambda z: z.flatten(1) @ w
        model = lambda z: torch.stack([flat(z) + 100, 0 * flat(z)], 1)
        x = 0.4 + 0.2 * torch.rand(6, *shape, dtype=torch.float64)
        y = torch.zeros(6, dtype=torch.int64)
        x_adv = Square(eps=0.1, n_queries=600, early_stop=False)(model, x, y)
        assert torch.allclose(x_adv, x - 0.1 * w.sign().reshape(shape), atol=1e-12)

    @pytest.mark.parametrize(
        ("shape", "targeted", "share"), [((12,), False, 0.8), ((12,), True, 0.8), ((6, 7), False, 0.55)]
    )
    def test_l2_comes_near_the_optimum(self, shape, targeted, share):
        """On a linear model x - eps * w / |w| is the optimum: what part of its gain is reached.

        Random weights are hard for windows of three by three and more; a random direction gains a seventh.
        """
        w = torch.randn(1, *shape, dtype=torch.float64)
        model = lambda z: torch.stack([(z * w).flatten(1).sum(1) + 100, 0 * z.flatten(1)[:, 0]], 1)
        x, y = torch.full((5, *shape), 0.5, dtype=torch.float64), torch.full((5,), int(targeted))
        attack = Square(eps=0.4, norm="L2", n_queries=800, early_stop=False, targeted=targeted)
        gained = ((x - attack(model, x, y)) * w).flatten(1).sum(1) / (0.4 * w.norm())
        assert gained.min() > share
        assert gained.max() <= 1

    @pytest.mark.parametrize(
        ("shape", "eps", "targeted", "share"),
        [((12,), 0.4, False, 0.9), ((12,), 0.4, True, 0.9), ((6, 7), 0.8, False, 0.45), ((3, 8, 8), 3.0, False, 0.45)],
    )
    def test_l1_comes_near_the_optimum(self, shape, eps, targeted, share):
        """On a linear model the optimum fills the steepest elements up to their bounds: what part of its gain is
        reached, in a window that has eight neighbours to its peak, and that noise is no match for it.
        """
        w = torch.randn(1, *shape, dtype=torch.float64)
        model = lambda z: torch.stack([(z * w).flatten(1).sum(1) + 100, 0 * z.flatten(1)[:, 0]], 1)
        x, y = 0.2 + 0.6 * torch.rand(5, *shape, dtype=torch.float64), torch.full((5,), int(targeted))
        order = w.flatten().abs().argsort(descending=True)
        room = torch.where(w > 0, x, 1 - x).flatten(1)[:, order]
        filled = torch.minimum(room, (eps - (room.cumsum(1) - room)).clamp(min=0))
        best = (filled * w.flatten().abs()[order]).sum(1)

        def gained(kind):
            attack = kind(eps=eps, norm="L1", n_queries=800, early_stop=False, targeted=targeted)
            return ((x - attack(model, x, y)) * w).flatten(1).sum(1) / best

        ours, noise = gained(Square), gained(NoiseSearch)
        assert ours.min() > share
        assert ours.max() <= 1
        assert (ours > 1.5 * noise).all()

    def test_l1_finds_what_there_is(self):
        model, x, y, radius = linear_problem()
        attack = Square(norm="L1", n_queries=400, bounds=(-3, 3))
        assert attack.run(model, x, y, eps=0.999 * radius("L1")).success.sum() == 0
        assert attack.run(model, x, y, eps=1.3 * radius("L1")).success.float().mean() >= 0.6
        assert attack.run(model, x, y, eps=1.6 * radius("L1")).success.all()

    def test_l1_windows_peak_and_cancel(self):
        """The sums over 1 / j^4 of a window of five by seven: a hill and a hollow, each highest at its centre."""
        x = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
        moves = _EnergyMoves(Ball(x, torch.ones(1), "L1", (0.0, 1.0)))
        shape = moves.hill_and_hollow((5, 7), 1, x).reshape(5, 7)
        assert shape.abs().sum() == pytest.approx(1)
        rings = [sum(j**-4 for j in range(k, 4)) for k in (1, 2, 3)]  # 3 = 1 + the farthest pixel of the half of 4
        hill = shape[:, :4]
        assert (hill > 0).all()
        assert (shape[:, 4:] < 0).all()
        assert hill[2, 2] == hill.max()
        assert [float(hill[2, k] / hill[2, 2]) for k in (1, 0)] == pytest.approx(
            [rings[1] / rings[0], rings[2] / rings[0]]
        )

    def test_no_success_below_the_optimum_and_success_above(self):
        model, x, y, radius = linear_problem()
        attack = Square(n_queries=200, bounds=(-3, 3))
        assert attack.run(model, x, y, eps=0.999 * radius("Linf")).success.sum() == 0
        assert attack.run(model, x, y, eps=1.05 * radius("Linf")).success.all()

    @pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
    def test_queries_are_counted_one_by_one(self, norm):
        model, x, y, radius = linear_problem()
        easy = torch.arange(20) < 10
        eps = torch.where(easy, 3.0, 0.9) * radius(norm)
        result = Square(norm=norm, n_queries=30, restarts=2, bounds=(-3, 3)).run(model, x, y, eps=eps)
        assert result.success[easy].any()
        assert (result.forwards[~result.success] == 1 + 2 * 30).all()
        assert (result.forwards[result.success] <= 2 * 30).all()
        assert not result.backwards.any()
        full = Square(norm=norm, n_queries=30, early_stop=False).run(model, x, y)
        assert (full.forwards == 30).all()

    @pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
    def test_a_change_is_kept_only_where_the_margin_falls(self, norm):
        """From one query to the next a window changes in the point of lowest margin so far, in no other."""
        torch.manual_seed(3)
        net = nn.Sequential(nn.Flatten(), nn.Linear(30, 16), nn.Tanh(), nn.Linear(16, 2)).double()
        x = 0.3 + 0.4 * torch.rand(8, 1, 5, 6, dtype=torch.float64)
        y = net(x).argmax(1)
        recorder = Recorder(net, y)
        x_adv = Square(norm=norm, eps=0.2, n_queries=300, early_stop=False, p_init=0.05)(recorder, x, y)
        margins, seen = torch.stack(recorder.margins), torch.stack(recorder.seen)
        best = margins.cummin(0)
        assert torch.equal(x_adv, seen[margins.argmin(0), torch.arange(8)])
        assert (best.values[-1] < best.values[0]).all()
        if norm == "Linf":  # p_init of two pixels: a candidate differs from the best so far in two pixels at most
            for step in range(1, len(seen)):
                base = seen[best.indices[step - 1], torch.arange(8)]
                changed = (seen[step] != base).flatten(1).sum(1)
                assert changed.max() <= 2
                assert changed.min() >= 1  # no query is wasted on what is there already

    def test_windows_are_drawn_for_each_sample(self):
        """In one step samples change different windows, and a sample's windows do not depend on its batch."""
        flat = lambda z: torch.stack([z.flatten(1).sum(1) + 100, 0 * z.flatten(1).sum(1)], 1)
        x, y = torch.full((16, 1, 9, 9), 0.5, dtype=torch.float64), torch.zeros(16, dtype=torch.int64)
        ids = torch.arange(16) * 7 - 3
        attack = Square(eps=0.1, n_queries=40, early_stop=False, seed=11)
        whole = attack(flat, x, y, ids=ids)
        assert len({tuple(row.flatten().tolist()) for row in whole}) == 16
        for rows in (torch.arange(15, -1, -1), torch.tensor([4])):
            assert torch.equal(attack(flat, x[rows], y[rows], ids=ids[rows]), whole[rows])
        assert not torch.equal(Square(eps=0.1, n_queries=40, early_stop=False, seed=12)(flat, x, y, ids=ids), whole)

    def test_restarts_differ_and_go_to_those_that_stand(self):
        model, x, y, radius = linear_problem(n=40)
        eps = 1.5 * radius("Linf")
        one, three = (Square(n_queries=4, restarts=r, bounds=(-3, 3)).run(model, x, y, eps=eps) for r in (1, 3))
        assert one.success.sum() < three.success.sum()
        assert torch.equal(one.x_adv[one.success], three.x_adv[one.success])
        assert torch.equal(one.forwards[one.success], three.forwards[one.success])

    def test_the_share_follows_the_budget(self):
        """The paper's schedule at 10000 queries, and the same curve on any other budget."""
        attack = Square(n_queries=10000, p_init=0.8)
        shares = [attack.share(query) for query in range(10000)]
        halved = [query for query in range(1, 10000) if shares[query] < shares[query - 1]]
        assert halved == [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
        assert shares[-1] == 0.8 / 2**9
        assert [Square(n_queries=1000).share(k) for k in range(0, 1000, 37)] == shares[::370][:28]
        for wrong in (0.0, -1.0, 1.5, float("nan")):
            with pytest.raises(ValueError, match="p_init"):
                Square(p_init=wrong)

    @pytest.mark.parametrize("shape", [(1, 1), (50,), (7, 40), (3, 20, 33), (2, 33, 4), (3, 1, 1), (2, 3, 5, 5)])
    def test_windows_fit_and_cover_their_share(self, shape):
        x = torch.zeros(300, *shape)
        moves = _LinfMoves(Ball(x, torch.ones(300), "Linf", (-1.0, 1.0)))
        assert (moves.height, moves.width) == (shape[-2:] if len(shape) > 1 else (1, shape[0]))
        for share in (1.0, 0.8, 0.3, 0.01, 1e-6):
            height, width = moves.window(share, 1)
            pixels = moves.height * moves.width
            assert 1 <= height <= moves.height
            assert 1 <= width <= moves.width
            assert abs(height * width - share * pixels) <= max(1, 2 * (share * pixels) ** 0.5, moves.height)
            u = counter_rng.uniform(0, torch.arange(300), (2,), (), torch.float64)
            where = moves.place((height, width), u)
            assert where.shape == (300, moves.channels, height * width)
            assert where.min() >= 0
            assert where.max() < pixels
            assert (where[:, 0].diff(dim=1) > 0).all()  # no pixel twice, none across the edge
            if share == 1e-6 and pixels > 20:
                assert len(set(where[:, 0, 0].tolist())) > 15

    @pytest.mark.parametrize("norm", ["L2", "L1"])
    def test_moves_conserve_the_length(self, norm):
        """Where no bound binds, the perturbation has length eps at the start and after every step."""
        x = torch.zeros(20, 2, 9, 11, dtype=torch.float64)
        ball = Ball(x, torch.full((20,), 2.0, dtype=torch.float64), norm, (-9.0, 9.0))
        moves, rows = _EnergyMoves(ball), torch.arange(20)
        uniforms = lambda step: lambda count: counter_rng.uniform(0, rows, (count,), (step,), torch.float64)
        z = moves.start(rows, uniforms(0))
        for step in range(1, 30):
            moved = moves.propose(rows, z, 0.8 / step, uniforms(step))
            assert torch.allclose(perturbation_norm(moved, norm), torch.full((20,), 2.0, dtype=torch.float64))
            assert ((moved != z).flatten(1).any(1)).all()
            if step >= 10:  # the window that gave its energy away is empty, but for what the other covers
                assert (moved == 0).flatten(1).any(1).float().mean() > 0.8
            z = moved

    def test_where_the_gradient_is_masked(self):
        """Logits through a step function have gradient zero: PGD from x does not move, Square does not care."""

        class Staircase(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(16, 2)
                self.net.bias.data.copy_(-self.net.weight.data.sum(1) / 2)  # the classes meet amid the inputs

            def forward(self, x):
                return (self.net(x) * 200).round() / 200 + 0 * x.sum()

        model = Staircase()
        x = 0.4 + 0.2 * torch.rand(30, 16)
        y = model(x).argmax(1)
        assert not PGD(eps=0.2, random_start=False).run(model, x, y).success.any()
        assert Square(eps=0.2, n_queries=300).run(model, x, y).success.float().mean() > 0.9


class TestHopSkipJump:
    @pytest.mark.parametrize("norm", ["Linf", "L2"])
    def test_comes_near_the_optimum(self, norm):
        """1500 decisions, 12 dimensions: the median within 5 %, all within 20 % of the distance to the boundary.

        Two classes: among more, a walk along the boundary of one class does not find that another is nearer.
        """
        model, x, y, radius = linear_problem(classes=2)
        result = HopSkipJump(norm=norm, n_queries=1500, bounds=(-3, 3)).run(model, x, y)
        assert result.success.all()
        ratio = result.distance / radius(norm)
        assert ratio.median() < 1.05
        assert ratio.max() < 1.2
        assert ratio.min() >= 1

    def test_sees_decisions_only(self):
        """Any increasing function of the logits gives the same walk."""
        model, x, y, _ = linear_problem(n=5)
        attack = HopSkipJump(n_queries=150)
        hard = lambda z: nn.functional.one_hot(model(z).argmax(1), 3).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one-hot rows look like probabilities
            assert torch.equal(attack(hard, x, y), attack(model, x, y))

    @pytest.mark.parametrize("n_queries", [1, 2, 37, 150])
    def test_the_budget_is_exact(self, n_queries):
        model, x, y, _ = linear_problem(n=6)
        y[0] = (y[0] + 1) % 3  # misclassified from the start
        seen = Counter()

        def counting(z):
            seen["rows"] += len(z)
            return model(z)

        result = HopSkipJump(n_queries=n_queries, directions=10).run(counting, x, y)
        assert result.forwards.tolist() == [1] + [1 + n_queries] * 5
        first_look = (
            8 * 4 + 4 + 1 + 3 * 4
        )  # passes at the first inputs, not counted: eight, then in other company and alone
        assert seen["rows"] == int(result.forwards.sum()) + first_look
        assert not result.backwards.any()
        assert torch.equal(result.x_adv[0], x[0])
        assert result.success[0]

    def test_ends_where_nothing_can_be_found(self):
        """A model with one answer, samples misclassified from the start, a zero distance: no endless loop."""
        always = lambda z: torch.stack([3 + 0 * z.sum(1), 0 * z.sum(1)], 1)
        x, zeros = torch.rand(4, 3), torch.zeros(4, dtype=torch.int64)
        result = HopSkipJump(n_queries=50).run(always, x, zeros)
        assert not result.success.any()
        assert torch.equal(result.x_adv, x)
        assert (result.forwards == 51).all()
        wrong = HopSkipJump(n_queries=50).run(always, x, zeros + 1)
        assert wrong.success.all()
        assert (wrong.forwards == 1).all()
        working = HopSkipJump(n_queries=50, early_stop=False).run(always, x, zeros + 1)
        assert torch.equal(working.x_adv, x)
        assert (working.forwards <= 51).all()

    def test_targeted_starts(self):
        """A target that uniform noise never hits: reached from a start of its class, the nearest of the pool."""
        centres = torch.eye(8, dtype=torch.float64)[:4]

        def model(z):  # three classes are small balls about their centres, the first is all the rest
            inside = 0.1 - (z[:, None] - centres).square().sum(2)
            return torch.cat([torch.zeros(len(z), 1, dtype=z.dtype), inside[:, 1:]], 1)

        x = torch.full((4, 8), 0.5, dtype=torch.float64)
        x[:, 1:] = 0.45
        target = torch.tensor([1, 2, 3, 2])
        assert (model(x).argmax(1) == 0).all()
        attack = HopSkipJump(n_queries=400, targeted=True, starts=centres)
        result = attack.run(model, x, target)
        assert result.success.all()
        assert torch.equal(model(result.x_adv).argmax(1), target)
        assert (result.distance < (centres[target] - x).norm(dim=1)).all()
        assert not HopSkipJump(n_queries=100, targeted=True).run(model, x, target).success.any()
        # The order of the pool and the rest of the batch make no difference.
        turned = HopSkipJump(n_queries=400, targeted=True, starts=centres.flip(0))
        assert torch.equal(turned(model, x[2:], target[2:], ids=torch.tensor([2, 3])), result.x_adv[2:])

    def test_begins_from_the_nearest_start_that_fools(self):
        model = lambda z: torch.stack([z.sum(1), 1 + 0 * z.sum(1)], 1)
        x, y = torch.full((1, 2), 0.9), torch.tensor([0])
        pool = torch.tensor([[0.0, 0.0], [0.9, 0.8], [0.3, 0.3], [0.1, 0.1]])  # the second does not
        result = HopSkipJump(n_queries=2, starts=pool).run(model, x, y)
        assert torch.equal(result.x_adv, pool[2:3])

    def test_a_jump_is_halved_until_it_lands(self):
        """Only a thin shell around x is adversarial: a step of the distance itself would leave it."""
        x, y = torch.full((1, 2), 0.5, dtype=torch.float64), torch.tensor([0])

        def model(z):
            far = (z - x[0]).norm(dim=1)
            return torch.stack([0 * far, torch.minimum(far - 0.1, 0.12 - far)], 1)

        attack = HopSkipJump(n_queries=50)
        oracle = Oracle(model, x, slots=8)
        problem = attack._problem(oracle, x, y, torch.tensor([0]), torch.tensor([1.0], dtype=torch.float64))
        z, row = torch.tensor([[0.61, 0.5]], dtype=torch.float64), torch.tensor([0])
        jump = _Walk(attack, problem).jump(row, z, torch.tensor([[1.0, 0.0]], dtype=torch.float64), 1)
        query, landed = next(jump), None
        while landed is None:
            try:
                query = jump.send(oracle.answer([query])[0])
            except StopIteration as end:
                landed = end.value
        assert torch.allclose(landed, z + torch.tensor([[0.11 / 2**4, 0.0]]).double())

    def test_options_are_checked(self):
        model, x, y, _ = linear_problem(n=2)
        with pytest.raises(ValueError, match="starts have shape"):
            HopSkipJump(starts=torch.rand(3, 5))(model, x, y)
        with pytest.raises(ValueError, match="starts has values"):
            HopSkipJump(starts=torch.full((3, 12), 2.0))
        with pytest.raises(ValueError, match="directions"):
            HopSkipJump(directions=0)
        assert isinstance(HopSkipJump(starts=torch.rand(3, 5)).describe()["starts"], str)
        assert HopSkipJump().describe()["starts"] is None

    def test_a_limit_of_distance(self):
        model, x, y, radius = linear_problem(n=10)
        attack = HopSkipJump(n_queries=600, bounds=(-3, 3))
        assert not attack.run(model, x, y, eps=0.99 * radius("L2")).success.any()
        near = attack.run(model, x, y, eps=1.5 * radius("L2"))
        assert near.success.all()
        assert (near.distance <= 1.5 * radius("L2")).all()


class TestMIFGSM:
    @pytest.mark.parametrize("norm", ["Linf", "L2"])
    def test_without_momentum_it_is_pgd_from_x(self, norm):
        model = nn.Sequential(nn.Linear(9, 20), nn.Tanh(), nn.Linear(20, 4)).double()
        x, y = torch.rand(8, 9, dtype=torch.float64), torch.randint(4, (8,))
        common = {"norm": norm, "eps": 0.3, "steps": 7, "step_size": 0.08, "early_stop": False}
        expected = PGD(random_start=False, **common)(model, x, y)
        assert torch.allclose(MIFGSM(decay=0.0, **common)(model, x, y), expected, atol=1e-12)
        assert not torch.allclose(MIFGSM(decay=1.0, **common)(model, x, y), expected, atol=1e-3)

    @pytest.mark.parametrize("norm", ["Linf", "L2"])
    def test_is_its_formula(self, norm):
        model = nn.Sequential(nn.Linear(9, 20), nn.Tanh(), nn.Linear(20, 4)).double()
        x = 0.4 + 0.2 * torch.rand(8, 9, dtype=torch.float64)
        y = torch.randint(4, (8,))
        g, z, visited = torch.zeros_like(x), x.clone(), [x.clone()]
        for _ in range(5):
            leaf = z.clone().requires_grad_(True)
            loss = nn.functional.cross_entropy(model(leaf), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, leaf)
            g = 0.9 * g + gradient / gradient.abs().sum(1, keepdim=True)
            z = z + 0.3 / 5 * (g.sign() if norm == "Linf" else g / g.norm(dim=1, keepdim=True))
            visited.append(z)
        margins = torch.stack([margin(model(z).detach(), y) for z in visited])
        best = torch.stack(visited)[margins.argmin(0), torch.arange(8)]
        ours = MIFGSM(norm=norm, eps=0.3, steps=5, decay=0.9, early_stop=False)(model, x, y)
        assert torch.allclose(ours, best, atol=1e-9)

    def test_options_are_checked(self):
        for wrong in ({"decay": -0.1}, {"decay": float("inf")}, {"step_size": 0.0}, {"steps": 0}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                MIFGSM(**wrong)


# Substitutes: what the target is asked, and that a network trained on its answers alone can be used against it.


class Target(nn.Module):
    """A random network with batch norm and dropout, in train mode; it keeps what it is asked, and in which mode."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
        self.asked, self.modes = [], []

    def forward(self, x):
        self.asked.append(x.detach().clone())
        self.modes.append(self.body[3].training)
        return self.body(6 * x - 3)


def network():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize(("n", "rounds", "batch_size"), [(10, 1, 128), (10, 4, 128), (7, 3, 4), (1, 2, 1)])
def test_every_query_is_counted(n, rounds, batch_size):
    target = Target()
    found = train_substitute(target, torch.rand(n, 8), network=network, rounds=rounds, epochs=1, batch_size=batch_size)
    assert found.n_queries == sum(map(len, target.asked)) == n * 2 ** (rounds - 1)
    assert max(map(len, target.asked)) <= batch_size


@pytest.mark.parametrize("step", [0.2, -0.1])
def test_the_augmentation_is_its_formula(step):
    """A linear substitute's logit of class k has the gradient w_k everywhere; a tiny lr keeps w where it began."""
    start = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3))  # dropout sleeps where the gradient is taken
    target, x = Target().eval(), torch.rand(20, 8)
    train_substitute(target, x, network=lambda: copy.deepcopy(start), rounds=3, epochs=1, step=step, lr=1e-12)
    first, second, third = target.asked
    assert torch.equal(first, x)
    y = target(first).argmax(1)
    assert y.unique().numel() > 1
    moved = lambda z, labels: (z + step * start[1].weight.detach()[labels].sign()).clamp(0, 1)
    assert torch.allclose(second, moved(x, y))
    everything = torch.cat([first, second])
    assert torch.allclose(third, moved(everything, target(everything).argmax(1)))


def test_new_inputs_stay_in_the_bounds():
    target = Target()
    x = 4 * torch.rand(10, 8) - 2
    train_substitute(target, x, network=network, rounds=3, epochs=1, step=0.7, bounds=(-2.0, 2.0))
    asked = torch.cat(target.asked)
    assert (asked.min(), asked.max()) == (-2.0, 2.0)


def test_target_and_random_state_are_as_they_were():
    target, x = Target(), torch.rand(10, 8)
    before, random_state = copy.deepcopy(target.state_dict()), torch.get_rng_state()
    train_substitute(target, x, network=network, rounds=2, epochs=1)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
    assert not any(target.modes)
    assert all(m.training for m in target.modules())
    assert all(p.requires_grad and p.grad is None for p in target.parameters())
    assert torch.equal(random_state, torch.get_rng_state())


def test_a_function_of_the_seed():
    target, x = Target(), torch.rand(10, 8)
    run = lambda seed: weights(train_substitute(target, x, network=network, rounds=2, epochs=2, seed=seed).network)
    one = run(0)
    torch.rand(3)  # whatever the caller did in between
    assert torch.equal(run(0), one)
    assert not torch.allclose(run(1), one)


def test_the_order_of_the_batches_is_drawn_by_the_seed():
    target, x, start = Target(), torch.rand(10, 8), network()
    one, other = (
        train_substitute(target, x, network=lambda: copy.deepcopy(start), rounds=1, batch_size=3, lr=0.1, seed=seed)
        for seed in (0, 1)
    )
    assert not torch.allclose(weights(one.network), weights(other.network))


def test_only_labels_are_used():
    target, x = Target(), torch.rand(30, 8)
    hard = lambda z: nn.functional.one_hot(target.eval()(z).argmax(1), 3).float()
    one, other = (train_substitute(t, x, network=network, rounds=3, epochs=2) for t in (target, hard))
    assert torch.equal(weights(one.network), weights(other.network))
    assert not one.network.training


def test_agreement_is_measured_on_what_the_target_labelled():
    target, x = Target().eval(), torch.rand(40, 8)
    found = train_substitute(target, x, network=network, rounds=2, epochs=3)
    asked = torch.cat(target.asked)
    same = (found.network(asked).argmax(1) == target(asked).argmax(1)).double().mean()
    assert found.agreement == pytest.approx(same.item())
    assert 0 < found.agreement < 1


def test_it_learns_the_target_and_its_adversarial_inputs_transfer():
    """From 150 inputs and labels alone: FGSM on the substitute beats noise of the same size by far."""
    w = torch.randn(3, 20)
    target = lambda x: (x - 0.5) @ w.T
    x = torch.rand(150, 20)
    found = train_substitute(target, x, network=lambda: nn.Linear(20, 3), rounds=4, epochs=20, step=-0.1, lr=1e-2)
    fresh = torch.rand(500, 20)
    y = target(fresh).argmax(1)
    assert (found.network(fresh).argmax(1) == y).float().mean() > 0.8
    transfer = TransferAttack(surrogate=found.network, attack=FGSM(eps=0.15)).run(target, fresh, y)
    noise = NoiseSearch(eps=0.15, n_queries=1).run(target, fresh, y)
    assert transfer.success.float().mean() > 0.6
    assert noise.success.float().mean() < 0.3
    assert transfer.backwards.max() == 0


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"x": torch.zeros(0, 8)}, ValueError, "x is empty"),
        ({"x": torch.full((3, 8), 1.5)}, ValueError, "outside the bounds"),
        ({"x": torch.zeros(3, 8, dtype=torch.uint8)}, TypeError, "float32"),
        ({"x": torch.zeros(3, 5)}, ValueError, r"the model fails on inputs of shape \(5,\)"),
        ({"rounds": 0}, ValueError, "rounds must be at least 1, got 0"),
        ({"rounds": 1.5}, TypeError, "rounds"),
        ({"epochs": 0}, ValueError, "epochs"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"step": 0.0}, ValueError, "step must be a finite number other than 0"),
        ({"step": -float("inf")}, ValueError, "step"),
        ({"lr": float("nan")}, ValueError, "lr"),
        ({"bounds": (1.0, 0.0)}, ValueError, "bounds"),
        ({"target": lambda x: None}, TypeError, "logits"),
        ({"target": lambda x: x.argmax(1)}, ValueError, "logits"),
        ({"target": lambda x: x[:1]}, ValueError, "1 rows of logits for 3 inputs"),
        ({"target": lambda x: x / 0 * 0}, ValueError, "NaN or Inf logits"),
        ({"network": lambda: torch.relu}, TypeError, r"network\(\) must return an nn.Module"),
        ({"network": lambda: nn.Linear(5, 3)}, ValueError, r"inputs of shape \(8,\)"),
        ({"network": lambda: nn.Linear(8, 2), "target": lambda x: x * 0 + torch.arange(8.0)}, ValueError, "label 7"),
    ],
)
def test_errors(wrong, error, message):
    given = {"target": nn.Linear(8, 3), "x": torch.rand(3, 8), "network": network} | wrong
    with pytest.raises(error, match=message):
        train_substitute(given.pop("target"), given.pop("x"), **given)
