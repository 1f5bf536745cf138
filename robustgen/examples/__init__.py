"""Trained runs that come with the package, so that ``attack`` and ``score`` can be tried before anything is trained.

- ``example:digits``: scikit-learn's digits (they come with scikit-learn), fortified and trained by TRADES at Linf 0.15,
  with the detector of its autoencoders.
- ``example:mnist``: the recipe ``mnist-trades`` at Linf 0.3; to attack it takes MNIST, by ``--data-root``.

Each is a run directory of ``robustgen train``; its run.json holds the command.
``python -m robustgen.examples RUN NAME`` puts a run here, without the state that only a resumed training needs.
"""

from importlib import resources
from pathlib import Path

from robustgen.checks import nearest

__all__ = ["EXAMPLES", "PREFIX", "run_directory"]

EXAMPLES = ("digits", "mnist")
PREFIX = "example:"


def run_directory(run: Path) -> Path:
    """The directory of the run called ``example:NAME``, or ``run`` itself.

    Raises:
        ValueError: no example of that name.

    >>> run_directory(Path("example:digits")).name, run_directory(Path("runs/a")).name
    ('digits', 'a')
    """
    if not str(run).startswith(PREFIX):
        return run
    name = str(run).removeprefix(PREFIX)
    if name not in EXAMPLES:
        raise ValueError(f"no example is called {name!r}; {nearest(name, EXAMPLES)}")
    return Path(str(resources.files("robustgen.examples") / name))
