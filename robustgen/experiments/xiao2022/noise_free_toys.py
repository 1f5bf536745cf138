"""Figures 5.3 to 5.5: an energy trained with noise-free dynamics on the plane, as a flow and as exp(-E)."""

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor

from robustgen.counter_rng import derive_seed, integers, normal, uniform
from robustgen.experiments.experiment import (
    Cell,
    Column,
    Experiment,
    Kept,
    KeptOf,
    Measurement,
    Row,
    counted,
    epochs_of,
)
from robustgen.experiments.training_cache import TrainingCache
from robustgen.experiments.xiao2022.recipes import XIAO_2022
from robustgen.generative import GenerativeObjective, NoiseFreeEBM

__all__ = [
    "EXPERIMENT",
    "gaussian_grid",
    "gaussian_grid_log_prob",
    "mean_of",
    "mixture_log_prob",
    "square",
    "swiss_roll",
    "swiss_roll_log_prob",
]

SHAPE = (2, 1, 1)
BOX, SCALE = 2.0, 4.0  # data lie in [-BOX, BOX]^2, noise too in [-SCALE, SCALE]^2, which images in [0, 1] fill
SPREAD = {"roll": 0.05, "grid": 0.15}
MODEL: dict[str, Any] = {"architecture": "mlp", "scale": SCALE, "time": 0.2, "trace": "exact"}
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "n_train": 200,
        "n_test": 50,
        "side": 60,
        "batch_size": 100,
        "model": {"width": 8, "layers": 1, "steps": 2},
        "epochs": {"likelihood": 1, "contrastive": 1},
        "lr": 5e-3,
    },
    "cpu": {
        "n_train": 25_600,
        "n_test": 5_000,
        "side": 300,
        "batch_size": 256,
        "model": {"width": 64, "layers": 3, "steps": 8},
        "epochs": {"likelihood": 12, "contrastive": 30},
        "lr": 5e-3,
    },
    "full": {
        "n_train": 2_400_000,
        "n_test": 10_000,
        "side": 400,
        "batch_size": 800,
        "model": {"width": 256, "layers": 5, "steps": 50},
        "epochs": {"likelihood": 1, "contrastive": 1},
        "lr": 1e-3,
    },
}
_TURNS = (1.5 * math.pi, 4.5 * math.pi)


def _on_the_roll(t: Tensor) -> Tensor:
    return torch.stack([t * t.cos(), t * t.sin()], 1) / 10


def swiss_roll(n: int, seed: int) -> Tensor:
    """n points (n, 2): t (cos t, sin t) / 10, t uniform in [1.5 pi, 4.5 pi], and Gaussian noise of 0.05."""
    ids, (start, end) = torch.arange(n), _TURNS
    t = start + (end - start) * uniform(seed, ids, (), (0,))
    return _on_the_roll(t) + SPREAD["roll"] * normal(seed, ids, (2,), (1,))


def swiss_roll_log_prob(z: Tensor) -> Tensor:
    """log p (N,) in nats of points (N, 2), by the midpoint rule along the roll."""
    knots, (start, end) = 2000, _TURNS
    t = start + (end - start) * (torch.arange(knots, dtype=z.dtype) + 0.5) / knots
    return mixture_log_prob(z, _on_the_roll(t), SPREAD["roll"])


def gaussian_grid(n: int, seed: int) -> Tensor:
    """n points (n, 2) of nine Gaussians at {-1, 0, 1}^2, of standard deviation 0.15."""
    ids = torch.arange(n)
    return integers(seed, ids, (2,), 3, (0,)) - 1 + SPREAD["grid"] * normal(seed, ids, (2,), (1,))


def gaussian_grid_log_prob(z: Tensor) -> Tensor:
    """log p (N,) in nats of points (N, 2)."""
    side = torch.arange(-1, 2, dtype=z.dtype)
    return mixture_log_prob(z, torch.cartesian_prod(side, side), SPREAD["grid"])


def mixture_log_prob(z: Tensor, centres: Tensor, spread: float) -> Tensor:
    """Of Gaussians of equal weight."""
    parts = [
        torch.logsumexp(-torch.cdist(part, centres).square() / (2 * spread**2), 1) - math.log(len(centres))
        for part in z.split(1000)
    ]
    return torch.cat(parts) - math.log(2 * math.pi * spread**2)


DATA = {"roll": (swiss_roll, swiss_roll_log_prob), "grid": (gaussian_grid, gaussian_grid_log_prob)}


class _Figure(Experiment):
    name = "xiao-2022/noise-free-toys"
    title = "a noise-free energy on the plane, as a flow and as exp(-E) (Figures 5.3 to 5.5)"
    question = "Which of the two densities of an energy with noise-free dynamics is that of its data?"
    finding = (
        "Nats of test points, Swiss roll and grid: the truth {truth|roll} and {truth|grid}. Trained as an energy: the "
        "flow {contrastive-flow|roll} and {contrastive-flow|grid}, exp(-E) {contrastive-energy|roll} and "
        "{contrastive-energy|grid}. Trained by likelihood: the flow {likelihood-flow|roll} and {likelihood-flow|grid}, "
        "exp(-E) {likelihood-energy|roll} and {likelihood-energy|grid}."
    )
    source = f"{XIAO_2022}, section 5.5.1 and Figures 5.3 to 5.5"
    metric = "mean log density of test points, nats; higher is better"
    n_classes = 0  # log C of a classifier says nothing of these losses
    rows = (
        Row(key="truth", title="the data's own density"),
        Row(
            key="likelihood-flow",
            title="ODE flow, trained by likelihood",
            published={"roll": -0.69, "grid": -1.47},
            data=("likelihood", "flow"),
        ),
        Row(
            key="contrastive-flow",
            title="ODE flow, trained as an energy",
            published={"roll": -0.86, "grid": -1.95},
            data=("contrastive", "flow"),
        ),
        Row(
            key="likelihood-energy",
            title="exp(-E) of the flow trained by likelihood",
            data=("likelihood", "energy"),
        ),
        Row(key="contrastive-energy", title="exp(-E), trained as an energy", data=("contrastive", "energy")),
    )
    columns = (Column("roll", "Swiss roll"), Column("grid", "grid of 3 x 3 Gaussians"))
    notes = (
        "The source states neither the size nor the noise of its data, so that published numbers are of other points: "
        "compare gaps to the truth, and of one training to the other.",
        f"The roll is t (cos t, sin t) / 10 with noise of {SPREAD['roll']:g}, the grid has modes at -1, 0, 1 with "
        f"noise of {SPREAD['grid']:g}.",
        f"exp(-E) is normalised on [-{BOX:g}, {BOX:g}]^2, where the data are: what E says farther out, of which it has "
        "seen little, does not count against it.",
        "Integrals are sums over cells: of a flow whose samples lie on threads narrower than a cell a sum is 1 or 2 % "
        "below one.",
        "The source trains a network of 5 layers of 256 units for 3,000 steps of 800 points.",
    )

    def describe(self, scale: str) -> str:
        s = SCALES[scale]
        steps = {kind: epochs * -(-s["n_train"] // s["batch_size"]) for kind, epochs in s["epochs"].items()}
        return (
            f"{s['model']['layers']} hidden layers of {s['model']['width']} units, batches of {s['batch_size']}, "
            f"{steps['contrastive']} steps as an energy, {steps['likelihood']} by likelihood; {s['n_test']} test points"
        )

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        data = {"data": cell.column, "spread": SPREAD[cell.column], "n_test": SCALES[scale]["n_test"]}
        if cell.row == "truth":
            return data | {"score": "truth"}
        objective, score = self.row(cell.row).data
        evaluated = {"score": score, "side": SCALES[scale]["side"], "box": [BOX, SCALE]}
        return data | evaluated | _training(objective, scale)

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        s, (draw, truth) = SCALES[scale], DATA[cell.column]
        z = draw(s["n_test"], derive_seed(cell.seed, 1))
        exact = truth(z.double())
        if cell.row == "truth":
            return Measurement(value=exact.mean().item(), numbers=counted(mean_of("log p", exact), len(z)))
        objective, score = self.row(cell.row).data
        train = _images(draw(s["n_train"], derive_seed(cell.seed, 0)))
        model, history = _trained(objective, cell, scale, train, cache)
        model = model.to("cpu").double().eval()
        found, checks, verdicts = (_of_the_flow if score == "flow" else _of_the_energy)(model, z.double(), s["side"])
        numbers = {
            **mean_of("log density", found),
            **mean_of("log p of the data", exact),
            "correlation of both": torch.corrcoef(torch.stack([found, exact]))[0, 1].item(),
            **checks,
        }
        return Measurement(
            value=found.mean().item(),
            numbers=counted(numbers, len(z)),
            verdicts=verdicts,
            history=epochs_of(history) if score == "flow" else {},
        )

    def conclusion(self, kept: Kept, kept_of: KeptOf) -> str:
        values = {(c["row"], c["column"], c["seed"]): c["value"] for c in kept.values()}
        gaps = [
            value - values[f"{kind}-energy", column, seed]
            for (row, column, seed), value in values.items()
            for kind in ("contrastive", "likelihood")
            if row == f"{kind}-flow" and (f"{kind}-energy", column, seed) in values
        ]
        if not gaps:
            return ""
        above = sum(gap > 0 for gap in gaps)
        return (
            f"In {above} of {len(gaps)} networks the flow is above exp(-E), by {min(gaps):.2f} to {max(gaps):.2f} nats."
        )


def _training(objective: str, scale: str) -> dict[str, Any]:
    s = SCALES[scale]
    return {
        "model": MODEL | s["model"] | {"objective": objective},
        "n_train": s["n_train"],
        "batch_size": s["batch_size"],
        "epochs": s["epochs"][objective],
        "lr": s["lr"],
    }


def _trained(
    objective: str, cell: Cell, scale: str, train: Tensor, cache: TrainingCache
) -> tuple[NoiseFreeEBM, list[dict[str, float]]]:
    training = _training(objective, scale)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(cell.seed, 2))
        model = NoiseFreeEBM(SHAPE, **training["model"])
    history = cache.train(
        {"toy": cell.column, "spread": SPREAD[cell.column], "seed": cell.seed} | training,
        model,
        GenerativeObjective(),
        train,
        epochs=training["epochs"],
        batch_size=training["batch_size"],
        lr=training["lr"],
        seed=cell.seed,
        clip_norm=10.0,
    )
    return model, history


_Found: TypeAlias = tuple[Tensor, dict[str, float], list[dict[str, Any]]]


@torch.no_grad()
def _of_the_flow(model: NoiseFreeEBM, z: Tensor, side: int) -> _Found:
    """log p of points (N, 2) in nats of the plane, and whether that is a density, to the solver's error."""
    x, everywhere = _images(z), _images(square(side, SCALE))
    log_p = torch.cat([model.log_prob(part) for part in x.split(2000)]) - 2 * math.log(2 * SCALE)
    mass = sum(model.log_prob(part).exp().sum().item() for part in everywhere.split(2000)) / side**2
    verdict = {
        "name": "the flow's density integrates to one",
        "verdict": "holds" if abs(mass - 1) < 0.03 else "violated",
        "detail": f"{mass:.4f} on [-{SCALE:g}, {SCALE:g}]^2",
    }
    error = model.solver_error(x[:500]).abs()
    checks = {"integral of the density": mass, "largest solver error, nats": error.max().item()}
    return log_p, checks | {"mean solver error, nats": error.mean().item()}, [verdict]


@torch.no_grad()
def _of_the_energy(model: NoiseFreeEBM, z: Tensor, side: int) -> _Found:
    """log exp(-E) / Z of points (N, 2), Z on the square of the data; beside it the mean with Z on that of noise."""
    energy = model.energy(_images(z))
    log_z = {
        width: torch.logsumexp(-model.energy(_images(square(side, width))), 0) + 2 * math.log(2 * width / side)
        for width in (BOX, SCALE)
    }
    name = f"log density, normalised on [-{SCALE:g}, {SCALE:g}]^2"
    return -energy - log_z[BOX], {name: (-energy.mean() - log_z[SCALE]).item()}, []


def _images(z: Tensor) -> Tensor:
    """Points (N, 2) as images (N, 2, 1, 1) in [0, 1]."""
    return ((z / SCALE + 1) / 2).clamp(0, 1).view(-1, *SHAPE)


def square(side: int, width: float) -> Tensor:
    """Midpoints of side x side cells of [-width, width]^2, (side^2, 2)."""
    along = width * (2 * (torch.arange(side, dtype=torch.float64) + 0.5) / side - 1)
    return torch.cartesian_prod(along, along)


def mean_of(name: str, values: Tensor) -> dict[str, float]:
    return {name: values.mean().item(), f"standard error of {name}": values.std().item() / math.sqrt(len(values))}


EXPERIMENT = _Figure()
