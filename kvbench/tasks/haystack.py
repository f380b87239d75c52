"""Haystacks, and needles hidden in them."""

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, cycle, islice
from pathlib import Path
from typing import Literal

from kvbench.config.errors import UserError
from kvbench.tasks import prose

HaystackKind = Literal["noise", "needles", "prose", "essay"]


@dataclass(frozen=True)
class Haystack:
    """Filler text in pieces, with needles between them.

    Attributes:
        kind: name in tables: "noise", "needles", "prose", or "essay:" and 16 digits of the file's SHA-256.
        pieces: the pieces of a haystack of n units; a unit is a line, or a word of a sentence.
        separator: text between pieces.
        by_depth: needles go to depths of a fixed grid, as in RULER's essays, otherwise anywhere.
    """

    kind: str
    pieces: Callable[[int], list[str]]
    separator: str
    by_depth: bool

    def hide(self, needles: Sequence[str], units: int, rng: random.Random) -> str:
        """Insert the needles, in their order, at random places in a haystack of `units`."""
        pieces = self.pieces(units)
        if self.by_depth:
            # 40 depths from 0 to 100 %, ends included (NVIDIA/RULER, scripts/data/synthetic/niah.py: DEPTHS)
            depths = sorted(rng.sample(range(40), len(needles)))
            places = [round(100 * depth / 39) * len(pieces) // 100 for depth in depths]
        else:
            places = sorted(rng.sample(range(len(pieces)), len(needles)))
        return self.separator.join(insert(pieces, needles, places))

    def hide_at(self, needle: str, units: int, depth: float) -> str:
        """Insert a needle at a depth, in percent of the characters of a haystack of `units`."""
        pieces = self.pieces(units)
        starts = [0, *accumulate(len(piece) + len(self.separator) for piece in pieces)]
        place = min(range(len(starts)), key=lambda i: abs(starts[i] - starts[-1] * depth / 100))
        return self.separator.join(insert(pieces, [needle], [place]))


def insert(pieces: Sequence[str], needles: Sequence[str], places: Sequence[int]) -> list[str]:
    """The pieces, with each needle before the piece at its place; places ascend."""
    text: list[str] = []
    start = 0
    for needle, place in zip(needles, places, strict=True):
        text += [*pieces[start:place], needle]
        start = place
    return [*text, *pieces[start:]]


def noise(line: str) -> Haystack:
    """The same line repeated; a unit is a line."""
    return Haystack("noise", lambda n: [line] * n, "\n", by_depth=False)


def needles(other: Callable[[], str]) -> Haystack:
    """Needles that are distractors; a unit is a line, `other` makes the next one."""
    return Haystack("needles", _first(iter(other, None)), "\n", by_depth=False)


def text(kind: HaystackKind, essay: str | None, rng: random.Random) -> Haystack:
    """Running text: a file from its start, or those of a folder by name, repeated if too short, or generated prose.

    A unit is a word.

    Raises:
        UserError: the file cannot be read or is empty.
    """
    if kind == "essay":
        words, digest = _read(essay)
        first, name = _first(cycle(words)), f"essay:{digest[:16]}"
    else:
        first, name = _first(prose.words(rng)), "prose"
    return Haystack(name, lambda n: re.split(r"(?<=[.!?]) ", " ".join(first(n))), " ", by_depth=True)


def check(kind: HaystackKind, essay: str | None) -> None:
    """Refuse an essay file without haystack=essay, and the reverse."""
    if (kind == "essay") != (essay is not None):
        raise UserError("essay: a file goes with haystack=essay, and haystack=essay needs one (essay=FILE)")


def _first(source: Iterator[str]) -> Callable[[int], list[str]]:
    """A function that returns the first n items of an iterator, for any n any number of times."""
    items: list[str] = []

    def first(n: int) -> list[str]:
        while len(items) < n:
            items.append(next(source))
        return items[:n]

    return first


def spaced_words(essay: str | None, count: int, rng: random.Random) -> tuple[list[str], str]:
    """The first words of an essay, each with the white space behind it, and the haystack's kind.

    Args:
        essay: a file, or a folder of .txt files by name, repeated if too short; None for generated prose.
        count: number of words.
        rng: makes the prose.

    Raises:
        UserError: the file cannot be read or is empty.
    """
    if essay is None:
        return [f"{word} " for word in islice(prose.words(rng), count)], "prose"
    texts, digest = _texts(essay)
    text = "".join(texts)
    # words at a seam may become one
    whole = text * (count // max(len(_split(texts)) - len(texts), 1) + 2)
    return [found.group() for found in islice(re.finditer(r"\S+\s*", whole), count)], f"essay:{digest[:16]}"


def _read(path: str | None) -> tuple[list[str], str]:
    texts, digest = _texts(path)
    return _split(texts), digest


def _texts(path: str | None) -> tuple[tuple[str, ...], str]:
    """The text of a file, or of each .txt file of a folder, and the SHA-256 of them all."""
    assert path is not None
    try:
        file = Path(path).expanduser()
        if file.is_dir():
            files = tuple(sorted(file.glob("*.txt")))
            if not files:
                raise FileNotFoundError("a folder without .txt files")
        elif file.is_file():
            files = (file,)
        else:
            raise FileNotFoundError("neither a file nor a folder")
        states = tuple((one.stat().st_mtime_ns, one.stat().st_size) for one in files)
        texts, digest = _read_state(files, states)
    # a path with a null character, or with the home of a user who does not exist
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"essay: {path} cannot be read as UTF-8 text ({error})") from None
    if not _split(texts):
        raise UserError(f"essay: {path} is empty")
    return texts, digest


@lru_cache(maxsize=4)
def _read_state(files: tuple[Path, ...], states: tuple[tuple[int, int], ...]) -> tuple[tuple[str, ...], str]:
    data = [file.read_bytes() for file in files]
    texts = tuple(part.decode("utf-8-sig") for part in data)
    return texts, hashlib.sha256(b"\n".join(data)).hexdigest()


@lru_cache(maxsize=4)
def _split(texts: tuple[str, ...]) -> list[str]:
    """The words of all texts, one after the other."""
    return [word for text in texts for word in text.split()]
