"""scikit-learn's digits, 8x8 pixels, at Linf 0.15.

A single step starts outside the bounds, as on MNIST: many pixels are at a bound. Sixty epochs are few steps here.
"""

from dataclasses import replace

from robustgen.training.recipes.recipe import Recipe

__all__ = ["FAST", "MADRY", "TRADES"]

FAST = Recipe(
    name="digits-fast",
    data="digits",
    shape=(1, 8, 8),
    n_classes=10,
    method="fast",
    eps=0.15,
    model="convnet",
    width=16,
    start_in_bounds=False,
    epochs=60,
    batch_size=64,
    lr=5e-3,
    schedule="cyclic",
)
MADRY = replace(FAST, name="digits-madry", method="madry")
TRADES = FAST.derived(name="digits-trades", method="trades", beta=6.0)
