"""Pictures of a report: 8-bit values in ``report.json``, PNG images inside its page."""

import base64
import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustgen.evaluation.by_class import class_name

__all__ = ["draw_picture", "draw_pictures", "encode_picture", "encode_pictures"]

_GREY = 127.5  # of a pixel that no attack has changed
_LARGEST = 96  # pixels along a side of a scored input's picture


def encode_pictures(x: Tensor, x_adv: Tensor, bounds: tuple[float, float]) -> dict[str, Any]:
    """Images (n, C, H, W) and their adversarial versions as 8-bit values for display; empty for others."""
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not len(x):
        return {}
    return _encode(torch.stack([x, x_adv]).double().sub(bounds[0]).div(bounds[1] - bounds[0]))


def encode_picture(x: Tensor) -> dict[str, Any] | None:
    """An image (C, H, W) in [0, 1] as 8-bit values, made smaller where it is large; None for other inputs."""
    if x.ndim != 3 or x.shape[0] not in (1, 3):
        return None
    x = x.detach().double().cpu()
    scale = _LARGEST / max(x.shape[1:])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in x.shape[1:]]
        x = torch.nn.functional.interpolate(x[None], size, mode="area")[0]
    return _encode(x)


def draw_picture(picture: dict[str, Any]) -> str:
    """What :func:`encode_picture` made, as the address of an image."""
    return _png(_decode(picture))


def draw_pictures(network: dict[str, Any]) -> dict[str, Any]:
    """The images of a network's ``pictures`` as addresses, with captions; and how often the difference is amplified.

    Those that fell or, where none did, those that stood.
    """
    pictures = network["pictures"]
    clean, adversarial = _decode(pictures)  # (n, C, H, W) each
    difference = adversarial.astype(int) - clean
    n = len(clean)
    fell = pictures.get("fell", (difference != 0).reshape(n, -1).any(1).tolist())
    rows = [k for k in range(n) if fell[k]] or list(range(n))
    largest = int(np.abs(difference[rows]).max(initial=0))
    amplified = 255 // largest if largest else 1
    return {
        "fell": any(fell),
        "amplified": amplified,
        "items": [
            {
                "clean": _png(clean[k]),
                "adversarial": _png(adversarial[k]),
                "difference": _png(np.rint(_GREY + amplified / 2 * difference[k]).clip(0, 255).astype(np.uint8)),
                "caption": _caption(network, pictures, k, fell[k]),
                "id": pictures["ids"][k] if "ids" in pictures else None,
            }
            for k in rows
        ],
    }


def _caption(network: dict[str, Any], pictures: dict[str, Any], k: int, fell: bool) -> str:
    if "labels" not in pictures:  # a report from before they were recorded
        return ""
    label = class_name(network, pictures["labels"][k])
    return f"{label} to {class_name(network, pictures['predicted'][k])}" if fell else label


def _encode(x: Tensor) -> dict[str, Any]:
    values = x.mul(255).round().clamp(0, 255).to(torch.uint8).numpy()
    return {"shape": list(values.shape), "uint8": base64.b64encode(values.tobytes()).decode()}


def _decode(picture: dict[str, Any]) -> NDArray[np.uint8]:
    return np.frombuffer(base64.b64decode(picture["uint8"]), np.uint8).reshape(picture["shape"])


def _png(image: NDArray[np.uint8]) -> str:
    """The address that holds the image (C, H, W) itself."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image[0] if image.shape[0] == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))).save(
        out, "PNG", optimize=True
    )
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
