"""CIFAR-10 at Linf 8/255: a small residual network, and a ResNet-18 for an accelerator.

The latter's PGD, of 10 steps of 2/255, and weight decay are those of Rice, Wong and Kolter, "Overfitting in
adversarially robust deep learning", 2020; the cyclic rate up to 0.2, over few epochs, that of Wong, Rice and Kolter,
"Fast is better than free", 2020, section 5.2.
"""

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
    model="resnet8",
    width=32,
    start_in_bounds=True,  # few pixels are at a bound: clamping the start takes little of it away
    epochs=20,
    lr=5e-3,
    schedule="cyclic",
    augment=True,
)
MADRY = replace(FAST, name="cifar10-madry", method="madry")
TRADES = replace(FAST, name="cifar10-trades", method="trades")  # beta of its paper, 6
RESNET18 = replace(
    FAST,
    name="cifar10-resnet18",
    method="madry",
    steps=10,
    step_size=2 / 255,
    model="resnet18",
    width=64,
    epochs=15,
    batch_size=256,
    lr=0.2,
    optimizer="sgd",
    weight_decay=5e-4,
)
