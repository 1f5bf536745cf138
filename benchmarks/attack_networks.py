"""The networks that benchmarks/attacks.py attacks, trained once and kept in a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer, resnet18

from robustgen.attacks import PGD
from robustgen.data import ArrayDataset, load
from robustgen.files import load_state, load_tensors, save_tensors
from robustgen.networks import convnet, resnet
from robustgen.training import ClassifierObjective, Trainer

__all__ = ["NETWORKS", "Network", "prepared"]


@dataclass(frozen=True)
class Network:
    """How a network is built for images of some channels and size, and what it learns from.

    ``data``: name of the set. ``eps``: of the Linf attack, and of its training where ``robust``. ``steps``: of PGD.
    """

    build: Callable[[int, int], nn.Module]
    data: str
    eps: float
    steps: int
    epochs: int = 1
    robust: bool = False


def _resnet18(channels: int, size: int) -> nn.Module:
    """For small images: a first convolution of 3x3, no max-pool."""
    net = resnet18(num_classes=10)
    net.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net


def _vit_tiny(channels: int, size: int) -> nn.Module:
    net = VisionTransformer(size, size // 8, num_layers=4, num_heads=3, hidden_dim=96, mlp_dim=192, num_classes=10)
    net.conv_proj = nn.Conv2d(channels, 96, size // 8, size // 8)
    nn.init.normal_(net.heads.head.weight, std=0.02)  # zero at first, as its gradient would be
    return net


def _convnet(channels: int, size: int) -> nn.Module:
    return convnet(channels, 10, size)


NETWORKS = {
    "convnet": Network(_convnet, "mnist", 0.3, 40),
    "convnet, adversarially trained": Network(_convnet, "mnist", 0.3, 40, epochs=5, robust=True),
    "resnet18": Network(_resnet18, "cifar10-jpeg", 8 / 255, 10),
    "small resnet with batch norm": Network(lambda c, s: resnet(c, 10, norm="batch"), "cifar10-jpeg", 8 / 255, 10),
    "vit-tiny": Network(_vit_tiny, "cifar10-jpeg", 8 / 255, 10),
}


def prepared(name: str, work: Path, root: Path | None, smoke: bool, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The trained network in eval mode and ``n`` test images with their labels.

    Raises:
        FileNotFoundError, ValueError: its data set is not to be had.
    """
    recipe = NETWORKS[name]
    train, test = (_data(recipe, split, root, smoke) for split in ("train", "test"))
    _, channels, size, _ = train.x.shape
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = recipe.build(channels, size)
    path = work / f"{name.replace(', ', '-').replace(' ', '-')}{'-smoke' if smoke else ''}.safetensors"
    if path.is_file():
        load_state(net, load_tensors(path), path)
    else:
        attack = PGD(eps=recipe.eps, steps=7, step_size=recipe.eps / 4) if recipe.robust else None
        objective = ClassifierObjective(attack, clean_weight=0.0 if recipe.robust else 1.0)
        data = train.take(512) if smoke else train
        Trainer(objective, epochs=4 if smoke else recipe.epochs, progress=False).fit(net, data)
        save_tensors(path, net.state_dict())
    test = test.take(n)
    return net.eval(), test.images(), test.y


def _data(recipe: Network, split: str, root: Path | None, smoke: bool) -> ArrayDataset:
    return load("digits", split=split) if smoke else load(recipe.data, split=split, root=root)
