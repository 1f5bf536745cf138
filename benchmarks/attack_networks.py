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

__all__ = ["NETWORKS", "Network", "prepared", "slug"]


@dataclass(frozen=True)
class Network:
    """How a network is built for images of some channels and size, and what it learns from.

    ``data``: name of the set, of which ``n_train`` images are learned from; ``eps``: of the Linf attack, and of its
    training where ``robust``; ``steps``: of PGD; ``samples``: attacked by PGD, and by AutoAttack (0: not measured).
    """

    build: Callable[[int, int], nn.Module]
    data: str
    eps: float
    steps: int
    epochs: int = 1
    n_train: int = 10_000
    robust: bool = False
    samples: tuple[int, int] = (128, 128)


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
    "convnet, adversarially trained": Network(
        _convnet, "mnist", 0.3, 40, epochs=6, robust=True, n_train=20_000, samples=(128, 64)
    ),
    "resnet18": Network(_resnet18, "cifar10-jpeg", 8 / 255, 10, n_train=5000, samples=(64, 0)),
    "small resnet with batch norm": Network(
        lambda c, s: resnet(c, 10, norm="batch"),
        "cifar10-jpeg",
        8 / 255,
        10,
        epochs=2,
        robust=True,
        n_train=5000,
        samples=(128, 0),
    ),
    "vit-tiny": Network(_vit_tiny, "cifar10-jpeg", 8 / 255, 10, n_train=20_000, samples=(128, 0)),
}


def prepared(
    name: str, work: Path, root: Path | None, smoke: bool, n: int, device: torch.device
) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, trained on ``device``, in eval mode, and ``n`` test images with their labels, all of them there.

    Raises:
        FileNotFoundError, ValueError: its data set is not to be had.
    """
    recipe = NETWORKS[name]
    train, test = (_data(recipe, split, root, smoke) for split in ("train", "test"))
    _, channels, size, _ = train.x.shape
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = recipe.build(channels, size).to(device)
    path = work / f"{slug(name)}{'-smoke' if smoke else ''}.safetensors"
    if path.is_file():
        load_state(net, load_tensors(path), path)
    else:
        attack = PGD(eps=recipe.eps, steps=7, step_size=recipe.eps / 4) if recipe.robust else None
        objective = ClassifierObjective(
            attack
        )  # clean inputs too: from attacked ones alone it would not begin to learn
        data = train.first(512 if smoke else recipe.n_train)
        Trainer(objective, epochs=4 if smoke else recipe.epochs, progress=False).fit(net, data)
        save_tensors(path, net.state_dict())
    test = test.first(n)
    return net.eval(), test.images().to(device), test.labels().to(device)


def slug(name: str) -> str:
    """The network's name in names of files."""
    return name.replace(", ", "-").replace(" ", "-")


def _data(recipe: Network, split: str, root: Path | None, smoke: bool) -> ArrayDataset:
    if smoke:
        return load("digits", split=split)
    if recipe.data != "cifar10-jpeg":
        return load(recipe.data, split=split, root=root)
    if root is None or not (root / recipe.data).is_dir():
        raise FileNotFoundError(f"--data-root must hold {recipe.data}, a folder of images")
    images = load(root / recipe.data, split=split, n=recipe.n_train)  # evenly spaced: its files are sorted by class
    return images.subset(torch.randperm(len(images), generator=torch.Generator().manual_seed(0)))
