"""What flows save, each case against the plain way of doing the same, both sides in one process, interleaved.

Seconds are those of the processor, on one thread, so that other programs count for little.

``maf-inverse``: the inverse of a masked autoregressive step of 64 numbers, width 512 and 100 rows, each weight used
once, against a pass through the whole network for each number. Aim: at least D / 8 = 8 times as fast.

``glow``: invertible 1 x 1 convolutions by their LU factors, the inverse taken once in a sampling call, against a kernel
whose log |det W| is computed anew at each step and which is solved for each pixel: one convolution forwards and
backwards, a training step of a whole Glow, and samples of it.

``glf-epoch``: an epoch of a GLF, autoencoder and flow in one loop, against an epoch of the same autoencoder alone and
one of the same flow alone, on codes at hand. Aim: no more than 1.1 times as long, a ratio of at least 0.91.

``epochs``: the seconds of an epoch of Table 3.5 as ratios, published ones beside them.

``sample-metrics``: Frechet distance, precision, recall, density, coverage, F_8, F_1/8 and class scores of 10,000 images
beside 10,000, of features that are computed once, against features for each of these four groups.

``python benchmarks/flows.py [--case maf-inverse] [--out results/benchmarks]``; ``--tiny`` only tries whether it runs.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from sides import Rows, Side, compare
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen import networks
from robustgen.data import ArrayDataset
from robustgen.evaluation import FeatureNetwork
from robustgen.evaluation.sample_metrics import (
    Weights,
    class_measures,
    frechet_distances,
    manifold_measures,
    prd_measures,
)
from robustgen.generative import GLF, GenerativeModel, Glow, TwoStageVAE
from robustgen.generative.flows.glow import InvertibleConv
from robustgen.generative.flows.maf import MaskedAutoregressive
from robustgen.generative.flows.transform import Transform
from robustgen.training import Batch

DIM, WIDTH, BATCH = 64, 512, 100


@torch.no_grad()
def in_full_passes(step: MaskedAutoregressive, y: Tensor) -> Tensor:
    """The x of y (N, D): of each number in turn, what a whole pass says of it."""
    x = torch.zeros_like(y)
    for i in range(y.shape[1]):
        m, a = step.made(x)[:, :, i].unbind(1)
        x[:, i] = m + y[:, i] * (5 * torch.tanh(a / 5)).exp()
    return x


def maf_inverse(tiny: bool) -> Rows:
    """Rows with one and two hidden layers; small enough as it is."""
    for layers in (1, 2):
        step, y = MaskedAutoregressive(DIM, WIDTH, layers), torch.randn(BATCH, DIM)
        for p in step.parameters():
            torch.nn.init.normal_(p, std=0.05)

        def fast(step: MaskedAutoregressive = step, y: Tensor = y) -> Tensor:
            with torch.no_grad():
                return step.inverse(y)

        def slow(step: MaskedAutoregressive = step, y: Tensor = y) -> Tensor:
            return in_full_passes(step, y)

        torch.testing.assert_close(fast(), slow(), rtol=1e-4, atol=1e-4)
        yield {"hidden layers": layers, "numbers": DIM, "width": WIDTH, "rows": BATCH}, slow, fast


class WholeKernel(Transform):
    """A 1 x 1 convolution whose kernel is the parameter."""

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.kernel = nn.Parameter(kernel.detach().clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = math.prod(x.shape[2:]) * torch.linalg.slogdet(self.kernel)[1]
        return F.conv2d(x, self.kernel[..., None, None]), log_det.expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return torch.linalg.solve(self.kernel, y.flatten(2)).view_as(y)


def with_whole_kernels(model: nn.Module) -> nn.Module:
    """The same model, with the same values of its kernels."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, InvertibleConv):
                setattr(parent, name, WholeKernel(child.kernel()))
    return model


def glow(tiny: bool) -> Rows:
    """One convolution at several widths, a step of a whole model, samples of it."""

    def passes(conv: Transform, x: Tensor) -> Side:
        def run() -> None:
            y, log_det = conv(x)
            (y.sum() + log_det.sum()).backward()

        return run

    for channels in (4,) if tiny else (12, 48, 192):
        conv, x = InvertibleConv(channels), torch.randn(16, channels, 8, 8)
        plain = WholeKernel(conv.kernel())
        torch.testing.assert_close(plain(x), tuple(conv(x)), rtol=1e-3, atol=1e-3)
        what = {"of": "a convolution, forwards and backwards", "channels": channels}
        yield what, passes(plain, x), passes(conv, x)
    shape, sizes = ((1, 8, 8), {"scales": 2, "width": 4}) if tiny else ((3, 32, 32), {"scales": 3, "width": 64})
    model = Glow(shape, flow_steps=2 if tiny else 8, **sizes).train()
    x = torch.randint(0, 256, (4 if tiny else 32, *shape)) / 255
    batch = Batch(x, None, torch.arange(len(x)))
    model.training_step(batch, 0)  # actnorms begin
    other = with_whole_kernels(model)
    values = []
    for one in (model, other):
        torch.manual_seed(1)
        values.append(one.training_step(batch, 1)["loss"].detach())
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-2)

    def step(model: nn.Module) -> Side:
        return lambda: model.training_step(batch, 1)["loss"].backward()

    yield {"of": "a training step", "shape": list(shape), "batch": len(x)}, step(other), step(model)

    def samples(model: nn.Module) -> Side:
        model = copy.deepcopy(model).eval()
        return lambda: model.sample(len(x))

    yield {"of": "samples", "shape": list(shape), "n": len(x)}, samples(other), samples(model)


def glf_epoch(tiny: bool) -> Rows:
    """Of images of MNIST's size, with the architecture and the flow of the paper."""
    shape, options, n, size = ((1, 28, 28), {}, 1000, 100)
    if tiny:
        shape, options, n, size = (1, 8, 8), {"latent_dim": 2, "width": 4, "flow_width": 8}, 8, 4
    whole = GLF(shape, **options).train()
    parts, x = copy.deepcopy(whole), torch.rand(n, *shape)
    with torch.no_grad():
        codes = copy.deepcopy(whole).eval().encode(x)
    both = whole.optimizer(whole.parameters())
    own = {id(p) for p in parts.flow.parameters()}
    coder = torch.optim.Adam([p for p in parts.parameters() if id(p) not in own], lr=1e-3)
    flow = torch.optim.Adam(parts.flow.parameters(), lr=1e-3, weight_decay=2e-5)

    def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def ours() -> None:
        for some in torch.arange(n).split(size):
            descend(both, whole.training_step(Batch(x[some], None, some), 1)["loss"])

    def plain() -> None:
        for some in torch.arange(n).split(size):
            images = x[some]
            error = (images - parts.decode(parts.encode(images))).square().flatten(1).sum(1)
            descend(coder, error.mean() / 2)
        for some in torch.arange(n).split(size):
            descend(flow, -parts.flow.log_prob(codes[some]).mean())

    yield {"shape": list(shape), "images": n, "batch": size}, plain, ours


def epochs(tiny: bool) -> Rows:
    """Table 3.5 of the source in ratios: models with the same encoder and decoder, of images of MNIST's size."""
    shape, n, size = ((1, 8, 8), 8, 4) if tiny else ((1, 28, 28), 1000, 100)
    coder: dict[str, Any] = {"latent_dim": 2, "width": 4} if tiny else {}
    x = torch.rand(n, *shape)
    two = TwoStageVAE(shape, first_steps=1, **coder).train()
    perceiving = GLF(shape, perceptual=["1", "3", "5"], **coder).train()
    perceiving.perceive(networks.convnet(shape[0], 10, image_size=shape[1], width=16))

    def epoch(model: GenerativeModel, step: int) -> Callable[[], None]:
        player = model.players[model.player_at(step)] if model.players else model
        optimizer = model.optimizer(player.parameters())

        def run() -> None:
            for some in torch.arange(n).split(size):
                optimizer.zero_grad()
                model.training_step(Batch(x[some], None, some), step)["loss"].backward()
                optimizer.step()

        return run

    glf = epoch(GLF(shape, **coder).train(), 0)
    sizes = {"shape": list(shape), "images": n, "batch": size}
    yield sizes | {"of": "GLF, against the first stage of a two-stage VAE", "published": 0.5}, epoch(two, 0), glf
    yield sizes | {"of": "GLF, against the second stage", "published": 0.2}, epoch(two, 1), glf
    yield sizes | {"of": "GLF, against GLF with a perceptual loss", "published": 1.6}, epoch(perceiving, 0), glf


def sample_metrics(tiny: bool) -> Rows:
    """Of noise: what is timed does not depend on what the images show."""
    n, shape = (40, (1, 8, 8)) if tiny else (10_000, (1, 28, 28))
    network = FeatureNetwork(networks.strided(shape[0], 10, shape[1:]).eval(), name="small classifier")
    sides = [ArrayDataset(torch.rand(n, *shape)) for _ in range(2)]
    metrics: list[Callable[..., Any]] = [
        lambda x, y, w: frechet_distances(x[0], y[0], w),
        lambda x, y, w: manifold_measures(x[0], y[0], w),
        lambda x, y, w: prd_measures(x[0], y[0], w, 0),
        lambda x, y, w: class_measures(x[1], y[1], w),
    ]

    def of(found: list[Any], metric: Callable[..., Any]) -> Any:
        return metric(*found, Weights.once(*(features for features, _ in found)))

    def ours() -> None:
        found = [network.of(side) for side in sides]
        for metric in metrics:
            of(found, metric)

    def plain() -> None:
        for metric in metrics:
            of([network.of(side) for side in sides], metric)

    yield {"images": n, "shape": list(shape)}, plain, ours


# With rounds enough for the spread, few enough for minutes.
CASES: dict[str, tuple[Callable[[bool], Rows], int]] = {
    "maf-inverse": (maf_inverse, 30),
    "glow": (glow, 20),
    "glf-epoch": (glf_epoch, 10),
    "epochs": (epochs, 10),
    "sample-metrics": (sample_metrics, 5),
}


if __name__ == "__main__":
    compare(CASES, "flows", __doc__)
