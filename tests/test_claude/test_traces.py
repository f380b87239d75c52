"""Loaders: what they build, and what they do with bad input."""

import datetime
import gzip
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.placements import named
from kvbench.claude.simulate import simulate
from kvbench.claude.traces import sessions
from kvbench.claude.traces.hashed import HashChain, common, cut
from kvbench.claude.traces.kv_cache_tester import Choices, KvCacheTesterTrace
from kvbench.claude.traces.mooncake import MooncakeTrace
from kvbench.claude.traces.problems import Problems
from kvbench.claude.traces.synthetic import Synthetic, SyntheticTrace
from kvbench.config.errors import UserError

BASE = Assumptions()
SONNET = "claude-sonnet-4-6"


def session(*requests, **fields):
    return {"block_size": 64, "tool_tokens": 640, "system_tokens": 640, "requests": list(requests), **fields}


def item(t=0.0, ids=40, **fields):
    ids = list(range(1, ids + 1)) if isinstance(ids, int) else ids
    base = {
        "type": "n",
        "model": "claude-opus-4-6",
        "out": 10,
        "input_types": ["text"],
        "output_types": ["text"],
    }
    return {"t": t, "in": 64 * len(ids) + 5, "hash_ids": ids, **base, **fields}


@pytest.fixture
def load(tmp_path, prices):
    def read(*contents, choices=None, strict=False):
        for number, content in enumerate(contents):
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / f"s{number}.json").write_text(text)
        trace = KvCacheTesterTrace(tmp_path, prices, choices or Choices(), Problems(strict))
        return trace, list(trace.requests(BASE))

    return read


def test_common_and_cut():
    assert [common([1, 2, 3], other) for other in ([1, 2, 3, 4], [1, 9], [], [1, 2, 4, 5])] == [3, 1, 0, 2]
    assert cut(10, 14, (0, 1), 1) == [(10, 12, 0), (12, 14, 1)]
    assert cut(10, 11, (0, 1, 2), 1) == [(10, 11, 0)]
    assert cut(3, 6, (0,), 0) == [(3, 4, 0), (4, 5, 0), (5, 6, 0)]
    assert cut(3, 3, (0,), 1) == []


def test_an_extension_shares_the_nodes_of_the_previous_prompt():
    chain = HashChain(64, ((2, 0), (4, 1)))
    first = chain.extend(list(range(10)))
    second = chain.extend(list(range(14)))
    assert second.parent is first
    assert (first.tokens, second.tokens) == (640, 896)
    assert [end.tokens for end in chain.tier_ends()] == [128, 256]


def test_hashes_do_not_depend_on_the_cuts():
    whole = HashChain(64).extend(list(range(14)))
    chain = HashChain(64, ((2, 0),))
    chain.extend(list(range(10)))
    assert chain.extend(list(range(14))).cum == whole.cum


def test_a_long_request_only_adds_nodes_for_its_extension():
    """Nodes created: 2,000 once, then one per request, regardless of the length of the prompt."""
    chain = HashChain(64)
    ids = list(range(2000))
    node = chain.extend(ids, pieces=0)
    tracemalloc.start()
    for value in range(2000, 2100):
        ids.append(value)
        node = chain.extend(list(ids), pieces=0)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert node.index == 2100
    assert grown < 100 * 2_000


def test_a_return_to_an_earlier_branch_finds_its_entry(load, prices):
    """A, B, A': 20 ids of A are cached, B leaves after 10, A' goes on from A and reads 1,280 tokens."""
    a, b = list(range(1, 21)), [*range(1, 11), *range(50, 60)]
    rows = [item(0.0, a, model=SONNET), item(10.0, b, model=SONNET), item(20.0, [*a, 90, 91], model=SONNET)]
    for choices in (Choices(), Choices(blocks="turn"), Choices(blocks="hash")):
        trace, requests = load(session(*rows, tool_tokens=0, system_tokens=0), choices=choices)
        assert trace.problems.lines == []
        totals = simulate(requests, {"auto": named("automatic")}, prices)["auto"]
        # A wrote one entry, at its end, so B reads nothing
        assert totals.read == 1280


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), min_size=1, max_size=8), st.integers(1, 2)
)
def test_every_end_of_an_earlier_prompt_is_a_cut(prompts, pieces):
    """Against the definition: cuts on the path of a prompt are kept, whatever was asked in between."""
    chain = HashChain(64, ((2, 0), (3, 1)))
    cuts: set[tuple[int, ...]] = set()
    for ids in prompts:
        node, ends = chain.extend(list(ids), (0, 1), pieces), []
        assert node.cum == HashChain(64).extend(list(ids)).cum
        while node.index:
            ends.append(node.tokens // 64)
            assert node.contents == list(ids)[node.parent.tokens // 64 : node.tokens // 64]
            node = node.parent
        known = {len(cut) for cut in cuts if cut == tuple(ids[: len(cut)])}
        assert known <= set(ends) and len(ids) in ends
        cuts |= {tuple(ids[:end]) for end in ends}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"hash_ids": list(range(10)), "in": 20_480},
            "hash_ids do not fit in=20480: 10 ids, but 320 whole blocks",
        ),
        (
            {"hash_ids": list(range(41)), "in": 2_565},
            "hash_ids do not fit in=2565: 41 ids, but 40 whole blocks",
        ),
        ({"hash_ids": 40}, "no list of ids"),
        ({"hash_ids": [1.5, None] * 20}, "TypeError"),
        ({"t": float("nan")}, "t=nan: must be seconds since 1970-01-01"),
        ({"t": float("inf")}, "t=inf"),
        ({"t": "soon"}, "TypeError"),
        ({"ttft": float("nan")}, "ttft=nan"),
        ({"in": 2565.5}, "token counts must be whole numbers (in=2565.5)"),
        ({"model": ["claude"]}, "TypeError"),
    ],
)
def test_a_defect_of_one_request_is_a_row(load, fields, message):
    trace, requests = load(session(item(), {**item(5.0), **fields}, item(9.0, 50)))
    assert [request.id for request in requests] == ["s0.json/0", "s0.json/2"]
    assert [message in line and line.startswith("s0.json: request 1: ") for line in trace.problems.lines] == [
        True
    ]


def test_a_day_before_the_first_price_is_a_row(tmp_path, prices):
    rows = session(item(model=SONNET), item(5.0, model="claude-opus-4-5-20251101"))
    (tmp_path / "s.json").write_text(json.dumps(rows))
    trace = KvCacheTesterTrace(tmp_path, prices, date=datetime.date(2026, 1, 1))
    assert [request.model for request in trace.requests(BASE)] == ["claude-opus-4-5"]
    assert (
        "s.json: request 0: model=claude-sonnet-4-6: its first price is of 2026-02-17"
        in trace.problems.lines[0]
    )


def test_sessions_in_sub_folders_and_gzipped(tmp_path, prices):
    (tmp_path / "a.json").mkdir()
    (tmp_path / "a.json" / "b.json.gz").write_bytes(gzip.compress(json.dumps(session(item())).encode()))
    (tmp_path / "b.json").write_text(json.dumps(session(item())))
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(json.dumps(session(item())).encode())[:-9])
    trace = KvCacheTesterTrace(tmp_path, prices)
    assert [request.id for request in trace.requests(BASE)] == ["a.json/b.json.gz/0", "b.json/0"]
    assert len({request.workspace for request in trace.requests(BASE)}) == 2
    assert "c.json.gz: not a session (EOFError" in trace.problems.lines[0]


def test_a_session(load):
    shorter = item(20.0, [*range(1, 31), 99, 98, 97], model="claude-opus-4-5-20251101")
    agent = {"type": "subagent", "t": 5.0, "tool_tokens": 128, "requests": [item(1.0)]}
    trace, requests = load(session(item(), agent, item(10.0, 50, ttft=1.5), shorter))
    assert trace.problems.lines == []
    assert [request.id for request in requests] == ["s0.json/0", "s0.json/1.0", "s0.json/2", "s0.json/3"]
    assert [request.t - requests[0].t for request in requests] == [0, 6, 10, 20]
    first, _, second, third = requests
    assert second.head.parent.parent.cum == first.head.cum
    assert (second.ttft, second.tail, second.head.tokens) == (1.5, 5, 3200)
    assert (first.tools_end.tokens, first.system_end.tokens) == (640, 1280)
    # the prompt that was edited after block 30 shares tools and system only: no cut lies in between
    assert third.head.parent.parent.cum == first.system_end.cum


def test_effects_of_the_modelling_choices(load):
    content = session(item(), item(9.0, 60, api_time=4.0))
    for blocks, index in (("turn", 4), ("types", 5), ("hash", 42)):
        _, requests = load(content, choices=Choices(blocks=blocks))
        assert requests[1].head.index == index
    _, requests = load(content, choices=Choices(ttft="api_time"))
    assert requests[1].ttft == 4.0
    agent = {"type": "subagent", "t": 5.0, "requests": [item(1.0)]}
    assert len(load(session(agent), choices=Choices(subagents="left_out"))[1]) == 0
    assert len({choices for _, choices in Choices().flips()}) == 4


def test_bad_sessions_are_reported_and_the_rest_is_used(load):
    bad = [
        item(1.0, model="claude-opus-9"),
        item(2.0, out=-5),
        item(3.0, **{"in": 10}),
        {"t": 4.0, "type": "n"},
        item(5.0, out=None),
    ]
    late = session(item(50.0), item(40.0))
    trace, requests = load(session(item(), *bad, item(9.0)), '{"requests": [\n', late, {"requests": 3})
    assert [request.id for request in requests] == ["s0.json/0", "s0.json/6", "s2.json/0", "s2.json/1"]
    assert requests[3].t == requests[2].t
    lines = "\n".join(trace.problems.lines)
    for expected in (
        "s0.json: request 1: model=claude-opus-9: no prices for this model; nearest are claude-opus-",
        "s0.json: request 2: token counts must not be negative",
        "s0.json: request 3: hash_ids do not fit in=10",
        "s0.json: request 4: KeyError: 'model'",
        "s0.json: request 5: token counts must be whole numbers (out=None)",
        "s1.json, line 2: not a session (JSONDecodeError",
        "s2.json: request 1: its time 40.0 runs backwards; set to the time of the previous one",
        "s3.json: not a session (KeyError: 'block_size')",
    ):
        assert expected in lines
    assert (len(trace.problems.lines), trace.problems.skipped) == (8, 7)
    list(trace.requests(BASE))
    assert len(trace.problems.lines) == 8


def test_strict_raises_at_the_first_defect(load):
    with pytest.raises(UserError, match="request 0: token counts must not be negative"):
        load(session(item(out=-1)), strict=True)
    with pytest.raises(UserError, match="line 1: not a session"):
        load("{", strict=True)


def test_an_empty_folder_is_an_error(tmp_path, prices):
    with pytest.raises(UserError, match=r"no files \*\.json below it"):
        KvCacheTesterTrace(tmp_path, prices)


def test_mooncake(tmp_path, prices):
    rows = [
        {"timestamp": 0, "input_length": 1300, "output_length": 5, "hash_ids": [1, 2, 3]},
        {"timestamp": 4000, "input_length": 1600, "output_length": 5, "hash_ids": [1, 2, 4, 5]},
        {"timestamp": 3000, "input_length": 100, "output_length": 5, "hash_ids": [9]},
        {"timestamp": 5000, "input_length": -1, "output_length": 5, "hash_ids": [9]},
        {"timestamp": 5000, "input_length": 5120, "output_length": 5, "hash_ids": [9, 10]},
        {"timestamp": float("nan"), "input_length": 100, "output_length": 5, "hash_ids": [9]},
        [],
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows), "{oops"]) + "\n")
    trace = MooncakeTrace(path, prices)
    first, second, third = trace.requests(BASE)
    assert first.head.cum == second.head.parent.cum
    assert (first.head.tokens, first.tail, second.head.tokens, second.tail) == (1024, 276, 1536, 64)
    assert (third.head.tokens, third.tail, third.t - second.t) == (100, 0, 0)
    assert [line.split(":")[0] for line in trace.problems.lines] == [
        f"m.jsonl, line {n}" for n in range(3, 9)
    ]
    totals = simulate(trace.requests(BASE), {"auto": named("automatic")}, prices)["auto"]
    assert (totals.read, totals.requests) == (1024, 3)
    whole = MooncakeTrace(path, prices, blocks="turn")
    assert simulate(whole.requests(BASE), {"auto": named("automatic")}, prices)["auto"].read == 0


def test_synthetic_sessions(prices):
    spec = Synthetic(sessions=3, turns=5, jitter=True, gap=100, fan_out=2)
    trace = SyntheticTrace(spec, prices)
    requests = list(trace.requests(BASE))
    assert len(requests) == 30
    assert [request.t for request in requests] == sorted(request.t for request in requests)
    again = [(request.id, request.t, request.head.cum) for request in trace.requests(BASE)]
    assert again == [(request.id, request.t, request.head.cum) for request in requests]
    with pytest.raises(UserError, match=r"synthetic\.turns=0"):
        SyntheticTrace(Synthetic(turns=0), prices)


def test_generated_sessions_are_reproducible_and_loadable(tmp_path, prices):
    one, two = sessions.write_sessions(tmp_path / "a", 3), sessions.write_sessions(tmp_path / "b", 3)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    trace = KvCacheTesterTrace(tmp_path / "a", prices)
    assert len(list(trace.requests(BASE))) == 2 + 4 + 7
    assert trace.problems.lines == []
