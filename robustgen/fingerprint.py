"""A short name for the exact value of some tensors."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["fingerprint", "model_fingerprint"]


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Hex digest (32 characters, BLAKE2b) of names, dtypes, shapes and bytes; order, device and layout do not matter.

    >>> fingerprint({"a": torch.zeros(2)}) == fingerprint({"a": torch.zeros(2).double()})
    False
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """The fingerprint of all parameters and buffers, those that ``state_dict`` leaves out included, of the repr, and of
    each dict ``config`` that the model or a part of it has.

    The last two tell networks apart whose tensors are the same: another activation, another noise level, and what no
    repr shows, such as how a generative model quantizes pixels.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    configs = {name: c for name, m in model.named_modules() if isinstance(c := getattr(m, "config", None), dict)}
    settings = json.dumps(configs, sort_keys=True, default=lambda value: type(value).__name__) if configs else ""
    architecture = torch.tensor(list((repr(model) + settings).encode()), dtype=torch.uint8)
    return fingerprint(tensors | {"repr": architecture})
