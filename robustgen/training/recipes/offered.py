"""The recipes that the library offers, for four data sets: each with what decided its settings."""

from dataclasses import replace

from robustgen.training.recipes.recipe import Recipe

__all__ = ["OFFERED"]

# MNIST at Linf 0.3.
#
# Half of the random start vanishes where it is clamped to the bounds on black pixels, and single-step training then
# overfits its attack: it starts outside the bounds, as in Wong, Rice and Kolter, "Fast is better than free", 2020. The
# multi-step methods at full eps from the first step on may never leave log 10: they begin with single steps.

_MNIST_FAST = Recipe(
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
_MNIST_MADRY = replace(
    _MNIST_FAST,
    name="mnist-madry",
    method="madry",
    width=32,
    single_step_epochs=4,
    steps=10,
    epochs=30,
    ema=0.999,
)
_MNIST_TRADES = replace(_MNIST_MADRY, name="mnist-trades", method="trades", beta=4.0)

# Fashion-MNIST at Linf 0.1: the settings of MNIST at a smaller radius.
#
# As there the single step starts outside the bounds, and the multi-step methods begin with single steps; at this radius
# fewer steps and epochs do.

_FASHION_FAST = Recipe(
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
_FASHION_MADRY = replace(
    _FASHION_FAST,
    name="fashion-mnist-madry",
    method="madry",
    width=32,
    single_step_epochs=2,
    steps=7,
    ema=0.999,
)
_FASHION_TRADES = replace(_FASHION_MADRY, name="fashion-mnist-trades", method="trades", beta=6.0)

# CIFAR-10 at Linf 8/255: a small residual network, and a ResNet-18 for an accelerator.
#
# The latter's PGD, of 10 steps of 2/255, and weight decay are those of Rice, Wong and Kolter, "Overfitting in
# adversarially robust deep learning", 2020; the cyclic rate up to 0.2, over few epochs, that of Wong, Rice and Kolter,
# "Fast is better than free", 2020, section 5.2.

_CIFAR10_FAST = Recipe(
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
_CIFAR10_MADRY = replace(_CIFAR10_FAST, name="cifar10-madry", method="madry")
_CIFAR10_TRADES = replace(_CIFAR10_FAST, name="cifar10-trades", method="trades")  # beta of its paper, 6
_CIFAR10_RESNET18 = replace(
    _CIFAR10_FAST,
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

# scikit-learn's digits, 8x8 pixels, at Linf 0.15.
#
# A single step starts outside the bounds, as on MNIST: many pixels are at a bound. Sixty epochs are few steps here.

_DIGITS_FAST = Recipe(
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
_DIGITS_MADRY = replace(_DIGITS_FAST, name="digits-madry", method="madry")
_DIGITS_TRADES = _DIGITS_FAST.derived(name="digits-trades", method="trades", beta=6.0)

OFFERED: tuple[Recipe, ...] = (
    _MNIST_FAST,
    _MNIST_MADRY,
    _MNIST_TRADES,
    _FASHION_FAST,
    _FASHION_MADRY,
    _FASHION_TRADES,
    _CIFAR10_FAST,
    _CIFAR10_MADRY,
    _CIFAR10_RESNET18,
    _CIFAR10_TRADES,
    _DIGITS_FAST,
    _DIGITS_MADRY,
    _DIGITS_TRADES,
)
