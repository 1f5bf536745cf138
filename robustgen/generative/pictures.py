"""What a training looks like as it goes: sample grids and loss curves."""

import io
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from robustgen.files import write_bytes
from robustgen.generative.base import GenerativeModel

__all__ = ["Pictures", "between", "grid_png"]

SAMPLES = 16


def between(first: Tensor, second: Tensor, steps: int) -> Tensor:
    """(N, steps, ...): from each of the noises ``first`` (N, ...) to that of ``second``, both ends included.

    cos(t) first + sin(t) second, t from 0 to a right angle: of independent standard normal noises, every point between
    them is such noise too, where those of a straight line are too short (Xiao, "Designing Deep Generative Models with
    Symbiotic Composition", 2022, section 5.2).

    >>> between(torch.ones(1, 1), torch.ones(1, 1), 3).flatten().round(decimals=2)
    tensor([1.0000, 1.4100, 1.0000])
    """
    t = torch.linspace(0, math.pi / 2, steps, dtype=first.dtype, device=first.device)
    t = t.view(-1, *[1] * (first.ndim - 1))
    return t.cos() * first[:, None] + t.sin() * second[:, None]


def grid_png(x: Tensor, columns: int | None = None) -> bytes:
    """A PNG of images x (N, C, H, W) in [0, 1], C 1 or 3, N > 0, row by row; near-square without ``columns``.

    Raises:
        ValueError: not such images.

    >>> import torch
    >>> grid_png(torch.rand(5, 1, 8, 8))[1:4]
    b'PNG'
    """
    from torchvision.utils import save_image

    if x.ndim != 4 or x.shape[1] not in (1, 3) or not len(x):
        raise ValueError(f"a grid needs images (N, 1 or 3, H, W), got {tuple(x.shape)}; an .npz file takes any")
    buffer = io.BytesIO()
    save_image(x.float().cpu(), buffer, format="png", nrow=columns or math.ceil(math.sqrt(len(x))), pad_value=0.5)
    return buffer.getvalue()


class Pictures:
    """For ``Trainer(after_epoch=...)``: ``samples/epoch-0001.png``, ... and ``curves.png`` in ``run_dir``.

    Args:
        run_dir: made if missing.
        samples: images in a grid; 0: no grids, for models whose samples take long.

    Raises:
        ValueError: a negative number of samples.
    """

    def __init__(self, run_dir: str | Path, samples: int = SAMPLES) -> None:
        if samples < 0:
            raise ValueError(f"samples must not be negative, got {samples}")
        self.run_dir, self.samples = Path(run_dir), samples

    def __call__(self, model: nn.Module, history: list[dict[str, float]]) -> None:
        assert isinstance(model, GenerativeModel)
        if self.samples and model.shape[0] in (1, 3):
            name = f"epoch-{history[-1]['epoch']:04.0f}.png"
            write_bytes(self.run_dir / "samples" / name, grid_png(model.sample(self.samples)))
        write_bytes(self.run_dir / "curves.png", _curves(history))


def _curves(history: list[dict[str, float]]) -> bytes:
    """Every loss and energy, in training and on held-back data, against the epoch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    epochs = [row["epoch"] for row in history]
    names = [name for name in history[-1] if name.endswith(("loss", "energy"))]
    for name in names:
        points = [row.get(name, math.nan) for row in history]  # a player may have had no turn in a short epoch
        axes.plot(epochs, points, marker=".", linestyle="--" if name.startswith("val_") else "-", label=name)
    axes.set_xlabel("epoch")
    axes.legend()
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
