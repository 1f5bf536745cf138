"""The data room: exact values, deterministic disjoint splits, and one clear line for whatever is wrong with a file."""

import hashlib
import math
import pickle
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import robustgen
import robustgen.data as room
from robustgen.data import (
    ArrayDataset,
    check_disjoint,
    digits,
    heldout_classes,
    load,
    load_folder,
    load_npz,
    load_vision,
    noise,
    require_nonempty,
    save_npz,
    split,
)


def vectors(n, n_classes=3, name="made-up"):
    """n different vectors, the labels 0, 1, 2, 0, 1, ..."""
    x = torch.linspace(0, 1, max(n, 1))[:n, None].repeat(1, 2)
    return ArrayDataset(x, torch.arange(n) % n_classes, tuple("abcdefghij"[:n_classes]), name)


def image(path, mode="L", size=(5, 4), value=0, **kwargs):
    """Save an image of ``size`` (width, height) with a few different pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = (np.arange(math.prod(shape)).reshape(shape) + value) % 256
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(path, **kwargs)
    return path


# --- ArrayDataset


def test_every_public_name_exists():
    assert all(hasattr(room, name) for name in room.__all__)


def test_the_room_imports_no_other_room_and_no_slow_library():
    code = (
        "import sys, robustgen.data; "
        "print([m for m in sys.modules if m.startswith(('robustgen.', 'torchvision.datasets', 'sklearn'))])"
    )
    loaded = eval(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    rooms = {f"robustgen.{p.parent.name}" for p in Path(robustgen.__file__).parent.glob("*/__init__.py")}
    rooms |= {"torchvision.datasets", "sklearn"}
    assert {".".join(m.split(".")[:2]) for m in loaded} & rooms == {"robustgen.data"}


def test_batch_divides_every_byte_by_255():
    data = ArrayDataset(torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1), torch.arange(256) % 2, ("a", "b"))
    x, y = data.batch(torch.tensor([255, 0, 51, 51]))
    assert x.dtype == torch.float32
    assert x.shape == (4, 1, 1, 1)
    assert torch.equal(x.flatten(), torch.tensor([1.0, 0.0, 0.2, 0.2]))
    assert torch.equal(y, torch.tensor([1, 0, 1, 1]))
    assert torch.equal(data.images().flatten(), torch.arange(256) / 255)
    assert torch.equal((data.images() * 255).round().to(torch.uint8), data.x)


def test_what_batch_and_images_return_can_be_modified():
    data = vectors(4)
    before = data.x.clone()
    data.batch(torch.arange(4))[0].zero_()
    data.images().zero_()
    assert torch.equal(data.x, before)


def test_subset_and_take_keep_ids_labels_and_sources():
    data = ArrayDataset(torch.rand(3, 2), torch.arange(3), tuple("abc"), sources=("0.png", "1.png", "2.png"))
    part = data.subset(torch.tensor([2, 0])).subset(torch.tensor([1, 0, 0]))
    assert part.ids.tolist() == [0, 2, 2]
    assert part.y.tolist() == [0, 2, 2]
    assert part.sources == ("0.png", "2.png", "2.png")
    assert torch.equal(part.x, data.x[[0, 2, 2]])
    assert data.take(2).ids.tolist() == [0, 2]
    assert data.first(2).ids.tolist() == [0, 1]
    for some in (data.take, data.first):
        assert some(9).ids.tolist() == [0, 1, 2]
        assert len(some(0)) == 0
        with pytest.raises(ValueError, match="must not be negative, got -1"):
            some(-1)


def test_a_few_of_what_is_sorted_by_class_are_of_all_its_classes():
    data = ArrayDataset(torch.rand(30, 2), torch.arange(3).repeat_interleave(10), tuple("abc"))
    assert data.take(6).labels().tolist() == [0, 0, 1, 1, 2, 2]
    assert data.first(6).labels().tolist() == [0] * 6


def test_a_set_is_a_torch_dataset():
    data = ArrayDataset(torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1), torch.arange(6) % 2, ("a", "b"))
    assert isinstance(data, Dataset)
    x, y = data[np.int64(-1)]
    assert x.shape == (1, 1, 1)
    assert (x.item(), y.item()) == (pytest.approx(5 / 255), 1)
    assert replace(data, y=None)[2].shape == (1, 1, 1)
    for (x, y), i in zip(DataLoader(data, 4), (torch.arange(4), torch.tensor([4, 5])), strict=True):
        assert torch.equal(x, data.batch(i)[0])
        assert torch.equal(y, data.batch(i)[1])
    assert len(list(data)) == 6
    with pytest.raises(IndexError):
        data[6]
    with pytest.raises(TypeError, match="integer"):
        data[:2]


def test_unlabelled_and_empty_sets():
    data = ArrayDataset(torch.zeros(0, 1, 2, 2, dtype=torch.uint8), name="nothing")
    x, y = data.batch(torch.empty(0, dtype=torch.int64))
    assert x.shape == (0, 1, 2, 2)
    assert y is None
    with pytest.raises(ValueError, match=r"^nothing: the data set is empty$"):
        require_nonempty(data)
    with pytest.raises(ValueError, match=r"^nothing: the data set has no labels$"):
        data.labels()
    full = vectors(1)
    assert require_nonempty(full) is full
    assert full.labels() is full.y


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"x": torch.zeros(2, 3, 3, dtype=torch.uint8)}, ValueError, r"d: uint8 x must be images \(N, C, H, W\)"),
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "d: x must be float32 or float64, got torch.int64"),
        ({"x": torch.zeros(2, 3, dtype=torch.float64)}, TypeError, "d: x must be uint8 or float32, got torch.float64"),
        ({"x": np.zeros((2, 3))}, TypeError, "d: x must be a torch.Tensor, got ndarray"),
        ({"x": torch.full((2, 3), float("nan"))}, ValueError, "d: x holds NaN or Inf"),
        ({"x": torch.full((2, 3), 255.0)}, ValueError, r"d: x has values in \[255, 255\], outside the bounds"),
        ({"x": torch.full((2, 3), -0.1)}, ValueError, "d: x has values in .* outside the bounds"),
        ({"y": torch.tensor([0, 2])}, ValueError, r"d: y has labels in \[0, 2\], outside \[0, 2\)"),
        ({"y": torch.tensor([-1, 0])}, ValueError, r"d: y has labels in \[-1, 0\], outside \[0, 2\)"),
        ({"y": torch.tensor([0])}, ValueError, r"d: y must have shape \(2,\)"),
        ({"y": torch.tensor([0.0, 1.0])}, TypeError, "d: y must be int64"),
        ({"classes": ("a", "a")}, ValueError, "d: the class name 'a' occurs twice"),
        ({"ids": torch.arange(3)}, ValueError, r"ids must have shape \(2,\)"),
        ({"ids": torch.zeros(2)}, TypeError, "ids must be an int64 tensor"),
        ({"sources": ("one.png",)}, ValueError, "d: 1 sources for 2 examples"),
    ],
)
def test_construction_refuses(fields, error, text):
    with pytest.raises(error, match=text):
        ArrayDataset(**{"x": torch.zeros(2, 3), "classes": ("a", "b"), "name": "d"} | fields)


@pytest.mark.parametrize("indices", [torch.tensor([True, False]), torch.tensor([0.0]), torch.tensor(0), [0]])
def test_indices_must_be_integers(indices):
    with pytest.raises(TypeError, match=r"indices must be an int64 tensor \(B,\)"):
        vectors(2).batch(indices)


# --- digits


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    data, bunch = digits("all"), load_digits()
    assert data.x.shape == (1797, 1, 8, 8)
    assert data.x.dtype == torch.uint8
    assert np.array_equal((data.x[:, 0].double() * 16 / 255).round().numpy(), bunch.images)  # no grey value is lost
    assert data.x.unique().tolist() == np.rint(np.arange(17) * 255 / 16).tolist()
    assert np.array_equal(data.y.numpy(), bunch.target)
    assert data.classes == tuple("0123456789")


def test_digits_splits_are_disjoint_complete_stratified_and_seeded():
    everything, train, test = digits("all"), digits("train"), digits("test")
    assert sorted([*train.ids.tolist(), *test.ids.tolist()]) == list(range(1797))
    check_disjoint(train, test)
    assert (test.y.bincount() - everything.y.bincount() * 0.2).abs().max() <= 1
    for part in (train, test):
        assert torch.equal(part.x, everything.x[part.ids])
        assert torch.equal(part.y, everything.y[part.ids])
    assert torch.equal(digits("test").ids, test.ids)
    assert not torch.equal(digits("test", seed=1).ids.sort().values, test.ids.sort().values)
    with pytest.raises(ValueError, match="unknown split 'val'; known: train, test, all"):
        digits("val")


# --- splits


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), max_size=80),
    weights=st.lists(st.integers(1, 10), min_size=1, max_size=4),
    left_out=st.integers(0, 5),
    seed=st.integers(0, 2**63 - 1),
    stratified=st.booleans(),
)
def test_split_is_disjoint_exact_deterministic_and_stratified(labels, weights, left_out, seed, stratified):
    n, y = len(labels), torch.tensor(labels, dtype=torch.int64)
    data = ArrayDataset(torch.rand(n, 1), y, tuple("abcde"), ids=torch.arange(n) + 1000)
    fractions = [w / (sum(weights) + left_out) for w in weights]
    parts = split(data, fractions, seed, stratified)

    ids = [i for part in parts for i in part.ids.tolist()]
    assert len(set(ids)) == len(ids)
    assert set(ids) <= set(data.ids.tolist())
    assert left_out or len(ids) == n
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - fraction * n) <= 1 + 1e-9
        assert torch.equal(part.x, data.x[part.ids - 1000])
        assert torch.equal(part.y, data.y[part.ids - 1000])
        if stratified:
            for label, count in enumerate(y.bincount().tolist()):  # within rounding
                assert abs(int((part.y == label).sum()) - fraction * count) <= 1 + 6 * count / n + 1e-9

    again = split(data.subset(torch.arange(n).flip(0)), fractions, seed, stratified)  # whatever the order of examples
    assert [p.ids.tolist() for p in again] == [p.ids.tolist() for p in parts]


def test_split_counts_are_exact_where_the_fractions_are():
    parts = split(vectors(60), (0.5, 0.3, 0.1, 0.1), seed=3)
    assert [len(p) for p in parts] == [30, 18, 6, 6]
    assert [p.y.bincount().tolist() for p in parts] == [[10] * 3, [6] * 3, [2] * 3, [2] * 3]


def test_a_part_is_in_random_order_so_that_its_first_examples_are_a_sample():
    data = ArrayDataset(torch.rand(1000, 1), torch.arange(1000) // 500, ("a", "b"))  # sorted by class
    (part,) = split(data, (1.0,), seed=0)
    assert 30 <= int(part.take(100).y.sum()) <= 70
    assert (part.y.reshape(-1, 2).sum(1) == 1).float().mean() < 0.6  # and not one of each class in turn
    assert not torch.equal(part.ids, split(data, (1.0,), seed=1)[0].ids)


def test_split_refuses():
    for fractions in ((), (0.5, 0.6), (0.5, 0.0), (-0.1, 0.5), (float("nan"),)):
        with pytest.raises(ValueError, match="fractions must be positive and sum to at most 1"):
            split(vectors(4), fractions, seed=0)
    unlabelled = ArrayDataset(torch.rand(4, 1), name="flat")
    with pytest.raises(ValueError, match="flat: a stratified split needs labels; pass stratified=False"):
        split(unlabelled, (0.5, 0.5), seed=0)
    assert [len(p) for p in split(unlabelled, (0.5, 0.5), seed=0, stratified=False)] == [2, 2]


@pytest.mark.parametrize("classes", [[3, 1], ["3", "1"], ["3", 1, 3]])
def test_heldout_classes_are_disjoint_and_the_rest_is_renumbered(classes):
    data = digits("all")
    rest, heldout = heldout_classes(data, classes)
    assert rest.classes == tuple("02456789")
    assert rest.y.unique().tolist() == list(range(8))
    assert heldout.classes == data.classes
    assert heldout.y.unique().tolist() == [1, 3]
    assert len(rest) + len(heldout) == len(data)
    for part in (rest, heldout):
        assert torch.equal(part.x, data.x[part.ids])
        names = [data.classes[i] for i in data.y[part.ids].tolist()]
        assert [part.classes[i] for i in part.y.tolist()] == names
    check_disjoint(rest, heldout)


def test_heldout_classes_refuses():
    data = vectors(6)
    with pytest.raises(ValueError, match=r"made-up: class 3 is outside \[0, 3\)"):
        heldout_classes(data, [3])
    with pytest.raises(ValueError, match="unknown class 'z'; known: 'a', 'b', 'c'"):
        heldout_classes(data, ["z"])
    for classes in ([], [0, 1, 2]):
        with pytest.raises(ValueError, match="hold out at least one of the 3 classes, and not all"):
            heldout_classes(data, classes)
    with pytest.raises(ValueError, match="flat: holding classes out needs labels"):
        heldout_classes(ArrayDataset(torch.rand(4, 1), name="flat"), [0])


def test_overlap_is_found_by_content():
    everything = digits("all")
    a, b = everything.subset(torch.arange(100)), everything.subset(torch.arange(100, 200))
    check_disjoint(a, b)
    copy = ArrayDataset(torch.cat([b.x, a.x[[7, 42]]]), name="leaky")  # other ids, no labels
    with pytest.raises(
        ValueError, match=r"^2 of the 100 examples of digits/all are also in leaky, .* indices 7, 42 of"
    ):
        check_disjoint(b.take(0), a, copy)
    floats = ArrayDataset(a.images(), name="floats")  # the same pixels in another dtype
    with pytest.raises(ValueError, match="100 of the 100 examples of floats are also in digits/all"):
        check_disjoint(floats, a)
    check_disjoint()
    check_disjoint(a)


# --- noise


def test_noise_is_seeded_by_image_and_has_its_distribution():
    for kind in ("uniform", "gaussian"):
        data = noise(1100, (1, 4, 4), kind, seed=3)
        assert data.x.dtype == torch.uint8
        assert data.y is None
        assert torch.equal(noise(5, (1, 4, 4), kind, seed=3).x, data.x[:5])
        assert not torch.equal(noise(5, (1, 4, 4), kind, seed=4).x, data.x[:5])
        assert abs(data.images().mean() - 0.5) < 0.01
    clipped = (noise(1100, (1, 4, 4), "gaussian").x == 0).float().mean()
    assert abs(clipped - 0.3093) < 0.015  # P(Z < -0.5 + 0.5 / 255)
    assert noise(1100, (1, 4, 4)).x.unique().tolist() == list(range(256))
    with pytest.raises(ValueError, match="unknown kind of noise 'pink'; known: uniform, gaussian"):
        noise(1, (1, 4, 4), "pink")
    with pytest.raises(ValueError, match=r"n >= 0 and a shape \(C, H, W\)"):
        noise(1, (4, 4))


# --- .npz


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 5, 4), (6, 1, 5, 4)),
        ((6, 3, 5, 4), (6, 3, 5, 4)),
        ((6, 5, 4, 3), (6, 3, 5, 4)),
        ((6, 5, 4, 1), (6, 1, 5, 4)),
        ((6, 1, 3, 3), (6, 1, 3, 3)),
        ((6, 2, 5, 4), (6, 2, 5, 4)),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "float64", ">f4"])
def test_npz_layouts(tmp_path, shape, expected, dtype):
    pixels = np.arange(math.prod(shape)).reshape(shape) % 256
    x = pixels.astype(np.uint8) if dtype == "uint8" else (pixels / 255).astype(dtype)
    np.savez(tmp_path / "a.npz", x=x, y=np.array([0, 1, 2, 0, 1, 2], dtype=">i2"))
    data = load_npz(tmp_path / "a.npz")
    assert data.x.shape == expected
    assert data.x.dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
    if len(shape) == 4 and expected != shape:
        pixels = pixels.transpose(0, 3, 1, 2)
    assert torch.equal((data.images() * 255).round().long(), torch.from_numpy(pixels.reshape(expected)))
    assert data.y.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.classes == ("0", "1", "2")


def test_npz_vectors_without_labels(tmp_path):
    x = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "a.npz", x=x)
    data = load(str(tmp_path / "a.npz"), n=1)
    assert np.array_equal(data.x.numpy(), x[:1])
    assert data.y is None
    assert data.classes == ()


@pytest.mark.parametrize("x", [torch.rand(4, 5, 3), torch.rand(4, 2, 5, 3), torch.ones(4, 2, 5, 3, dtype=torch.uint8)])
def test_npz_written_and_read_is_the_same(tmp_path, x):
    data = ArrayDataset(x, torch.tensor([0, 1, 1, 0]), ("cat", "dög", "eel"), ids=torch.tensor([9, 8, 7, 6]))
    save_npz(tmp_path / "deep" / "a.npz", data)
    again = load_npz(tmp_path / "deep" / "a.npz")
    for field in ("x", "y", "ids"):
        assert torch.equal(getattr(again, field), getattr(data, field))
    assert again.classes == data.classes
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.npz"]  # nothing left beside it


@pytest.mark.parametrize("keep", [0, 1, 30, 0.5, 0.99, -1])
def test_truncated_npz(tmp_path, keep):
    path = tmp_path / "cut.npz"
    np.savez(path, x=np.zeros((5, 8, 8), np.uint8))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"cut\.npz: not a complete \.npz file"):
        load_npz(path)


def test_damaged_npz_member(tmp_path):
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).random((50, 8)))
    whole = bytearray(path.read_bytes())
    whole[400:420] = bytes(20)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"bad\.npz: not a complete \.npz file"):
        load_npz(path)


class Boom:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([Boom()], dtype=object))
    with pytest.raises(ValueError, match=r"a\.npz: holds an object array; those are pickled, and refused"):
        load_npz(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Boom()))
    with pytest.raises(ValueError, match=r"b\.npz: not a complete \.npz file"):
        load_npz(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"images": np.zeros(1), "labels": np.zeros(1)}, "no array 'x'; it holds 'images', 'labels'"),
        ({}, "no array 'x'; it holds nothing"),
        ({"x": np.zeros((2, 3), np.int64)}, "x is int64; pixels must be uint8, or floats"),
        ({"x": np.full((2, 3), 2.0)}, r"x has values in \[2, 2\], outside the bounds"),
        ({"x": np.full((2, 3), np.nan)}, "x holds NaN or Inf"),
        ({"x": np.zeros((2, 3), np.uint8)}, "uint8 x must be images"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(3, int)}, r"y must have shape \(2,\)"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(2)}, "y is float64; labels must be integers"),
        ({"x": np.zeros((2, 3)), "y": np.array([-1, 0])}, "y has the label -1: name every class"),
        ({"x": np.zeros((2, 3)), "y": np.array([0, 5]), "classes": np.array(["a"])}, r"outside \[0, 1\)"),
    ],
)
def test_npz_contents_are_checked(tmp_path, arrays, text):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/a\.npz: {text}|^{tmp_path}/a\.npz: .*{text}"):
        load_npz(tmp_path / "a.npz")


# --- image folders


def test_labelled_folder_in_sorted_order(tmp_path):
    for name, value in (("dog/b.png", 3), ("dog/a.png", 2), ("cat/z.png", 1), ("dog/.hidden.png", 9)):
        image(tmp_path / name, value=value)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    with pytest.warns(UserWarning, match=r"system files .*: 2 \(\.cache, .*no images .*: 1 \(cat/notes\.txt\)"):
        data = load_folder(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.sources == ("cat/z.png", "dog/a.png", "dog/b.png")
    assert data.y.tolist() == [0, 1, 1]
    assert data.x.shape == (3, 1, 4, 5)
    assert torch.equal(data.x[1, 0], torch.arange(20, dtype=torch.uint8).reshape(4, 5) + 2)


def test_flat_folder_has_no_labels_and_rgb_has_channels_first(tmp_path):
    image(tmp_path / "a.PNG", "RGB")
    data = load_folder(tmp_path)
    assert data.y is None
    assert data.x.shape == (1, 3, 4, 5)
    assert data.x[0, 2, 0].tolist() == [2, 5, 8, 11, 14]
    assert load_folder(tmp_path, channels=1).x.shape == (1, 1, 4, 5)


def test_n_images_are_spread_over_the_classes(tmp_path):
    for label in "abc":
        for i in range(4):
            image(tmp_path / label / f"{i}.png")
    data = load_folder(tmp_path, n=6)
    assert data.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.ids.tolist() == [0, 2, 4, 6, 8, 10]
    assert len(load_folder(tmp_path, n=99)) == 12
    assert load_folder(tmp_path, n=0, size=(6, 7)).x.shape == (0, 1, 6, 7)
    with pytest.raises(ValueError, match="must not be negative"):
        load_folder(tmp_path, n=-1)


def test_mixed_sizes_and_modes_name_the_first_file_that_differs(tmp_path):
    image(tmp_path / "a.png")
    image(tmp_path / "b.png", size=(7, 6))
    image(tmp_path / "c.png", size=(9, 9))
    with pytest.raises(ValueError, match=r"b\.png: an image of shape \(1, 6, 7\).* among images of shape \(1, 4, 5\)"):
        load_folder(tmp_path)
    assert load_folder(tmp_path, size=(4, 5)).x.shape == (3, 1, 4, 5)
    image(tmp_path / "b.png", "RGB")
    with pytest.raises(ValueError, match=r"b\.png: an image of shape \(3, 4, 5\)"):
        load_folder(tmp_path, size=(4, 5))
    assert load_folder(tmp_path, size=(4, 5), channels=3).x.shape == (3, 3, 4, 5)
    with pytest.raises(ValueError, match="channels must be 1, 3 or None, got 4"):
        load_folder(tmp_path, channels=4)


def test_other_modes_are_converted_only_when_asked(tmp_path):
    image(tmp_path / "a.png", "RGBA")
    with pytest.raises(ValueError, match=r"a\.png: mode RGBA; pass channels=1 or channels=3 to convert"):
        load_folder(tmp_path)
    assert load_folder(tmp_path, channels=3).x.shape == (1, 3, 4, 5)
    Image.fromarray(np.full((4, 5), 0.5, np.float32)).save(tmp_path / "a.tif")
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"a\.tif: mode F has more than 8 bits a channel"):
        load_folder(tmp_path, channels=1)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_truncated_image_is_named(tmp_path, suffix, keep):
    image(tmp_path / "x" / "a.png", "RGB", (40, 30))
    path = image(tmp_path / "x" / f"b.{suffix}", "RGB", (40, 30))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=rf"b\.{suffix}: not a readable image"):
        load_folder(tmp_path)


def test_folders_that_hold_no_data_set(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no images in this folder \(looked for AVIF, BMP, "):
        load_folder(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match="no images in this folder"):
        load_folder(tmp_path)
    image(tmp_path / "cat" / "a.png")
    image(tmp_path / "loose.png")
    with pytest.raises(ValueError, match=r"images both beside and inside class folders, first loose\.png"):
        load_folder(tmp_path)


# --- torchvision's sets, made up in their own layouts


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture(params=["MNIST", "FashionMNIST"])
def idx_root(request, tmp_path):
    raw = tmp_path / request.param / "raw"
    for stem, n in (("train", 3), ("t10k", 2)):
        write_idx(raw / f"{stem}-images-idx3-ubyte", np.arange(n * 784).reshape(n, 28, 28) % 251)
        write_idx(raw / f"{stem}-labels-idx1-ubyte", np.arange(n) + 7)
    return request.param, tmp_path, raw


def test_mnist_from_idx_files(idx_root):
    name, root, _ = idx_root
    test, train = load(name, root=root), load(name, root=str(root), split="train")
    assert test.x.shape == (2, 1, 28, 28)
    assert torch.equal(train.x.flatten(), (torch.arange(3 * 784) % 251).to(torch.uint8))
    assert train.y.tolist() == [7, 8, 9]
    assert train.n_classes == 10
    assert train.name == {"MNIST": "mnist/train", "FashionMNIST": "fashion-mnist/train"}[name]


@pytest.mark.parametrize("which", ["images-idx3", "labels-idx1"])
@pytest.mark.parametrize("keep", [0, 3, 9, -1])
def test_truncated_idx_is_named(idx_root, which, keep):
    name, root, raw = idx_root
    file = raw / f"t10k-{which}-ubyte"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"{file}: truncated, or not an IDX file"):
        load(name, root=root)
    assert len(load(name, root=root, split="train")) == 3


def test_idx_of_different_lengths_or_labels(idx_root):
    name, root, raw = idx_root
    write_idx(raw / "t10k-labels-idx1-ubyte", np.zeros(5))
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte: 5 labels for 2 images"):
        load(name, root=root)
    write_idx(raw / "t10k-labels-idx1-ubyte", np.array([0, 10]))
    with pytest.raises(ValueError, match=r"mnist/test: y has labels in \[0, 10\], outside \[0, 10\)"):
        load(name, root=root)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "svhn"])
def test_missing_set_says_where_it_looked(tmp_path, name):
    with pytest.raises(
        FileNotFoundError, match=rf"not found in {tmp_path}: no {tmp_path}/.*or pass --download to fetch"
    ):
        load(name, root=tmp_path)
    with pytest.raises(ValueError, match=f"{name}: pass --data-root, the folder"):
        load(name)
    with pytest.raises(ValueError, match=f"{name}: unknown split 'val'; known: train, test"):
        load(name, root=tmp_path, split="val")


def test_download_only_when_asked_and_its_failure_is_one_line(tmp_path, monkeypatch):
    from torchvision import datasets

    def fail(self):
        raise RuntimeError("Error downloading:\nTried everything,\n got: no route")

    monkeypatch.setattr(datasets.MNIST, "download", fail)
    with pytest.raises(FileNotFoundError):
        load("mnist", root=tmp_path)
    with pytest.raises(OSError, match=r"^mnist: the download into .* failed \(.*Tried everything, got: no route\)$"):
        load("mnist", root=tmp_path, download=True)

    def fetch(self):
        for stem in ("train", "t10k"):
            write_idx(tmp_path / "MNIST" / "raw" / f"{stem}-images-idx3-ubyte", np.zeros((4, 28, 28)))
            write_idx(tmp_path / "MNIST" / "raw" / f"{stem}-labels-idx1-ubyte", np.zeros(4))

    monkeypatch.setattr(datasets.MNIST, "download", fetch)
    assert len(load("mnist", root=tmp_path, download=True)) == 4
    monkeypatch.setattr(datasets.MNIST, "download", fail)
    assert len(load("mnist", root=tmp_path, download=True)) == 4  # it is there: the network is left alone


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_cifar10_in_torchvisions_layout(tmp_path, monkeypatch):
    from torchvision import datasets

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = (np.arange(2 * 3072) % 251).astype(np.uint8).reshape(2, 3072)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": pixels, "labels": [9, 0]}))
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": pixels[:1], "labels": [4]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["x"] * 10}))
    with pytest.raises(ValueError, match="cifar-10-batches-py: incomplete or corrupt"):  # before anything is unpickled
        load("CIFAR10", root=tmp_path)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5(folder / "test_batch")]])
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", md5(folder / "data_batch_1")]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    data = load("CIFAR10", root=tmp_path)
    assert data.x.shape == (2, 3, 32, 32)
    assert np.array_equal(data.x.flatten(1).numpy(), pixels)
    assert data.y.tolist() == [9, 0]
    assert data.classes[9] == "truck"


def test_svhn_in_torchvisions_layout(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision import datasets

    pixels = (np.arange(2 * 3072) % 251).astype(np.uint8).reshape(32, 32, 3, 2)
    file = tmp_path / "test_32x32.mat"
    savemat(file, {"X": pixels, "y": np.array([[10], [3]], np.uint8)})
    with pytest.raises(ValueError, match=r"test_32x32\.mat: incomplete or corrupt"):
        load("svhn", root=tmp_path)
    monkeypatch.setattr(datasets.SVHN, "split_list", {"test": ["", file.name, md5(file)]})
    data = load("svhn", root=tmp_path)
    assert np.array_equal(data.x.numpy(), pixels.transpose(3, 2, 0, 1))
    assert data.y.tolist() == [0, 3]  # the file says 10 for the digit 0


# --- load


@pytest.mark.parametrize("name", ["digits", "Digits", "DIGITS"])
def test_names_in_any_case(name):
    assert load(name).name == "digits/test"
    assert len(load(name, split="train", n=7)) == 7


@pytest.mark.parametrize("name", ["fashion-mnist", "Fashion_MNIST", "FashionMNIST"])
def test_torchvisions_spellings(name):
    with pytest.raises(ValueError, match=r"^fashion-mnist: pass --data-root"):
        load(name)


def test_unknown_sources(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown data set 'cifar', and no such path exists; did you mean 'cifar10'"):
        load("cifar")
    with pytest.raises(ValueError, match=r"lost\.npz', and no such path exists; known: 'digits', 'mnist'"):
        load(tmp_path / "lost.npz")
    with pytest.raises(ValueError, match="unknown data set 'imagenet'; known"):
        load_vision("imagenet", tmp_path)
    (tmp_path / "a.doc").write_text("1,2")
    with pytest.raises(ValueError, match=r"a\.doc: a data set is an \.npz file, a table"):
        load(tmp_path / "a.doc")
    with pytest.raises(ValueError, match="must not be negative"):
        load("digits", n=-1)
    image(tmp_path / "digits" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert load("./digits").name == "digits"
    assert load("digits").name == "digits/test"


def test_a_folder_of_splits_is_read_from_the_split_asked_for(tmp_path):
    image(tmp_path / "pets" / "train" / "cat" / "a.png")
    with pytest.raises(ValueError, match="no folder 'test' in it, only 'train'"):
        load(tmp_path / "pets")
    for i in range(3):
        image(tmp_path / "pets" / "test" / "dog" / f"{i}.png")
    assert load(tmp_path / "pets", split="train").classes == ("cat", "dog")
    test = load(tmp_path / "pets", n=2, size=(8, 9), channels=3)
    assert test.name == "pets/test"
    assert test.y.tolist() == [1, 1]
    assert test.x.shape == (2, 3, 8, 9)
