"""Networks of other libraries, by name: ``torchvision:NAME``, ``timm:NAME`` and ``hf:FOLDER``.

Names and numbers alone: nothing is fetched, no code comes from a file, and weights are the user's own files. So a
run.json may name them too.
"""

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.checks import nearest
from robustgen.files import load_state, load_tensors, read_json
from robustgen.turns import seeded

__all__ = ["is_of_library", "normalization_of", "of_library", "outputs_of_weights", "own_weights", "with_weights"]


def is_of_library(model: str) -> bool:
    """Whether a library is named before the colon; any other name with a colon is of somebody's code.

    >>> is_of_library("torchvision:resnet18"), is_of_library("my_module:build"), is_of_library("resnet")
    (True, False, False)
    """
    return ":" in model and model.partition(":")[0] in _BUILDERS


def of_library(model: str, n_outputs: int) -> nn.Module:
    """The network called ``model``, with ``n_outputs`` logits and random weights.

    Raises:
        ValueError: an unknown name, or a folder of which no classifier can be built.
        FileNotFoundError: no such folder.
        ImportError: the library is not installed.

    >>> sum(p.numel() for p in of_library("torchvision:squeezenet1_1", 10).parameters())
    727626
    """
    library, _, name = model.partition(":")
    build = _BUILDERS[library]
    try:
        return build(name, n_outputs)
    except RuntimeError:
        if torch.empty(0).device.type != "meta":
            raise
    with torch.device("cpu"):  # some compute their widths with tensors, which hold no numbers on meta
        return build(name, n_outputs).to("meta")


def own_weights(model: str) -> dict[str, Tensor] | None:
    """The weights of what the name stands for, where it has any: a folder of Hugging Face with .safetensors files."""
    library, _, name = model.partition(":")
    files = sorted(_folder(name).glob("model*.safetensors")) if library == "hf" else []
    return {key: tensor for file in files for key, tensor in load_tensors(file).items()} if files else None


def outputs_of_weights(model: str, tensors: Mapping[str, Tensor]) -> int | None:
    """For how many classes the weights of such a network are: the length of what grows with the number of classes.

    None where ``tensors`` are of another network.

    >>> state = of_library("torchvision:squeezenet1_1", 7).state_dict()
    >>> outputs_of_weights("torchvision:squeezenet1_1", state), outputs_of_weights("torchvision:resnet18", state)
    (7, None)
    """
    with seeded(None), torch.device("meta"):
        two, three = (of_library(model, n).state_dict() for n in (2, 3))
    for name, tensor in two.items():
        grows = [d for d, (a, b) in enumerate(zip(tensor.shape, three[name].shape, strict=True)) if a != b]
        if grows and name in tensors and tensors[name].ndim == tensor.ndim:
            return tensors[name].shape[grows[0]]
    return None


def normalization_of(model: str) -> tuple[list[float], list[float]] | None:
    """Mean and std of each channel that a folder of Hugging Face says its network was trained with, if it does."""
    library, _, name = model.partition(":")
    if library != "hf" or not (path := _folder(name) / "preprocessor_config.json").is_file():
        return None
    stated = read_json(path, {"image_mean?": (None, [float]), "image_std?": (None, [float]), "do_normalize?": bool})
    mean, std = stated.get("image_mean"), stated.get("image_std")
    return (mean, std) if mean and std and stated.get("do_normalize", True) else None


def with_weights(model: str, tensors: Mapping[str, Tensor], source: str | Path) -> tuple[nn.Module, int | None]:
    """The network called ``model`` with the tensors, which ``source`` holds, and its number of logits.

    Raises:
        ValueError: tensors that do not fit it.
    """
    library, _, name = model.partition(":")
    outputs = outputs_of_weights(model, tensors)
    if library == "hf":
        return _hugging_face_with(name, tensors, outputs, source), outputs
    network = of_library(model, 2 if outputs is None else outputs)
    load_state(network, tensors, source)
    return network, outputs


def _torchvision(name: str, n_outputs: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)  # the classifiers; a detector would fetch its backbone
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r}; {nearest(name, known)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how some are initialised
        network: nn.Module = models.get_model(name, weights=None, num_classes=n_outputs)
    return network


def _timm(name: str, n_outputs: int) -> nn.Module:
    timm = _installed("timm", extra="timm")
    if not name.replace("_", "").replace(".", "").isalnum() or not timm.is_model(name):  # a colon would be an address
        raise ValueError(f"timm has no network {name!r}; {nearest(name, timm.list_models())}")
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=n_outputs)
    return network


def _hugging_face(name: str, n_outputs: int) -> nn.Module:
    folder = _folder(name)
    with _transformers(name) as transformers:
        return _classifier(transformers, _config(transformers, folder, n_outputs))


def _hugging_face_with(
    name: str, tensors: Mapping[str, Tensor], n_outputs: int | None, source: str | Path
) -> nn.Module:
    """With the tensors, under their names in the network or under those that save_pretrained gives them."""
    folder = _folder(name)
    with _transformers(name) as transformers:
        config = _config(transformers, folder, n_outputs)
        with torch.device("meta"):
            kind: Any = type(_classifier(transformers, config))
        network: nn.Module
        network, how = kind.from_pretrained(
            None, config=config, state_dict=dict(tensors), output_loading_info=True, **_STATED
        )
    wrong = [f"{what} {key}" for what in ("missing", "unexpected") for key in sorted(how[f"{what}_keys"])]
    if wrong:
        raise ValueError(f"{source} does not fit this network: {'; '.join(wrong[:20])}")
    return network


# What its config.json may not choose: code from elsewhere, as an implementation of attention can be, and another dtype.
_STATED: dict[str, Any] = {"trust_remote_code": False, "attn_implementation": "eager", "dtype": torch.float32}


def _config(transformers: ModuleType, folder: Path, n_outputs: int | None) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if n_outputs is not None:
        config.num_labels = n_outputs
    return config


def _classifier(transformers: ModuleType, config: Any) -> nn.Module:
    """A network of the class, of the two that make classifiers, for this configuration."""
    of_text = any(kind.endswith("ForSequenceClassification") for kind in config.architectures or ())
    kind = transformers.AutoModelForSequenceClassification if of_text else transformers.AutoModelForImageClassification
    network: nn.Module = kind.from_config(config, **_STATED)
    return network


def _folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"hf:{name}: no folder with a config.json; nothing is fetched: name a folder that save_pretrained wrote"
        )
    if "quantization_config" in read_json(folder / "config.json", dict):
        raise ValueError(f"{folder / 'config.json'}: quantization_config: quantized networks are not taken")
    return folder


@contextmanager
def _transformers(name: str) -> Iterator[ModuleType]:
    """transformers, which in here prints nothing and fetches nothing, whatever a configuration names.

    What it makes of a configuration that nobody checked becomes one line about the folder ``name``.
    """
    parts = ("transformers", "transformers.utils.logging", "huggingface_hub.constants")
    transformers, log, constants = (_installed(part, extra="hf") for part in parts)
    offline, level, bars = constants.HF_HUB_OFFLINE, log.get_verbosity(), log.is_progress_bar_enabled()
    constants.HF_HUB_OFFLINE = True
    log.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()
    try:
        yield transformers
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())
        raise ValueError(f"hf:{name}: no classifier can be built of this folder ({line[:300]})") from error
    finally:
        constants.HF_HUB_OFFLINE = offline
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _installed(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{package.partition('.')[0]} is not installed: pip install 'robustgen[{extra}]' ({error})"
        ) from error


_BUILDERS: dict[str, Callable[[str, int], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": _hugging_face,
}
