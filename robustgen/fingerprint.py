"""A short name for the exact value of some tensors."""

import hashlib
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
    """The fingerprint of all parameters and buffers, those that ``state_dict`` leaves out included, and of the repr.

    The repr tells networks apart whose tensors are the same: another activation, another noise level.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    architecture = torch.tensor(list(repr(model).encode()), dtype=torch.uint8)
    return fingerprint(tensors | {"repr": architecture})
