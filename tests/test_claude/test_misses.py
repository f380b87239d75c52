"""Every reason for a miss, by its smallest example."""

import pytest

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.causes import CAUSES
from kvbench.claude.misses import diagnose
from kvbench.claude.placements import as_sent
from kvbench.claude.request import SYSTEM, ContentBlock, Hashing, append, root
from kvbench.claude.simulate import ListTrace

FIVE, HOUR = 300, 3600
START = 1.79e9


@pytest.fixture
def findings(prices, ask):
    """Findings for requests given as (seconds, head, markers, other fields)."""

    def run(*rows, assumptions=None):
        requests = [
            ask(head, START + t, id=f"q{k}", markers=tuple(markers), **dict(*fields))
            for k, (t, head, markers, *fields) in enumerate(rows)
        ]
        return diagnose(ListTrace(requests), as_sent, prices, assumptions)

    return run


def only(diagnosis):
    assert len(diagnosis.findings) == 1, diagnosis.findings
    return diagnosis.findings[0]


def test_nothing_to_report_when_the_prefix_is_read(findings, blocks):
    nodes = blocks(3, 1000)
    assert findings((0, nodes[1], [(nodes[1], FIVE)]), (9, nodes[2], [(nodes[2], FIVE)])).findings == []


def test_no_cache_control(findings, blocks):
    nodes = blocks(3, 1000)
    found = only(findings((0, nodes[1], []), (9, nodes[2], [])))
    assert (found.request, found.cause, found.tokens) == ("q1", "no cache_control", 2000)
    # 2,000 tokens at 3.00 instead of 0.30 dollars per million
    assert found.cost == 2000 * 2700


def test_below_the_minimum(findings, blocks):
    nodes = blocks(2, 400)
    found = only(findings((0, nodes[1], [(nodes[1], FIVE)]), (9, nodes[1], [(nodes[1], FIVE)])))
    assert (found.cause, found.detail) == ("below the minimum", "800 tokens of 1024 (short by 224)")


def test_expired(findings, blocks):
    nodes = blocks(2, 1000)
    diagnosis = findings((0, nodes[1], [(nodes[1], FIVE)]), (420, nodes[1], [(nodes[1], FIVE)]))
    found = only(diagnosis)
    assert (found.cause, found.detail) == ("expired", "the 5m entry at block 2 expired 120 s before")
    assert found.cost == 2000 * (3750 - 300)
    # two 5m writes against a 1h write and a read
    assert diagnosis.net["the same places with ttl 1h"] == 2000 * (2 * 3750 - 6000 - 300)


def test_first_response_not_begun(findings, blocks):
    nodes = blocks(2, 1000)
    marker = [(nodes[1], FIVE)]
    found = only(findings((0, nodes[1], marker, {"ttft": 4.0}), (1, nodes[1], marker, {"ttft": 4.0})))
    assert (found.cause, found.detail) == (
        "first response not begun",
        "the response that writes it began 3 s later",
    )


def test_lookback_exceeded(findings, blocks):
    nodes = blocks(30, 1000)
    found = only(findings((0, nodes[4], [(nodes[4], FIVE)]), (1, nodes[29], [(nodes[29], FIVE)])))
    assert found.cause == "lookback exceeded"
    assert "block 5 is 25 positions" in found.detail


def test_prefix_changed_shows_the_block(findings, blocks):
    nodes = blocks(3, 1500)
    other = blocks(2, 1500, start=nodes[0], seed=5)
    found = only(findings((0, nodes[2], [(nodes[2], FIVE)]), (1, other[1], [(other[1], FIVE)])))
    assert (found.cause, found.place, found.tokens) == ("prefix changed", "block 2 (messages, text)", 1500)


def test_marker_on_a_block_that_changes_every_turn(findings, blocks):
    """The article's layout: a marked context in `system` that changes at every turn."""
    stable = blocks(1, 3000, tier=SYSTEM)[0]
    rows = []
    for turn in range(4):
        context = blocks(1, 5000, start=stable, seed=turn + 1, tier=SYSTEM)[0]
        rows.append((turn, blocks(1, start=context, seed=turn)[0], [(context, FIVE)]))
    reasons = [finding.cause for finding in findings(*rows).findings]
    assert reasons == ["prefix changed", *["marker on a block that changes every turn"] * 2]


def test_parameter_changed(findings, prices):
    one, two = (append(root(), ContentBlock(SYSTEM, 0, 7, 2000), Hashing(), (0, salt, 0)) for salt in (0, 1))
    prefix = append(root(), ContentBlock(0, 1, 3, 2000), Hashing(), (0, 0, 0))
    one, two = (append(prefix, ContentBlock(SYSTEM, 0, 7, 2000), Hashing(), (0, salt, 0)) for salt in (0, 1))
    found = only(findings((0, one, [(one, FIVE)]), (1, two, [(two, FIVE)])))
    assert found.cause == "parameter changed"
    assert "block 2 (system" in found.detail


def test_shared_part_not_marked(findings, blocks):
    nodes = blocks(3, 1500)
    marker = [(nodes[0], FIVE)]
    assert only(findings((0, nodes[2], marker), (1, nodes[2], marker))).cause == "shared part not marked"


def test_other_model_and_other_workspace(findings, blocks):
    nodes = blocks(2, 3000)
    marker = [(nodes[1], FIVE)]
    found = only(findings((0, nodes[1], marker), (1, nodes[1], marker, {"model": "claude-opus-5"})))
    assert (found.cause, found.tokens) == ("model changed", 6000)
    # no cache is shared between workspaces, so a perfect one reads nothing either
    diagnosis = findings((0, nodes[1], marker), (1, nodes[1], marker, {"workspace": "b"}))
    assert diagnosis.findings == [] and diagnosis.perfect == diagnosis.cost
    assert [(found.cause, found.tokens) for found in diagnosis.elsewhere] == [("other workspace", 6000)]


def test_assumptions_have_separate_reasons(findings, blocks):
    nodes = blocks(2, 1000)
    rows = ((0, nodes[1], [(nodes[1], HOUR)]), (1, nodes[1], [(nodes[1], FIVE)]))
    assert only(findings(*rows, assumptions=Assumptions(ttl_lookup="matched"))).cause == "other lifetime"
    assert only(findings(*rows, assumptions=Assumptions(lost_reads=1.0))).cause == "lost under load"


def test_requests_that_the_api_would_reject(findings, blocks):
    nodes = blocks(5, 1000)
    five = [(node, FIVE) for node in nodes]
    order = [(nodes[0], FIVE), (nodes[1], HOUR)]
    reasons = [finding.cause for finding in findings((0, nodes[4], five), (1, nodes[4], order)).findings]
    assert reasons == ["too many breakpoints", "wrong TTL order"]


def test_every_cause_has_a_fix_and_is_summed(findings, blocks):
    nodes = blocks(2, 1000)
    diagnosis = findings(*((400 * k, nodes[1], [(nodes[1], FIVE)]) for k in range(3)))
    assert diagnosis.causes() == {"expired": (2, 4000, 2 * 2000 * 3450)}
    assert set(diagnosis.causes()) <= set(CAUSES)
