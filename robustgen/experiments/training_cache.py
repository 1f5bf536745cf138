"""What cells are made of: data sets, and trained networks that cells share and a killed run goes on with."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustgen import data
from robustgen.counter_rng import integers
from robustgen.files import load_state, read_json, write_json
from robustgen.generative import GenerativeModel, GenerativeObjective
from robustgen.locks import alone
from robustgen.training import Trainer, load_checkpoint
from robustgen.training.recipes import Recipe

__all__ = ["SCHEDULE", "TrainingCache", "one_cycle", "shuffled"]


def one_cycle(progress: float, warm_up: float = 0.2) -> float:
    """Learning-rate factor: linear up over the first fifth of the training, a cosine down to zero over the rest.

    >>> [round(one_cycle(t), 2) for t in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < warm_up:
        return progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


_WATCHED = 500  # held-back images that choose an epoch; `robustgen train` takes up to 1,000
# Recorded with every cell and training, so that another schedule does not pass for this one.
SCHEDULE = {"optimizer": "Adam", "factors": [round(one_cycle(k / 8), 6) for k in range(8)]}


@dataclass
class TrainingCache:
    """Data and trained networks.

    Attributes:
        work: directory of trainings, one folder for each distinct settings.
        data_root: where the data sets are, in torchvision's layout; None: only those that come with the package.
        device: where to train and attack.
        progress: show progress bars.
        say: receives a line for each training.
    """

    work: Path
    data_root: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: bool = False
    say: Callable[[str], None] = print

    def images(self, name: str, part: str, n: int = 0) -> data.ArrayDataset:
        """n examples (0: all) of the "train" or "test" part of a data set, classes mixed.

        "cifar10-jpeg" is an image folder of that name in data_root; its files are sorted by class, so that evenly
        spaced ones are taken and shuffled.
        """
        if name == "digits":
            return data.load(name, split=part, n=n or None)
        if self.data_root is None:
            raise ValueError(f"{name}: pass --data-root, the folder that holds it")
        if name != "cifar10-jpeg":
            return data.load(name, split=part, root=self.data_root, n=n or None)
        folder = self.data_root / name
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; --data-root must hold cifar10-jpeg, unpacked")
        return shuffled(data.load(folder, split=part, n=n or None))

    def drawn(self, name: str, part: str, n: int = 0) -> data.ArrayDataset:
        """n examples (0: all), drawn from all of them and not spaced over the file."""
        whole = shuffled(self.images(name, part))
        return whole.first(n) if n else whole

    def put(self, dataset: data.ArrayDataset) -> tuple[Tensor, Tensor]:
        """All inputs and labels on the device."""
        return dataset.images().to(self.device), dataset.labels().to(self.device)

    def text(self) -> Path:
        """The file of the character models; FileNotFoundError where data_root does not hold it."""
        if self.data_root is None:
            raise ValueError("text: pass --data-root, the folder that holds text/tinyshakespeare.txt")
        path = self.data_root / "text" / "tinyshakespeare.txt"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return path

    def train(
        self,
        settings: dict[str, Any],
        network: nn.Module,
        objective: Any,
        examples: Any,
        *,
        epochs: int,
        batch_size: int,
        lr: float,
        seed: int,
        clip_norm: float | None = None,
    ) -> list[dict[str, float]]:
        """Train ``network`` in place, or load it where these ``settings`` were trained before; its history.

        A training that was killed goes on where it was. The network is left in eval mode.
        """
        adam: Callable[[Any], torch.optim.Optimizer] = partial(torch.optim.Adam, lr=lr)
        return self._fit(
            settings | {"schedule": SCHEDULE},
            network,
            (examples, None),
            objective,
            optimizer=adam,
            schedule=one_cycle,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            clip_norm=clip_norm,
        )

    def fit_generative(
        self,
        settings: dict[str, Any],
        model: GenerativeModel,
        examples: Any,
        val: Any = None,
        *,
        epochs: int,
        batch_size: int,
        seed: int,
        annealed: bool = True,
        keep: Sequence[int] = (),
        ema: float | None = None,
    ) -> tuple[list[dict[str, float]], Path]:
        """:meth:`train` for a generative model, with the optimizer of its paper; also where it is kept.

        No guard ends it: a table shows what a whole training comes to.

        Args:
            annealed: the learning rate follows :func:`one_cycle`, up to the paper's; False: it stays there, as for
                adversarial models, where no loss is minimised.
            keep: epochs whose model is saved besides, in ``epoch-N`` there.
            ema: decay of the average of weights that the model has in the end.
        """
        settings = settings | {"schedule": SCHEDULE if annealed else None, "kept": list(keep)}
        run_dir = self.folder(settings)

        def save(model: nn.Module, history: list[dict[str, float]]) -> None:
            if len(history) in keep and isinstance(model, GenerativeModel):
                model.save(run_dir / f"epoch-{len(history)}")

        history = self._fit(
            settings,
            model,
            (examples, val),
            GenerativeObjective(),
            optimizer=model.optimizer,
            schedule=one_cycle if annealed else None,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            ema=ema,
            after_epoch=save,
        )
        return history, run_dir

    def follow(
        self, recipe: Recipe, network: nn.Module, train: data.ArrayDataset, held_back: data.ArrayDataset, *, seed: int
    ) -> tuple[list[dict[str, float]], float]:
        """Train ``network`` by a recipe, as `robustgen train` does, and leave it at its best epoch, in eval mode.

        Returns:
            The history, and what the training took, in seconds of one core, a killed part of it included.
        """
        run_dir = self.folder({"recipe": recipe.record(), "seed": seed})
        clock = run_dir / "core_seconds.json"
        begun, before = time.process_time(), read_json(clock, {"seconds": float})["seconds"] if clock.exists() else 0.0

        def spent() -> float:
            return before + time.process_time() - begun

        trainer = recipe.trainer(
            len(train),
            seed=seed,
            device=self.device,
            run_dir=run_dir,
            resume=True,
            progress=self.progress,
            after_epoch=lambda *_: write_json(clock, {"seconds": spent()}),
        )
        with alone(run_dir, wait=True):
            history = trainer.fit(network, train, held_back.first(_WATCHED))
        checkpoint = load_checkpoint(run_dir, best=True)
        load_state(network, checkpoint.model_state, checkpoint.path)
        network.eval()
        return history, float(read_json(clock, {"seconds": float})["seconds"])

    def folder(self, settings: dict[str, Any]) -> Path:
        """Where what depends on these settings, JSON-able, is kept between cells."""
        return self.work / hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=10).hexdigest()

    def _fit(
        self,
        settings: dict[str, Any],
        network: nn.Module,
        data: tuple[Any, Any],
        objective: Any,
        **options: Any,
    ) -> list[dict[str, float]]:
        run_dir = self.folder(settings)
        trainer = Trainer(
            objective, device=self.device, run_dir=run_dir, resume=True, progress=self.progress, **options
        )
        with alone(run_dir, wait=True):
            if not (run_dir / "settings.json").exists():
                write_json(run_dir / "settings.json", settings)
            history = trainer.fit(network, *data)
        network.eval()
        return history


def shuffled(dataset: data.ArrayDataset) -> data.ArrayDataset:
    """The same examples in an order that depends on their number alone."""
    return dataset.subset(integers(0, torch.arange(len(dataset)), (), 2**62).argsort(stable=True))
