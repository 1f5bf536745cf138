"""Data sets as one tensor each (digits, torchvision's sets, image folders, ``.npz`` files, noise), and splits."""

from robustgen.data.array import ArrayDataset, require_nonempty
from robustgen.data.digits import digits
from robustgen.data.folder import load_folder
from robustgen.data.load import load
from robustgen.data.npz import load_npz, save_npz
from robustgen.data.splits import check_disjoint, heldout_classes, split
from robustgen.data.synthetic import noise
from robustgen.data.vision import load_vision

__all__ = [
    "ArrayDataset",
    "check_disjoint",
    "digits",
    "heldout_classes",
    "load",
    "load_folder",
    "load_npz",
    "load_vision",
    "noise",
    "require_nonempty",
    "save_npz",
    "split",
]
