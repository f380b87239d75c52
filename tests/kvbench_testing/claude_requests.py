"""Requests of one conversation whose tokens can be counted by hand, and their misses."""

import copy
import datetime

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.misses import diagnose
from kvbench.claude.placements import registry
from kvbench.claude.prices import PriceBook
from kvbench.claude.request_json import build_request, parse
from kvbench.claude.simulate import ListTrace

START = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC).timestamp()
PLACEMENTS = registry()
MODEL = "claude-opus-4-8"
PRICES = PriceBook.load()
LITERAL = Assumptions()


class Words:
    """One token per word of a text, so that tokens can be counted by hand; JSON counts its words too."""

    def count(self, text, model):
        return len(text.split()), "usage"


def words(count, word):
    return " ".join([word] * count)


def tool(name, count=600):
    # a JSON text of `count` words: the description has all but 13 of them
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "number"}}}
    return {"name": name, "description": words(count - 13, name), "input_schema": schema}


def text(count, word):
    return {"type": "text", "text": words(count, word)}


def body(clock="", tools=600):
    """Two tools, two system blocks and three messages; automatic caching."""
    first = text(1500, "rule")
    if clock:
        first["text"] = f"{words(1499, 'rule')} {clock}"
    return {
        "model": MODEL,
        "max_tokens": 10,
        "tools": [tool("alpha", tools), tool("beta", tools)],
        "system": [first, text(1000, "more")],
        "messages": [
            {"role": "user", "content": [text(800, "ask")]},
            {"role": "assistant", "content": [text(400, "answer")]},
            {"role": "user", "content": [text(200, "again")]},
        ],
        "cache_control": {"type": "ephemeral"},
    }


def grown(old):
    new = copy.deepcopy(old)
    new["messages"] += [
        {"role": "assistant", "content": [text(100, "reply")]},
        {"role": "user", "content": [text(50, "next")]},
    ]
    return new


def request(content, number, *, betas=(), gap=30.0, assumptions=LITERAL, **fields):
    parsed = parse(content, Words(), betas)
    known = {"session": "s", "speed": content.get("speed", ""), **fields}
    name, t = f"q{number}", START + gap * number
    return build_request(parsed, id=name, t=t, model=content["model"], hashing=assumptions.hashing, **known)


def found(requests, placement="as_sent", assumptions=None):
    diagnosis = diagnose(ListTrace(requests), PLACEMENTS[placement], PRICES, assumptions)
    assert sum(finding.cost for finding in diagnosis.findings) == diagnosis.cost - diagnosis.perfect
    return diagnosis


def system(new):
    return new["system"][0]


def at(new, message):
    return new["messages"][message]["content"][0]
