"""Data sets as one tensor each (digits, torchvision's sets, images in files, ``.npz``, tables, noise), and splits."""

from robustgen.data.array import ArrayDataset, check_same_preprocessing, preprocessing_fingerprint, require_nonempty
from robustgen.data.digits import digits
from robustgen.data.folder import load_folder
from robustgen.data.image_files import ImageFiles
from robustgen.data.image_reader import ImageReader
from robustgen.data.load import load
from robustgen.data.npz import load_npz, save_npz
from robustgen.data.splits import check_disjoint, drop_shared, heldout_classes, split
from robustgen.data.synthetic import noise, spheres
from robustgen.data.table import Table
from robustgen.data.text import TEXT8, babble, decode, encode, load_text, normalise, split_text, windows
from robustgen.data.tokens import TokenDataset, load_tokens
from robustgen.data.vision import load_vision

__all__ = [
    "TEXT8",
    "ArrayDataset",
    "ImageFiles",
    "ImageReader",
    "Table",
    "TokenDataset",
    "babble",
    "check_disjoint",
    "check_same_preprocessing",
    "decode",
    "digits",
    "drop_shared",
    "encode",
    "heldout_classes",
    "load",
    "load_folder",
    "load_npz",
    "load_text",
    "load_tokens",
    "load_vision",
    "noise",
    "normalise",
    "preprocessing_fingerprint",
    "require_nonempty",
    "save_npz",
    "spheres",
    "split",
    "split_text",
    "windows",
]
