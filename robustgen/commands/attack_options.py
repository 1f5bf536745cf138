"""What ``robustgen attack`` was asked for, kept beside what it writes, so that ``--resume`` alone goes on with it.

The file is data: it brings no code in and has nothing fetched, and what it names is read as if it were named anew.
"""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustgen.commands.network_spec import NetworkSpec
from robustgen.data.load import canonical_name
from robustgen.evaluation.chunks import kept_under
from robustgen.files import read_json, write_json

__all__ = ["naming_options", "remember_options", "resumed_options"]

FORMAT = 1
_STRUCTURE = {
    "run": str | None,
    "model": str | None,
    "weights": str | None,
    "mean": str | None,
    "std": str | None,
    "data": str | None,
    "data_root": str | None,
    "limit": int | None,
    "size": str | None,
    "channels": int | None,
    "fit": str | None,
    "background": str | None,
    "split": str,
    "eps": float,
    "norm": str,
    "suite": str,
    "surrogate": str | None,
    "masking_tests": bool,
    "detector": bool,
    "fpr": float | None,
    "ood": str | None,
    "batch_size": int,
    "seed": int,
    "device": str | None,
}
#: Where things are may change; that they are the same is seen by what is in them.
_PLACES = ("run", "model", "weights", "data_root", "surrogate", "device")
_DATA = ("data", "ood")


def resumed_options(out: Path, asked: dict[str, Any], given: Collection[str], trust: bool) -> dict[str, Any]:
    """The options of the evaluation in ``out``; ``asked``, where none are kept there.

    Args:
        asked: every option by its name, ``given`` or by default.
        given: those that were given now; the others are as they were.
        trust: the code that the file names as the network may run.

    Raises:
        ValueError: an option that was another one, with both values; or code that nobody but the file has named.
    """
    path = _path(out)
    if not path.is_file() or not _begun(out):
        return asked
    recorded = read_json(path, {"format": int, "options": _STRUCTURE})
    if recorded["format"] != FORMAT:
        raise ValueError(f"{path}: not the options of an evaluation in format {FORMAT}, the one that is read here")
    kept = {name: recorded["options"][name] for name in asked}
    for name in asked:
        if name in given and not _agree(name, kept[name], asked[name]):
            raise ValueError(
                f"{out} holds another evaluation: --{name.replace('_', '-')} was {json.dumps(kept[name])}, now "
                f"{json.dumps(asked[name])}; leave it out, or choose another directory"
            )
    model = kept["model"]
    if model is not None and "model" not in given and NetworkSpec(model).is_code and not trust:
        raise ValueError(
            f"{path}: names code as the network, {model!r}, and a file may not have code run: name it again with "
            "--model, or pass --trust"
        )
    return {name: asked[name] if name in given else kept[name] for name in asked}


@contextmanager
def naming_options(out: Path) -> Iterator[None]:
    """Say of what is refused inside that it is from the options kept in ``out``, unless the line is about ``out``."""
    try:
        yield
    except (FileNotFoundError, TypeError, ValueError) as error:
        if str(out) in str(error):
            raise
        kind = next(k for k in (FileNotFoundError, TypeError, ValueError) if isinstance(error, k))
        raise kind(f"{_path(out)}: {error}") from error


def remember_options(out: Path, options: dict[str, Any]) -> None:
    """Keep the options of an evaluation that is to begin in ``out``."""
    if not _begun(out):
        write_json(_path(out), {"format": FORMAT, "options": options})


def _begun(out: Path) -> bool:
    """Whether there is an evaluation in ``out``; options alone are of one that was refused."""
    return (kept_under(out) / "plan.json").exists()


def _path(out: Path) -> Path:
    return out / "options.json"


def _agree(name: str, kept: Any, asked: Any) -> bool:
    """Whether an option may be the one that was asked for; of data in files, their content decides."""
    if name in _DATA and kept is not None and asked is not None:
        named = canonical_name(kept), canonical_name(asked)
        return named[0] == named[1] or None in named
    return name in _PLACES or kept == asked or (name == "data" and kept is None)
