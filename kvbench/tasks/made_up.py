"""Made-up texts for rows in the form of data sets that kvbench does not distribute."""

import random
from dataclasses import dataclass
from itertools import islice

from kvbench.tasks import prose
from kvbench.tasks.words import draw


@dataclass(frozen=True)
class Fact:
    """A text with one fact in it, and the question about it.

    Attributes:
        text: prose.
        sentence: the fact, as it stands in the text.
        key: what it is about.
        value: the answer, a number.
        question: asks for it.
    """

    text: str
    sentence: str
    key: str
    value: str
    question: str


def fact(rng: random.Random, words: int) -> Fact:
    """A text of about so many words; the same for the same generator."""
    key, value = draw(rng, "words"), draw(rng, "numbers")
    sentence = f"The number of the {key} is {value}."
    filler = list(islice(prose.words(rng), words))
    place = rng.randrange(len(filler) + 1)
    text = " ".join([*filler[:place], sentence, *filler[place:]])
    return Fact(text, sentence, key, value, f"What is the number of the {key}?")


def questions(count: int, words: int) -> list[dict[str, object]]:
    """Rows of a user's own questions."""
    rows: list[dict[str, object]] = []
    for index in range(count):
        one = fact(random.Random(f"questions/{index}"), words)
        rows.append({"context": one.text, "question": one.question, "answers": [one.value]})
    return rows
