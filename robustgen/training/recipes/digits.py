"""scikit-learn's digits, 8x8 pixels, at Linf 0.15."""

from dataclasses import replace

from robustgen.training.recipes import mnist

__all__ = ["FAST", "MADRY", "TRADES"]

FAST = replace(
    mnist.FAST, name="digits-fast", data="digits", shape=(1, 8, 8), eps=0.15, model="convnet", epochs=60, batch_size=64
)
MADRY = replace(FAST, name="digits-madry", method="madry")
TRADES = replace(FAST, name="digits-trades", method="trades", beta=6.0)
