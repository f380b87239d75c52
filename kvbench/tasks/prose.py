"""Filler that reads like prose: plain sentences drawn from a small grammar.

It replaces Paul Graham's essays, which RULER uses and this package does not distribute. No sentence contains a number,
and few occur twice.
"""

import random
from collections.abc import Iterator

_WHEN = (
    "In the early spring", "After a long winter", "On most evenings", "Before the market opened",
    "While the rain lasted", "At the end of the season", "Once the harvest was in", "Toward noon",
    "During the quiet weeks", "When the wind turned",
)  # fmt: skip
_WHO = (
    "the baker", "an old carpenter", "the two sisters", "the teacher", "a young sailor", "the gardener",
    "the town council", "a travelling musician", "the miller", "her neighbour", "the ferryman",
    "the librarian", "a group of students", "the night watchman", "the doctor", "his uncle",
)  # fmt: skip
_DID = (
    "repaired", "painted", "measured", "described", "borrowed", "cleaned", "moved", "sold", "searched for",
    "looked after", "talked about", "drew", "counted", "forgot", "carried home", "argued over",
)  # fmt: skip
_WHAT = (
    "the wooden bridge", "a box of letters", "the orchard wall", "an unfinished map", "the church bell",
    "a pair of boots", "the grain store", "a small telescope", "the kitchen table", "the garden gate",
    "an old violin", "the fishing nets", "a painted sign", "the harbour steps", "a stack of books",
    "the weather vane",
)  # fmt: skip
_AFTER = (
    "because nobody else had the time", "and said little about it", "although the work was dull",
    "so that the children could see it", "and the whole street came to watch", "as it had always been done",
    "without asking for anything in return", "which pleased almost everyone",
    "but kept the reason to themselves", "and then went back to the river",
    "until the light was gone", "in spite of the cold",
)  # fmt: skip
_ASIDE = (
    "It was slow work, and it needed patience.", "Some people thought this was a mistake.",
    "The road to the next village stayed empty.", "Later the story was told in many ways.",
    "There was tea and bread for those who helped.", "No one wrote any of it down.",
    "The dogs slept in the shade all the while.", "It is hard to say what would have been better.",
)  # fmt: skip


def words(rng: random.Random) -> Iterator[str]:
    """An endless stream of words with their punctuation."""
    while True:
        sentence = f"{rng.choice(_WHEN)}, {rng.choice(_WHO)} {rng.choice(_DID)} {rng.choice(_WHAT)} "
        yield from f"{sentence}{rng.choice(_AFTER)}.".split()
        if rng.random() < 0.3:
            yield from rng.choice(_ASIDE).split()
