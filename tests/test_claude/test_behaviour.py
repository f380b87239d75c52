"""Effort and thinking by model: defaults, and what a change of them loses."""

import copy

import pytest
from kvbench_testing.claude_requests import body, found, grown, request

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.behaviour import behaviour
from kvbench.claude.prices import PriceBook
from kvbench.claude.request import Hashing

NOTHING, MESSAGES, ALL = 0, 1400, 5100
LOW, MEDIUM, HIGH = ({"effort": level} for level in ("low", "medium", "high"))


def changed(model, old, new, **given):
    """Tokens lost by a change between two requests that cached everything; both grow."""
    first = body()
    first["model"] = model
    second = grown(first)
    first |= old
    second |= new
    requests = [request(copy.deepcopy(first), 0, **given), request(second, 1, **given)]
    kept = 0
    for a, b in zip(_chain(requests[0]), _chain(requests[1]), strict=False):
        if a.cum != b.cum:
            break
        kept = a.tokens
    return requests[0].head.tokens - kept


def _chain(request):
    nodes, node = [], request.head
    while node is not None and node.index:
        nodes.append(node)
        node = node.parent
    return nodes[::-1]


@pytest.mark.parametrize(
    ("model", "default"),
    [
        ("claude-opus-5-5", "medium"),
        ("claude-haiku-5-5", "medium"),
        ("claude-sonnet-5-5", "high"),
        ("claude-opus-4-8", "high"),
        ("us.anthropic.claude-opus-5-5", "medium"),
        ("claude-haiku-5-5[1m]", "medium"),
    ],
)
def test_the_default_effort_is_none(model, default):
    other = {"medium": "high", "high": "medium"}[default]
    assert behaviour(model).effort == default
    assert changed(model, {}, {"output_config": {"effort": default}}) == NOTHING
    assert changed(model, {}, {"output_config": {"effort": other}}) > NOTHING


@pytest.mark.parametrize(
    ("model", "thinks"),
    [
        ("claude-opus-5", True),
        ("claude-sonnet-5", True),
        ("claude-opus-5-5", True),
        ("claude-haiku-5-5", True),
        ("claude-opus-4-8", False),
        ("claude-opus-4-6", False),
        ("claude-sonnet-4-5-20250929", False),
    ],
)
def test_the_default_thinking_is_none(model, thinks):
    on, off = {"thinking": {"type": "adaptive"}}, {"thinking": {"type": "disabled"}}
    same, other = (on, off) if thinks else (off, on)
    assert changed(model, {}, same) == NOTHING
    assert changed(model, same, {}) == NOTHING
    assert changed(model, {}, other) > NOTHING


def test_how_thinking_is_shown_changes_nothing():
    shown = {"thinking": {"type": "adaptive", "display": "summarized"}}
    assert changed("claude-opus-4-8", {"thinking": {"type": "adaptive"}}, shown) == NOTHING
    budgets = [{"thinking": {"type": "enabled", "budget_tokens": n}} for n in (2000, 4000)]
    assert changed("claude-sonnet-4-5", *budgets) == MESSAGES


@pytest.mark.parametrize(
    ("model", "lost"),
    [
        ("claude-fable-5-1", NOTHING),
        ("claude-sonnet-5", MESSAGES),
        ("claude-opus-5", ALL),
        ("claude-opus-4-7", ALL),
        ("claude-fable-5", ALL),
        # not measured: the switch decides
        ("claude-opus-4-8", MESSAGES),
    ],
)
def test_what_a_change_of_effort_loses(model, lost):
    assert changed(model, {"output_config": LOW}, {"output_config": MEDIUM}) == lost
    decided = lost if model != "claude-opus-4-8" else ALL
    given = {"assumptions": Assumptions(params_scope="tools")}
    assert changed(model, {"output_config": LOW}, {"output_config": MEDIUM}, **given) == decided


@pytest.mark.parametrize(
    ("model", "place"), [("claude-opus-5", "effort"), ("claude-sonnet-5", "effort"), ("claude-fable-5-1", "")]
)
def test_the_doctor_names_it(model, place):
    old = body()
    old["model"] = model
    new = grown(old)
    new["output_config"] = LOW
    findings = found([request(old, 0), request(new, 1)]).findings
    assert [finding.cause for finding in findings] == (["effort changed"] if place else [])
    assert [finding.place for finding in findings] == ([place] if place else [])


def test_every_priced_model_has_its_facts_and_every_fact_a_source():
    for name in PriceBook.load().models():
        assert behaviour(name).source, name
    assert behaviour("claude-of-the-future").effort == "high"
    assert Hashing().params_scope == "messages"


def test_a_fast_request_served_as_standard_changes_nothing():
    old = body()
    new = grown(old)
    new["speed"] = "fast"
    assert found([request(old, 0), request(new, 1, speed="standard")]).findings == []
    (finding,) = found([request(old, 0), request({**new, "model": "claude-opus-5"}, 1)]).findings[:1]
    assert finding.cause == "model changed"
