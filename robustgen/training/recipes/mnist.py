"""MNIST at Linf 0.3.

Half of the random start vanishes where it is clamped to the bounds on black pixels, and single-step training then
overfits its attack: it starts outside the bounds, as in Wong, Rice and Kolter, "Fast is better than free", 2020. The
multi-step methods at full eps from the first step on may never leave log 10: they begin with single steps.
"""

from dataclasses import replace

from robustgen.training.recipes.recipe import Recipe

__all__ = ["FAST", "MADRY", "TRADES"]

FAST = Recipe(
    name="mnist-fast",
    data="mnist",
    shape=(1, 28, 28),
    n_classes=10,
    method="fast",
    eps=0.3,
    model="strided",
    width=16,
    start_in_bounds=False,
    epochs=12,
    batch_size=100,
    lr=5e-3,
    schedule="cyclic",
)
MADRY = replace(
    FAST,
    name="mnist-madry",
    method="madry",
    width=32,
    single_step_epochs=4,
    steps=10,
    epochs=30,
    ema=0.999,
)
TRADES = replace(MADRY, name="mnist-trades", method="trades", beta=4.0)
