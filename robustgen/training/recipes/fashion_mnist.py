"""Fashion-MNIST at Linf 0.1."""

from dataclasses import replace

from robustgen.training.recipes import mnist

__all__ = ["FAST", "MADRY", "TRADES"]

FAST = replace(mnist.FAST, name="fashion-mnist-fast", data="fashion-mnist", eps=0.1)
MADRY = replace(mnist.MADRY, name="fashion-mnist-madry", data="fashion-mnist", eps=0.1)
TRADES = replace(mnist.TRADES, name="fashion-mnist-trades", data="fashion-mnist", eps=0.1)
