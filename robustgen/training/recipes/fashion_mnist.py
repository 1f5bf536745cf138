"""Fashion-MNIST at Linf 0.1: the settings of MNIST at a smaller radius.

As there the single step starts outside the bounds, and the multi-step methods begin with single steps; at this radius
fewer steps and epochs do.
"""

from dataclasses import replace

from robustgen.training.recipes.recipe import Recipe

__all__ = ["FAST", "MADRY", "TRADES"]

FAST = Recipe(
    name="fashion-mnist-fast",
    data="fashion-mnist",
    shape=(1, 28, 28),
    n_classes=10,
    method="fast",
    eps=0.1,
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
    name="fashion-mnist-madry",
    method="madry",
    width=32,
    single_step_epochs=2,
    steps=7,
    ema=0.999,
)
TRADES = replace(MADRY, name="fashion-mnist-trades", method="trades", beta=6.0)
