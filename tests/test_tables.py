"""Tables: read in blocks, by a rule that is stated; scores written as one."""

import csv

import numpy as np
import pytest
import torch

from robustgen import cli
from robustgen.commands import write_rows
from robustgen.data import Table, load


def run(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


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
