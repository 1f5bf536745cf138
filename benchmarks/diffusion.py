"""What denoising diffusion GANs save, each case against the plain way, both sides in one process, interleaved.

``discriminator-step``: gradients of a discriminator's step by code as it is published, which goes back through the
generator too and, where R1 is due, walks three times through the discriminator; against one walk, without the
generator. Rows with R1 and without; both give the same gradients. Aim: at least 1.3 times as fast.

``samples``: 100 images in four steps, against the 1,000 of DDPM with a U-Net of the same sizes. Aim: a hundredth of the
time (Xiao et al., 2022, on larger networks: 0.21 s against 80.5 s).

``python benchmarks/diffusion.py [--case samples] [--out results/benchmarks]``; ``--tiny`` only tries whether it runs.
"""

from typing import Any

import torch
from sides import Rows, Side, compare
from torch.nn import functional as F

from robustgen.generative import DDGAN, DDPM
from robustgen.training import Batch


def as_published(model: DDGAN, batch: Batch, pays: bool) -> None:
    """The real pair, R1 and the generated one go back one after the other."""
    u_s, u_t, s, t = model._pair(2 * batch.x - 1)
    fake = model._back(u_t, t, s)
    on_real = model.discriminator(u_s.requires_grad_(), u_t, t)
    F.softplus(-on_real).mean().backward(retain_graph=pays)
    if pays:
        (gradient,) = torch.autograd.grad(on_real.sum(), u_s, create_graph=True)
        (model.r1 / 2 * model.r1_every * gradient.flatten(1).norm(dim=1).square().mean()).backward()
    F.softplus(model.discriminator(fake, u_t, t)).mean().backward()


def in_one_walk(model: DDGAN, batch: Batch, pays: bool) -> None:
    """As the trainer does it; the generator is frozen in this player's turn."""
    model.generator.requires_grad_(False)
    model.training_step(batch, 0 if pays else 2)["loss"].backward()
    model.generator.requires_grad_(True)


def discriminator_step(tiny: bool) -> Rows:
    """On images of MNIST's size."""
    shape, options, n = ((1, 8, 8), {"width": 4, "levels": 2}, 4) if tiny else ((1, 28, 28), {}, 64)
    model = DDGAN(shape, r1_every=2, **options).train()
    batch = Batch(torch.rand(n, *shape), None, torch.arange(n))

    def side(step: Any, pays: bool) -> Side:
        def run() -> list[torch.Tensor]:
            model.zero_grad(set_to_none=True)
            step(model, batch, pays)
            return [p.grad.clone() for p in model.discriminator.parameters() if p.grad is not None]

        return run

    for pays in (False, True):
        plain, ours, found = side(as_published, pays), side(in_one_walk, pays), []
        for one in (plain, ours):
            torch.manual_seed(1)
            found.append(one())
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
        yield {"R1": pays, "shape": list(shape), "batch": n}, plain, ours


def samples(tiny: bool) -> Rows:
    """By untrained networks: what is timed does not depend on what the images show."""
    shape, sizes, n = ((1, 8, 8), {"width": 4, "levels": 2}, 4) if tiny else ((1, 28, 28), {"width": 16}, 100)
    steps = 20 if tiny else 1000
    ours = DDGAN(shape, **sizes).eval()
    plain = DDPM(shape, schedule="vp", steps=steps, sample_steps=steps, **sizes).eval()
    yield {"shape": list(shape), "n": n, "steps": steps}, lambda: plain.sample(n), lambda: ours.sample(n)


# With rounds enough for the spread, few enough for minutes.
CASES = {"discriminator-step": (discriminator_step, 20), "samples": (samples, 2)}


if __name__ == "__main__":
    compare(CASES, "diffusion", __doc__)
