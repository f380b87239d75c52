"""Golden pairs of requests, and the cause of every token that the second did not read."""

import copy

import pytest
from kvbench_testing.claude_requests import (
    PLACEMENTS,
    at,
    body,
    found,
    grown,
    request,
    system,
    text,
    tool,
    words,
)

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.causes import CAUSES, FIXABLE
from kvbench.claude.tables import diagnosis_text

# What is lost with automatic caching: every token that the first request sent and the second sends again, unless the
# change touches it. 2 x 600 tools, 1500 + 1000 system, 800 + 400 + 200 messages = 5,100.
ALL = 5100
AUTOMATIC = ("as_sent", "automatic", "automatic_1h")
MARKED = ("tools_system", "explicit_four", "middleware_5m", "middleware_1h", "stable_1h_tail_5m")
GOLDEN = [
    # name, clock before, change, cause, place, tokens lost with automatic caching, of them behind the change
    (
        "time",
        "14:05:09",
        lambda b: system(b).update(text=f"{words(1499, 'rule')} 14:05:39"),
        "date or time changed",
        "block 3 (system, text)",
        3600,
        2400,
    ),
    (
        "date",
        "2026-11-24",
        lambda b: system(b).update(text=f"{words(1499, 'rule')} 2026-11-25"),
        "date or time changed",
        "block 3 (system, text)",
        3600,
        2400,
    ),
    (
        "weekday",
        "Tuesday",
        lambda b: system(b).update(text=f"{words(1499, 'rule')} Friday"),
        "date or time changed",
        "block 3 (system, text)",
        3600,
        2400,
    ),
    (
        "stamp",
        "1790000000",
        lambda b: system(b).update(text=f"{words(1499, 'rule')} 1790000030"),
        "date or time changed",
        "block 3 (system, text)",
        3600,
        2400,
    ),
    (
        "nonce",
        "3f2b8c1d-9a7e-4c55-8f21-0a1b2c3d4e5f",
        lambda b: system(b).update(text=f"{words(1499, 'rule')} 7d0e1f22-0000-4c55-9f21-ffffffffffff"),
        "number or random id changed",
        "block 3 (system, text)",
        3600,
        2400,
    ),
    (
        "counter",
        "17",
        lambda b: system(b).update(text=f"{words(1499, 'rule')} 18"),
        "number or random id changed",
        "block 3 (system, text)",
        3600,
        2400,
    ),
    (
        "system text",
        "",
        lambda b: system(b).update(text=words(1500, "law")),
        "system prompt changed",
        "block 3 (system, text)",
        3600,
        2400,
    ),
    (
        "system block added",
        "",
        lambda b: b["system"].insert(0, text(10, "new")),
        "blocks inserted",
        "block 3 (system, text)",
        5100,
        3900,
    ),
    (
        "system block removed",
        "",
        lambda b: b["system"].pop(0),
        "blocks removed",
        "block 3 (system, text)",
        3600,
        2400,
    ),
    (
        "system blocks swapped",
        "",
        lambda b: b["system"].reverse(),
        "blocks reordered",
        "block 3 (system, text)",
        5100,
        3900,
    ),
    (
        "tool_choice any",
        "",
        lambda b: b.update(tool_choice={"type": "any"}),
        "tool_choice changed",
        "tool_choice",
        5100,
        1400,
    ),
    (
        "tool_choice tool",
        "",
        lambda b: b.update(tool_choice={"type": "tool", "name": "beta"}),
        "tool_choice changed",
        "tool_choice",
        5100,
        1400,
    ),
    (
        "one tool at a time",
        "",
        lambda b: b.update(tool_choice={"type": "auto", "disable_parallel_tool_use": True}),
        "tool_choice changed",
        "tool_choice",
        5100,
        1400,
    ),
    (
        "thinking",
        "",
        lambda b: b.update(thinking={"type": "enabled", "budget_tokens": 2000}),
        "thinking changed",
        "thinking",
        5100,
        1400,
    ),
    (
        "effort",
        "",
        lambda b: b.update(output_config={"effort": "low"}),
        "effort changed",
        "effort",
        5100,
        1400,
    ),
    (
        "format",
        "",
        lambda b: b.update(output_config={"format": {"type": "json_schema", "schema": {}}}),
        "output format changed",
        "format",
        5100,
        1400,
    ),
    (
        "context management",
        "",
        lambda b: b.update(context_management={"edits": [{"type": "clear_tool_uses_20250919"}]}),
        "context_management changed",
        "context_management",
        5100,
        1400,
    ),
    ("speed", "", lambda b: b.update(speed="fast"), "speed changed", "speed", 5100, 3900),
    ("model", "", lambda b: b.update(model="claude-opus-5"), "model changed", "model", 5100, 5100),
    (
        "image",
        "",
        lambda b: b["messages"][-1]["content"].append(
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
        ),
        "images added or removed",
        "images",
        5100,
        1400,
    ),
    (
        "citations",
        "",
        lambda b: b["messages"][-1]["content"].append(
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": "x"},
                "citations": {"enabled": True},
            }
        ),
        "citations turned on or off",
        "citations",
        5100,
        3900,
    ),
    (
        "tools reordered",
        "",
        lambda b: b["tools"].reverse(),
        "tools reordered",
        "block 1 (tools, tool)",
        5100,
        5100,
    ),
    (
        "tool added",
        "",
        lambda b: b["tools"].append(tool("gamma")),
        "tools added or removed",
        "block 3 (tools, tool)",
        5100,
        3900,
    ),
    (
        "tool removed",
        "",
        lambda b: b["tools"].pop(0),
        "tools added or removed",
        "block 1 (tools, tool)",
        4500,
        4500,
    ),
    (
        "tool description",
        "",
        lambda b: b["tools"][0].update(description=words(587, "other")),
        "tool definition changed",
        "block 1 (tools, tool)",
        4500,
        4500,
    ),
    ("nothing changed", "", lambda b: b["tools"][0].update(description=words(587, "alpha")), None, "", 0, 0),
    (
        "web search",
        "",
        lambda b: b["tools"].append({"type": "web_search_20250305", "name": "web_search"}),
        "server tool added or removed",
        "block 3 (system, web_search_20250305)",
        5100,
        3900,
    ),
    (
        "schema keys",
        "",
        lambda b: b["tools"][0].update(input_schema=dict(reversed(b["tools"][0]["input_schema"].items()))),
        "JSON keys reordered",
        "block 1 (tools, tool)",
        5100,
        5100,
    ),
    (
        "block keys",
        "",
        lambda b: b["tools"].__setitem__(1, dict(reversed(b["tools"][1].items()))),
        "JSON keys reordered",
        "block 2 (tools, tool)",
        5100,
        4500,
    ),
    (
        "text keys",
        "",
        lambda b: b["messages"][1]["content"].__setitem__(0, dict(reversed(at(b, 1).items()))),
        "JSON keys reordered",
        "block 6 (messages, text)",
        5100,
        600,
    ),
    (
        "message edited",
        "",
        lambda b: at(b, 0).update(text=words(800, "other")),
        "message changed",
        "block 5 (messages, text)",
        4300,
        600,
    ),
    (
        "message clock",
        "",
        lambda b: at(b, 0).update(text=f"{words(799, 'ask')} 09:30"),
        "message changed",
        "block 5 (messages, text)",
        4300,
        600,
    ),
    (
        "history cut",
        "",
        lambda b: b.update(messages=b["messages"][2:]),
        "blocks removed",
        "block 5 (messages, text)",
        3900,
        200,
    ),
    (
        "message inserted",
        "",
        lambda b: b["messages"][0]["content"].insert(0, text(3, "note")),
        "blocks inserted",
        "block 5 (messages, text)",
        5100,
        1400,
    ),
    ("system gone", "", lambda b: b.pop("system"), "blocks removed", "block 3 (messages, text)", 2600, 1400),
]


# Where tools, system and the end are marked, a change costs what stands behind it. Two changes lie inside a marked
# part, so that what precedes them there goes too: the first tool (600), and the first message (800), which
# explicit_four marks.
INSIDE = {
    "block keys": dict.fromkeys(MARKED, 5100),
    "text keys": {"middleware_5m": 1400, "middleware_1h": 1400},
}


def dollars_lost(placement, tokens, said, rates):
    """By hand, in nano-dollars: a token that is written or sent plainly instead of being read.

    Args:
        tokens: not read; the last `said` of them are messages.
        rates: per token, beyond reading it: uncached, written for five minutes, written for an hour.
    """
    plain, five, hour = rates
    before, messages = {
        "none": (plain, plain),
        "tools_system": (five, plain),
        "stable_1h_tail_5m": (hour, five),
    }.get(placement, (hour, hour) if "1h" in placement else (five, five))
    return (tokens - said) * before + said * messages


OPUS = (4_500, 5_750, 9_500)  # 5, 6.25 and 10 dollars per million, less 0.50 for reading; Opus 4.8 and Opus 5
SONNET = (1_800, 2_300, 3_800)  # 2, 2.50 and 4, less 0.20; Sonnet 5
FAST = tuple(2 * rate for rate in OPUS)


def changes_of(rows, placement):
    return [finding for finding in found(rows, placement).findings if finding.place]


@pytest.mark.parametrize(
    ("name", "clock", "change", "cause", "place", "lost", "behind"), GOLDEN, ids=[row[0] for row in GOLDEN]
)
def test_golden_pairs(name, clock, change, cause, place, lost, behind):
    """The change is named under every placement, with its tokens and dollars."""
    old = body(clock)
    new = grown(old)
    change(new)
    rows = [request(old, 0), request(new, 1)]
    for placement in PLACEMENTS:
        changes = changes_of(rows, placement)
        if cause is None:
            assert changes == []
            continue
        expected = lost if placement in AUTOMATIC else INSIDE.get(name, {}).get(placement, behind)
        (only,) = changes
        assert (only.cause, only.place, only.compared, only.tokens) == (cause, place, "q0", expected), (
            placement
        )
        rates = FAST if cause == "speed changed" else OPUS
        # 1,400 tokens of messages, or what is left of them behind the change
        said = min(expected if name == "text keys" else behind, 1400)
        assert only.cost == dollars_lost(placement, expected, said, rates), placement
        if placement == "none":
            # what stands before the change was only not marked
            findings = found(rows, placement).findings
            assert {finding.cause for finding in findings} <= {cause, "no cache_control"}
            assert sum(finding.tokens for finding in findings) == lost


@pytest.mark.parametrize(
    ("model", "rates", "automatic", "others"),
    [
        ("claude-opus-5", OPUS, 5100, 5100),  # everything is lost
        ("claude-sonnet-5", SONNET, 5100, 1400),  # the messages are
        ("claude-fable-5-1", None, 0, 0),  # nothing is
    ],
)
def test_effort_by_model_under_every_placement(model, rates, automatic, others):
    old = {**body(), "model": model}
    new = {**grown(old), "output_config": {"effort": "low"}}
    rows = [request(old, 0), request(new, 1)]
    for placement in PLACEMENTS:
        changes = changes_of(rows, placement)
        tokens = automatic if placement in AUTOMATIC else others
        assert [(f.cause, f.tokens) for f in changes] == ([("effort changed", tokens)] if tokens else [])
        if rates is not None:
            assert changes[0].cost == dollars_lost(placement, tokens, 1400, rates)


def test_items_of_one_batch_under_every_placement():
    """What the first item wrote the second cannot read: the whole of its prompt, or what was marked; at half price."""
    old = body()
    rows = [request(old, 0, batch=True), request(grown(old), 1, batch=True)]
    for row in rows:
        row.batch_id = "b"
    for placement in PLACEMENTS:
        findings = {finding.cause: finding for finding in found(rows, placement).findings}
        if placement == "none":
            assert set(findings) == {"no cache_control"}
            continue
        item = findings.pop("item of the same batch")
        tokens, said = (3700, 0) if placement == "tools_system" else (5100, 1400)
        assert (item.tokens, item.cost) == (tokens, dollars_lost(placement, tokens, said, OPUS) // 2), (
            placement
        )
        # tools_system never marks the messages
        assert set(findings) == ({"shared part not marked"} if placement == "tools_system" else set())


def test_a_beta_header_is_named():
    old = body()
    diagnosis = found([request(old, 0), request(grown(old), 1, betas=["context-1m-2025-08-07"])])
    (only,) = diagnosis.findings
    assert (only.cause, only.place, only.tokens) == ("beta headers changed", "betas", ALL)


@pytest.mark.parametrize(("scope", "behind"), [("messages", 1400), ("tools", ALL)])
def test_the_tier_that_thinking_invalidates_is_an_assumption(scope, behind):
    """Without markers only what stands behind the change is its fault: the messages, or everything."""
    assumptions = Assumptions(params_scope=scope)
    old = body()
    new = grown(old)
    new["thinking"] = {"type": "adaptive"}
    new["tool_choice"] = {"type": "any"}
    rows = [request(row, number, assumptions=assumptions) for number, row in enumerate((old, new))]
    for placement, lost in (("as_sent", ALL), ("none", behind)):
        (change,) = [row for row in found(rows, placement, assumptions).findings if row.place]
        # tool_choice comes first within the messages tier
        expected = "thinking changed" if scope == "tools" else "tool_choice changed"
        assert (change.cause, change.tokens) == (expected, lost)


def test_a_string_for_a_list_is_a_change_only_where_it_is_distinct():
    old = body()
    new = grown(old)
    new["messages"][0]["content"] = at(new, 0)["text"]
    for form, causes in (("equal", []), ("distinct", ["string form changed"])):
        assumptions = Assumptions(string_form=form)
        rows = [request(row, number, assumptions=assumptions) for number, row in enumerate((old, new))]
        assert [row.cause for row in found(rows, "as_sent", assumptions).findings] == causes


def test_a_clock_in_ten_requests_is_nine_misses():
    """Ten full writes: 3,500 tokens of each but the first were there before, the clock's block was not."""
    rows = [body(f"12:00:{number:02d}") for number in range(10)]
    diagnosis = found([request(row, number) for number, row in enumerate(rows)], "as_sent")
    assert sum(finding.tokens for finding in diagnosis.findings) == 9 * 3600
    assert {finding.cause for finding in diagnosis.findings} == {"date or time changed"}
    first = diagnosis.findings[0]
    # behind the clock 1000 + 800 + 400 + 200 tokens are paid again, and are the same; before it two tools are
    assert (first.request, first.behind, first.blocks) == ("q1", 2400, 6)


@pytest.mark.parametrize("session", ["s", ""])
@pytest.mark.parametrize(
    ("values", "cause", "within"),
    [
        ([f"12:00:{n:02d}" for n in range(10)], "date or time changed", 1500),
        ([f"user {n}4711" for n in range(10)], "number or random id changed", 1501),
        ("Ann Bob Cid Dan Eve Fay Gil Hal Ida Jon".split(), "system prompt changed", 0),
    ],
)
def test_a_change_inside_the_only_system_block(values, cause, within, session):
    """Ten full writes and another question each: no block was sent before, and nine times the system prompt changed.

    Without a conversation only what differs in a clock, a number or an id can be compared with an earlier prompt.
    """
    rows = []
    for number, value in enumerate(values):
        row = body()
        row["system"] = [{"type": "text", "text": f"{value} {words(1499, 'rule')}"}]
        row["tools"] = []
        row["messages"] = [{"role": "user", "content": [text(200, f"question{number}")]}]
        rows.append(request(row, number, session=session))
    diagnosis = found(rows)
    assert diagnosis.cost == diagnosis.perfect
    if not session and not within:
        assert diagnosis.findings == []
        return
    assert {(f.cause, f.place, f.tokens) for f in diagnosis.findings} == {
        (cause, "block 1 (system, text)", 0)
    }
    assert len(diagnosis.findings) == 9
    # written at 6.25 dollars per million instead of read at 0.50
    assert {(f.within, f.within_cost) for f in diagnosis.findings} == {(within, within * 5_750)}


def test_what_a_changed_block_hides_is_no_part_of_the_difference():
    """The golden clock: 3,600 tokens beside the block, and up to the 1,500 of the block itself."""
    rows = [body(f"12:00:{number:02d}") for number in range(2)]
    (only,) = found([request(row, number) for number, row in enumerate(rows)]).findings
    assert (only.tokens, only.within, only.within_cost) == (3600, 1500, 1500 * 5_750)
    page = diagnosis_text(found([request(row, number) for number, row in enumerate(rows)]))
    assert "| date or time changed | user | 1 | 3,600 | 0.0207 | 0.0086 |" in page
    assert "up to 1,500 tokens of the block itself" in page and "at most $0.0086 more" in page


def test_the_end_of_a_conversation_is_new_by_nature():
    """Questions that differ in a number are no fault; the same question inside the history is one."""
    for number, expected in ((2, [0]), (0, [200])):
        old = body()
        at(old, number)["text"] = f"{words(199, 'ask')} 17"
        new = copy.deepcopy(old)
        at(new, number)["text"] = f"{words(199, 'ask')} 18"
        findings = found([request(old, 0), request(new, 1)]).findings
        assert [f.within for f in findings] == expected


def test_small_tools_are_not_the_cause_when_tool_choice_changed():
    """Tools and system of 820 tokens are below the minimum of 1,024, but the whole prompt had an entry."""
    old = body(tools=60)
    old["system"] = [text(700, "rule")]
    new = grown(old)
    new["tool_choice"] = {"type": "any"}
    (only,) = found([request(old, 0), request(new, 1)]).findings
    assert (only.cause, only.tokens) == ("tool_choice changed", 820 + 1400)


def test_expiry_and_change_are_told_apart():
    """After 400 s the marked tools and system have expired; the question that was rewritten is a change."""
    old = body()
    new = grown(old)
    at(new, 0)["text"] = words(800, "other")
    diagnosis = found([request(old, 0), request(new, 1, gap=400.0)], "tools_system")
    assert [(finding.cause, finding.tokens) for finding in diagnosis.findings] == [
        ("expired", 3700),
        ("message changed", 600),
    ]


def test_only_text_that_comes_again_elsewhere_is_no_change():
    old = body()
    new = grown(old)
    new["messages"][-1]["content"] = [text(400, "answer")]
    (only,) = found([request(old, 0), request(new, 1)]).findings
    assert (only.cause, only.tokens, CAUSES[only.cause].by) == ("repeated elsewhere", 400, "provider")


def test_thinking_that_the_model_drops():
    """Sonnet 4.5 drops the thinking of earlier turns when a user speaks again; Opus 5 keeps it."""
    old = body()
    old["messages"] = [
        {"role": "user", "content": [text(800, "ask")]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": words(300, "hm"), "signature": "x"},
                text(400, "answer"),
            ],
        },
    ]
    new = copy.deepcopy(old)
    new["messages"].append({"role": "user", "content": [text(50, "next")]})
    for model, causes in (("claude-sonnet-4-5", ["earlier thinking dropped"]), ("claude-opus-5", [])):
        old["model"] = new["model"] = model
        assert [f.cause for f in found([request(old, 0), request(new, 1)]).findings] == causes


def test_effort_in_a_message_keeps_what_stands_before():
    """The beta header and a system message without content change nothing before them; one that goes away does."""
    beta = "mid-conversation-output-config-2026-07-01"
    low = {"role": "system", "content": [], "output_config": {"effort": "low"}}
    old = body()
    new = copy.deepcopy(old)
    new["messages"] += [{"role": "assistant", "content": [text(100, "reply")]}, low]
    new["messages"] += [{"role": "user", "content": [text(50, "next")]}]
    later = copy.deepcopy(new)
    later["messages"] += [{"role": "assistant", "content": [text(70, "later")]}]
    rows = [request(old, 0), request(new, 1, betas=[beta]), request(later, 2, betas=[beta])]
    assert found(rows).findings == []
    assert rows[1].head.tokens == ALL + 150
    del later["messages"][4]
    (lost,) = found([rows[0], rows[1], request(later, 2, betas=[beta])]).findings
    assert (lost.cause, lost.place) == ("blocks removed", "block 9 (messages, text)")


def test_every_cause_is_fixable_by_somebody():
    assert {cause.by for cause in CAUSES.values()} == set(FIXABLE)


def test_the_sum_is_checked_by_a_planted_fault(monkeypatch):
    """A cause that is priced twice breaks the sum."""
    from kvbench.claude import misses

    right = misses.with_read
    monkeypatch.setattr(misses, "with_read", lambda now, usage, units: right(usage, usage, units[:-1]))
    with pytest.raises(AssertionError):
        test_a_clock_in_ten_requests_is_nine_misses()
