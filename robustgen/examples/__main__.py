"""``python -m robustgen.examples RUN NAME``: put a finished run into the package, ready to be shipped."""

import shutil
import sys
from pathlib import Path

from robustgen.files import read_json, write_json
from robustgen.training import load_checkpoint, save_checkpoint


def pack(run: Path, to: Path) -> None:
    """Copy a run's description, its best weights and its detector."""
    checkpoint = load_checkpoint(run, best=True)
    shutil.rmtree(to, ignore_errors=True)
    save_checkpoint(to, checkpoint.step, checkpoint.model_state, {}, checkpoint.config)
    write_json(to / "run.json", read_json(run / "run.json"))
    if (run / "detector").is_dir():
        shutil.copytree(run / "detector", to / "detector")


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(__file__).parent / sys.argv[2])
