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
from robustgen.files import read_json

__all__ = ["holds_weights", "is_of_library", "of_library", "outputs_of_weights", "with_its_weights"]


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
    return _BUILDERS[library](name, n_outputs)


def holds_weights(model: str) -> bool:
    """Whether what the name stands for has weights: so does a folder of Hugging Face with a .safetensors file."""
    library, _, name = model.partition(":")
    return library == "hf" and any(_folder(name).glob("*.safetensors"))


def outputs_of_weights(model: str, tensors: Mapping[str, Tensor]) -> int | None:
    """For how many classes the weights of such a network are: the length of what grows with the number of classes.

    None where ``tensors`` are of another network.

    >>> state = of_library("torchvision:squeezenet1_1", 7).state_dict()
    >>> outputs_of_weights("torchvision:squeezenet1_1", state), outputs_of_weights("torchvision:resnet18", state)
    (7, None)
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        two, three = (of_library(model, n).state_dict() for n in (2, 3))
    for name, tensor in two.items():
        grows = [d for d, (a, b) in enumerate(zip(tensor.shape, three[name].shape, strict=True)) if a != b]
        if grows and name in tensors and tensors[name].ndim == tensor.ndim:
            return tensors[name].shape[grows[0]]
    return None


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
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config.num_labels = n_outputs
        network: nn.Module = _classifier(transformers, config).from_config(config, **_STATED)
    return network


def with_its_weights(model: str) -> tuple[nn.Module, int]:
    """The classifier in a folder of Hugging Face, with the weights there, and its number of logits.

    Raises:
        ValueError: no classifier is in the folder, or weights that leave a part of it without.
    """
    name = model.partition(":")[2]
    folder = _folder(name)
    with _transformers(name) as transformers:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        where = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
        network, how = _classifier(transformers, config).from_pretrained(folder, config=config, **where, **_STATED)
    if left_out := sorted(how["missing_keys"]):
        raise ValueError(f"hf:{name}: its weights lack {', '.join(left_out[:5])}: they are not those of a classifier")
    return network, int(config.num_labels)


# What its config.json may not choose: code from elsewhere, as an implementation of attention can be, and another dtype.
_STATED: dict[str, Any] = {"trust_remote_code": False, "attn_implementation": "eager", "dtype": torch.float32}


def _classifier(transformers: ModuleType, config: Any) -> Any:
    """The class, of the two that make classifiers, for this configuration."""
    of_text = any(kind.endswith("ForSequenceClassification") for kind in config.architectures or ())
    return transformers.AutoModelForSequenceClassification if of_text else transformers.AutoModelForImageClassification


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
    transformers, constants = (_installed(part, extra="hf") for part in ("transformers", "huggingface_hub.constants"))
    log = transformers.utils.logging
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
        raise ImportError(f"{package} is not installed: pip install 'robustgen[{extra}]' ({error})") from error


_BUILDERS: dict[str, Callable[[str, int], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": _hugging_face,
}
