"""``robustgen quality``: how good the samples of a trained generative model are."""

import warnings
from dataclasses import replace
from pathlib import Path

from robustgen.checks import check_integers
from robustgen.commands.data_spec import DataSpec
from robustgen.commands.generative import trained_model
from robustgen.commands.opening import load_run, move
from robustgen.commands.run_info import read_info, recorded_data
from robustgen.commands.runs import by_class_name, data_for, parts
from robustgen.data import ArrayDataset, require_nonempty
from robustgen.evaluation.quality import FeatureNetwork, SampleQuality, sample_quality
from robustgen.examples import EXAMPLES, PREFIX, run_directory

__all__ = ["measure_quality"]

# Where a network that comes with the package has other features than the input of its logits: averaged over their
# places, 32 numbers, so that the few digits there are determine a covariance.
_LAYERS = {"digits": "backbone.5"}


def measure_quality(
    *,
    checkpoint: Path,
    data: DataSpec,
    n: int = 1000,
    features: Path | None = None,
    layer: str | None = None,
    resamples: int = 100,
    batch_size: int = 256,
    seed: int = 0,
    device: str | None = None,
    out: Path | None = None,
    progress: bool = True,
    command: str | None = None,
) -> tuple[SampleQuality, Path | None]:
    """Draw samples and compare them with test data; with ``out`` also the page that shows it.

    Training images are those of the run; where no run.json says which, the training part of the data.

    Args:
        features: run of a classifier; None: one that comes with the package where it takes such images and knows their
            classes (or nobody does), else a small one that is trained on the labels at hand.
        layer: whose output the features are.

    Raises:
        FileNotFoundError, ValueError: no generative model there, data of another shape, too few images, or no feature
            network for them.
    """
    check_integers(**{"--n": n})
    model = trained_model(checkpoint)
    info = read_info(checkpoint) if (checkpoint / "run.json").is_file() else {}
    chosen = data_for(data, info)
    test = chosen.read("test", model.shape, spaced=True)
    if test.y is not None and info.get("held_out") and set(test.classes) <= {*info["classes"], *info["held_out"]}:
        test = require_nonempty(by_class_name(test, info)[0])
    train = _training_images(checkpoint, info, chosen, model.shape)
    network = _features(features, layer, test, train, seed, progress)
    for module in (model, network.network):
        move(module, device)
    quality = sample_quality(
        model,
        test,
        features=network,
        train=train,
        n=n,
        seed=seed,
        resamples=resamples,
        batch_size=batch_size,
        name=f"{type(model).__name__} ({checkpoint})",
        progress=progress,
    )
    return quality, None if out is None else quality.save(out, command)


def _training_images(
    run: Path, info: dict[str, object], chosen: DataSpec, shape: tuple[int, ...]
) -> ArrayDataset | None:
    """What the model was trained on; None, with a warning, where that cannot be read."""
    if not info:
        return replace(chosen, limit=None).read("train", shape) if chosen.has_test_part() else None
    recorded = recorded_data(info)
    recorded = recorded if chosen.root is None else replace(recorded, root=chosen.root)
    held_out = info["held_out"]
    assert isinstance(held_out, list)
    try:
        return parts(recorded.read("train", shape), held_out)[1]
    except (FileNotFoundError, ValueError) as error:
        warnings.warn(f"the training data of {run} cannot be read, nothing is said of copies: {error}", stacklevel=3)
        return None


def _features(
    run: Path | None, layer: str | None, test: ArrayDataset, train: ArrayDataset | None, seed: int, progress: bool
) -> FeatureNetwork:
    """The network that was asked for, one that comes with the package, or one that is trained here."""
    if run is not None:
        network, info = load_run(run)
        taken = tuple(info["network"]["shape"])
        if taken != test.shape:
            raise ValueError(f"--features {run} takes images {taken}, those of {test.name} are {test.shape}")
        layer = _layer(str(run)) if layer is None else layer
        return FeatureNetwork(network, layer, str(run), tuple(info["classes"]), "given")
    if layer is not None:
        raise ValueError("--layer is of the network that --features names")
    for example in EXAMPLES:
        name = f"{PREFIX}{example}"
        info = read_info(run_directory(Path(name)))
        fits = tuple(info["network"]["shape"]) == test.shape
        if fits and (test.y is None or set(test.classes) <= set(info["classes"])):
            network, _ = load_run(Path(name))
            return FeatureNetwork(network, _layer(name), name, tuple(info["classes"]), "comes with the package")
    labelled = next((part for part in (train, test) if part is not None and part.y is not None), None)
    if labelled is None:
        raise ValueError(
            f"{test.name}: no labels to train a feature network on, and none that comes with the package takes images "
            f"{test.shape}: pass --features RUN, of a classifier"
        )
    return FeatureNetwork.trained_on(labelled, seed, progress=progress)


def _layer(name: str) -> str | None:
    return _LAYERS.get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
