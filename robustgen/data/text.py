"""Characters as symbols: the 27-letter alphabet of Text8, and how a long text is cut into parts and windows.

The alphabet and the normalisation are those of Matt Mahoney, "About the Test Data" (the Large Text Compression
Benchmark), 2006: a-z and single spaces, digits spelled out.
"""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustgen.counter_rng import integers

__all__ = ["TEXT8", "babble", "decode", "encode", "load_text", "normalise", "split_text", "windows"]

TEXT8 = " abcdefghijklmnopqrstuvwxyz"  # symbol k is TEXT8[k]; the space is symbol 0

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SPELLED = {ord(str(k)): f" {word} " for k, word in enumerate(_DIGITS)}
_LOWER = {ord(c.upper()): c for c in TEXT8[1:]}  # ASCII only: str.lower() would turn a Kelvin sign into a k


def normalise(text: str) -> str:
    """Lower-case a-z and single spaces: digits are spelled out, every run of anything else is one space.

    >>> normalise("It's 42,  Zoë!")
    'it s four two zo '
    """
    return re.sub("[^a-z]+", " ", text.translate(_LOWER | _SPELLED))


def encode(text: str) -> Tensor:
    """The symbols of a normalised text, int64 (T,) in [0, 27).

    Raises:
        TypeError: no string; :func:`load_text` gives symbols already.
        ValueError: a character outside a-z and space (the first one is named).

    >>> encode("a cab")
    tensor([1, 0, 3, 1, 2])
    """
    if not isinstance(text, str):
        raise TypeError(f"encode takes a string, got {type(text).__name__}; load_text gives symbols already")
    wrong = re.search("[^a-z ]", text)
    if wrong:
        raise ValueError(f"character {wrong[0]!r} at position {wrong.start()} is not a-z or space: normalise the text")
    codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64)
    return torch.from_numpy(np.maximum(codes - (ord("a") - 1), 0))  # the space comes long before the letters


def decode(symbols: Tensor) -> str:
    """The text of symbols (T,), the inverse of :func:`encode`.

    Raises:
        ValueError: not 1-D, or a symbol outside [0, 27).

    >>> decode(torch.tensor([1, 0, 3, 1, 2]))
    'a cab'
    """
    if symbols.ndim != 1:
        raise ValueError(f"symbols must be 1-D, got shape {tuple(symbols.shape)}")
    if len(symbols) and (int(symbols.min()) < 0 or int(symbols.max()) >= len(TEXT8)):
        raise ValueError(f"symbols in [{int(symbols.min())}, {int(symbols.max())}], outside [0, {len(TEXT8)})")
    return "".join(TEXT8[k] for k in symbols.tolist())


def load_text(path: str | Path) -> Tensor:
    """The symbols int64 (T,) of a UTF-8 text file, after :func:`normalise`.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, or no letter and no digit in it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        text = normalise(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None
    if not text.strip():
        raise ValueError(f"{path}: the text is empty: no letter a-z and no digit in it")
    return encode(text)


def windows(symbols: Tensor, length: int, *, n: int | None = None, seed: int = 0) -> Tensor:
    """Non-overlapping stretches (N, length) of a sequence (T,), or of each row (B, T); what is left over is dropped.

    Args:
        symbols: int64 (T,) or (B, T).
        length: of a stretch.
        n: that many, drawn at random without replacement; None means all, in the order of the text.
        seed: of the draw.

    Raises:
        ValueError: neither 1-D nor 2-D, a length below 1 or above T, or fewer than n windows.

    >>> windows(torch.arange(7), 3)
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """
    if symbols.ndim not in (1, 2):
        raise ValueError(f"symbols must be (T,) or (B, T), got shape {tuple(symbols.shape)}")
    available = symbols.shape[-1]
    if not 1 <= length <= available:
        raise ValueError(f"a window must have between 1 and {available} symbols (there are no more), got {length}")
    found = symbols[..., : available // length * length].reshape(-1, length)
    if n is None:
        return found
    if not 0 <= n <= len(found):
        raise ValueError(f"{n} windows asked for; the text holds {len(found)} of {length} symbols")
    return found[_shuffled(len(found), seed)[:n].to(found.device)]


def split_text(symbols: Tensor, fractions: Sequence[float], *, block: int = 1000, seed: int = 0) -> tuple[Tensor, ...]:
    """Cut a text (T,) into whole stretches of ``block`` symbols and deal these out at random: one (B_i, block) each.

    Parts dealt at random are exchangeable, which a calibrated false-alarm rate assumes; the first and the last tenth
    of a book are not. What is exchangeable are the blocks: windows of one block are alike, so that for calibration and
    test a block is best exactly one window long.

    Args:
        symbols: int64 (T,).
        fractions: of the blocks in each part (train, calibration, test, say), positive, summing to at most 1.
        block: symbols in a row that stay together; an incomplete last block is dropped.
        seed: of the draw.

    Raises:
        ValueError: not 1-D, bad fractions, a block longer than the text, or a part that gets no block.

    >>> train, calibration, test = split_text(torch.arange(100), (0.6, 0.2, 0.2), block=5)
    >>> train.shape, calibration.shape, test.shape
    (torch.Size([12, 5]), torch.Size([4, 5]), torch.Size([4, 5]))
    """
    if symbols.ndim != 1:
        raise ValueError(f"symbols must be 1-D, got shape {tuple(symbols.shape)}")
    if not fractions or not all(f > 0 for f in fractions) or math.fsum(fractions) > 1 + 1e-9:
        raise ValueError(f"fractions must be positive and sum to at most 1, got {tuple(fractions)}")
    blocks = windows(symbols, block)
    order = _shuffled(len(blocks), seed).to(symbols.device)
    cuts = [round(math.fsum(fractions[:i]) * len(blocks)) for i in range(len(fractions) + 1)]
    parts = tuple(blocks[order[a:b]] for a, b in pairwise(cuts))
    if not all(map(len, parts)):
        sizes = [len(part) for part in parts]
        raise ValueError(f"{len(blocks)} blocks of {block} symbols are too few: the parts get {sizes}")
    return parts


def _shuffled(n: int, seed: int) -> Tensor:
    return integers(seed, torch.arange(n), (), 2**62).argsort(stable=True)


_NOUNS = ("cat", "dog", "farmer", "river", "king", "bird", "child", "miller", "horse", "storm", "queen", "fish")
_VERBS = ("see", "follow", "love", "fear", "hear", "carry", "find", "watch")
_ADJECTIVES = ("old", "small", "grey", "quiet", "brave", "young", "wild", "tired")
_PLACES = ("near the mill", "in the garden", "by the sea", "under the bridge", "on the hill", "in the snow")
_LINKS = ("and", "while", "because", "but")


def babble(n: int, seed: int = 0) -> str:
    """n characters of sentences from a little grammar, in the alphabet of Text8: a corpus that needs no file.

    The verb agrees with its noun in number, so that there is something to remember. A longer text of the same seed
    begins with the shorter one.

    Raises:
        ValueError: a negative n.

    >>> babble(44)
    'the farmer carries a river by the sea the ch'
    """
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    sentences: list[str] = []
    length = 0
    while length < n:
        draws = integers(seed, torch.arange(len(sentences), len(sentences) + 256), (16,), 2**32)
        sentences += [_sentence(row) for row in draws.tolist()]
        length = sum(len(sentence) + 1 for sentence in sentences)
    return " ".join(sentences)[:n]


def _sentence(draws: list[int]) -> str:
    words = _clause(draws[:7])
    if draws[14] % 3 == 0:
        words += [_LINKS[draws[15] % len(_LINKS)], *_clause(draws[7:14])]
    return " ".join(words)


def _clause(draws: list[int]) -> list[str]:
    plural = draws[0] % 2 == 1
    adjective = [_ADJECTIVES[draws[1] // 3 % len(_ADJECTIVES)]] if draws[1] % 3 == 0 else []
    noun = _NOUNS[draws[2] % len(_NOUNS)]
    verb = _VERBS[draws[3] % len(_VERBS)]
    thing = _NOUNS[draws[4] % len(_NOUNS)]
    place = [_PLACES[draws[5] // 4 % len(_PLACES)]] if draws[5] % 4 == 0 else []
    subject = ["the", *adjective, _plural(noun) if plural else noun]
    return [*subject, verb if plural else _third_person(verb), "a" if draws[6] % 2 else "the", thing, *place]


def _plural(noun: str) -> str:
    return {"child": "children", "fish": "fishes"}.get(noun, noun + "s")


def _third_person(verb: str) -> str:
    return {"carry": "carries", "watch": "watches"}.get(verb, verb + "s")
