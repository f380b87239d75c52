"""A generated knowledge base of a fictional ferry company, and questions about it."""

from __future__ import annotations

import random
from dataclasses import dataclass

LINES = ("Harbour", "Lagoon", "Northern", "Canal", "Island", "Estuary", "Night", "Airport")
TOPICS = {
    "tickets": "A {line} Line ticket costs {a} crowns and is valid for {b} minutes after it was stamped.",
    "bicycles": "The {line} Line carries {a} bicycles per crossing; each needs a supplement of {b} crowns.",
    "delays": "If a {line} Line ferry is over {b} minutes late, passengers may claim {a} % of the fare.",
    "storms": "The {line} Line stops sailing at winds over {a} knots and resumes {b} calm minutes later.",
    "crew": "A {line} Line crew is {a} people on weekdays; a shift ends after {b} minutes at the latest.",
    "fuel": "{line} Line ferries take on {a} tonnes of biofuel and must bunker within {b} minutes.",
    "lost property": "Lost property of the {line} Line is kept for {a} days at desk {b} of the main pier.",
    "groups": "Groups of {a} and more book the {line} Line {b} hours ahead and travel at the reduced fare.",
}
FILLER = (
    "The rule was last reviewed by the operations board in year {y} and applies on public holidays as well.",
    "Exceptions are signed by the duty manager and noted in log {y} before the vessel leaves the quay.",
    "Staff answer questions about it at counter {z}; the notice is displayed on deck {z} in three languages.",
    "Earlier versions of this notice, numbered {y}-{z}, are void and should be taken down when found.",
)


@dataclass(frozen=True)
class Document:
    """One passage."""

    title: str
    text: str


def documents(chars: int, overlap: int = 0, seed: int = 0) -> list[Document]:
    """One passage per line and topic, each about `chars` characters long.

    Args:
        chars: length of a passage, the unit of retrieval.
        overlap: characters at its end that the next passage of the same line repeats at its start.
        seed: seed of the numbers in the text.
    """
    found = []
    for line in LINES:
        tail = ""
        for topic, sentence in TOPICS.items():
            draw = random.Random(f"{seed}/{line}/{topic}")
            text = tail + sentence.format(line=line, a=draw.randrange(3, 90), b=draw.randrange(5, 90))
            while len(text) < chars:
                more = draw.choice(FILLER).format(y=draw.randrange(1990, 2026), z=draw.randrange(1, 30))
                text += f" {more}"
            text = text[:chars]
            tail = text[len(text) - overlap :] + " " if overlap else ""
            found.append(Document(f"{line} Line: {topic}", text))
    return found


def questions(count: int, seed: int = 0) -> list[str]:
    """Questions of one conversation; every fourth is vague and needs rewriting."""
    draw = random.Random(f"questions/{seed}")
    found = []
    for number in range(count):
        line, topic = draw.choice(LINES), draw.choice(sorted(TOPICS))
        if number % 4 == 3:
            found.append(f"And what about {topic}?")
        else:
            found.append(f"What are the rules of the {line} Line on {topic}?")
    return found
