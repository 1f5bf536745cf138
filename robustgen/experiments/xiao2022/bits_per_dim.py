"""Bits per dimension of images: flows, an autoregressive model, diffusion models by their bounds and by their flows."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from robustgen.experiments.ahmed2017.heldout_table import Budget
from robustgen.experiments.ahmed2017.likelihoods import measured
from robustgen.experiments.ahmed2017.trained_models import TrainedModels, described, with_defaults
from robustgen.experiments.experiment import Cell, Column, Experiment, Kept, KeptOf, Measurement, Row, counted
from robustgen.experiments.summary import short
from robustgen.experiments.training_cache import TrainingCache
from robustgen.experiments.xiao2022.recipes import RECIPES, XIAO_2022
from robustgen.generative import DDPM, ScoreSDE
from robustgen.generative.pixels import bits_per_dim

__all__ = ["EXPERIMENT"]

BUDGETS = {"smoke": Budget("digits", 300, 100), "cpu": Budget("", 20_000, 1_000), "full": Budget("")}


@dataclass(frozen=True)
class _Equations:
    """How likelihoods of equations are scored.

    Attributes:
        images: how many of the test images.
        steps: of the solver.
        terms: of the integral in the bound of the stochastic equation.
        checked: of these images, on how many steps are doubled and signs drawn ``draws`` times.
    """

    images: int
    steps: int
    terms: int
    checked: int
    draws: int


EQUATIONS = {
    "smoke": _Equations(20, 5, 10, 4, 2),
    "cpu": _Equations(200, 50, 100, 20, 8),
    "full": _Equations(1_000, 100, 200, 100, 16),
}
_PUBLISHED = {  # Dinh et al. 2017; Kingma and Dhariwal 2018; MNIST: as Chen et al. 2019 quote both
    "real-nvp": {"mnist": 1.06, "cifar10-jpeg": 3.49},
    "glow": {"mnist": 1.05, "cifar10-jpeg": 3.35},
    "pixelcnn++": {"cifar10-jpeg": 2.92},  # Salimans et al. 2017
    "ddpm-fixed": {"cifar10-jpeg": 3.75},  # Ho et al. 2020
    "ddpm-learned": {"cifar10-jpeg": 2.94},  # Nichol and Dhariwal 2021, trained by the bound alone
    "score-sde-uniform": {"cifar10-jpeg": 2.99},  # Song et al. 2021, DDPM++ (deep, sub-vp)
}
_GREY = ("mnist", "fashion-mnist")
_BOUND, _FLOW, _SDE = "bound", "flow", "sde"


class _Table(Experiment):
    name = "xiao-2022/bits-per-dim"
    n_classes = 0  # log C of a classifier says nothing of these losses
    title = "likelihoods of flows, of pixels one after the other, and of diffusion models"
    question = "How many bits does each kind of model need for a pixel?"
    finding = (
        "Bits a dimension: Glow {glow|mnist} on MNIST, {glow|fashion-mnist} on Fashion-MNIST, {glow|cifar10-jpeg} on "
        "CIFAR-10 (JPEG); RealNVP {real-nvp|mnist}, {real-nvp|fashion-mnist}, {real-nvp|cifar10-jpeg}. On MNIST: "
        "PixelCNN++ {pixelcnn++|mnist}; DDPM by its bound {ddpm-fixed|mnist}, by its flow {ddpm-flow|mnist}; ScoreSDE "
        "by the bound of its equation {score-sde|mnist}, by its flow {score-sde-flow|mnist}."
    )
    source = f"Not in {XIAO_2022}; the papers of the models"
    metric = "bits a dimension of test images, 8-bit pixels; of PixelCNN++ exact, of all others at most so many"
    rows = (
        Row(key="real-nvp", title="RealNVP", published=_PUBLISHED["real-nvp"], note="uniform noise"),
        Row(key="glow", title="Glow", published=_PUBLISHED["glow"], note="uniform noise"),
        Row(
            key="pixelcnn++",
            title="PixelCNN++",
            published=_PUBLISHED["pixelcnn++"],
            columns=_GREY,
            data=("pixelcnn++", _BOUND),
            note="exact",
        ),
        Row(
            key="ddpm-fixed",
            title="DDPM, fixed variances: its bound",
            published=_PUBLISHED["ddpm-fixed"],
            data=("ddpm", _BOUND),
        ),
        Row(key="ddpm-flow", title="the same DDPM: its flow", data=("ddpm", _FLOW), note="Gaussian noise"),
        Row(
            key="ddpm-learned",
            title="DDPM, learned variances: its bound",
            published=_PUBLISHED["ddpm-learned"],
            columns=_GREY,
            data=("ddpm-learned", _BOUND),
        ),
        Row(key="score-sde", title="ScoreSDE: its bound", data=("denoiser", _SDE), note="Gaussian noise"),
        Row(key="score-sde-flow", title="the same ScoreSDE: its flow", data=("denoiser", _FLOW), note="Gaussian noise"),
        Row(
            key="score-sde-uniform",
            title="ScoreSDE trained with uniform noise: its flow",
            published=_PUBLISHED["score-sde-uniform"],
            columns=_GREY,
            data=("denoiser-uniform", _FLOW),
            note="uniform noise",
        ),
    )
    columns = (
        Column("mnist", "MNIST"),
        Column("fashion-mnist", "Fashion-MNIST"),
        Column("cifar10-jpeg", "CIFAR-10 (JPEG)"),
    )
    seeds = 1
    notes = (
        "Published: much larger networks, trained far longer on accelerators; CIFAR-10 without JPEG.",
        "A pixel that says nothing of the others needs 8 bits if all levels are alike.",
        "Uniform noise: levels are spread over the gaps between them, a model of real numbers learns that, and points "
        "are rounded down. Gaussian noise: points are levels with the least noise that a diffusion learns, and decoded "
        "as its last step does. Each is a limit from above, of two ways to make images of points.",
        "A diffusion has a flow and a stochastic equation. With the right score they are one model; with a learned "
        "one they are two, and the bound of the equation may lie on either side of the flow.",
        "Networks of diffusion models and PixelCNN++ have 110,000 to 120,000 parameters, with about as many minutes of "
        "training as the flows.",
    )

    def describe(self, scale: str) -> str:
        e = EQUATIONS[scale]
        return f"{BUDGETS[scale].describe()}; equations: {e.images} of them, {e.steps} steps of Runge and Kutta"

    def _way(self, cell: Cell) -> tuple[str, str]:
        """Its recipe, and which likelihood of the model it is about."""
        return self.row(cell.row).data or (cell.row, _BOUND)

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        b, (recipe, kind) = BUDGETS[scale], self._way(cell)
        recipes = described(RECIPES[scale], (recipe,))
        found = {"data": b.data or cell.column, "n_train": b.n_train, "n_test": b.n_test, "recipes": recipes}
        if kind == _BOUND:
            return found
        return found | {"of": kind, "equations": asdict(EQUATIONS[scale]), "flow": with_defaults(ScoreSDE, {})}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        b, (recipe, kind) = BUDGETS[scale], self._way(cell)
        data = b.data or cell.column
        train = cache.drawn(data, "train", b.n_train)
        test = cache.drawn(data, "test", b.n_test)
        trained = TrainedModels(cache, RECIPES[scale], train, cell.seed)
        model, x = trained.model(recipe), cache.put(test)[0]
        if kind == _BOUND:
            _, numbers = measured(model, x)
            value = numbers["bits a dimension"]["value"]
        else:
            value, numbers = _of_equations(model, kind, x, EQUATIONS[scale])
        return Measurement(value=value, numbers=numbers, history=trained.history)

    def conclusion(self, kept: Kept, kept_of: KeptOf) -> str:
        titles, said = {row.key: row.title for row in self.rows}, []
        for column in self.columns:
            found = sorted((c["value"], titles[c["row"]]) for c in kept.values() if c["column"] == column.key)
            if any(title not in ("RealNVP", "Glow") for _, title in found):
                said.append(f"{column.title}: " + "; ".join(f"{title} {short(value)}" for value, title in found))
        return "Fewest bits first. " + ". ".join(said) + "." if said else ""


@torch.no_grad()
def _of_equations(model: Any, kind: str, x: Tensor, e: _Equations) -> tuple[float, dict[str, dict[str, float]]]:
    """Bits a dimension by the flow or by the bound of the stochastic equation, and what there is to compare."""
    flow = _with(model if isinstance(model, ScoreSDE) else ScoreSDE(model), steps=e.steps)
    x = x[: e.images]

    def bits(nats: Tensor) -> float:
        return bits_per_dim(-nats.double().mean(), flow.dimensions).item()

    numbers: dict[str, float] = {}
    if flow.dequantization == "gaussian":
        numbers["bound of the equation, bits"] = bits(torch.cat([flow.sde_log_prob(v, e.terms) for v in x.split(100)]))
    if kind == _SDE:
        return numbers["bound of the equation, bits"], counted(numbers, len(x))
    _, found = measured(flow, x)
    if flow.dequantization == "gaussian":
        numbers["scored with uniform noise, bits"] = bits(_by(_with(flow, dequantization="uniform"), x))
    numbers["without clipping, bits"] = bits(_by(_with(flow, clip=False), x))
    if isinstance(model, DDPM):
        numbers["bound of the same images, bits"] = bits(model.log_prob(x))
    few = x[: e.checked]
    finer, signs = flow.solver_error(few).double(), (_by(_with(flow, draws=e.draws), few) - _by(flow, few)).double()
    checks = {
        "twice the steps: change in nats": -finer.mean().item(),
        "twice the steps: largest change": finer.abs().max().item(),
        f"signs {e.draws} times: change in nats": -signs.mean().item(),
        f"signs {e.draws} times: standard deviation": signs.std().item(),
    }
    return found["bits a dimension"]["value"], found | counted(numbers, len(x)) | counted(checks, len(few))


def _by(flow: ScoreSDE, x: Tensor) -> Tensor:
    """log_prob (N,) of images, in batches."""
    return torch.cat([flow.log_prob(part) for part in x.split(100)])


def _with(flow: ScoreSDE, **options: Any) -> ScoreSDE:
    """The same flow with other ``options``."""
    return ScoreSDE(flow.base, **{k: v for k, v in flow.config.items() if k != "base"} | options).eval()


EXPERIMENT = _Table()
