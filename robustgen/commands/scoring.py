"""The rows of ``robustgen score``: checked beforehand, then read, scored and written batch by batch.

Files that cannot be read are each told and counted; the others are used, and the command fails at its end.
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import torch

from robustgen.checks import check_positive
from robustgen.commands.data_spec import DataSpec, fitted
from robustgen.commands.data_spec import Inputs as Source
from robustgen.commands.opening import device_of
from robustgen.commands.run_info import recorded_data
from robustgen.data import ImageFiles, Table
from robustgen.data.image_files import Remarks
from robustgen.data.image_reader import NOTHING_ASKED
from robustgen.data.table import pyarrow_parquet
from robustgen.detectors import Detector
from robustgen.evaluation.score_summary import ScoreSummary
from robustgen.files import writing
from robustgen.inputs import Inputs, each
from robustgen.printable import as_cell, printable
from robustgen.progress import bar, showing

__all__ = ["Scoring", "Unreadable", "check_out", "score_inputs", "write_rows"]

_REPORTED = 20  # by a line each; further ones are counted


class Unreadable:
    """What could not be read so far, each file once, however often it is tried.

    Args:
        tell: called with a kind and a line, what the user is to know meanwhile.
        strict: stop at the first such file.
    """

    def __init__(self, tell: Callable[[str, object], None], strict: bool = False) -> None:
        self.strict = strict
        self._tell = tell
        self._found: set[str] = set()

    def __len__(self) -> int:
        return len(self._found)

    @property
    def skip(self) -> Callable[[ValueError], None] | None:
        """What takes the error of a file; None where it is to be raised."""
        return None if self.strict else self._add

    def _add(self, error: ValueError) -> None:
        if str(error) in self._found:
            return
        self._found.add(str(error))
        if len(self) <= _REPORTED:
            self._tell("skipped", error)
        if len(self) == _REPORTED + 1:
            self._tell("skipped", "further files that cannot be read are counted")

    def finish(self) -> None:
        """RuntimeError where there are any."""
        if self._found:
            files = "1 file" if len(self) == 1 else f"{len(self)} files"
            raise RuntimeError(f"{files} could not be read, the others are used")


_FIELDS = ("input", "score", "p_value", "flag")
_BOUNDS = ("p_lowest", "p_highest")  # of a row too, where certificates are asked for
_TABLES = (".csv", ".jsonl", ".parquet")
_IMAGES, _EXAMPLES = 256, 1000  # in a batch


class Scoring:
    """What is scored and where to: looked at before a detector is fitted, written when it is.

    Args:
        data, part: what to score.
        out: a file for the rows; None: stdout.
        as_json: rows to stdout are JSON.
        fpr: nominal false-alarm rate of the flag.
        radius: also say which p-values a change up to this L2 length can give; None: do not.
        summarise: keep what a report shows, in ``summary``.
        unreadable: takes the files that cannot be read.
        tell: called with a kind and a line, what the user is to know meanwhile.

    Raises:
        ValueError: options, a file to write or data that cannot be used.
    """

    def __init__(
        self,
        data: DataSpec,
        part: str,
        *,
        out: Path | None = None,
        as_json: bool = False,
        fpr: float = 0.05,
        radius: float | None = None,
        summarise: bool = False,
        unreadable: Unreadable,
        tell: Callable[[str, object], None],
    ) -> None:
        check_out(out)
        if not 0 < fpr < 1:
            raise ValueError(f"fpr must be in (0, 1), got {fpr}")
        self._inputs = data.open(part)
        self._out, self._as_json, self._fpr, self._unreadable, self._tell = out, as_json, fpr, unreadable, tell
        if radius is not None:
            check_positive(**{"--certify-radius": radius})
        self._scored = self._flagged = self._certified = 0
        self._radius = radius
        self._summarise = summarise
        self.summary: ScoreSummary | None = None

    def fit_to(self, shape: tuple[int, ...] | None, info: dict[str, Any]) -> None:
        """See that the inputs are such as the network takes, and say how images are read.

        Args:
            shape: of one input of the network.
            info: the network's run.json, or nothing; images are read as those that it was trained on.

        Raises:
            ValueError: other inputs, or images none of which can be read.
        """
        self._inputs = fitted(self._inputs, shape, recorded_data(info).images if info else NOTHING_ASKED)
        if isinstance(self._inputs, ImageFiles):
            self._try_images(self._inputs)
            self._tell("note", f"{self._inputs.name}: {_count(len(self._inputs))}, {self._how_read}")

    def write(self, detector: Detector) -> dict[str, Any]:
        """Score everything and write it; returns what to print."""
        if self._radius is not None and not detector.has_bound():
            raise ValueError(f"{detector.no_bound()}: --smooth-sigma 0.25 makes it a SmoothedDetector, which has one")
        remarks = Remarks()
        if self._summarise:
            threshold, n = detector.calibration.threshold(self._fpr), len(detector.calibration)
            about: dict[str, Any] = {"fpr": self._fpr, "threshold": threshold, "n_calibration": n}
            self.summary = ScoreSummary(self._inputs.name, repr(detector), **about)
        batches = _batches(self._inputs, remarks, self._unreadable.skip)
        total = None if isinstance(self._inputs, Table) else len(self._inputs)  # a table is read as it comes
        mixed = self._out is None and sys.stdout.isatty()  # rows and bar on one terminal
        with showing(False) if mixed else nullcontext(), bar(f"scores of {self._inputs.name}", total) as shown:
            rows = self._counted(score_inputs(detector, batches, self._fpr, self.summary, self._radius), shown.update)
            write_rows(rows, self._out, self._as_json, _FIELDS if self._radius is None else (*_FIELDS, *_BOUNDS))
        if line := remarks.line():
            self._tell("warning", f"{self._inputs.name}: {line}")
        share = self._flagged / max(1, self._scored)
        found: dict[str, Any] = {"inputs": self._scored, "flagged": share, "nominal": self._fpr}
        if self._radius is not None:
            found |= {"certified": self._certified / max(1, self._scored)}
        if isinstance(self._inputs, ImageFiles):
            found |= {"images": self._how_read, "unreadable": len(self._unreadable)}
        return found | {"written": str(self._out)}

    @property
    def _how_read(self) -> str:
        assert isinstance(self._inputs, ImageFiles)
        return ", ".join(self._inputs.reader.steps())

    def _counted(self, rows: Iterable[dict[str, Any]], done: Callable[[], object]) -> Iterator[dict[str, Any]]:
        for row in rows:
            self._scored += 1
            self._flagged += row["flag"]
            self._certified += row.get("p_highest", 2.0) <= self._fpr
            yield row
            done()

    def _try_images(self, files: ImageFiles) -> None:
        """Read the first file that can be, lest a detector be fitted for nothing."""
        for name in files.names:
            try:
                files.reader.read(files.root / name)
                return
            except ValueError as error:
                if self._unreadable.strict or len(files) == 1:
                    raise
                last = error
        raise ValueError(f"{files.name}: none of the {len(files)} files could be read; the last: {last}")


def _count(n: int) -> str:
    return "1 image file" if n == 1 else f"{n} image files"


def _batches(
    inputs: Source, remarks: Remarks, skip: Callable[[ValueError], None] | None = None
) -> Iterator[tuple[list[str] | list[int], Inputs]]:
    """The name (file, or id) of each input and x (B, ...), batch by batch.

    ``remarks`` and ``skip`` are as in :meth:`ImageFiles.batches`.
    """
    if isinstance(inputs, ImageFiles):
        yield from inputs.batches(_IMAGES, remarks, skip)
        return
    if isinstance(inputs, Table):
        for block, _ in inputs.blocks(_EXAMPLES):
            yield block.ids.tolist(), block.images()
        return
    for rows in torch.arange(len(inputs)).split(_EXAMPLES):
        names = [inputs.sources[k] for k in rows.tolist()] if inputs.sources else inputs.ids[rows].tolist()
        yield names, inputs.batch(rows)[0]


def score_inputs(
    detector: Detector,
    batches: Iterable[tuple[list[str] | list[int], Inputs]],
    fpr: float = 0.05,
    summary: ScoreSummary | None = None,
    radius: float | None = None,
) -> Iterator[dict[str, Any]]:
    """One dict for each input: input (file or id), score, p_value and flag; ``summary`` is told of all.

    With a ``radius`` also p_lowest and p_highest: between which any change up to that L2 length leaves the p-value. No
    change takes an alarm back where p_highest <= fpr; none raises one where p_lowest > fpr.
    """
    where = device_of(detector.model)
    for names, x in batches:
        scores = detector.score(each(x, lambda t: t.to(where)))
        p, flags = detector.calibration.p_value(scores), detector.calibration.flag(scores, fpr)
        if summary is not None:
            summary.add(names, x, scores, p, flags)
        columns = {"input": names, "score": scores.tolist(), "p_value": p.tolist(), "flag": flags.tolist()}
        if radius is not None:
            found = detector.certified_p_value(each(x, lambda t: t.to(where)), radius)
            columns |= {name: values.tolist() for name, values in zip(_BOUNDS, found, strict=True)}
        for row in zip(*columns.values(), strict=True):
            yield dict(zip(columns, row, strict=True))


def check_out(out: Path | None) -> None:
    """ValueError unless ``out`` names a file that :func:`write_rows` can write."""
    if out is None:
        return
    if out.suffix not in _TABLES:
        raise ValueError(f"{out}: name it .csv, .jsonl or .parquet")
    if out.suffix == ".parquet":
        pyarrow_parquet()
    if out.is_dir():
        raise ValueError(f"{out}: a folder, name a file")
    there = next(p for p in out.parents if p.exists())
    if not there.is_dir():
        raise ValueError(f"{out}: {there} is no folder")


def write_rows(
    rows: Iterable[dict[str, Any]], out: Path | None, as_json: bool = False, fields: Sequence[str] = _FIELDS
) -> None:
    """Write one line an input as they come: to a .csv, .jsonl or .parquet file, or to stdout, CSV or (if asked) JSON.

    A file is there when all is written, or not at all. In CSV control characters of file names are written out, and a
    name that a spreadsheet would take for a formula begins with an apostrophe; JSON holds names as they are.
    """
    if out is not None and out.suffix == ".parquet":
        _write_parquet(rows, out, fields)
        return
    as_json = as_json if out is None else out.suffix == ".jsonl"
    with _text(out) as file:
        if as_json:
            for row in rows:
                file.write(json.dumps(row) + "\n")
            return
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: as_cell(v) if isinstance(v, str) else v for k, v in row.items()})


def _write_parquet(rows: Iterable[dict[str, Any]], out: Path, fields: Sequence[str]) -> None:
    parquet = pyarrow_parquet()
    import pyarrow

    rows = iter(rows)
    block = list(islice(rows, _EXAMPLES))
    named = bool(block) and isinstance(block[0]["input"], str)
    kinds = {"input": pyarrow.string() if named else pyarrow.int64(), "flag": pyarrow.bool_()}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in fields])
    with writing(out) as file, parquet.ParquetWriter(file, schema) as table:
        while block:
            shown = [row | {"input": printable(row["input"])} for row in block] if named else block
            table.write_batch(pyarrow.RecordBatch.from_pylist(shown, schema=schema))
            block = list(islice(rows, _EXAMPLES))


@contextmanager
def _text(out: Path | None) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    with writing(out) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        yield text
        text.detach()  # flushes it; the file is closed by who opened it
