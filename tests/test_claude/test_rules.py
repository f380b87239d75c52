"""The rules R1-R26 and the open points U1-U8, each by its smallest example."""

import pytest

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.request import (
    SERVER_RESULT,
    SYSTEM,
    TEXT,
    THINKING,
    TOOL,
    TOOL_RESULT,
    TOOL_USE,
    TOOLS,
    Usage,
)
from kvbench.claude.rules import Cache

FIVE, HOUR = 300, 3600


def serve(cache, request, markers, minimum=100):
    return cache.serve(request, markers, minimum).usage


def test_documented_lookback_example(blocks, ask):
    """R11: writes at 10 and 15; a breakpoint at 35 looks at 35..16 and misses, a second at 15 finds it."""
    nodes = blocks(35)
    for markers, read in (([(nodes[34], FIVE)], 0), ([(nodes[14], FIVE), (nodes[34], FIVE)], 1500)):
        cache = Cache()
        serve(cache, ask(nodes[9]), [(nodes[9], FIVE)])
        serve(cache, ask(nodes[14], 1), [(nodes[14], FIVE)])
        assert serve(cache, ask(nodes[34], 2), markers) == Usage(read=read, write_5m=3500 - read)


@pytest.mark.parametrize(
    ("at", "counted", "before"), [(34, True, True), (35, False, True), (36, False, False)]
)
def test_lookback_reaches_twenty_positions(blocks, ask, at, counted, before):
    """R8 and U1: entry at 15; breakpoint 34 is the last to see it if itself is number 1, else 35."""
    nodes = blocks(40)
    for lookback, hit in (("counted", counted), ("before", before)):
        cache = Cache(Assumptions(lookback=lookback))
        serve(cache, ask(nodes[14]), [(nodes[14], FIVE)])
        assert (serve(cache, ask(nodes[at - 1], 1), [(nodes[at - 1], FIVE)]).read > 0) == hit


def test_runs_of_tool_blocks_are_one_position(blocks, ask):
    """R9, measured on Haiku 4.5: 120 blocks in 20 messages hit, 22 blocks in 22 messages missed."""
    start = blocks(1)
    runs = [kind for turn in range(20) for kind in [TOOL_USE, TOOL_RESULT][turn % 2 : turn % 2 + 1] * 6]
    nodes = blocks(120, start=start[0], kinds=runs, messages=[1 + number // 6 for number in range(120)])
    single = blocks(22, start=start[0], kinds=[TOOL_USE, TOOL_RESULT] * 11)
    for name, hit_runs, hit_single in (("before", True, False), ("counted", False, False)):
        for chain, hit in ((nodes, hit_runs), (single, hit_single)):
            cache = Cache(Assumptions(lookback=name))
            serve(cache, ask(start[0]), [(start[0], FIVE)])
            assert (serve(cache, ask(chain[-1], 1), [(chain[-1], FIVE)]).read > 0) == hit
    # one message less is within both readings of U1, and out of reach if every block counts
    for runs_are, hit in (("one", True), ("each", False)):
        cache = Cache(Assumptions(tool_runs=runs_are))
        serve(cache, ask(start[0]), [(start[0], FIVE)])
        assert (serve(cache, ask(nodes[113], 1), [(nodes[113], FIVE)]).read > 0) == hit


def test_a_marker_writes_one_entry_only(blocks, ask):
    """R2: nothing is written at earlier blocks, so a prompt that shares 9 of 10 blocks reads nothing."""
    cache = Cache()
    nodes = blocks(10)
    serve(cache, ask(nodes[9]), [(nodes[9], FIVE)])
    other = blocks(1, start=nodes[8], seed=7)
    assert serve(cache, ask(other[0], 1), [(other[0], FIVE)]) == Usage(write_5m=1000)


def test_usage_of_two_lifetimes(blocks, ask):
    """R17 with the page's usage example: 2,048 in all, 1,800 read, 148 written for 5m and 100 for 1h."""
    cache = Cache()
    nodes = blocks(1, 1800)
    serve(cache, ask(nodes[0]), [(nodes[0], HOUR)])
    hour = blocks(1, 100, start=nodes[0])[0]
    five = blocks(1, 148, start=hour)[0]
    end = blocks(1, 50, start=five)[0]
    usage = serve(cache, ask(end, 1), [(hour, HOUR), (five, FIVE)], 1024)
    assert usage == Usage(read=1800, write_5m=148, write_1h=100, uncached=50)
    assert usage.total - usage.uncached == 2048


def test_below_the_minimum_nothing_happens(blocks, ask):
    nodes = blocks(2, 500)
    cache = Cache()
    for t in (0, 1):
        assert serve(cache, ask(nodes[1], t), [(nodes[1], FIVE)], 1024) == Usage(uncached=1000)
    assert not len(cache)


@pytest.mark.parametrize(("ttl", "alive", "gone"), [(FIVE, 300, 301), (HOUR, 3600, 3601)])
def test_lifetime_counts_from_the_start_of_the_request(blocks, ask, ttl, alive, gone):
    """R13: a response that takes 100 s to begin does not prolong the entry."""
    nodes = blocks(3)
    for t, read in ((alive, 300), (gone, 0)):
        cache = Cache()
        serve(cache, ask(nodes[2], ttft=100), [(nodes[2], ttl)])
        assert serve(cache, ask(nodes[2], t), [(nodes[2], ttl)]).read == read


def test_a_read_refreshes(blocks, ask):
    """R14: reads every 200 s keep a 5m entry alive."""
    nodes = blocks(3)
    cache = Cache()
    reads = [serve(cache, ask(nodes[2], 200.0 * k), [(nodes[2], FIVE)]).read for k in range(6)]
    assert reads == [0, 300, 300, 300, 300, 300]


def test_parallel_requests_all_write(blocks, ask):
    """R24: an entry can be read once the first response has begun."""
    nodes = blocks(3)
    cache = Cache()
    usages = [serve(cache, ask(nodes[2], t, id=str(t), ttft=2.0), [(nodes[2], FIVE)]) for t in (0, 1, 1.5, 2)]
    assert [usage.read for usage in usages] == [0, 0, 0, 300]


def test_isolation(blocks, ask):
    """R25: workspaces do not share on the Claude API, they do where only organisations are isolated."""
    nodes = blocks(3)
    for isolation, read in (("workspace", 0), ("organization", 300)):
        cache = Cache(isolation=isolation)
        serve(cache, ask(nodes[2], workspace="a"), [(nodes[2], FIVE)])
        assert serve(cache, ask(nodes[2], 1, workspace="b"), [(nodes[2], FIVE)]).read == read
        other = ask(nodes[2], 1, workspace="a", model="claude-opus-5")
        assert serve(cache, other, [(nodes[2], FIVE)]).read == 0


def test_server_tool_results_get_a_breakpoint(blocks, ask):
    """R7: with any marker, a server-tool result is a 5m breakpoint, regardless of the ttl of the markers."""
    nodes = blocks(4, kinds=[TEXT, SERVER_RESULT, TEXT, TEXT])
    assert serve(Cache(), ask(nodes[3]), [(nodes[0], HOUR)]) == Usage(
        write_1h=100, write_5m=100, uncached=200
    )
    assert serve(Cache(), ask(nodes[3]), []) == Usage(uncached=400)


def test_ttl_classes_in_the_lookup(blocks, ask):
    """U2: a 5m marker reads a 1h entry, or does not see it."""
    nodes = blocks(3)
    for lookup, read in (("ignored", 300), ("matched", 0)):
        cache = Cache(Assumptions(ttl_lookup=lookup))
        serve(cache, ask(nodes[2]), [(nodes[2], HOUR)])
        assert serve(cache, ask(nodes[2], 1), [(nodes[2], FIVE)]).read == read


def test_refresh_of_shorter_entries(blocks, ask):
    """U3: reading 10 blocks keeps the entry at block 5 alive, or does not."""
    nodes = blocks(10)
    other = blocks(1, start=nodes[4], seed=9)
    for refresh, read in (("hit", 0), ("prefixes", 500)):
        cache = Cache(Assumptions(refresh=refresh))
        for t in (0.0, 200.0):
            serve(cache, ask(nodes[9], t), [(nodes[4], FIVE), (nodes[9], FIVE)])
        assert serve(cache, ask(other[0], 400), [(nodes[4], FIVE)]).read == read


@pytest.mark.parametrize(("refresh", "read"), [("hit", 0), ("markers", 1000), ("prefixes", 1000)])
@pytest.mark.parametrize("marked", [True, False])
def test_a_read_refreshes_what_the_request_marks(blocks, ask, refresh, read, marked):
    """U3: entries at blocks 10 and 15 of t=0, a read of 15 at 200 s, another branch after block 10 at 400 s.

    With a marker on block 10, the reading `markers` renews it as `prefixes` does; without one it does not.
    """
    nodes = blocks(15)
    branch = blocks(5, start=nodes[9], seed=7)
    cache = Cache(Assumptions(refresh=refresh))
    both = [(nodes[9], FIVE), (nodes[14], FIVE)]
    serve(cache, ask(nodes[14]), both)
    assert serve(cache, ask(nodes[14], 200), both if marked else both[1:]).read == 1500
    expected = read if marked or refresh == "prefixes" else 0
    assert serve(cache, ask(branch[4], 400), [(branch[4], FIVE)]).read == expected


def test_markers_refresh_their_own_lifetime_only(blocks, ask):
    """U3 with U2 matched: a 5m marker on block 10 does not renew the 1h entry there."""
    nodes = blocks(15)
    for ttl, read in ((FIVE, 0), (HOUR, 1000)):
        cache = Cache(Assumptions(refresh="markers", ttl_lookup="matched"))
        serve(cache, ask(nodes[9]), [(nodes[9], HOUR)])
        serve(cache, ask(nodes[14], 3000), [(nodes[9], HOUR), (nodes[14], FIVE)])
        serve(cache, ask(nodes[14], 3200), [(nodes[9], ttl), (nodes[14], FIVE)])
        assert serve(cache, ask(nodes[9], 6700), [(nodes[9], HOUR)]).read == read


def test_what_counts_as_a_position(blocks, ask):
    """U5: with 15 thinking blocks between, the entry is in reach only if they do not count."""
    kinds = [TEXT] + [THINKING] * 15 + [TEXT] * 6
    nodes = blocks(22, kinds=kinds)
    for positions, hit in (("all", False), ("conversation", True)):
        cache = Cache(Assumptions(positions=positions))
        serve(cache, ask(nodes[0]), [(nodes[0], FIVE)])
        assert (serve(cache, ask(nodes[21], 1), [(nodes[21], FIVE)]).read > 0) == hit


def test_lost_reads_and_granularity(blocks, ask):
    """U7 loses the given share of reads, reproducibly; U8 rounds a hit down."""
    nodes = blocks(3)
    cache = Cache(Assumptions(lost_reads=0.5))
    first = [serve(cache, ask(nodes[2], k, id=f"q{k}"), [(nodes[2], FIVE)]).read for k in range(100)]
    cache = Cache(Assumptions(lost_reads=0.5))
    assert first == [serve(cache, ask(nodes[2], k, id=f"q{k}"), [(nodes[2], FIVE)]).read for k in range(100)]
    assert 30 < sum(read > 0 for read in first) < 70
    cache = Cache(Assumptions(granularity=128))
    serve(cache, ask(nodes[2]), [(nodes[2], FIVE)])
    assert serve(cache, ask(nodes[2], 1), [(nodes[2], FIVE)]) == Usage(read=256, uncached=44)


def test_estimates_near_the_minimum_are_undecided(blocks, ask):
    nodes = blocks(1, 1000)
    for near, written in (("counted", 0), ("cached", 1000), ("uncached", 0)):
        cache = Cache(Assumptions(near_minimum=near))
        outcome = cache.serve(ask(nodes[0], source="estimate"), [(nodes[0], FIVE)], 1024)
        assert outcome.undecided
        assert outcome.usage.write_5m == written
    assert not Cache().serve(ask(nodes[0]), [(nodes[0], FIVE)], 1024).undecided


def test_prefix_order_tools_system_messages(blocks, ask):
    """R1: entries at tools and system survive a change of what follows them."""
    tools = blocks(1, tier=TOOLS, kinds=[TOOL])
    system = blocks(1, start=tools[0], tier=SYSTEM)
    cache = Cache()
    for k, read in enumerate((0, 200, 200)):
        head = blocks(1, start=system[0], seed=k + 1)[0]
        markers = [(tools[0], FIVE), (system[0], FIVE)]
        assert serve(cache, ask(head, k), markers).read == read


def test_memory_follows_live_entries(blocks, ask):
    """Expired entries are swept: 20,000 prompts one minute apart hold at most a few thousand entries."""
    cache = Cache()
    for k in range(20_000):
        node = blocks(1, seed=k + 1)[0]
        serve(cache, ask(node, 60.0 * k), [(node, FIVE)])
    assert len(cache) < 9_000
    cache.sweep(60.0 * 20_000)
    assert len(cache) < 10


def test_items_of_a_cold_batch_never_read_each_other(blocks, ask):
    """What a request outside of the batch wrote before is read by all of them."""
    head = blocks(3, 1000)[-1]
    for warm in (False, True):
        cache = Cache()
        if warm:
            cache.serve(ask(head), [(head, 3600)], 1024)
        reads = [
            cache.serve(ask(head, 10.0 + n, batch=True, batch_id=name), [(head, 300)], 1024).usage.read
            for n, name in enumerate(("a", "a", "b", "b", "a"))
        ]
        # the second batch finds what the first one wrote, and what two batches wrote is nobody's own
        assert reads == ([3000] * 5 if warm else [0, 0, 3000, 3000, 0])
        after = cache.serve(ask(head, 20.0), [(head, 300)], 1024)
        assert after.usage.read == 3000


def test_batch_items_without_a_batch_count_as_one(blocks, ask):
    head = blocks(3, 1000)[-1]
    cache = Cache()
    reads = [
        cache.serve(ask(head, float(n), batch=batch), [(head, 300)], 1024).usage.read
        for n, batch in enumerate((True, True, False, True))
    ]
    # the request outside of the batch reads; its read is no write, so the items still have only their own
    assert reads == [0, 0, 3000, 0]
