"""CIFAR-10 at Linf 8/255: a small residual network, and a ResNet-18 for an accelerator."""

from dataclasses import replace

from robustgen.training.recipes.recipe import Recipe

__all__ = ["FAST", "MADRY", "RESNET18", "TRADES"]

FAST = Recipe(
    name="cifar10-fast",
    data="cifar10",
    shape=(3, 32, 32),
    n_classes=10,
    method="fast",
    eps=8 / 255,
    model="resnet",
    width=16,
    epochs=20,
    lr=5e-3,
    schedule="cyclic",
    augment=True,
)
MADRY = replace(FAST, name="cifar10-madry", method="madry")
TRADES = replace(FAST, name="cifar10-trades", method="trades")
RESNET18 = replace(FAST, name="cifar10-resnet18", method="madry")
