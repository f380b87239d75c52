"""Mutations of any field are named, key order costs what it should, and causes add up to a perfect cache."""

import copy
import json

from hypothesis import given, settings
from hypothesis import strategies as st
from kvbench_testing.claude_requests import (
    MODEL,
    PLACEMENTS,
    PRICES,
    START,
    Words,
    at,
    body,
    found,
    grown,
    request,
    text,
    tool,
)

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.causes import CAUSES
from kvbench.claude.request_json import parse
from kvbench.claude.simulate import simulate

# mutations: what is changed in the second request, and the causes that follow from it


def _set(key, value, cause):
    return lambda draw, new: (new.update({key: value}), cause)[1]


def _edit(draw, new):
    number = draw(st.integers(0, 2))
    at(new, number)["text"] += " " + draw(st.sampled_from(["indeed", "perhaps", "quite so"]))
    return "message changed"


def _clock(draw, new):
    block = draw(st.sampled_from([*new["system"], at(new, 0)]))
    block["text"] = block["text"].replace("12:00", f"{draw(st.integers(13, 23))}:{draw(st.integers(10, 59))}")
    return "date or time changed"


NONCES = st.text("0123456789abcdef", min_size=10, max_size=10).filter(lambda s: s != "a1b2c3d4e5")


def _nonce(draw, new):
    block = draw(st.sampled_from([*new["system"], at(new, 0)]))
    block["text"] = block["text"].replace("a1b2c3d4e5", draw(NONCES))
    return "number or random id changed"


def _keys(draw, new):
    held = draw(st.sampled_from([new["tools"], new["system"], new["messages"][0]["content"]]))
    number = draw(st.integers(0, len(held) - 1))
    held[number] = dict(reversed(held[number].items()))
    return "JSON keys reordered"


def _drop(draw, new):
    held = draw(st.sampled_from([new["system"], new["messages"]]))
    held.pop(draw(st.integers(0, 1 if held is new["messages"] else 0)))
    return "blocks removed"


def _insert(draw, new):
    held = draw(st.sampled_from([new["system"], new["messages"][0]["content"]]))
    held.insert(draw(st.integers(0, len(held) - 1)), text(draw(st.integers(1, 50)), "inserted"))
    return "blocks inserted"


def _tools(draw, new):
    kind = draw(st.sampled_from(["reverse", "pop", "append", "edit"]))
    if kind == "reverse":
        new["tools"].reverse()
        return "tools reordered"
    if kind == "edit":
        new["tools"][draw(st.integers(0, 1))]["description"] += " more"
        return "tool definition changed"
    new["tools"].pop(draw(st.integers(0, 1))) if kind == "pop" else new["tools"].append(tool("gamma"))
    return "tools added or removed"


MUTATIONS = [
    _edit,
    _clock,
    _nonce,
    _keys,
    _drop,
    _insert,
    _tools,
    _set("tool_choice", {"type": "any"}, "tool_choice changed"),
    _set("thinking", {"type": "adaptive"}, "thinking changed"),
    _set("output_config", {"effort": "max"}, "effort changed"),
    _set("context_management", {"edits": []}, "context_management changed"),
    _set("speed", "fast", "speed changed"),
    _set("model", "claude-opus-5", "model changed"),
]


@st.composite
def mutated(draw):
    old = body()
    for block in (*old["system"], at(old, 0)):
        block["text"] += " at 12:00 for a1b2c3d4e5"
    new = grown(old) if draw(st.booleans()) else copy.deepcopy(old)
    cause = draw(st.sampled_from(MUTATIONS))(draw, new)
    return old, new, cause


@settings(max_examples=80, deadline=None)
@given(mutated(), st.sampled_from(sorted(PLACEMENTS)), st.sampled_from([20.0, 400.0, 4000.0]))
def test_a_mutation_is_named(pair, placement, gap):
    """The expected cause follows from the mutation; expiry and markers explain only what stands before it."""
    old, new, cause = pair
    diagnosis = found([request(old, 0), request(new, 1, gap=gap)], placement)
    changes = {finding.cause for finding in diagnosis.findings if finding.place}
    lost_behind = _sent_behind(old, new)
    assert changes == {cause} or (not changes and not lost_behind)


def _sent_behind(old, new):
    """Whether anything that the old request sent stands behind the first difference of the new one."""
    first, second = parse(old, Words()).blocks, parse(new, Words()).blocks
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    return bool({b.content or b.hash for b in first} & {b.content or b.hash for b in second[shared:]}) or any(
        old.get(key) != new.get(key)
        for key in ("model", "speed", "tool_choice", "thinking", "output_config", "context_management")
    )


# any field of any request


def full():
    """A request that has every field, without numbers in its texts."""
    row = body()
    row["messages"][1]["content"].append(
        {"type": "tool_use", "id": "call", "name": "alpha", "input": {"a": "x", "b": 2}}
    )
    row["messages"][2]["content"].insert(0, {"type": "tool_result", "tool_use_id": "call", "content": "fine"})
    return {
        **row,
        "tool_choice": {"type": "tool", "name": "alpha"},
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "output_config": {"effort": "low", "format": {"schema": {"title": "t"}}},
        "context_management": {"edits": [{"keep": {"value": 3}}]},
        "metadata": {"user_id": "u"},
        "stop_sequences": ["x"],
        "temperature": 0.5,
        "service_tier": "auto",
    }


CONTENT = {
    "tools": "tool definition changed",
    "system": "system prompt changed",
    "messages": "message changed",
}
OPTIONS = {
    ("model",): "model changed",
    ("tool_choice",): "tool_choice changed",
    ("thinking",): "thinking changed",
    ("output_config", "effort"): "effort changed",
    ("output_config", "format"): "output format changed",
    ("context_management",): "context_management changed",
}


def leaves(value, path=()):
    """Every field that is a text or a number, but for kinds, roles and markers."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        if key not in ("type", "role", "cache_control"):
            yield from leaves(inner, (*path, key))
    if not isinstance(value, dict | list):
        yield path, value


def expected_cause(path, value):
    """What follows from the place of a field and its kind; None for fields that are no part of the prefix."""
    if path[0] in CONTENT:
        return CONTENT[path[0]] if isinstance(value, str) else "number or random id changed"
    return next((cause for key, cause in OPTIONS.items() if path[: len(key)] == key), None)


@st.composite
def any_field(draw):
    """A conversation of three requests, of which one has one field changed: (requests, which, cause)."""
    rows = [full()]
    for word in ("reply", "reaction"):
        new = copy.deepcopy(rows[-1])
        new["messages"] += [
            {"role": "assistant", "content": [text(100, word)]},
            {"role": "user", "content": [text(50, f"{word}to")]},
        ]
        rows.append(new)
    which = draw(st.integers(1, 2))
    path, value = draw(st.sampled_from(sorted(leaves(rows[which]), key=str)))
    holder = rows[which]
    for key in path[:-1]:
        holder = holder[key]
    changed = value + draw(st.sampled_from([" indeed", " perhaps"])) if isinstance(value, str) else value + 1
    holder[path[-1]] = "claude-opus-5" if path == ("model",) else changed
    return rows, which, expected_cause(path, value)


@settings(max_examples=80, deadline=None)
@given(any_field(), st.sampled_from(sorted(PLACEMENTS)), st.sampled_from([20.0, 400.0]))
def test_a_change_of_any_field_of_any_request_is_named(drawn, placement, gap):
    rows, which, cause = drawn
    diagnosis = found([request(row, number, gap=gap) for number, row in enumerate(rows)], placement)
    changes = {f.cause for f in diagnosis.findings if f.place and f.request == f"q{which}"}
    allowed = [set() if cause is None else {cause}]
    if not _sent_behind(rows[which - 1], rows[which]):
        allowed.append(set())
    assert changes in allowed
    # nothing is named before the change, and at most its way back behind it
    assert not any(f.place for f in diagnosis.findings if f.request < f"q{which}")


def shuffled(value, draw):
    if isinstance(value, dict):
        keys = draw(st.permutations(list(value)))
        return {key: shuffled(value[key], draw) for key in keys}
    return [shuffled(item, draw) for item in value] if isinstance(value, list) else value


@st.composite
def reordered(draw):
    old = body()
    old["messages"][1]["content"].append(
        {"type": "tool_use", "id": "t", "name": "alpha", "input": {"a": "x", "b": 2}}
    )
    old["messages"][2]["content"].insert(0, {"type": "tool_result", "tool_use_id": "t", "content": "fine"})
    return old, shuffled(grown(old), draw)


@settings(max_examples=40, deadline=None)
@given(reordered(), st.sampled_from(sorted(PLACEMENTS)))
def test_key_order_moves_the_cost_only_where_it_is_significant(pair, placement):
    old, new = pair
    straight = grown(old)
    ignored = Assumptions(key_order="ignored")
    costs = []
    for second in (straight, new):
        rows = [request(old, 0, assumptions=ignored), request(second, 1, assumptions=ignored)]
        costs.append(simulate(rows, {"p": PLACEMENTS[placement]}, PRICES, ignored)["p"].cost)
    assert costs[0] == costs[1]
    diagnosis = found([request(old, 0), request(new, 1)], placement)
    changes = {finding.cause for finding in diagnosis.findings if finding.place}
    as_sent = [json.dumps(block) for block in _plain(old)]
    moved = [json.dumps(block) for block in _plain(new)[: len(as_sent)]]
    assert changes == ({"JSON keys reordered"} if as_sent != moved else set())


def _plain(content):
    return [
        *content["tools"],
        *content["system"],
        *(part for m in content["messages"] for part in m["content"]),
    ]


# the whole difference to a perfect cache


@st.composite
def traces(draw):
    """Requests of some sessions that grow, branch, repeat, change model and pause."""
    rows, t = [], START
    pool = [text(count, word) for count, word in ((900, "a"), (700, "b"), (300, "c"), (1300, "d"), (40, "e"))]
    for number in range(draw(st.integers(2, 9))):
        t += draw(st.sampled_from([0.0, 5.0, 290.0, 310.0, 4000.0]))
        parts = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=6))
        content = {
            "model": draw(st.sampled_from([MODEL, "claude-opus-5"])),
            "max_tokens": 5,
            "system": [text(1100, "rule")],
            "messages": [{"role": "user", "content": copy.deepcopy(parts)}],
            "cache_control": {"type": "ephemeral"},
        }
        if draw(st.booleans()):
            content["tool_choice"] = {"type": "none"}
        row = request(
            content,
            number,
            session=draw(st.sampled_from(["", "s", "t"])),
            workspace=draw(st.sampled_from(["x", "y"])),
            ttft=draw(st.sampled_from([0.0, 7.0])),
        )
        row.t = t
        rows.append(row)
    return rows


ASSUMED = [
    Assumptions(),
    *(flipped for _, _, flipped in Assumptions().flips()),
    Assumptions(lost_reads=0.5),
    Assumptions(refresh="markers"),
]


@settings(max_examples=80, deadline=None)
@given(traces(), st.sampled_from(sorted(PLACEMENTS)), st.sampled_from(ASSUMED))
def test_the_causes_add_up_to_a_perfect_cache(rows, placement, assumptions):
    """Against the definition, block by block: what an earlier request of the workspace sent is read."""
    diagnosis = found(rows, placement, assumptions)
    totals = simulate(rows, {"p": PLACEMENTS[placement]}, PRICES, assumptions)["p"]
    sent: dict[str, set[int]] = {}
    perfect = 0
    for row in rows:
        known = sent.setdefault(row.workspace, set())
        again = sum(block.tokens for block in row.blocks if block.content in known)
        known |= {block.content for block in row.blocks}
        perfect += again
    assert diagnosis.cost == totals.input_cost
    assert sum(finding.tokens for finding in diagnosis.findings) == perfect - totals.read
    assert all(
        finding.cause in CAUSES and finding.cost >= 0 and (finding.tokens > 0 or finding.place)
        for finding in diagnosis.findings
    )
