"""Slots that selections read equal those of slow references on the whole cache."""

import pytest
import torch

from kvbench.kernels.hsa_scores import naive as hsa_naive
from kvbench.kernels.page_bounds import page_bounds
from kvbench.kernels.quest_scores import quest_scores
from kvbench.methods.block_topk import BlockTopK
from kvbench.methods.hsa import HSA
from kvbench.methods.quest import Quest
from kvbench.methods.sparq import SparQ
from kvbench.methods.topk_oracle import TopKOracle


class Step:
    """A cache of K kept and `appended` new keys, and the queries of one decode step."""

    def __init__(self, selection, kept=50, appended=3, rows=2, heads=2, group=3, dim=16, room=6, seed=0):
        draw = torch.Generator().manual_seed(seed)
        self.k = torch.randn(1, heads, kept, dim, generator=draw)
        self.tail = torch.zeros(rows, heads, room, dim)
        self.q = torch.randn(rows, heads, group, dim, generator=draw)
        other = torch.Generator().manual_seed(seed + 1)
        self.v = torch.randn(1, heads, kept, dim, generator=other)
        self.v_tail = torch.zeros(rows, heads, room, dim)
        self.selection, self.length = selection, kept + appended
        self.state = selection.prepare(self.k, self.v, rows, room)
        for n in range(appended):
            key = torch.randn(rows, heads, dim, generator=draw)
            value = torch.randn(rows, heads, dim, generator=other)
            self.tail[:, :, n], self.v_tail[:, :, n] = key, value
            selection.append(self.state, key, value, torch.tensor([kept + n]))

    def keys(self, row, head):
        return torch.cat([self.k[0, head], self.tail[row, head]])[: self.length]

    def select(self, tokens):
        scaling = self.q.shape[-1] ** -0.5
        return self.selection.select(
            self.q, self.k, self.tail, torch.tensor(self.length), self.state, tokens, scaling
        )

    def chosen(self, tokens):
        index = self.select(tokens)
        return [[sorted(s for s in slots if s >= 0) for slots in row] for row in index.tolist()]


@pytest.mark.parametrize("page", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [5, 16])
def test_hsa_reads_the_tokens_that_the_token_form_ranks_first(page, channels):
    step = Step(HSA(page=page, channels=channels))
    for row, heads in enumerate(step.chosen(20)):
        for head, slots in enumerate(heads):
            scores = hsa_naive.of_keys(step.q[row, head], step.keys(row, head), page, channels)
            assert len(slots) == 20
            others = [s for s in range(step.length) if s not in slots]
            # equal up to ties inside the page that is cut
            assert min(scores[slots]) >= max(scores[others]) - 1e-7


def test_hsa_page_probabilities_equal_the_token_form():
    from kvbench.kernels.hsa_scores import hsa_scores

    step = Step(HSA(page=3, channels=7), appended=2)  # 52 tokens: the last page holds one
    pages = hsa_scores(step.q, step.state, 7, 3, torch.tensor(step.length))
    for row in range(2):
        for head in range(2):
            tokens = hsa_naive.of_keys(step.q[row, head], step.keys(row, head), 3, 7)
            assert torch.allclose(
                pages[row, head].repeat_interleave(3)[: step.length].double(), tokens, atol=1e-6
            )


@pytest.mark.parametrize("appended", [1, 2, 3, 6])
@pytest.mark.parametrize("page", [3, 4, 16])
def test_page_bounds_kept_up_to_date_equal_those_from_scratch(page, appended):
    step = Step(Quest(page=page), appended=appended)
    for row in range(2):
        keys = torch.stack([step.keys(row, head) for head in range(2)])
        low, high = page_bounds(keys[None], page, step.state[0].shape[2])
        assert torch.equal(step.state[0][row], low[0]) and torch.equal(step.state[1][row], high[0])
    hsa = Step(HSA(page=page, channels=4), appended=appended)
    assert torch.equal(hsa.state, torch.cat(step.state, dim=-1).transpose(-1, -2))


def test_hsa_pages_of_one_are_a_channel_major_copy_of_the_keys():
    step = Step(HSA(page=1, channels=4))
    assert step.state.shape == (2, 2, 16, 56)
    assert torch.equal(step.state[1, 0, :, : step.length].T, step.keys(1, 0))
    assert step.selection.resident_bytes(step.state) == 2 * 16 * 56 * 4


def test_hsa_with_all_channels_and_pages_of_one_ranks_like_attention():
    step = Step(HSA(page=1, channels=16), group=1)
    for row, heads in enumerate(step.chosen(10)):
        for head, slots in enumerate(heads):
            logits = step.keys(row, head) @ step.q[row, head, 0]
            assert slots == sorted(logits.topk(10).indices.tolist())


def test_hsa_uses_the_minimum_where_signs_inside_a_group_disagree():
    # channel 0: +1 and -3 sum to -2, so the page's minimum stands for it although the first head is positive
    selection = HSA(page=2, channels=1)
    k = torch.tensor([[[[5.0, 0.0], [-4.0, 0.0], [-1.0, 0.0], [-2.0, 0.0]]]])
    state = selection.prepare(k, k, 1, 0)
    q = torch.tensor([[[[1.0, 0.0], [-3.0, 0.0]]]])
    index = selection.select(q, k, k[:, :, :0], torch.tensor(4), state, 2, 1.0)
    # scores of page 0: head 0 -4, head 1 +12; of page 1: -2 and +6; the second head decides
    assert sorted(index[0, 0].tolist()) == [0, 1]


def test_hsa_pins_recent_tokens_on_top_of_the_budget():
    plain, pinned = HSA(page=3, channels=4), HSA(page=3, channels=4, pin_recent=5)
    for row, heads in enumerate(Step(pinned).chosen(20 + 5)):
        for head, slots in enumerate(heads):
            assert len(slots) == 25
            assert slots[-5:] == list(range(48, 53))
            rest = Step(plain).chosen(53)[row][head]
            assert set(slots) <= set(rest)


def test_quest_bound_is_never_below_a_token_of_the_page():
    step = Step(Quest(page=4))
    bounds = quest_scores(step.q, *step.state)
    for row in range(2):
        for head in range(2):
            exact = step.q[row, head] @ step.keys(row, head).T
            pages = bounds[row, head].repeat_interleave(4, dim=-1)[:, : step.length]
            assert bool((pages >= exact - 1e-5).all())


def test_quest_pages_of_one_give_the_logits():
    step = Step(Quest(page=1))
    exact = torch.stack([step.q[0, h] @ step.keys(0, h).T for h in range(2)])
    assert torch.allclose(quest_scores(step.q, *step.state)[0, :, :, : step.length], exact, atol=1e-5)


@pytest.mark.parametrize("heads", ["kv_head", "query_head"])
def test_quest_reads_the_best_pages_and_the_newest(heads):
    step = Step(Quest(page=4, heads=heads))
    index = step.select(16)
    assert index.shape[-1] == 16 and (index.dim() == 4) == (heads == "query_head")
    slots = index[0, 0] if heads == "kv_head" else index[0, 0, 0]
    chosen = {s // 4 for s in slots.tolist() if s >= 0}
    scores = quest_scores(step.q, *step.state)[0, 0]
    scores = (scores.sum(0) if heads == "kv_head" else scores[0])[:13]
    assert chosen == {13} | set(scores.topk(3).indices.tolist())  # 53 slots: page 13 holds the newest alone
    assert int((slots < 0).sum()) == 3


def test_oracle_reads_the_highest_attention():
    step = Step(TopKOracle())
    for row, heads in enumerate(step.chosen(9)):
        for head, slots in enumerate(heads):
            probabilities = (step.q[row, head] @ step.keys(row, head).T * 16**-0.5).softmax(-1).sum(0)
            assert slots == sorted(probabilities.topk(9).indices.tolist())
    per_query_head = Step(TopKOracle(heads="query_head")).select(9)
    logits = step.q[1, 1, 2] @ step.keys(1, 1).T
    assert sorted(per_query_head[1, 1, 2].tolist()) == sorted(logits.topk(9).indices.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_no_selection_recalls_more_attention_than_the_oracle(seed):
    def recall(selection, tokens):
        step = Step(selection, seed=seed)
        probabilities = (step.q[0, 0] @ step.keys(0, 0).T * 16**-0.5).softmax(-1).sum(0)
        return float(probabilities[step.chosen(tokens)[0][0]].sum())

    best = recall(TopKOracle(), 12)
    for other in (Quest(page=4), HSA(page=3, channels=8), HSA(page=1, channels=16), SparQ(channels=8)):
        assert recall(other, 12) <= best + 1e-6


@pytest.mark.parametrize("recent", [0, 4])
@pytest.mark.parametrize("channels", [5, 16])
def test_sparq_reads_what_its_formula_ranks_first(channels, recent):
    step = Step(SparQ(channels=channels, recent=recent))
    for row, heads in enumerate(step.chosen(12)):
        for head, slots in enumerate(heads):
            _, logits = sparq_by_hand(step, row, head, channels)
            total = logits.sum(0)
            total[step.length - recent - 1 :] = torch.inf
            assert slots == sorted(total.topk(12).indices.tolist())


def sparq_by_hand(step, row, head, channels):
    q, keys = step.q[row, head].double(), step.keys(row, head).double()
    chosen = q.abs().sum(0).topk(channels).indices
    scale = (16 * q[:, chosen].abs().sum(1) / q.abs().sum(1)).sqrt()
    return chosen, q[:, chosen] @ keys[:, chosen].T / scale[:, None]


def test_sparq_gives_the_remaining_attention_to_the_mean_value():
    selection = SparQ(channels=7, recent=3)
    step = Step(selection)
    slots = step.chosen(12)
    out = torch.randn(2, 2, 3, 16)
    mixed = selection.combine(out, torch.zeros(2, 2, 3), step.state)
    for row in range(2):
        for head in range(2):
            covered = (
                sparq_by_hand(step, row, head, 7)[1].softmax(-1)[:, slots[row][head]].sum(-1, keepdim=True)
            )
            values = torch.cat([step.v[0, head], step.v_tail[row, head]])[: step.length]
            exact = covered * out[row, head] + (1 - covered) * values.mean(0)
            assert torch.allclose(mixed[row, head].double(), exact, atol=1e-5)
    assert not SparQ(reallocate=False).combines


def test_sparq_holds_a_second_copy_of_the_keys():
    step = Step(SparQ(channels=4))
    assert torch.equal(step.state.keys_RHDT[1, 0, :, : step.length].T, step.keys(1, 0))
    assert step.selection.resident_bytes(step.state) == 2 * 16 * 56 * 4 + 2 * 16 * 4
    assert step.selection.fixed_bytes(step.state) == 2 * 16 * 4
    assert step.selection.score_bytes(step.state, 53, 4) == 2 * (4 * 53 * 4 + 16 * 4)
    plain = Step(SparQ(channels=4, reallocate=False))
    assert plain.selection.resident_bytes(plain.state) == 2 * 16 * 56 * 4


@pytest.mark.parametrize("scaling", [1 / 16, 2.0])
@pytest.mark.parametrize("pinned", [0, 3])
def test_hsa_uses_the_logit_scaling_of_the_model(scaling, pinned):
    step = Step(HSA(page=2, channels=5, pin_recent=pinned))
    place = step.k, step.tail, torch.tensor(step.length), step.state, 12
    found = step.selection.select(step.q, *place, scaling)
    usual = step.selection.select(step.q * (scaling * 4), *place, 1 / 4)
    assert torch.equal(found, usual)
    assert not torch.equal(found, step.selection.select(step.q, *place, 1 / 4))


def test_quest_ranks_16_bit_pages_by_exact_bounds():
    draw = torch.Generator().manual_seed(3)
    q, k = (torch.randn(1, 2, n, 64, generator=draw).bfloat16() for n in (3, 2000))
    quest = Quest(page=4)
    state = quest.prepare(k, k, 1, 0)
    found = quest.select(q, k, k[:, :, :0], torch.tensor(2000), state, 400, 1 / 8)
    low, high = (bound.double() for bound in state)
    bounds = torch.maximum(
        q.double()[:, :, :, None] * high[:, :, None], q.double()[:, :, :, None] * low[:, :, None]
    )
    scores = bounds.sum(-1).sum(2)
    scores[..., -1] = torch.inf
    best = scores.topk(100).indices.sort().values
    assert torch.equal((found // 4).unique(dim=-1).sort().values.long(), best)


def mean_keys(step, row, head, page):
    return torch.stack([keys.double().mean(0) for keys in step.keys(row, head).split(page)])


@pytest.mark.parametrize("appended", [1, 2, 3, 6])
@pytest.mark.parametrize("page", [1, 2, 4, 5, 16])
def test_mean_keys_kept_up_to_date_equal_those_from_scratch(page, appended):
    step = Step(BlockTopK(page=page), appended=appended)
    for row in range(2):
        for head in range(2):
            exact = mean_keys(step, row, head, page)
            assert torch.allclose(step.state[0][row, head, : len(exact)].double(), exact, atol=1e-6)


@pytest.mark.parametrize("heads", ["kv_head", "layer"])
@pytest.mark.parametrize(("sinks", "recent"), [(1, 1), (0, 1), (2, 3)])
@pytest.mark.parametrize("page", [3, 4, 16])
def test_block_topk_reads_sinks_recent_pages_and_the_best_by_mean_key(page, sinks, recent, heads):
    selection = BlockTopK(page=page, sinks=sinks, recent=recent, heads=heads)
    step = Step(selection)
    pages = -(-step.length // page)
    count = min(pages, max(sinks + recent, 7 if page < 16 else 3))
    fits = torch.stack(
        [
            torch.stack([mean_keys(step, r, h, page) @ step.q[r, h].double().mean(0) for h in range(2)])
            for r in range(2)
        ]
    )
    if heads == "layer":
        fits = fits.sum(1, keepdim=True).expand(-1, 2, -1)
    always = {*range(sinks), *range(pages - recent, pages)}
    for row, of_heads in enumerate(step.chosen(count * page)):
        for head, slots in enumerate(of_heads):
            ranked = sorted(set(range(pages)) - always, key=lambda p: -float(fits[row, head, p]))
            read = always | set(ranked[: count - len(always)])
            assert slots == [s for s in range(step.length) if s // page in read]
    assert step.select(count * page).shape[-1] == count * page


def test_block_topk_of_pages_of_one_ranks_like_attention():
    step = Step(BlockTopK(page=1, sinks=0), group=1)
    for row, heads in enumerate(step.chosen(10)):
        for head, slots in enumerate(heads):
            logits = step.keys(row, head) @ step.q[row, head, 0]
            # the newest is always read
            assert slots == sorted({*logits[:-1].topk(9).indices.tolist(), step.length - 1})


def test_block_topk_depends_on_the_mean_query_alone():
    step = Step(BlockTopK(page=4))
    before = step.select(16)
    noise = torch.randn(step.q.shape, generator=torch.Generator().manual_seed(9))
    step.q = step.q + noise - noise.mean(2, keepdim=True)
    assert torch.equal(step.select(16), before)
    step.q = step.q + 3 * noise[:, :, :1]
    assert not torch.equal(step.select(16), before)


def test_block_topk_holds_a_mean_per_page_and_a_sum():
    selection = BlockTopK(page=4)
    k = torch.randn(1, 2, 50, 16, dtype=torch.bfloat16)
    state = selection.prepare(k, k, 3, 6)
    assert selection.resident_bytes(state) == 2 * 14 * 16 * 2 + selection.fixed_bytes(state)
    assert selection.fixed_bytes(state) == 2 * 16 * 4
    assert selection.score_bytes(state, 53, 2) == 2 * 14 * 16 * 2
