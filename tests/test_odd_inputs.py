"""Models that draw, toss coins or change their input, and models that other parts of torch have made."""

import math
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from robustgen import evaluate_robustness
from robustgen.attacks import APGD, DDN, FGSM, PGD, NoiseSearch
from robustgen.commands import DataSpec
from robustgen.data import ArrayDataset, load, load_folder, load_npz
from robustgen.detectors import Energy, mutate
from robustgen.detectors.compressed_size import compressed_bits
from robustgen.inputs import evenly_spaced


def test_labels_are_checked_on_stochastic_models_too():
    noisy = lambda z: torch.randn(len(z), 3) + 0 * z.sum()
    with pytest.raises(ValueError, match="label 3"):
        FGSM()(noisy, torch.rand(2, 4), torch.tensor([0, 3]))


@pytest.mark.parametrize("attack", [PGD(eps=0.2), PGD(eps=0.2, step_size=0.01, random_start=False), APGD(eps=0.2)])
def test_a_lucky_vote_on_the_way_does_not_end_the_search(attack):
    """A noisy linear model that is fooled with certainty at the far corner, and half the time at its boundary."""
    w = torch.linspace(-1, 1, 20)
    w /= w.abs().sum()
    x = 0.5 + 0.1 * w.sign() + 0.01 * torch.rand(400, 20, generator=torch.Generator().manual_seed(0))

    class Noisy(nn.Module):
        def forward(self, z):
            value = (z - 0.5) @ w + 0.02 * torch.randn(len(z))
            return torch.stack([value, -value], 1)

    assert attack.run(Noisy(), x, torch.zeros(400, dtype=torch.int64)).success.double().mean() > 0.99


def test_a_model_that_tosses_a_coin_for_each_pass_is_noticed():
    w = torch.tensor([1.0, -1.0])
    noticed = 0
    for seed in range(20):
        coin = lambda z: z @ torch.stack([w, -w], 1) * (1 if torch.rand(()) < 0.5 else 2)
        passes = FGSM(seed=seed).run(coin, torch.tensor([[0.75, 0.25]]), torch.tensor([0])).forwards
        noticed += passes.item() > 9  # a vote was taken
    assert noticed >= 18


@pytest.mark.parametrize("attack", [FGSM(), NoiseSearch(n_queries=2), DDN()])
def test_a_model_that_changes_its_input_is_refused_and_changes_nothing(attack):
    x = torch.rand(6, 4)
    kept = x.clone()
    with pytest.raises(ValueError, match="in place"):
        attack(lambda z: z.sub_(0.5) @ torch.ones(4, 3), x, torch.zeros(6, dtype=torch.int64))
    assert torch.equal(x, kept)


def exported(net, x):
    torch._dynamo.reset()  # older torch exports nothing once it has compiled something
    return torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)).module()


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:.*is deprecated")  # torch's own
@pytest.mark.parametrize(
    "convert",
    [
        exported,
        lambda net, x: nn.Sequential(nn.Identity(), exported(net, x)),
        lambda net, x: torch.jit.script(net),
        lambda net, x: torch.jit.freeze(torch.jit.script(net)),
        lambda net, x: torch.jit.trace(net, x),
        lambda net, x: torch.fx.symbolic_trace(net),
        lambda net, x: torch.compile(net, backend="eager"),
    ],
    ids=["export", "export inside", "script", "freeze", "trace", "fx", "compile"],
)
def test_what_torch_makes_of_a_network_is_attacked_and_scored_as_the_network(convert):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    x = torch.rand(9, 1, 6, 6)
    y = net(x).argmax(1)
    made = convert(net, x)
    flags = [getattr(m, "training", None) for m in made.modules()]
    attack = PGD(eps=0.1, steps=5)
    expected, found = attack.run(net, x, y), attack.run(made, x, y)
    assert torch.equal(expected.success, found.success)
    assert torch.allclose(Energy(made).fit(x).score(x), Energy(net).fit(x).score(x), atol=1e-5)
    report = evaluate_robustness(made, x, y, attacks=[attack], eps=0.1, masking_tests=False)
    assert report.clean_accuracy == 1
    assert [getattr(m, "training", None) for m in made.modules()] == flags


def test_each_module_keeps_its_own_mode_beside_a_train_of_ones_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout()

        def train(self, mode=True):
            return super().train(mode)

        def forward(self, x):
            return self.drop(self.norm(x))

    model = nn.Sequential(Own(), nn.Linear(4, 2)).train()
    model[0].norm.eval()
    flags = [m.training for m in model.modules()]
    FGSM()(model, torch.rand(3, 4), torch.zeros(3, dtype=torch.int64))
    assert [m.training for m in model.modules()] == flags


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_dependence_on_the_batch(dtype):
    class Rounded(nn.Module):
        """Rounds its logits one digit of bfloat16 up or down, by the size of the batch alone."""

        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).to(dtype)

        def forward(self, x):
            logits = self.net(x.to(dtype)).float()
            return logits * (1 + (2**-8 if len(x) == 1 and dtype == torch.bfloat16 else 0))

    model, x = Rounded().eval(), torch.rand(7, 4)
    PGD(eps=0.1)(model, x, model(x).argmax(1))


# Data as people have them: parts that lack a class, photographs, labels with holes, channels at either end.


def grey(*paths, value=0):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)


def labels(dataset):
    return dict(zip(dataset.sources, dataset.y.tolist(), strict=True))


# --- labels of folders


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Train", "TEST")])
def test_the_classes_of_both_parts_number_the_labels_of_each(tmp_path, train, test):
    grey(*(tmp_path / train / name / "1.png" for name in ("cat", "dog", "eel")))
    grey(*(tmp_path / test / name / "1.png" for name in ("cat", "eel", "fox")))
    for part, expected in (("train", {"cat": 0, "dog": 1, "eel": 2}), ("test", {"cat": 0, "eel": 2, "fox": 3})):
        data = load(tmp_path, split=part)
        assert data.classes == ("cat", "dog", "eel", "fox")
        assert labels(data) == {f"{name}/1.png": label for name, label in expected.items()}
        assert data.name == f"{tmp_path.name}/{part}"
    assert DataSpec(str(tmp_path)).has_test_part()


def test_what_holds_no_images_moves_no_label(tmp_path):
    grey(tmp_path / "cat" / "1.png", tmp_path / "dog" / "1.png", tmp_path / "dog" / ".ipynb_checkpoints" / "1.png")
    grey(tmp_path / "__MACOSX" / "cat" / "1.png", tmp_path / ".ipynb_checkpoints" / "1.png")
    (tmp_path / "bat").mkdir()
    (tmp_path / "Thumbs.db").touch()
    (tmp_path / "dog" / "notes.txt").touch()
    line = (
        r"^.*: hidden or system files passed over: 4 \(.*\); folders without images passed over: 1 \(bat\); "
        r"files that are no images passed over: 1 \(dog/notes\.txt\)$"
    )
    with pytest.warns(UserWarning, match=line) as said:
        data = load(tmp_path)
    assert labels(data) == {"cat/1.png": 0, "dog/1.png": 1}
    assert data.classes == ("cat", "dog")
    assert len(said) == 1


def test_a_part_may_lack_all_images_or_all_classes(tmp_path):
    grey(tmp_path / "train" / "cat" / "1.png")
    (tmp_path / "test").mkdir()
    assert load(tmp_path, split="train").classes == ("cat",)
    with pytest.raises(ValueError, match="test: no images in this folder"):
        load(tmp_path)
    grey(tmp_path / "test" / "1.png")
    assert load(tmp_path).y is None


def test_parts_that_cannot_be_told_are_refused(tmp_path):
    for name, folders, text in (
        ("two", ("train", "Train"), "holds both 'Train' and 'train'"),
        ("one", ("bus", "train"), "'train' beside 'bus' may be a part of the data or a class"),
    ):
        grey(*(tmp_path / name / folder / "cat" / "1.png" for folder in folders))
        with pytest.raises(ValueError, match=text):
            load(tmp_path / name, split="train")
    assert load_folder(tmp_path / "one").classes == ("bus", "train")
    grey(tmp_path / "three" / "train" / "Cat" / "1.png", tmp_path / "three" / "test" / "cat" / "1.png")
    with pytest.raises(ValueError, match="the class 'cat' of one part is 'Cat' in another"):
        load(tmp_path / "three")


def test_folders_beside_the_parts_are_said(tmp_path):
    grey(*(tmp_path / part / "cat" / "1.png" for part in ("train", "test", "val")))
    with pytest.warns(UserWarning, match="not read, beside test and train: val"):
        assert len(load(tmp_path)) == 1
    assert not DataSpec(str(tmp_path / "train")).has_test_part()


def test_sizes_are_two_integers(tmp_path):
    grey(tmp_path / "1.png")
    for size in (8, (8,), (8, 8, 8), "88", (8.0, 8)):
        with pytest.raises(TypeError, match=r"size must be \(height, width\)|height must be an integer"):
            load_folder(tmp_path, size=size)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        load_folder(tmp_path, size=(8, 0))


def test_given_classes_number_the_labels(tmp_path):
    grey(tmp_path / "dog" / "1.png")
    assert labels(load_folder(tmp_path, classes=("cat", "dog"))) == {"dog/1.png": 1}
    with pytest.raises(ValueError, match="the class 'dog' is none of 'cat'"):
        load_folder(tmp_path, classes=["cat"])


def test_links_out_of_the_folder_are_followed_once_and_said(tmp_path):
    root, outside = tmp_path / "data", tmp_path / "elsewhere"
    grey(root / "cat" / "1.png", outside / "2.png")
    os.symlink(outside, root / "dog")
    os.symlink(root / "cat", root / "kitten")  # its images are read as cats
    os.symlink(outside / "2.png", root / "cat" / "3.png")
    os.symlink(root, root / "cat" / "loop")
    os.symlink(outside, root / "cat" / "further")
    os.symlink(tmp_path / "nowhere.png", root / "cat" / "broken.png")
    with pytest.warns(UserWarning, match="links out of this folder followed: 2") as said:
        data = load(root)
    assert labels(data) == {"cat/1.png": 0, "cat/3.png": 0, "dog/2.png": 1}
    for part in ("links to folders not followed: 3", "no images passed over: 1"):
        assert part in str(said[0].message)


# --- photographs


def test_photographs_are_turned(tmp_path):
    half = np.zeros((16, 24, 3), np.uint8)
    half[:8] = 255
    exif = Image.Exif()
    exif[274] = 6  # shown after a quarter turn clockwise
    Image.fromarray(half).save(tmp_path / "1.jpg", exif=exif, quality=100)
    x = load(tmp_path).x[0, 0].float()
    assert x.shape == (24, 16)
    assert (x[:, 8:].mean(), x[:, :8].mean()) == (255, 0)


def icon(alpha, mode="RGBA"):
    """A black image with these alpha values (4, 4)."""
    pixels = np.zeros((4, 4, len(mode)), np.uint8)
    pixels[..., -1] = alpha
    return Image.fromarray(pixels, mode=None)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_images_need_a_background(tmp_path, mode):
    alpha = np.array([[0, 255, 51, 255]] * 4)
    icon(alpha, mode).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"1\.png: has transparent places; pass background='white'"):
        load_folder(tmp_path, channels=3)
    data = load(tmp_path, background="white")
    assert data.x.shape == (1, 3 if mode == "RGBA" else 1, 4, 4)
    assert data.x[0, 0, 0].tolist() == [255, 0, 204, 0]
    assert data.preprocessing == ("laid on (255, 255, 255)",)
    assert load(tmp_path, background=(10, 20, 30), channels=3).x[0, :, 0, 0].tolist() == [10, 20, 30]
    assert load(tmp_path, background="black").x.max() == 0


def test_a_transparent_palette_is_seen(tmp_path):
    picture = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode=None).convert("P")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(tmp_path / "1.png", transparency=1)
    with pytest.raises(ValueError, match=r"1\.png: has transparent places"):
        load_folder(tmp_path, channels=3)
    assert load_folder(tmp_path, background="red").x[0, :, 0].T.tolist() == [[0, 0, 0], [255, 0, 0]]


def test_opaque_alpha_is_no_loss(tmp_path):
    icon(np.full((4, 4), 255)).save(tmp_path / "1.png")
    assert load_folder(tmp_path, channels=3).x.unique().tolist() == [0]
    with pytest.raises(ValueError, match=r"1\.png: mode RGBA; pass channels=1 or channels=3"):
        load_folder(tmp_path)


@pytest.mark.parametrize("background", ["whit", (1, 2), (0, 0, 256), (0.5, 0, 0), 3])
def test_backgrounds_that_are_no_colour(tmp_path, background):
    grey(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"background must be 'white', 'black' or \(red, green, blue\)"):
        load_folder(tmp_path, background=background)


def test_every_spelling_of_a_format_is_read(tmp_path):
    names = ["a.png", "b.gif", "c.jfif", "d.jpe", "e.JPG"] + ["f.avif"] * (".avif" in Image.registered_extensions())
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for name in names:
        picture.save(tmp_path / name, format="JPEG" if name[2:] in ("jfif", "jpe") else None)
    assert load(tmp_path, channels=3).sources == tuple(names)


def test_further_frames_are_counted(tmp_path):
    frames = [Image.fromarray(np.full((4, 4), 90 * i, np.uint8)) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[1].save(tmp_path / "b.tif", save_all=True, append_images=frames[2:])
    with pytest.warns(UserWarning, match=r"files read up to their first frame: 2 \(a\.gif, \.\.\.\)"):
        assert load(tmp_path, channels=1).x[:, 0, 0, 0].tolist() == [0, 90]


def test_what_would_be_clipped_or_fills_the_memory_is_refused(tmp_path, monkeypatch):
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(2 * (1 + 12)))), (b"IEND", b""))
    whole = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + whole)
    with pytest.raises(ValueError, match=r"1\.png: mode RGB has more than 8 bits a channel"):
        load_folder(tmp_path)
    grey(tmp_path / "1.png")
    for limit in (10, 4):  # Pillow warns above its limit and raises above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=r"1\.png: too many pixels to read"):
            load_folder(tmp_path)


def test_a_picture_that_is_a_program_is_not_run(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "1.png", format="EPS")
    with pytest.raises(ValueError, match=r"1\.png: not a readable image \(cannot identify"):
        load_folder(tmp_path)


# --- npz files


def npz(path, x=None, **arrays):
    np.savez(path / "a.npz", x=np.zeros((4, 8, 8), np.uint8) if x is None else x, **arrays)
    return path / "a.npz"


@pytest.mark.parametrize(
    ("y", "text"),
    [
        ([0, 1, 255, 1], r"a\.npz: y has the label 255 but none of 2\.\.254: name every class .* ignore=255"),
        ([0, 1, 3, 1], r"a\.npz: y has the label 3 but no 2"),
        ([1, 2, 2, 1], "y has the label 1 but no 0"),
        ([0, 1, -1, 1], "y has the label -1: name every class"),
        ([0, 1, 300_000_000, 1], "but none of 2..299999999"),
        ([0, 1, 10**18, 1], "but none of 2..999999999999999999"),
    ],
)
def test_labels_with_a_gap_are_refused(tmp_path, y, text):
    with pytest.raises(ValueError, match=text):
        load_npz(npz(tmp_path, y=np.array(y)))


def test_named_classes_may_be_missing(tmp_path):
    data = load_npz(npz(tmp_path, y=np.array([0, 1, 3, 1]), classes=np.array(list("abcd"))))
    assert (data.classes, data.y.tolist()) == (("a", "b", "c", "d"), [0, 1, 3, 1])


@pytest.mark.parametrize("ignore", [255, -1, 10**9])
def test_examples_of_an_ignored_label_are_left_out(tmp_path, ignore):
    path = npz(tmp_path, np.arange(4, dtype=np.uint8)[:, None, None], y=np.array([0, ignore, 1, ignore]))
    with pytest.warns(UserWarning, match=f"left out 2 of 4 examples, labelled {ignore}"):
        data = load(path, ignore=ignore)
    assert (data.x.flatten().tolist(), data.y.tolist(), data.ids.tolist()) == ([0, 2], [0, 1], [0, 2])
    assert data.classes == ("0", "1")


@pytest.mark.parametrize("shape", [(4, 32, 32, 2), (4, 32, 32, 4), (4, 3, 32, 3), (4, 3, 3, 3), (4, 9, 9, 5)])
def test_channels_that_may_be_at_either_end_are_refused(tmp_path, shape):
    x = (np.arange(math.prod(shape)) % 256).astype(np.uint8).reshape(shape)
    path = npz(tmp_path, x)
    with pytest.raises(
        ValueError, match="may have its channels first or last: add an array 'layout' that says 'NCHW' or 'NHWC'"
    ):
        load_npz(path)
    assert np.array_equal(load_npz(path, layout="NCHW").x, x)
    last = x.transpose(0, 3, 1, 2)
    assert np.array_equal(load(path, layout="NHWC").x, last)
    assert np.array_equal(load_npz(npz(tmp_path, x, layout="NHWC")).x, last)
    with pytest.raises(ValueError, match=r"a\.npz: layout must be 'NCHW' or 'NHWC', got 'HWC'"):
        load_npz(path, layout="HWC")


def test_ids_must_be_integers(tmp_path):
    with pytest.raises(ValueError, match="ids is float64; ids must be integers"):
        load_npz(npz(tmp_path, ids=np.arange(4.0)))


def member(path, shape, data=b""):
    """A file whose x is said to be uint8 of ``shape`` and holds ``data``."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data)


def test_headers_that_promise_more_than_the_file_holds(tmp_path):
    member(tmp_path / "a.npz", (10**12, 8, 8), bytes(64))
    with pytest.raises(ValueError, match=r"a\.npz: not a complete \.npz file \(x\.npy: 64 bytes for"):
        load_npz(tmp_path / "a.npz")


def test_files_that_unpack_to_far_more_than_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr("robustgen.data.npz._ROOM", 2**20)
    member(tmp_path / "a.npz", (2**14, 16, 16), bytes(2**22))
    with pytest.raises(ValueError, match=r"a\.npz: .* unpacked, more than 100 times the file: .* np\.savez, not"):
        load_npz(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.zeros((2**14, 16, 16), np.uint8))
    assert len(load_npz(tmp_path / "b.npz")) == 2**14


# --- in memory


def test_pixels_a_rounding_step_outside_are_set_to_the_bound():
    mean, std = (
        torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1),
        torch.tensor([0.2023, 0.1994, 0.2010]).view(3, 1, 1),
    )
    x = torch.rand(6, 3, 8, 8)
    x[:, :, 0], x[:, :, 1] = 0, 1
    back = (x - mean) / std * std + mean
    assert back.min() < 0
    assert torch.equal(ArrayDataset(back).x, back.clamp(0, 1))
    assert ArrayDataset(x).x is x
    back[0, 0, 0, 0] = 1 + 1e-5
    with pytest.raises(ValueError, match=r"\[-2\.98\d+e-08, 1\.0000100\d+\], outside .* by 1e-05: clamp them"):
        ArrayDataset(back)


def test_scores_of_pixels_take_a_rounding_step():
    x = torch.ones(2, 1, 8, 8)
    assert torch.equal(compressed_bits(x + 2e-7), compressed_bits(x))
    torch.testing.assert_close(mutate(x + 2e-7, 0.5), mutate(x, 0.5))
    for wrong in (compressed_bits, lambda z: mutate(z, 0.5)):
        with pytest.raises(ValueError, match="outside the bounds"):
            wrong(x + 2e-6)


@pytest.mark.parametrize(
    ("classes", "error", "text"),
    [
        (("a", ""), ValueError, "data: the class name '' is empty"),
        (("a", " "), ValueError, "data: the class name ' ' is empty"),
        (("a", 1), TypeError, "data: class names must be strings, got 1"),
        ("ab", TypeError, "data: classes must be a sequence of names, got the string 'ab'"),
        ((), ValueError, "data: labels without classes: pass classes"),
    ],
)
def test_class_names(classes, error, text):
    with pytest.raises(error, match=text):
        ArrayDataset(torch.rand(2, 3), torch.tensor([0, 1]), classes)
    assert ArrayDataset(torch.rand(1, 3), torch.tensor([0]), ("a\x1b[31m\n",)).classes == ("a\x1b[31m\n",)


def test_rows_of_long_data_are_exact():
    for length, n in ((2**24 + 3, 5), (2**31, 1000), (10**9, 3)):
        rows = evenly_spaced(length, n)
        assert (rows[0], rows[-1], len(rows)) == (0, length - 1, n)
        gaps = rows.diff()
        assert gaps.max() - gaps.min() <= 1
    assert torch.equal(evenly_spaced(7, 99), torch.arange(7))
    assert evenly_spaced(2**25, 0).tolist() == []
    assert evenly_spaced(2**25, 1).tolist() == [0]
