"""How a fortified network's reconstruction error, and other detectors, rank what is off the manifold of natural images.

A ResNet-18 is trained, fortified at "auto", and its autoencoders are fitted, as :func:`fortify` is used on a pretrained
network. Each detector is fitted on training images and ranks test images against uniform noise, images of one colour,
blurred test images and PGD. Below 0.5 an AUROC says that the detector takes these for more usual than test images.

``python benchmarks/natural_images.py --images FOLDER [--name NAME] [--out results/benchmarks]``; FOLDER holds ``train``
and ``test``, with a folder for each class.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen import data, detectors
from robustgen.attacks import PGD
from robustgen.evaluation.metrics import auroc
from robustgen.files import environment, write_json
from robustgen.fortified import fortify
from robustgen.networks import build
from robustgen.training import ClassifierObjective, CropAndFlip, OnDeformed, Trainer
from robustgen.training.schedules import cosine
from robustgen.turns import seeded, warnings_set_to


def populations(net: nn.Module, x: Tensor, y: Tensor, seed: int, eps: float) -> dict[str, Tensor]:
    """What is off the manifold, as many as there are rows of x."""
    colours = data.noise(len(x), (x.shape[1], 1, 1), seed=seed + 1).images()
    return {
        "uniform noise": data.noise(len(x), x.shape[1:], seed=seed).images(),
        "one colour": colours.expand_as(x).contiguous(),
        "blurred": F.avg_pool2d(F.pad(x, [3] * 4, mode="reflect"), 7, 1),
        "PGD": PGD(eps=eps, steps=20, seed=seed, early_stop=False)(net, x, y),
    }


def measured(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What each detector makes of one network."""
    train = data.load_folder(options.images / "train", n=options.n)
    test = data.load_folder(options.images / "test", n=options.few)
    x, y = test.images(), test.labels()
    with seeded(seed):
        bare = build(options.model, x[:2], len(train.classes or ()), options.width)
    common: dict[str, Any] = {"batch_size": 64, "seed": seed, "progress": False}
    objective = OnDeformed(ClassifierObjective(), CropAndFlip())
    Trainer(objective, epochs=options.epochs, schedule=cosine, **common).fit(bare, train)
    bare.eval()
    net = fortify(bare, "auto", example_input=x[:2])
    with warnings_set_to("ignore"):  # that decisions change, which the accuracies below tell
        net.fit_autoencoders(train, epochs=options.fit_epochs, **common)
    net.eval()
    contenders: dict[str, detectors.Detector] = {
        "reconstruction error": detectors.ReconstructionError(net),
        **{f"reconstruction error, layer {name}": detectors.ReconstructionError(net, name) for name in net.layers},
        "reconstruction error, relative": detectors.ReconstructionError(net, relative=True),
        "MaxSoftmax": detectors.MaxSoftmax(bare),
        "Energy": detectors.Energy(bare),
        "Mahalanobis": detectors.Mahalanobis(bare),
        "KNearestFeatures": detectors.KNearestFeatures(bare),
        "NearestNeighbour": detectors.NearestNeighbour(),
        "CompressedSize": detectors.CompressedSize(),
        "MeanBrightness": detectors.MeanBrightness(),
    }
    others = populations(bare, x, y, seed, options.eps)
    row: dict[str, Any] = {"seed": seed, "AUROC": {}}
    for name, detector in contenders.items():
        with torch.no_grad():
            known = detector.fit(train.take(2000)).score(x).double()
            row["AUROC"][name] = {k: auroc(known, detector.score(z).double()) for k, z in others.items()}
        print(name, row["AUROC"][name], flush=True)
    with torch.no_grad():
        for name, network in (("bare", bare), ("fortified", net)):
            row[f"accuracy, {name}"] = 100 * (network(x).argmax(1) == y).double().mean().item()
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--name", default="images", help="of the data, in the record")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--n", type=int, default=6_000, help="training images")
    parser.add_argument("--few", type=int, default=300, help="test images")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=4, help="of the network")
    parser.add_argument("--fit-epochs", type=int, default=2, help="of the autoencoders")
    parser.add_argument("--eps", type=float, default=8 / 255)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    scale = {k: v for k, v in vars(options).items() if k not in ("images", "name", "out")}
    for seed in range(options.seeds):
        rows.append(measured(seed, options))
        if options.out is not None:
            record = {"data": options.name, "rows": rows, "scale": scale, "environment": environment()}
            write_json(options.out / "natural_images.json", record)


if __name__ == "__main__":
    main()
