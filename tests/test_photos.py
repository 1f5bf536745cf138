"""Images in files as they come: of any size and kind, some unreadable, as many as there are."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from robustgen import cli
from robustgen.commands import DataSpec, Scoring, Unreadable, write_rows
from robustgen.commands.run_info import recorded_data
from robustgen.data import ImageFiles, ImageReader, Table, load
from robustgen.data.image_files import Remarks
from robustgen.data.image_reader import NOTHING_ASKED


def run(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def fortified_run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "fortified"
    small = ["--model", "mlp", "--width", "16", "--epochs", "1", "--limit", "300", "--quiet"]
    assert cli.main(["train", "--run", str(run_dir), "--fortify", "auto", *small]) == 0
    return run_dir


@pytest.fixture
def photos(tmp_path):
    """Images of 8x8, 20x30, 30x20 (RGB) and one file that is none, of 17."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(16):
        shape = [(8, 8), (20, 30), (30, 20, 3), (9, 9, 3)][k % 4]
        Image.fromarray(pixels(k, *shape)).save(folder / f"{k:02d}.png")
    (folder / "05b.jpg").write_text("no image")
    return folder


# --- pixels


def test_squash_stretches_and_crop_takes_the_centre(tmp_path):
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 255  # the middle third
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.T.copy()).save(tmp_path / "tall.png")
    for name in ("wide.png", "tall.png"):
        cropped, _ = ImageReader(size=(4, 4), fit="crop").read(tmp_path / name)
        assert cropped.min() > 200  # at the edges the filter sees what was cut off
        assert cropped[0, 1:3, 1:3].min() == 255
        for fit in (None, "squash"):
            squashed, _ = ImageReader(size=(4, 4), fit=fit).read(tmp_path / name)
            assert squashed.mean() == pytest.approx(255 / 3, abs=1)
    half, _ = ImageReader(size=(4, 8), fit="crop").read(tmp_path / "wide.png")  # 8 x 16 of 8 x 24
    assert half[0].mean(0).tolist() == pytest.approx([0, 0, 255, 255, 255, 255, 0, 0], abs=40)
    assert ImageReader(size=[8, 24]).size == (8, 24)
    for wrong in ({"fit": "stretch"}, {"channels": 2}, {"size": (0, 3)}):
        with pytest.raises(ValueError, match="must be"):
            ImageReader(**wrong)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_greys_keep_their_scale(tmp_path, suffix):
    values = np.array([[0, 128, 257, 32768, 65535, 65407]], np.uint16)
    if suffix == "pgm":  # older versions of Pillow read it, but do not write it
        (tmp_path / "a.pgm").write_bytes(b"P5 6 1 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    with pytest.warns(UserWarning, match=r"16-bit greys, 0\.\.65535, rounded to 8 bits: 1 \(a\."):
        data = load(tmp_path, channels=3)
    assert data.x[0, 0].tolist() == np.round(values / 65535 * 255).tolist()
    assert data.x.shape == (1, 3, 1, 6)


# --- sources


def test_one_image_and_lists_of_images(tmp_path):
    (tmp_path / "a").mkdir()
    for k, name in enumerate(("a/1.png", "2.PNG", "a/3 c.jpg")):
        Image.fromarray(np.full((4, 4), 50 * k, np.uint8)).save(tmp_path / name)
    one = load(tmp_path / "2.PNG")
    assert (len(one), one.sources, one.y, one.name) == (1, ("2.PNG",), None, "2.PNG")
    text = f"a/3 c.jpg\n\n{tmp_path / '2.PNG'}\r\n a/1.png \n"
    (tmp_path / "list.txt").write_text(text)
    (tmp_path / "list.lst").write_text(text)
    for source in (tmp_path / "list.txt", f"@{tmp_path}/list.lst", f"@{tmp_path}/list.txt"):
        data = load(source)
        assert data.sources == ("a/3 c.jpg", str(tmp_path / "2.PNG"), "a/1.png")
        assert data.x[:, 0, 0, 0].tolist() == [100, 50, 0]
        assert load(source, n=2).ids.tolist() == [0, 1]
    (tmp_path / "list.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"list\.txt: the list is empty"):
        load(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"list\.txt: not a list of images"):
        load(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("lost.png\n2.PNG")
    with pytest.raises(ValueError, match=r"lost\.png: no such file"):
        load(tmp_path / "list.txt")
    (tmp_path / "book.txt").write_text(f"Call me Ishmael.\n{'Some years ago' * 100}\n")
    with pytest.raises(
        ValueError, match=r"book\.txt: read as a list .* none of its 2 lines names a file .*train char-lm"
    ):
        load(tmp_path / "book.txt")


def test_all_formats_are_read_from_the_first_file_on(tmp_path):
    """Pillow loads its decoders when it is first asked which there are."""
    for suffix in ("png", "webp"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / f"a.{suffix}")
        (tmp_path / "list.txt").write_text(f"a.{suffix}")
        code = f"from robustgen.data import load; print(len(load({str(tmp_path / 'list.txt')!r})))"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert found.stdout == "1\n", found.stderr


def test_batches_hold_what_the_whole_holds(photos):
    reader = ImageReader(channels=3, size=(8, 8), fit="crop")
    files = ImageFiles(photos, tuple(sorted(os.listdir(photos))), "photos", reader)
    skipped = []
    batches = list(files.batches(3, Remarks(), skipped.append))
    assert [str(e).split(":")[0] for e in skipped] == [str(photos / "05b.jpg")]
    names = [name for some, _ in batches for name in some]
    assert names == sorted(set(os.listdir(photos)) - {"05b.jpg"})
    assert all(len(some) == len(x) <= 3 for some, x in batches)
    (photos / "05b.jpg").unlink()
    whole = load(photos, channels=3, size=(8, 8), fit="crop")
    assert all(x.is_contiguous() for _, x in batches)  # in another layout a convolution rounds otherwise
    assert torch.equal(torch.cat([x for _, x in batches]), whole.images())
    (photos / "05b.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"05b\.jpg: not a readable image"):
        list(files.batches(3, Remarks()))


# --- the command


def test_mixed_photos_are_scored_as_the_network_takes_them(capsys, fortified_run, photos, tmp_path):
    scored = ["score", "--run", fortified_run, "--data", photos]
    code, out, err = run(capsys, *scored)
    assert code == 1
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["input"] for row in rows] == [f"{k:02d}.png" for k in range(16)]
    assert "note: photos: 17 image files, converted to L, resized to 8x8, bilinear" in err
    assert err.count("robustgen: skipped: ") == 1
    assert "05b.jpg: not a readable image" in err
    assert err.endswith("robustgen: error: 1 file could not be read, the others are used\n")
    code, out, _ = run(capsys, *scored, "--out", tmp_path / "rows.jsonl", "--fit", "crop", "--json")
    assert code == 1
    found = json.loads(out)
    assert (found["inputs"], found["unreadable"]) == (16, 1)
    assert found["images"] == "converted to L, resized to 8x8, bilinear, after a centre crop"
    cropped = [json.loads(line)["score"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert cropped[0] == pytest.approx(float(rows[0]["score"]))  # of 8x8
    assert cropped[1] != pytest.approx(float(rows[1]["score"]))
    (photos / "05b.jpg").unlink()
    x = load(photos, channels=1, size=(8, 8))
    code, out, _ = run(capsys, *scored, "--out", tmp_path / "rows.csv")
    assert code == 0
    flagged = sum(row["flag"] == "True" for row in csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert f"flagged: {flagged / 16:.1%}\nnominal: 5.0%\n" in out
    from robustgen.commands.opening import load_run, saved_detector

    network = load_run(fortified_run)[0]
    expected = saved_detector(fortified_run, network).score(x.images())
    found = [float(row["score"]) for row in csv.DictReader((tmp_path / "rows.csv").read_text().splitlines())]
    assert found == pytest.approx(expected.tolist(), rel=1e-4)
    code, out, err = run(capsys, "score", "--run", fortified_run, "--data", photos / "01.png")
    assert (code, len(out.splitlines())) == (0, 2)
    (photos / "some.txt").write_text("01.png\n03.png\nlost.png\n")
    code, out, err = run(capsys, "score", "--run", fortified_run, "--data", photos / "some.txt")
    assert (code, len(out.splitlines())) == (1, 3)
    assert "lost.png: no such file" in err


def test_what_stops_the_scoring(capsys, fortified_run, photos, tmp_path):
    icon = np.zeros((8, 8, 4), np.uint8)
    Image.fromarray(icon).save(photos / "icon.png")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "1.png").write_text("no")
    (bad / "2.png").write_text("no")
    out = tmp_path / "out" / "rows.csv"
    for arguments, message in (
        (["--data", photos, "--strict"], "05b.jpg: not a readable image"),
        (["--data", bad], "bad: none of the 2 files could be read"),
        (["--data", photos, "--size", "9"], "photos holds inputs of shape (1, 9, 9), the network takes (1, 8, 8)"),
        (["--data", photos, "--channels", "3"], "photos holds inputs of shape (3, 8, 8)"),
        (["--data", photos, "--size", "8x"], "--size 8x: write a number of pixels"),
        (["--data", photos, "--size", "0"], "height must be at least 1"),
        (["--data", photos, "--fit", "stretch"], "fit must be 'squash' or 'crop'"),
        (["--data", photos, "--background", "whit"], "background must be"),
        (["--data", "digits", "--size", "8"], "digits holds none"),
        (["--data", photos, "--limit", "0"], "Invalid value for '--limit'"),
        (["--data", photos, "--fpr", "1.5"], "fpr must be in (0, 1)"),
    ):
        code, text, err = run(capsys, "score", "--run", fortified_run, *arguments, "--out", out)
        assert (code, text) == (2, ""), (arguments, err)
        assert message in err
        assert not out.exists()
    code, _, err = run(capsys, "score", "--run", fortified_run, "--data", photos, "--out", out)
    assert "icon.png: has transparent places" in err
    assert code == 1
    white = ["--data", photos, "--background", "white"]
    code, _, err = run(capsys, "score", "--run", fortified_run, *white, "--out", out)
    assert "icon.png" not in err
    assert "laid on (255, 255, 255)" in err


@pytest.mark.filterwarnings("always:.*resized to 8x8")
def test_other_populations_skip_what_cannot_be_read_too(capsys, fortified_run, photos, tmp_path):
    others = tmp_path / "others"
    others.mkdir()
    for k in range(5):
        Image.fromarray(pixels(100 + k, 8, 8)).save(others / f"{k}.png")
    (others / "bad.png").write_text("no")
    chosen = ["score", "--run", fortified_run, "--data", photos, "--against", others, "--json"]
    for more in ([], ["--out", tmp_path / "rows.csv"]):
        code, out, err = run(capsys, *chosen, *more)
        assert code == 1
        assert err.count("robustgen: skipped: ") == 2  # each once, though --data are read twice
        assert err.endswith("robustgen: error: 2 files could not be read, the others are used\n")
        found = json.loads(out.splitlines()[-1])
        assert len(found["in_distribution"]) == 16
        assert found["populations"]["others"]["n"] == 5
    (photos / "05b.jpg").unlink()
    code, out, err = run(capsys, *chosen, "--strict")
    assert (code, out) == (2, "")
    assert "bad.png: not a readable image" in err


def test_labels_stay_with_their_files_where_some_are_skipped(tmp_path):
    for k, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(pixels(10 * k + i, 4, 4)).save(tmp_path / name / f"{i}.png")
    (tmp_path / "a" / "0.png").write_text("no")
    skipped = []
    found = load(tmp_path, skip=skipped.append)
    assert (found.labels().tolist(), found.ids.tolist()) == ([0, 0, 1, 1, 1], [1, 2, 3, 4, 5])
    assert found.sources[0] == "a/1.png"
    assert ["0.png: not a readable image" in str(error) for error in skipped] == [True]


def test_everything_is_looked_at_before_a_detector_is_fitted(capsys, photos, tmp_path, monkeypatch):
    from robustgen.fortified import FortifiedNetwork

    def never(*args, **kwargs):
        raise AssertionError("fitted")

    monkeypatch.setattr(FortifiedNetwork, "fit_autoencoders", never)
    (tmp_path / "own_network_of_photos.py").write_text(
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    np.savez(tmp_path / "large.npz", x=np.zeros((2, 9, 9), np.uint8))
    common = ["score", "--model", "own_network_of_photos:net", "--fit-data", "digits"]
    (tmp_path / "folder.csv").mkdir()
    for arguments, message in (
        (["--data", tmp_path / "lost"], "no such path exists"),
        (["--data", photos, "--fpr", "0.0001"], "cannot give a false-alarm rate of 0.0001"),
        (["--data", photos, "--strict", "--layers", "9"], "9"),
        (["--data", tmp_path / "large.npz"], "the network takes (1, 8, 8)"),
        (["--data", photos, "--channels", "3"], "the network takes (1, 8, 8)"),
        (["--data", photos / "05b.jpg"], "not a readable image"),
        (["--data", photos, "--against", tmp_path / "lost"], "no such path exists"),
        (["--data", photos, "--out", tmp_path / "rows.txt"], "name it .csv"),
        (["--data", photos, "--out", tmp_path / "folder.csv"], "a folder"),
        (["--data", photos, "--out", tmp_path / "large.npz" / "rows.csv"], "is no folder"),
    ):
        code, _, err = run(capsys, *common, *arguments)
        assert (code, message in err.splitlines()[-1]) == (2, True), err


def test_runs_on_photos_remember_how_they_were_read(capsys, tmp_path):
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(20):
            Image.fromarray(pixels(k, 9 + k, 12)).save(tmp_path / "data" / name / f"{k}.png")
    small = ["--model", "mlp", "--width", "4", "--epochs", "1", "--quiet", "--data", tmp_path / "data"]
    train = ["train", "--run", tmp_path / "r", *small]
    code, _, err = run(capsys, *train)
    assert code == 2
    assert "(in the command: --size, --channels)" in err
    chosen = ["--size", "6x5", "--fit", "crop"]
    assert run(capsys, *train, *chosen)[0] == 0
    info = json.loads((tmp_path / "r" / "run.json").read_text())
    assert info["data"]["images"] == {"size": [6, 5], "fit": "crop"}
    assert info["network"]["shape"] == [1, 6, 5]
    assert recorded_data(info).images == ImageReader(size=(6, 5), fit="crop")
    assert run(capsys, *train, *chosen, "--resume")[0] == 0
    assert run(capsys, *train, "--size", "6x5", "--resume")[0] == 0  # what is not given is remembered
    assert "data.images.fit was" in run(capsys, *train, "--fit", "squash", "--resume")[2]
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(pixels(0, 20, 12)).save(other / "1.png")
    found = []
    tell = lambda kind, line: found.append(line)
    scoring = Scoring(DataSpec(str(other)), "test", unreadable=Unreadable(tell), tell=tell)
    scoring.fit_to((1, 6, 5), info)
    assert found == ["other: 1 image file, converted to L, resized to 6x5, bilinear, after a centre crop"]
    assert DataSpec("digits").record() == {"source": "digits", "root": None, "download": False, "limit": None}
    info["data"]["images"]["fit"] = "stretch"
    (tmp_path / "r" / "run.json").write_text(json.dumps(info))
    code, _, err = run(capsys, "attack", "--run", tmp_path / "r")
    assert (code, "run.json: data.images: fit must be" in err) == (2, True), err


def test_options_not_given_are_those_of_another_reader():
    mine = ImageReader(channels=1)
    assert mine.or_else(ImageReader(3, (4, 4), "crop")) == ImageReader(1, (4, 4), "crop")
    assert NOTHING_ASKED.or_else(mine) == mine


def test_rows_that_fail_midway_leave_what_was_there(tmp_path):
    def rows():
        yield {"input": "a", "score": 1.0, "p_value": 0.5, "flag": False}
        raise KeyboardInterrupt

    out = tmp_path / "rows.csv"
    out.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write_rows(rows(), out)
    assert out.read_text() == "before"
    assert os.listdir(tmp_path) == ["rows.csv"]


def test_no_more_is_read_than_is_soon_needed(tmp_path):
    class Counting(ImageReader):
        seen = 0

        def read(self, file):
            Counting.seen += 1
            return np.zeros((1, 2, 2), np.uint8), ()

    files = ImageFiles(tmp_path, tuple(map(str, range(1000))), "many", Counting())
    for k, (names, x) in enumerate(files.batches(10, Remarks()), start=1):
        assert Counting.seen <= 10 * (k + 2)
        assert (len(names), x.shape) == (10, (10, 1, 2, 2))
    assert (k, Counting.seen) == (100, 1000)


def test_other_commands_resize_and_say_so(tmp_path):
    for part in ("train", "test"):
        (tmp_path / "photos" / part).mkdir(parents=True)
        Image.fromarray(pixels(0, 20, 12, 3)).save(tmp_path / "photos" / part / "1.png")
    spec = DataSpec(str(tmp_path / "photos"))
    with pytest.warns(UserWarning, match="photos/test: resized to 8x8, bilinear, as the network takes them"):
        assert spec.read("test", (1, 8, 8)).x.shape == (1, 1, 8, 8)
    assert spec.read("test", (3, 20, 12)).preprocessing == ("converted to RGB",)  # none had another size
    asked = DataSpec(spec.source, images=ImageReader(size=(8, 8)))
    assert asked.read("test", (3, 8, 8)).x.shape == (1, 3, 8, 8)
    assert repr(spec.open("test")) == "ImageFiles('photos/test', 1 files, ImageReader(as the files are))"
    with pytest.raises(ValueError, match=r"photos/train holds inputs of shape .*, the network takes \(64,\)"):
        spec.read("train", (64,))


def test_attacked_photos_are_read_as_scored_ones(capsys, fortified_run, photos, tmp_path):
    (tmp_path / "labelled").mkdir()
    for label in ("0", "1"):
        shutil.copytree(photos, tmp_path / "labelled" / label)
    (tmp_path / "labelled" / "1" / "05b.jpg").unlink()
    attacked = ["attack", "--run", fortified_run, "--data", tmp_path / "labelled", "--no-masking-tests", "--json"]
    code, out, err = run(capsys, *attacked, "--size", "8", "--fit", "crop")
    assert code == 1
    assert json.loads(out)["clean_accuracy"]["n"] == 32
    assert err.count("robustgen: skipped: ") == 1
    assert err.endswith("robustgen: error: 1 file could not be read, the others are used\n")
    code, out, err = run(capsys, *attacked, "--strict")
    assert (code, out, err.count("\n")) == (2, "", 1)
    proved = ["certify", "--run", fortified_run, "--data", tmp_path / "labelled", "--json"]
    proved += ["--sigma", "0.2", "--n", "100", "--size", "8"]
    code, out, err = run(capsys, *proved)
    assert (code, err.count("robustgen: skipped: ")) == (1, 1)
    assert len(json.loads(out)[0]["per_example"]["radius"]) == 32
    code, out, err = run(capsys, *proved, "--strict")
    assert (code, out, err.count("\n")) == (2, "", 1)


# Tables: read in blocks, by a rule that is stated; scores written as one.


def test_columns_are_features_and_one_is_the_label(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("\ufeffa,Label,b\n0,10,1\n0.25,9,5e-1\n\n1,10,0\n")
    data = load(path)
    assert torch.equal(data.x, torch.tensor([[0, 1], [0.25, 0.5], [1, 0]]))
    assert (data.classes, data.y.tolist(), data.name) == (("9", "10"), [1, 0, 1], "rows.csv")
    assert load(path, n=2).ids.tolist() == [0, 2]
    path.write_text('y,a\n"cat, big",0\ndog,1\n')
    assert load(path).classes == ("cat, big", "dog")
    path.write_text("a,b\n0,1\n")
    assert load(path).y is None
    assert Table(path).shape == (2,)


def test_blocks_are_the_whole(tmp_path):
    x = np.random.default_rng(0).random((25, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    with open(tmp_path / "x.csv", "w") as file:
        csv.writer(file).writerows([list("abcd"), *x.tolist()])
    for name in ("x.npy", "x.csv"):
        blocks = [block for block, _ in Table(tmp_path / name).blocks(10)]
        assert [len(block) for block in blocks] == [10, 10, 5]
        assert torch.equal(torch.cat([block.x for block in blocks]), torch.from_numpy(x))
        assert torch.cat([block.ids for block in blocks]).tolist() == list(range(25))
    grey = np.random.default_rng(0).integers(0, 256, (7, 5, 6), dtype=np.uint8)
    np.save(tmp_path / "grey.npy", grey)
    assert torch.equal(load(tmp_path / "grey.npy").x, torch.from_numpy(grey)[:, None])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no columns"),
        ("a,b\n", "holds no rows"),
        ("0,1\n1,0\n", "the first line holds numbers"),
        ("a,a\n0,1\n", "several columns are called 'a'"),
        ("a,\n0,1\n", "a column has no name"),
        ("label,y,a\n0,1,0\n", "columns 'label' and 'y': which holds the labels"),
        ("label\n0\n", "no column beside 'label'"),
        ("a,b\n0,1\n0\n", "line 3 has 1 fields, not 2"),
        ("a,b\n0,1\n0,cat\n", "column 'b' holds 'cat', which is no number"),
        ("a,b\n0,1\n0,\n", "column 'b' holds '', which is no number"),
        ("a,b\n0,255\n", r"rows 0\.\.0: x has values in \[0, 255\]"),
        ("a,b\n0,nan\n", "NaN"),
    ],
)
def test_what_no_rule_reads_is_named(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"t\.csv: .*{message}"):
        load(tmp_path / "t.csv")


def test_damaged_arrays(tmp_path):
    for array, message in (
        (np.array([{}]), "Python objects"),
        (np.zeros((2, 3), int), "holds int64"),
        (np.zeros(3), "holds"),
    ):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(ValueError, match=rf"a\.npy: .*{message}"):
            load(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"a\.npy: not a complete"):
        load(tmp_path / "a.npy")
    (tmp_path / "a.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match=r"a\.csv: not a CSV file in UTF-8"):
        load(tmp_path / "a.csv")


def test_parquet_in_and_out(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"a": [0.0, 0.5, 1.0], "label": ["cat", "dog", "cat"], "b": [1, 0, 1]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    data = load(tmp_path / "t.parquet")
    assert (data.x.tolist(), data.y.tolist(), data.classes) == ([[0, 1], [0.5, 0], [1, 1]], [0, 1, 0], ("cat", "dog"))
    for wrong, message in (({"a": ["x"]}, "string, not numbers"), ({"a": [None, 0.5]}, "empty fields")):
        parquet.write_table(pyarrow.table(wrong), tmp_path / "t.parquet")
        with pytest.raises(ValueError, match=rf"t\.parquet: column 'a' holds {message}"):
            load(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"t\.parquet: not a complete Parquet file"):
        load(tmp_path / "t.parquet")
    for names in (list(range(2500)), [f"{k}\udcff" for k in range(3)]):
        rows = [{"input": name, "score": 0.5, "p_value": 1.0, "flag": False} for name in names]
        write_rows(iter(rows), tmp_path / "out.parquet")
        found = parquet.read_table(tmp_path / "out.parquet").to_pylist()
        assert found == (rows if len(rows) > 3 else [row | {"input": f"{k}\\udcff"} for k, row in enumerate(rows)])


def test_parquet_without_pyarrow_says_what_to_install(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    code, _, err = run(capsys, "score", "--run", tmp_path, "--data", "digits", "--out", tmp_path / "o.parquet")
    assert (code, "pip install 'robustgen[parquet]'" in err) == (2, True), err
    with pytest.raises(ValueError, match="Parquet needs pyarrow"):
        load(tmp_path / "t.parquet")


def test_a_table_is_trained_on_and_scored(capsys, tmp_path):
    x = np.random.default_rng(0).random((120, 5))
    for name, n in (("train.csv", 120), ("other.csv", 30)):
        with open(tmp_path / name, "w") as file:
            rows = [[*row, "high" if row[0] > 0.5 else "low"] for row in x[:n].tolist()]
            csv.writer(file).writerows([[*"abcde", "label"], *rows])
    small = ["--model", "mlp", "--width", "8", "--epochs", "1", "--fortify", "auto", "--quiet"]
    code, _, err = run(capsys, "train", "--run", tmp_path / "r", "--data", tmp_path / "train.csv", *small)
    assert code == 0, err
    scored = ["score", "--run", tmp_path / "r", "--fpr", "0.2", "--data"]
    code, out, err = run(capsys, *scored, tmp_path / "other.csv")
    assert code == 0, err
    assert [row["input"] for row in csv.DictReader(out.splitlines())] == [str(k) for k in range(30)]
    assert len(run(capsys, *scored, tmp_path / "other.csv", "--limit", "7")[1].splitlines()) == 8
    (tmp_path / "other.csv").write_text("a,b\n0,1\n")
    code, _, err = run(capsys, *scored, tmp_path / "other.csv")
    assert (code, "other.csv holds inputs of shape (2,), the network takes (5,)" in err) == (2, True), err
