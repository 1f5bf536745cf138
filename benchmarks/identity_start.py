"""What fortifying a pretrained network costs, with autoencoders that start as the identity or at random.

A convnet is trained, fortified at "auto", and its autoencoders are fitted for 0, 1 and 5 epochs; its accuracy on all
test images stands beside that of the network as it was, and the AUROC of ReconstructionError against uniform noise and
PGD (on the network as it was) on some of them. Nothing is fitted in 0 epochs: there errors are rounding, or arbitrary.

``python benchmarks/identity_start.py --data-root DIR [--out results/benchmarks]``
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustgen import data
from robustgen.attacks import PGD
from robustgen.detectors import ReconstructionError
from robustgen.evaluation.metrics import auroc
from robustgen.files import environment, write_json
from robustgen.fortified import fortify
from robustgen.networks import convnet
from robustgen.training import ClassifierObjective, Trainer
from robustgen.turns import seeded, warnings_set_to

EPOCHS = (0, 1, 5)


def accuracy(net: nn.Module, test: data.ArrayDataset) -> float:
    """In percent."""
    with torch.no_grad():
        hits = [
            net(test.batch(rows)[0]).argmax(1) == test.labels()[rows] for rows in torch.arange(len(test)).split(500)
        ]
    return 100 * torch.cat(hits).double().mean().item()


def measured(name: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each start and number of epochs."""
    train = data.load(name, split="train", root=options.data_root, n=options.n)
    test = data.load(name, split="test", root=options.data_root)
    with seeded(seed):
        bare = convnet(1, 10, 28, width=options.width)
    common: dict[str, Any] = {"batch_size": 64, "seed": seed, "progress": False}
    Trainer(ClassifierObjective(), epochs=options.epochs, **common).fit(bare, train)
    bare.eval()
    x, y = test.images()[: options.few], test.labels()[: options.few]
    populations = {
        "noise": data.noise(len(x), (1, 28, 28), seed=seed).images(),
        "PGD": PGD(eps=options.eps, steps=20, seed=seed, early_stop=False)(bare, x, y),
    }
    without = accuracy(bare, test)
    rows = []
    for init in ("identity", "random"):
        for epochs in EPOCHS:
            with seeded(seed + 1):
                net = fortify(bare, "auto", example_input=x[:2], init=init)
            with warnings_set_to("ignore"):  # of a start that changes decisions, and of errors that are rounding
                if epochs:
                    net.fit_autoencoders(train, epochs=epochs, **common)
                detector = ReconstructionError(net.eval(), relative=True).fit(train.take(2000))
            scores = detector.score(x).double()
            row = {"data": name, "seed": seed, "init": init, "epochs": epochs, "accuracy, bare": without}
            row["accuracy, fortified"] = accuracy(net, test)
            row |= {f"AUROC, {k}": auroc(scores, detector.score(z).double()) for k, z in populations.items()}
            rows.append(row)
            print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--n", type=int, default=20_000, help="training images")
    parser.add_argument("--few", type=int, default=500, help="test images that are attacked")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=5, help="of the network")
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for name in ("mnist", "fashion-mnist")
        for seed in range(options.seeds)
        for row in measured(name, seed, options)
    ]
    if options.out is not None:
        scale = {k: v for k, v in vars(options).items() if k not in ("data_root", "out")}
        command = " ".join(["python benchmarks/identity_start.py", *(f"--{k} {v}" for k, v in scale.items())])
        record = {"rows": rows, "scale": scale, "command": command, "environment": environment()}
        write_json(options.out / "identity_start.json", record)


if __name__ == "__main__":
    main()
