"""``robustgen score`` of a folder of images, against decoding them and asking the network for its answers.

Images of 32x32 in PNG files, a convnet with autoencoders in two layers. Both sides in one process, interleaved:
``python benchmarks/scoring.py [--out results/benchmarks]``. Ours opens, decodes, scores, ranks and writes one row an
image; the other side decodes a batch with as many threads, asks the same network for its logits, then the next. The
target is at most 1.2 times its time, at a peak of memory that does not grow with the number of images.
"""

import argparse
import resource
import shlex
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import robustgen
from robustgen.commands import DataSpec, Scoring, Unreadable
from robustgen.data import ArrayDataset, ImageFiles, ImageReader
from robustgen.detectors import Detector, ReconstructionError
from robustgen.files import environment, write_json
from robustgen.fortified import FortifiedNetwork
from robustgen.networks import convnet

TARGET = 1.2
SHAPE = (3, 32, 32)
BATCH, THREADS = 256, 4  # as robustgen score has them


def pictures(n: int, seed: int) -> np.ndarray:
    """uint8 (n, 32, 32, 3), smooth as photographs are, so that PNG compresses them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def write_pictures(folder: Path, n: int) -> None:
    """n files."""
    for start in range(0, n, 1000):
        for k, image in enumerate(pictures(min(1000, n - start), seed=start), start):
            Image.fromarray(image).save(folder / f"{k:06}.png")


def fitted_detector() -> tuple[FortifiedNetwork, Detector]:
    """A fortified network and its detector; how good they are does not change their speed."""
    torch.manual_seed(0)
    x = ArrayDataset(torch.from_numpy(pictures(1000, seed=10**9).transpose(0, 3, 1, 2).copy()))
    known, calibration = x.first(500), x.subset(torch.arange(500, 1000))
    net = robustgen.fortify(convnet(3, 10, 32), "auto", example_input=known.batch(torch.arange(2))[0])
    net.fit_autoencoders(known, epochs=1, progress=False)
    return net.eval(), ReconstructionError(net, relative=True).fit(known).calibrate(calibration)


def score(folder: Path, n: int, detector: Detector, out: Path) -> float:
    """Seconds of scoring n of the files."""
    started = time.perf_counter()
    scoring = Scoring(
        DataSpec(str(folder), limit=n), "test", out=out, unreadable=Unreadable(print), tell=lambda kind, line: None
    )
    scoring.fit_to(SHAPE, {})
    scoring.write(detector)
    return time.perf_counter() - started


@torch.inference_mode()
def decode_and_ask(folder: Path, n: int, net: torch.nn.Module) -> tuple[float, float]:
    """Seconds of decoding the first n files, and of the network's answers."""
    files = ImageFiles(folder, tuple(sorted(path.name for path in folder.iterdir())[:n]), folder.name, ImageReader())
    decoding = answering = 0.0
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, n, BATCH):
            before = time.perf_counter()
            read = list(pool.map(lambda name: files.reader.read(folder / name)[0], files.names[start : start + BATCH]))
            x = torch.from_numpy(np.ascontiguousarray(np.stack(read))).float().div_(255)
            between = time.perf_counter()
            net(x)
            decoding += between - before
            answering += time.perf_counter() - between
    return decoding, answering


def peak() -> float:
    """Of this process's memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, nargs="+", default=[2000, 8000], help="Images after which to look at it.")
    parser.add_argument("--threads", type=int, default=1, help="Of torch.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    net, detector = fitted_detector()
    memory, rounds = {}, []
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place) / "pictures", Path(place) / "scores.csv"
        folder.mkdir()
        write_pictures(folder, max(options.images, *options.memory))
        for n in sorted(options.memory):  # the peak only rises: fewer first, and before the other side's
            score(folder, n, detector, out)
            memory[str(n)] = peak()
            print(f"{n} images: peak memory {memory[str(n)]:.0f} MiB")
        for _ in range(options.rounds):
            ours = score(folder, options.images, detector, out)
            memory.setdefault(str(options.images), peak())
            rounds.append((ours, *decode_and_ask(folder, options.images, net)))
    ratios = sorted(ours / (decoding + answering) for ours, decoding, answering in rounds)
    row = {
        "images": options.images,
        "seconds, scoring": statistics.median(ours for ours, _, _ in rounds),
        "seconds, decoding": statistics.median(decoding for _, decoding, _ in rounds),
        "seconds, answers": statistics.median(answering for _, _, answering in rounds),
        "ratio, median": statistics.median(ratios),
        "ratio, lowest and highest": [ratios[0], ratios[-1]],
        "target": TARGET,
        "peak memory in MiB, by images": memory,
        "threads": options.threads,
    }
    spread = f"{row['ratio, median']:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(
        f"{options.images} images: scoring {row['seconds, scoring']:.1f} s, {spread} times decoding and answers "
        f"(target {TARGET}); peak memory {memory[str(options.images)]:.0f} MiB"
    )
    if options.out is not None:
        command = shlex.join(["python", *sys.argv])
        found = {"command": command, "rows": [row], "environment": environment()}
        write_json(options.out / "scoring.json", found)


if __name__ == "__main__":
    main()
