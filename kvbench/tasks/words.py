"""Random words, numbers and identifiers; the words are from wonderwords' lists, as in RULER."""

import random
import uuid
from functools import cache
from importlib.resources import files
from typing import Literal

WordKind = Literal["words", "numbers", "uuids"]


@cache
def word_list(name: Literal["noun", "adjective", "verb"]) -> list[str]:
    """One of wonderwords' lists, sorted to be independent of the package's order."""
    text = files("wonderwords.assets").joinpath(f"{name}list.txt").read_text(encoding="utf-8")
    return sorted({line.rstrip() for line in text.splitlines() if line.strip()})


@cache
def all_words() -> list[str]:
    """Nouns, adjectives and verbs together, sorted."""
    return sorted({*word_list("noun"), *word_list("adjective"), *word_list("verb")})


def draw(rng: random.Random, kind: WordKind) -> str:
    """A word (adjective-noun), a number of seven digits or a UUID, as in RULER's needles."""
    if kind == "words":
        return f"{rng.choice(word_list('adjective'))}-{rng.choice(word_list('noun'))}"
    if kind == "numbers":
        return str(rng.randint(1_000_000, 9_999_999))
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def draw_new(rng: random.Random, kind: WordKind, used: set[str]) -> str:
    """Draw one that is not in `used`, and add it there."""
    while (value := draw(rng, kind)) in used:
        pass
    used.add(value)
    return value
