"""Kept tokens equal those of slow reimplementations of the official codes, in fp64 and one head at a time."""

import math

import pytest
import torch
from kvbench_testing.golden import snapshot

import kvbench
from kvbench.engine.raw import _frequencies, rotation
from kvbench.engine.turns import prompt_parts
from kvbench.methods import Budget, Kept, LayerSnapshot, Quota, Shape, build
from kvbench.methods.adakv import AdaKV
from kvbench.methods.base import StepView
from kvbench.methods.expected_attention import ExpectedAttention

LENGTH, DIM = 150, 16
MT = build({"method": "rocketkv_mt", "window": 32})


def draw(query_heads, heads, length=LENGTH, seed=0, scale=2.0):
    """Random q, k, v of a batch of one."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, n, length, DIM, generator=generator) for n in (query_heads, heads, heads))
    return q * scale, k, v


def window_attention(q, k, window):
    """Softmax attention of the last queries `[Q, w, T]`, causal."""
    k = k[0].double().repeat_interleave(q.shape[1] // k.shape[1], dim=0)
    length = k.shape[1]
    logits = q[0, :, length - window :].double() @ k.transpose(1, 2) / math.sqrt(DIM)
    seen = torch.arange(length) <= torch.arange(length - window, length)[:, None]
    return logits.masked_fill(~seen, -torch.inf).softmax(-1)


def snapkv_scores(q, k, window, kernel):
    """Pooled scores of the tokens before the window `[Q, T - w]`."""
    scores = window_attention(q, k, window)[..., :-window].sum(1)
    padded = torch.nn.functional.pad(scores, (kernel // 2, kernel // 2), value=-torch.inf)
    return padded.unfold(-1, kernel, 1).amax(-1)


def best(scores, count):
    return sorted(scores.sort(descending=True, stable=True).indices[:count].tolist())


def lists(kept):
    return [positions.tolist() for positions in kept]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("heads", [8, 2])
def test_snapkv_per_query_head(heads, seed):
    q, k, v = draw(8, heads, seed=seed)
    (kept,) = kvbench.keep("snapkv", q, k, v, tokens=60, heads="query_head", window=32, kernel=7)
    window = list(range(LENGTH - 32, LENGTH))
    assert lists(kept) == [best(scores, 28) + window for scores in snapkv_scores(q, k, 32, 7)]


@pytest.mark.parametrize("layer", [0, 3, 7])
def test_pyramidkv_per_query_head(layer):
    q, k, v = draw(8, 2)
    (kept,) = kvbench.keep("pyramidkv", q, k, v, tokens=48, layer=layer, num_layers=8, heads="query_head")
    # b = 40: the last layer aims at 40 // 20 = 2, the first at 78, in steps of (78 - 2) // 7 = 10
    count = 78 - 10 * layer
    window = list(range(LENGTH - 8, LENGTH))
    assert lists(kept) == [best(scores, count) + window for scores in snapkv_scores(q, k, 8, 7)]


def layer_tokens(entry, length, budget, layers):
    resolved = build({"method": "pyramidkv", **entry}).resolve(Shape(length, 0, layers, 128), budget)
    return [rule.keep for rule in resolved.rules], resolved.notes


def test_pyramidkv_budgets_of_the_official_code():
    tokens, notes = layer_tokens({}, 8192, Budget(tokens=2048), 32)
    assert [tokens[n] for n in (0, 1, 15, 30, 31)] == [3986, 3861, 2111, 236, 111]
    assert 2048 <= sum(tokens) / 32 <= 2048 + 16 and not notes
    # the first layer cannot keep more than the prompt
    clipped, _ = layer_tokens({}, 200, Budget(tokens=108), 32)
    assert clipped[:2] == [None, 200 - (192 - 8) // 31]


def test_pyramidkv_budgets_of_kvpress():
    like = {"mode": "kvpress", "window": 64, "kernel": 5, "pool": "avg"}
    tokens, _ = layer_tokens(like, 4096, Budget(ratio="0.5"), 32)
    assert [tokens[n] for n in (0, 1, 15, 30, 31)] == [3994, 3868, 2111, 228, 102]
    for layers in (32, 64, 128):
        for length in (2787, 4096, 6591, 8192):
            tokens, _ = layer_tokens(like, length, Budget(ratio="0.5"), layers)
            assert sum(tokens) / layers == pytest.approx(length * 0.5, rel=1e-3)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("heads", [8, 2])
def test_adakv_counts_and_tokens(heads, alpha):
    q, k, v = draw(8, heads, seed=3)
    (kept,) = kvbench.keep("adakv", q, k, v, tokens=50, heads="query_head", alpha=alpha, window=32, kernel=7)
    scores, share = snapkv_scores(q, k, 32, 7), 18
    winners = scores.flatten().sort(descending=True, stable=True).indices[: 8 * share] // scores.shape[1]
    counts = [int((winners == head).sum()) for head in range(8)]
    counts = [round(count * (1 - alpha) + int(share * alpha)) for count in counts]
    window = list(range(LENGTH - 32, LENGTH))
    assert lists(kept) == [best(row, n) + window for row, n in zip(scores, counts, strict=True)]
    assert -8 * 1.5 <= sum(map(len, kept)) - 8 * 50 <= 8 * 0.5
    assert (len(set(map(len, kept))) == 1) == (alpha == 1)


def with_all_queries():
    """The golden layer with the queries of the whole prompt, and RoPE."""
    layer = snapshot(window=331)
    angles = torch.arange(331 + 512)[:, None] * 100.0 ** (-torch.arange(0, DIM, 2) / DIM)
    angles = torch.cat([angles, angles], dim=-1)
    layer.rope = rotation(angles.cos(), angles.sin())
    return layer


@pytest.mark.parametrize("tokens", [3, 30, 75])
def test_adakv_over_expected_attention_as_kvpress_registers_it(tokens):
    layer = with_all_queries()
    scores = ExpectedAttention(epsilon=0.01).scores(layer)
    assert bool(scores[:, :4].isinf().all()) and not bool(scores[:, 4:].isinf().any())
    method = AdaKV(scorer="expected_attention", mode="kvpress")
    kept = lists(method.keep(layer, method.scores(layer), Quota(tokens)).positions)
    if tokens < 4:
        assert kept == [list(range(tokens))] * 2
        return
    # each head keeps its best fifth; the rest goes to the best scores of both heads
    sure = [best(row, max(4, int(0.2 * tokens))) for row in scores]
    rest = scores.clone()
    for row, positions in zip(rest, sure, strict=True):
        row[positions] = -torch.inf
    others = rest.flatten().sort(descending=True, stable=True).indices[: 2 * tokens - sum(map(len, sure))]
    expected = [sorted(sure[h] + [int(n) % 331 for n in others if int(n) // 331 == h]) for h in range(2)]
    assert kept == expected and len(kept[0]) + len(kept[1]) == 2 * tokens


def test_adakv_over_expected_attention_by_the_papers_counts():
    layer = with_all_queries()
    scores = ExpectedAttention(epsilon=0.01).scores(layer)[:, 4:]
    method = AdaKV(scorer="expected_attention", alpha=0.5)
    kept = lists(method.keep(layer, method.scores(layer), Quota(60)).positions)
    winners = scores.flatten().sort(descending=True, stable=True).indices[: 2 * 56] // scores.shape[1]
    counts = [round(int((winners == head).sum()) * 0.5 + 28) for head in range(2)]
    assert kept == [
        [0, 1, 2, 3, *(n + 4 for n in best(row, count))] for row, count in zip(scores, counts, strict=True)
    ]


class Decoding:
    """A cache of one KV head and its query heads, filled by `keep` and thinned by `step`."""

    def __init__(self, method, tokens, query_heads, heads, prompt=60, steps=25):
        self.method, self.tokens, self.prompt, self.steps = method, tokens, prompt, steps
        self.q, self.k, _ = draw(query_heads, heads, prompt + steps, seed=5)
        self.heads, self.group = heads, query_heads // heads

    def probabilities(self, at, positions):
        """Attention of the token at `at` to the slots of each KV head `[1, H, G, 1, C]`."""
        out = []
        for head, held in enumerate(positions):
            q = self.q[0, head * self.group : (head + 1) * self.group, at]
            out.append((q @ self.k[0, head, held].T / math.sqrt(DIM)).softmax(-1))
        return torch.stack(out)[None, :, :, None]

    def run(self):
        """Positions held after the prompt and after every step, by KV head."""
        q, k = self.q[:, :, : self.prompt], self.k[:, :, : self.prompt]
        full = torch.zeros(self.q.shape[1], self.prompt)
        for at in range(self.prompt):
            for head in range(self.heads):
                rows = slice(head * self.group, (head + 1) * self.group)
                logits = q[0, rows, at] @ k[0, head, : at + 1].T / math.sqrt(DIM)
                full[rows, : at + 1] += logits.softmax(-1)
        layer = snapshot()
        layer.k_HTD, layer.v_HTD, layer.q_QWD, layer.scaling = k[0], k[0], q[0], DIM**-0.5
        layer.attention_sum_QT = full
        scores = self.method.scores(layer)
        kept = self.method.keep(layer, scores, Quota(self.tokens))
        carried = self.method.carry(layer, scores, kept)
        held = [positions.tolist() for positions in kept.positions]
        yield held
        carried = {name: torch.stack(values)[None] for name, values in carried.items()}
        for at in range(self.prompt, self.prompt + self.steps):
            held = [[*positions, at] for positions in held]
            carried = {name: torch.nn.functional.pad(x, (0, 1)) for name, x in carried.items()}
            drop = len(held[0]) - self.tokens
            probs = self.probabilities(at, held)
            keys = torch.zeros(1, self.heads, len(held[0]), DIM)
            gone = self.method.step(StepView(attention=lambda p=probs: p, carried=carried, k_RHCD=keys), drop)
            stays = torch.ones(1, self.heads, len(held[0]), dtype=torch.bool).scatter(2, gone, False)
            held = [
                [p for p, s in zip(h, keep, strict=True) if s] for h, keep in zip(held, stays[0], strict=True)
            ]
            carried = {name: x[stays].view(1, self.heads, -1) for name, x in carried.items()}
            yield held


@pytest.mark.parametrize(("recent", "newest"), [(0.5, 10), (0.2, 4), (0.0, 0)])
@pytest.mark.parametrize("group", [1, 3])
def test_h2o_while_decoding(recent, newest, group):
    decoding = Decoding(build({"method": "h2o", "recent": recent}).eviction, 20, 2 * group, 2)
    q, k, prompt = decoding.q, decoding.k, decoding.prompt
    for head in range(2):
        rows = slice(head * group, (head + 1) * group)
        sums, expected = {}, []
        logits = q[0, rows, :prompt].double() @ k[0, head, :prompt].double().T / math.sqrt(DIM)
        seen = torch.ones(prompt, prompt, dtype=torch.bool).tril()
        total = logits.masked_fill(~seen, -torch.inf).softmax(-1).sum((0, 1))
        sums = dict(enumerate(total.tolist()))
        for at in range(prompt - 1, prompt + decoding.steps):
            if at >= prompt:
                sums[at] = 0.0
                held = list(sums)
                probs = (q[0, rows, at].double() @ k[0, head, held].double().T / math.sqrt(DIM)).softmax(-1)
                for position, p in zip(held, probs.sum(0).tolist(), strict=True):
                    sums[position] += p
            held = sorted(sums)
            recents = held[len(held) - newest :]
            heavy = sorted(held[: len(held) - newest], key=lambda p: -sums[p])[: 20 - newest]
            expected.append(sorted(heavy) + recents)
            sums = {position: sums[position] for position in expected[-1]}
        assert [held[head] for held in decoding.run()] == expected


@pytest.mark.parametrize("group", [1, 3])
def test_tova_while_decoding_is_one_choice_for_all_heads(group):
    decoding = Decoding(build({"method": "tova"}).eviction, 15, 2 * group, 2)
    held, expected = list(range(decoding.prompt)), []
    for at in range(decoding.prompt - 1, decoding.prompt + decoding.steps):
        held = held if at < decoding.prompt else [*held, at]
        mean = decoding.probabilities(at, [held, held]).double().mean((0, 1, 2, 3))
        held = [held[n] for n in best(mean, 15)]
        expected.append([held, held])
    assert list(decoding.run()) == expected


def test_tova_as_kvpress_does_not_choose_again_while_decoding():
    assert not build({"method": "tova", "mode": "kvpress"}).eviction.steps
    assert build({"method": "tova"}).eviction.steps and build({"method": "h2o"}).eviction.steps


def test_streaming_llm_rolls_with_reindexed_positions():
    method = build({"method": "streaming_llm"}).eviction
    assert method.reindexes and method.steps and method.needs == {"rope"}
    *_, last = Decoding(method, 12, 2, 2, prompt=30, steps=9).run()
    assert last == [[0, 1, 2, 3, *range(31, 39)]] * 2
    original = build({"method": "streaming_llm", "positions": "original"}).eviction
    assert not original.reindexes and not original.steps and not original.needs


def test_expected_attention_is_the_mean_over_many_normal_queries():
    # the score is the closed form of E[exp(q . k / sqrt(D))] over normal queries, which are sampled here
    q, k, v = draw(4, 2, seed=8, scale=1.0)
    angles = torch.arange(LENGTH + 512)[:, None] * 10_000.0 ** (-torch.arange(0, DIM, 2) / DIM)
    angles = torch.cat([angles, angles], dim=-1)
    angles[LENGTH:] = angles[LENGTH : LENGTH + 1]
    (kept,) = kvbench.keep("expected_attention", q, k, v, tokens=40, rope=(angles.cos(), angles.sin()))
    rotated = lambda x, a: x * a.cos() + torch.cat([-x[..., 8:], x[..., :8]], -1) * a.sin()  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    for head in range(2):
        score = torch.zeros(LENGTH - 4, dtype=torch.float64)
        for query in range(2):
            before = rotated(q[0, head * 2 + query, 4:], -angles[4:LENGTH])
            future = rotated(before, angles[LENGTH : LENGTH + 1]).double()
            spread = torch.linalg.cholesky(torch.cov(future.T, correction=0))
            drawn = (
                future.mean(0)
                + torch.randn(200_000, DIM, generator=generator, dtype=torch.float64) @ spread.T
            )
            weight = (drawn @ k[0, head, 4:].double().T / math.sqrt(DIM)).exp().mean(0)
            score += weight / weight.sum()
        score *= v[0, head, 4:].norm(dim=-1)
        chosen = {p + 4 for p in best(score, 36)}
        # the mean is sampled: a few tokens at the edge may differ
        assert len(chosen & set(kept[head].tolist())) >= 34
        assert kept[head][:4].tolist() == [0, 1, 2, 3]


def test_expected_attention_undoes_rope_at_any_scale_and_beyond_the_table():
    q, k, v = draw(4, 2, seed=9)
    angles = torch.arange(LENGTH + 512)[:, None] * 10_000.0 ** (-torch.arange(0, DIM, 2) / DIM)
    angles = torch.cat([angles, angles], dim=-1)
    cos, sin = angles.cos(), angles.sin()
    (expected,) = kvbench.keep("expected_attention", q, k, v, tokens=40, rope=(cos, sin))
    for rope in ((cos * 2, sin * 2), (cos[:LENGTH], sin[:LENGTH]), (cos[None, :LENGTH], sin[None, :LENGTH])):
        (kept,) = kvbench.keep("expected_attention", q, k, v, tokens=40, rope=rope)
        assert lists(kept) == lists(expected)


def test_rope_beyond_its_table_is_exact():
    angles = torch.arange(9000, dtype=torch.float64)[:, None] * 5e5 ** (-torch.arange(0, 64, 2) / 64)
    table = torch.cat([angles, angles], dim=-1)[:5000]
    frequency = _frequencies(table.cos().float(), table.sin().float())
    assert torch.allclose(frequency[:32] * 8999, angles[-1], atol=1e-3)


def test_h2o_is_observed_attention_of_heavy_hitters():
    q, k, v = draw(8, 2, seed=4)
    (kept,) = kvbench.keep("h2o", q, k, v, tokens=40)
    total = window_attention(q, k, LENGTH).sum(1).view(2, 4, LENGTH).sum(1)
    recent = list(range(LENGTH - 20, LENGTH))
    assert lists(kept) == [best(row[: LENGTH - 20], 20) + recent for row in total]
    (observed,) = kvbench.keep("observed_attention", q, k, v, tokens=40)
    mean = total / torch.arange(LENGTH, 0, -1)
    assert lists(observed) == [best(row, 40) for row in mean]


def test_kept_is_what_the_engine_expects():
    layer = snapshot(window=331)
    eviction = build({"method": "adakv"}).eviction
    kept = eviction.keep(layer, eviction.scores(layer), Quota(100))
    assert isinstance(kept, Kept) and kept.members is None
    assert len({len(p) for p in kept.positions}) == 2, "heads keep different numbers of tokens"


@pytest.mark.parametrize("turn", [1, 3, 31, 32, 33, 100])
@pytest.mark.parametrize("heads", [8, 2])
def test_rocketkv_mt_observes_with_the_queries_of_the_turn_alone(heads, turn):
    # the official code takes the window from the queries of its last forward pass: min(window, turn)
    q, k, v = draw(8, heads, seed=turn)
    (part,) = prompt_parts(list(range(LENGTH + 1)), 0, "query_aware", "compressed", 20, [MT], LENGTH - turn)
    resolved = part.resolve(MT, Budget(tokens=60), Shape(LENGTH, 10, 1, DIM))
    layer = LayerSnapshot(k[0], v[0], q[0, :, -40:], 0, 1, DIM**-0.5, turn=part.turn)
    kept = resolved.eviction.keep(layer, resolved.eviction.scores(layer), Quota(70))
    window = min(32, turn)
    attention = window_attention(q, k, window)[..., :-window].sum(1).unflatten(0, (heads, -1)).sum(1)
    padded = torch.nn.functional.pad(attention, (31, 31), value=-torch.inf).unfold(-1, 63, 1).amax(-1)
    expected = [best(row, 70 - window) + list(range(LENGTH - window, LENGTH)) for row in padded]
    assert lists(kept.positions) == expected


@pytest.mark.parametrize(
    "entry",
    [
        {"method": "snapkv"}, {"method": "snapkv", "heads": "query_head"}, {"method": "snapkv", "mode": "kvpress"},
        {"method": "pyramidkv"}, {"method": "adakv"}, {"method": "chunkkv"}, {"method": "chunkkv", "mode": "kvpress"},
        {"method": "egchunkkv"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("turn", [1, 5, 20])
def test_every_window_is_within_the_turn(entry, turn):
    q, k, v = draw(8, 2, seed=turn)
    whole, later = (LayerSnapshot(k[0], v[0], x, 0, 1, DIM**-0.5) for x in (q[0], q[0].clone()))
    later.turn = turn
    # queries before the turn change nothing
    later.q_QWD[:, : LENGTH - turn] = 100.0
    own = {**entry, "window": min(turn, build(entry).eviction.window)}
    for tokens in (30, 60):
        expected, kept = (
            eviction.keep(layer, eviction.scores(layer), Quota(tokens))
            for eviction, layer in ((build(own).eviction, whole), (build(entry).eviction, later))
        )
        assert lists(kept.positions) == lists(expected.positions)


def algorithm_1(q, k, window, chunk, budget):
    """ChunkKV's Algorithm 1 to the letter, but for the softmax and the sum over heads.

    Returns:
        The tokens of the chosen chunks, and the tokens held, both in order.
    """
    chunks = window_attention(q, k, window).sum((0, 1)).split(chunk)
    chosen = best(torch.stack([part.sum() for part in chunks]), budget // chunk)
    tokens = [token for n in chosen for token in range(n * chunk, n * chunk + len(chunks[n]))]
    return tokens, tokens[: budget - window] + list(range(LENGTH - window, LENGTH))


def draw_to_the_window(seed):
    """Keys of the last tokens draw attention, the late ones most, as few queries see them."""
    q, k, v = draw(8, 2, seed=seed)
    draws = torch.tensor([1.0, 1.5, 4.0]).repeat_interleave(10)[:, None]
    k[:, :, -30:] += draws * q[:, ::4, -30:].mean(2, keepdim=True) * 3
    return q, k, v


@pytest.mark.parametrize("budget", [50, 70, 110])
def test_chunkkv_is_algorithm_1_where_its_window_ranks_first_and_chunks_fit(budget):
    # 150 tokens, window and budgets in whole chunks of 10
    compared = 0
    for seed in range(20):
        q, k, v = draw_to_the_window(seed)
        (kept,) = kvbench.keep("chunkkv", q, k, v, tokens=budget, window=30, chunk=10)
        chosen, held = algorithm_1(q, k, 30, 10, budget)
        if {*range(120, 150)} <= {*chosen}:
            compared += 1
            assert lists(kept) == [held] * 2
    assert compared > 4


def test_chunkkv_and_algorithm_1_differ_elsewhere():
    same = twice = by_position = 0
    for seed in range(90):
        q, k, v = draw(8, 2, seed=seed, scale=1.0) if seed % 2 else draw_to_the_window(seed)
        budget = 40 + seed
        (kept,) = kvbench.keep("chunkkv", q, k, v, tokens=budget, window=32, chunk=10)
        window, (chosen, held) = {*range(LENGTH - 32, LENGTH)}, algorithm_1(q, k, 32, 10, budget)
        # the budget is met exactly, without a token held twice
        assert len(kept[0]) == budget and window <= {*kept[0].tolist()}
        same += {*kept[0].tolist()} == {*held}
        twice += len(held) > len({*held})
        by_position += len({*chosen} - window - {*held}) > 0
    # here its literal form stores tokens twice, and drops the latest chosen chunks whatever their rank
    assert 0 < same < 30 and twice > 0 and by_position > 0
