"""Weights in other formats than safetensors: what a file is, told by its first bytes, and how to convert it."""

from pathlib import Path

__all__ = ["foreign_format"]

_PICKLED = (
    "a pickled PyTorch file; a pickle can run code and is not loaded. Convert its state dict in Python: "
    "import torch; from safetensors.torch import save_file; "
    "save_file({{k: v.clone().contiguous() for k, v in torch.load({path!r}, weights_only=True).items()}}, "
    "{converted!r}) (where it holds more than the weights: .items() of that entry)"
)
_SAVE_AS = "; save the weights as .safetensors, by safetensors.torch.save_file"


def foreign_format(path: Path) -> str | None:
    """What the file is and what to do, where it is no safetensors and its first bytes tell; None otherwise.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"w": torch.zeros(2)}, f"{folder}/w.pth")
    ...     foreign_format(Path(folder) / "w.pth")[:23]
    'a pickled PyTorch file;'
    """
    with open(path, "rb") as file:
        head = file.read(16)
    if head[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
        return None
    if head.startswith(b"PK\x03\x04") and path.suffix in (".npz", ".keras"):
        return f"a {path.suffix} archive, not weights" + _SAVE_AS
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return _PICKLED.format(path=str(path), converted=str(path.with_suffix(".safetensors")))
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "an HDF5 file (Keras writes such)" + _SAVE_AS
    if head.startswith(b"GGUF"):
        return "a GGUF file" + _SAVE_AS
    if head.startswith(b"\x08") and (path.suffix == ".onnx" or head[2:3] == b"\x12"):  # its first two fields
        return "an ONNX graph" + _SAVE_AS
    return None
