"""Evictions that cut the cache every so many tokens of the answer: which tokens they hold, and when."""

import sys
from dataclasses import dataclass

import pytest
import torch
from kvbench_testing.golden import DIM, KV_HEADS, LENGTH, QUERY_HEADS, digest, snapshot, tensors

from kvbench.engine.compress import make_lanes
from kvbench.methods import Budget, LayerRule, LayerSnapshot, Quota, Shape, build
from kvbench.methods.registry import register, registry
from kvbench.methods.rkv import RKV
from kvbench.methods.tova import TOVA

GROUP = QUERY_HEADS // KV_HEADS


class Stream:
    """The golden tensors as a prompt of some tokens, then decode steps; says what is held after each."""

    def __init__(self, entry, prompt, hold, keep=None):
        self.q, self.k, self.v = (x[0] for x in tensors())
        k, v, q = self.k[:, :prompt], self.v[:, :prompt], self.q[:, :prompt]
        layer = LayerSnapshot(k, v, q, 0, 1, DIM**-0.5)
        layer.rope = lambda positions: (torch.ones(len(positions), DIM), torch.zeros(len(positions), DIM))
        eviction = build(entry).parts()[0]
        kept = eviction.keep(layer, eviction.scores(layer), Quota(keep)) if keep else None
        shape = Shape(prompt, LENGTH - prompt, 1, DIM)
        cell = build(entry).resolve(shape, Budget(tokens=hold) if eviction.needs_budget else None)
        rule = LayerRule(keep=keep, hold=hold)
        (self.lane,) = make_lanes(layer, cell, rule, kept, slice(0, 1), LENGTH - prompt, carried={})
        self.at = prompt
        self.counts = {}

    def run(self, steps=None):
        end = LENGTH if steps is None else self.at + steps
        while self.at < end:
            k, v = (x[None, :, self.at : self.at + 1] for x in (self.k, self.v))
            self.lane.append(k, v)
            before = self.lane.store.count
            q = self.q[:, self.at].view(1, KV_HEADS, GROUP, DIM)
            self.lane.attend(q, DIM**-0.5, True)
            if self.lane.store.count < before:
                self.counts[self.at] = (before, self.lane.store.count)
            self.at += 1
        return self

    def held(self):
        """Positions held, by KV head in the order in which they are stored."""
        stored = self.lane.store.read()[0][0]
        return [
            torch.tensor([int((self.k[head] == key).all(1).nonzero()[0, 0]) for key in stored[head]])
            for head in range(KV_HEADS)
        ]


@dataclass(frozen=True, kw_only=True)
class NewestAndTOVA(TOVA):
    """A scorer of the user's own: kvpress's TOVA, which always keeps the newest token."""

    mode: str = "kvpress"


@pytest.fixture(autouse=True)
def own_scorer(monkeypatch):
    # a copy, which the other tests do not see
    monkeypatch.setattr(sys.modules[register.__module__], "_CLASSES", registry())
    register("newest_and_tova")(NewestAndTOVA)


def every(scorer, interval, **params):
    return {"method": "decode_every", "scorer": scorer, "interval": interval, **params}


@pytest.mark.parametrize(
    ("scorer", "sha"),
    [("knorm", "59feb586bd699eda"), ("keydiff", "d10d7e464fdcd2fb"), ("newest_and_tova", "15db6fbdfc699f26")],
)
def test_every_40_tokens_to_128(scorer, sha):
    stream = Stream(every(scorer, 40), 200, 128).run()
    assert stream.counts == {239: (240, 128), 279: (168, 128), 319: (168, 128)}
    held = stream.held()
    assert {len(positions) for positions in held} == {139} and digest(held) == sha
    assert all(bool((positions.diff() > 0).all()) for positions in held)


def test_snapkv_while_decoding():
    entry = every("snapkv", 65, window=32)
    stream = Stream(entry, 200, 128).run()
    assert stream.counts == {264: (265, 128), 329: (193, 128)}
    # by hand: the last 32 queries over everything held, each at its own position, then max pooling
    held = [list(range(265)) for _ in range(KV_HEADS)]
    for end in (265, 330):
        held = [[*positions, *range(max(positions) + 1, end)] for positions in held]
        for head, positions in enumerate(held):
            k = stream.k[head, positions]
            total = torch.zeros(len(positions))
            for at in range(end - 32, end):
                seen = torch.tensor([p <= at for p in positions])
                for q in stream.q[head * GROUP : (head + 1) * GROUP, at]:
                    total += (k @ q * DIM**-0.5).masked_fill(~seen, -torch.inf).softmax(-1)
            pooled = torch.nn.functional.max_pool1d(total[None, :-32], 7, 1, 3)[0]
            best = pooled.topk(128 - 32).indices.sort().values.tolist()
            held[head] = [positions[n] for n in best] + positions[-32:]
    # ties of the pooled maxima may go to a neighbour: what is kept has the scores of the best
    for found, expected in zip(stream.held(), held, strict=True):
        assert len({*found[:-1].tolist()} & {*expected}) >= 126


def test_streaming_llm_never_loses_its_sinks():
    stream = Stream(every("streaming_llm", 40), 200, 128).run()
    for positions in stream.held():
        assert positions[:4].tolist() == [0, 1, 2, 3]
        assert positions[4:].tolist() == list(range(LENGTH - len(positions) + 4, LENGTH))


@pytest.mark.parametrize(
    "scorer", ["random", "knorm", "snapkv", "chunkkv", "expected_attention", "egchunkkv"]
)
@pytest.mark.parametrize(("interval", "hold"), [(1, 64), (7, 50), (64, 90)])
def test_what_is_held_never_exceeds_budget_and_interval(scorer, interval, hold):
    stream = Stream(every(scorer, interval), 120, hold)
    for step in range(1, 140):
        stream.run(1)
        count = stream.lane.store.count
        if step % interval == 0:
            assert count == hold
        elif step > interval:
            assert count == hold + step % interval
        else:
            assert count == 120 + step
    assert all(len(set(positions.tolist())) == len(positions) for positions in stream.held())
    # queries of the last 32 tokens are held too
    assert stream.lane.resident_bytes()[0] == 4 * DIM * (2 * KV_HEADS * count + 32 * QUERY_HEADS)


def test_a_prefill_eviction_of_its_own():
    entry = every("knorm", 16, prefill="streaming_llm")
    method = build(entry)
    cell = method.resolve(Shape(200, 100, 2, DIM), Budget(tokens=60))
    assert [rule.keep for rule in cell.rules] == [rule.hold for rule in cell.rules] == [60, 60]
    whole = build(every("knorm", 16)).resolve(Shape(200, 100, 2, DIM), Budget(tokens=60))
    assert [rule.keep for rule in whole.rules] == [None, None] and whole.rules[0].hold == 60
    stream = Stream(entry, 200, 60, keep=60)
    assert stream.held()[0].tolist() == [*range(4), *range(144, 200)]
    assert set(stream.run(16).counts) == {215}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"scorer": "h2o"}, "scorer: h2o needs attention_sum of the prompt"),
        ({"scorer": "adakv"}, "scorer: adakv keeps different numbers of tokens per KV head"),
        ({"scorer": "quest"}, "scorer: quest is no eviction; allowed: "),
        ({"scorer": "decode_every"}, "scorer: decode_every is no eviction; allowed: "),
        ({"scorer": "none"}, "scorer: none is no eviction; allowed: "),
        ({"prefill": "rpc"}, "prefill: rpc is no eviction; allowed: "),
        ({"interval": 0}, "interval: 0 is not allowed, give 1 or more"),
    ],
)
def test_what_does_not_go_together_is_one_line(params, message):
    from kvbench.config.errors import UserError

    with pytest.raises(UserError) as error:
        build({"method": "decode_every", **params})
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lam", "tokens", "sha"),
    [(0.07, 128, "910a9ff7cceb2993"), (0.1, 128, "2185ab2dfc5d66c4"), (0.07, 64, "07f5864a3deb9216")],
)
def test_rkv_after_prefill(lam, tokens, sha):
    layer, method = snapshot(8), RKV(lam=lam)
    assert digest(method.keep(layer, method.scores(layer), Quota(tokens)).positions) == sha


def test_rkv_while_decoding():
    stream = Stream({"method": "rkv", "interval": 16}, 200, 96, keep=96).run()
    assert stream.counts == {208: (105, 96), **dict.fromkeys(range(224, LENGTH, 16), (112, 96))}
    held = stream.held()
    assert {len(positions) for positions in held} == {106}
    assert digest(held) == digest(rkv_by_hand(stream, by_score=False))
    # the official code stores what it keeps in the order of the scores, so that pooling meets other neighbours
    assert digest(rkv_by_hand(stream, by_score=True)) == "6124ca2f3a582c3d"


def rkv_by_hand(stream, by_score, tokens=96, window=8, prompt=200):
    """Positions held at the end, with what is kept in the order of position or of the scores."""
    held, method = [list(range(prompt)) for _ in range(KV_HEADS)], RKV()
    for length in range(prompt, LENGTH + 1):
        if length > prompt:
            held = [[*positions, length - 1] for positions in held]
        if length > prompt and (length - 1) % 16:
            continue
        for head, positions in enumerate(held):
            k = stream.k[head : head + 1, positions]
            q = stream.q[head * GROUP : (head + 1) * GROUP, length - window : length]
            best = method.scores(LayerSnapshot(k, k, q, 0, 1, DIM**-0.5))[0].topk(tokens - window).indices
            order = best if by_score else best.sort().values
            held[head] = [*(positions[n] for n in order.tolist()), *positions[-window:]]
    return [torch.tensor(sorted(positions)) for positions in held]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("retain", [1, 3])
def test_rkv_equals_its_formula(seed, retain):
    draw = torch.Generator().manual_seed(seed)
    length, window, heads, group = 20 + 7 * seed, 8, 2, 3
    # clusters of keys, so that many are alike
    centre = torch.randn(heads, 4, DIM, generator=draw)
    pick = torch.randint(0, 4, (length,), generator=draw)
    k = centre[:, pick] + 0.3 * torch.randn(heads, length, DIM, generator=draw)
    q = torch.randn(heads * group, window, DIM, generator=draw)
    method = RKV(lam=0.3, retain=retain)
    found = method.scores(LayerSnapshot(k, k, q, 0, 1, DIM**-0.5))
    early = length - window
    for head in range(heads):
        keys = k[head].double()
        attended = torch.zeros(early, dtype=torch.double)
        for w in range(window):
            logits = torch.stack([q[head * group + g, w].double() @ keys[:early].T for g in range(group)])
            attended += (logits.amax(0) * DIM**-0.5).softmax(-1) / window
        pooled = [max(attended[max(0, j - 3) : j + 4]) for j in range(early)]
        similar = torch.nn.functional.cosine_similarity(keys[:, None], keys[None], dim=-1)
        for i in range(length):
            similar[i, i] = 0
        before = similar.clone()
        for i in range(length):
            alike = [j for j in range(length) if before[i, j] > 0.5]
            # where fewer than `retain` are alike, the first column stands for the others
            for j in (alike[::-1] + [0] * retain)[:retain]:
                similar[i, j] = 0
        redundant = similar.mean(0).softmax(-1)[:early]
        expected = 0.3 * torch.stack(pooled) - 0.7 * redundant
        assert torch.allclose(found[head].double(), expected, atol=1e-6)


@pytest.mark.parametrize(("heads", "sha"), [("layer", "03e563c79be1ee6c"), ("kv_head", "50bd576d81804391")])
def test_rpc_thins_the_answer_and_leaves_the_prompt(heads, sha):
    entry = {"method": "rpc", "interval": 64, "window": 16, "heads": heads, "selectors": "code"}
    stream = Stream(entry, 100, 164).run()
    assert stream.counts == {179: (180, 132), 243: (196, 148), 307: (212, 164)}
    held = stream.held()
    assert {len(positions) for positions in held} == {187} and digest(held) == sha
    assert all(positions[:100].tolist() == list(range(100)) for positions in held)


def test_every_query_of_rpc_votes_once():
    """By hand, after the first cut."""
    stream = Stream({"method": "rpc", "interval": 64, "window": 16}, 100, 164).run(80)
    votes = torch.zeros(64)
    for at in range(164, 180):
        for head in range(QUERY_HEADS):
            votes += (stream.k[head // GROUP, 100:164] @ stream.q[head, at] * DIM**-0.5).softmax(-1)
    pooled = torch.nn.functional.avg_pool1d(votes[None], 7, 1, 3, count_include_pad=True)[0]
    best = (100 + pooled.topk(16).indices.sort().values).tolist()
    for positions in stream.held():
        assert positions.tolist() == [*range(100), *best, *range(164, 180)]


def test_a_short_answer_under_rpc_is_dense():
    method = build({"method": "rpc", "interval": 64, "window": 16})
    assert not method.needs_budget
    assert method.resolve(Shape(100, 79, 2, DIM), None).dense
    cell = method.resolve(Shape(100, 80, 2, DIM), None)
    assert not cell.dense and {rule.hold for rule in cell.rules} == {132}


def test_every_format_but_those_of_groups_goes_with_drops_while_decoding():
    from kvbench.config.errors import UserError

    for name in (name for name, cls in registry().items() if cls.family == "format"):
        entry = {"method": "h2o", "format": name}
        if name in ("int2", "int4", "int8"):
            with pytest.raises(UserError, match=f"{name} .* allowed: every format but int2, int4 and int8$"):
                build(entry)
        else:
            assert build(entry).format.name == name
