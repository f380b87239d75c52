"""Selections behind evictions that keep a set per query head choose as on K and V expanded to query heads."""

import pytest
import torch

from kvbench.engine.batch import BatchLayer
from kvbench.engine.compress import cell_lanes
from kvbench.methods import Budget, LayerSnapshot, Shape, build

HEADS, GROUP, DIM, LENGTH, NEW, LAYERS = 2, 4, 32, 400, 8, 4
SCALING = DIM**-0.5
EVICTIONS = [
    {"method": "snapkv", "window": 8},
    {"method": "pyramidkv"},
    {"method": "adakv", "window": 8},
    {"method": "static_oracle"},
]
SELECTIONS = [
    {"name": "topk_oracle"},
    {"name": "topk_oracle", "heads": "query_head"},
    {"name": "quest", "page": 4, "dense_layers": 0},
    {"name": "quest", "page": 4, "dense_layers": 0, "heads": "query_head"},
    {"name": "sparq", "channels": 12, "recent": 3},
    {"name": "sparq", "channels": 12, "recent": 3, "reallocate": False},
    {"name": "hsa"},
    {"name": "hsa", "page": 1, "channels": 5, "pin_recent": 2},
]


def name_of(entry):
    return "-".join(map(str, entry.values()))


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def snapshot(expanded, layer=0):
    """A layer of some prompt, or the same with K and V expanded to query heads."""
    q = draw(HEADS * GROUP, LENGTH, DIM, seed=1) * 2
    k, v = draw(HEADS, LENGTH, DIM, seed=2), draw(HEADS, LENGTH, DIM, seed=3)
    if expanded:
        k, v = (x.repeat_interleave(GROUP, dim=0) for x in (k, v))
    made = LayerSnapshot(k, v, q, layer, LAYERS, SCALING)
    made.answer_sum_QT = draw(HEADS * GROUP, LENGTH, seed=4).abs()
    return made


def decode(entry, heads, tokens, keep, rows=2, steps=3, layer=0):
    """Outputs `[steps, rows, Q, D]` and the batch, with sets per query head or with an expanded cache."""
    expanded = heads == "kv_head"
    made = snapshot(expanded, layer)
    method = build({**entry, "heads": heads, "keep": keep})
    cell = method.resolve(Shape(LENGTH, NEW, LAYERS, DIM), Budget(tokens=tokens))
    lanes = cell_lanes(made, cell, slice(0, rows), NEW, {}, {})
    batch = BatchLayer(lanes, rows, made.group, made.k_HTD, made.heads, NEW)
    outputs = []
    for step in range(steps):
        k, v = (draw(rows, HEADS, 1, DIM, seed=10 * step + n) for n in (5, 6))
        if expanded:
            k, v = (x.repeat_interleave(GROUP, dim=1) for x in (k, v))
        batch.update(k, v)
        q = draw(rows, HEADS * GROUP, 1, DIM, seed=10 * step + 7) * 2
        outputs.append(batch.attend(q, SCALING)[:, 0])
    return torch.stack(outputs), batch


@pytest.mark.parametrize("selection", SELECTIONS, ids=name_of)
@pytest.mark.parametrize("eviction", EVICTIONS, ids=name_of)
def test_every_query_head_chooses_as_it_would_in_an_expanded_cache(eviction, selection):
    entry = {**eviction, "selection": selection}
    ours, batch = decode(entry, "query_head", 24, 60, layer=1)
    theirs, expanded = decode(entry, "kv_head", 24, 60, layer=1)
    assert torch.allclose(ours, theirs, atol=1e-5)
    # every query head reads something, and K and V are not expanded
    assert bool((ours.abs().sum(-1) > 0).all())
    stored, theirs_stored = (sum(lane.k_BHKD.numel() for lane in b.lanes) for b in (batch, expanded))
    assert stored < theirs_stored
    state, theirs_state = (
        sum(lane.selection.resident_bytes(lane.state) for lane in b.lanes) for b in (batch, expanded)
    )
    lists = sum(4 * int(lane.mask_HGK.sum()) for lane in batch.lanes)
    assert state == theirs_state + lists
    assert sum(lane.selection.fixed_bytes(lane.state) for lane in batch.lanes) == lists + (
        sum(lane.selection.fixed_bytes(lane.state) for lane in expanded.lanes)
    )
    read, theirs_read = (b.slots_read(1, 0, 3) for b in (batch, expanded))
    assert theirs_read / GROUP <= read < theirs_read
    assert batch.score_bytes == expanded.score_bytes


def attended(batch):
    """Per query head: the slots it reads, the slots it may read, and its attention to each of the latter."""
    q = draw(1, HEADS * GROUP, DIM, seed=99).view(1, HEADS, GROUP, DIM) * 2
    for lane in batch.lanes:
        k_tail = batch.k_tail[lane.rows, lane.heads]
        place = lane.k_BHKD, k_tail, batch.tail[0] + lane.kept, lane.state, lane.read
        index = lane.selection.select(q[:, lane.heads], *place, SCALING)
        for head in range(lane.heads.stop - lane.heads.start):
            keys = torch.cat([lane.k_BHKD[0, head], k_tail[0, head, : batch.filled]])
            for g in range(GROUP):
                readable = torch.ones(len(keys), dtype=torch.bool)
                readable[: lane.kept] = lane.mask_HGK[head, g]
                logits = keys.double() @ q[0, lane.heads][head, g].double() * SCALING
                read = [slot for slot in index[0, head, g].tolist() if slot >= 0]
                yield read, readable, logits.masked_fill(~readable, -torch.inf).softmax(0)


@pytest.mark.parametrize("eviction", EVICTIONS, ids=name_of)
def test_query_heads_read_their_budget_of_their_own_tokens_and_none_recalls_more_than_the_oracle(eviction):
    mass = {}
    for selection in SELECTIONS:
        _, batch = decode({**eviction, "selection": selection}, "query_head", 24, 60, rows=1)
        found = list(attended(batch))
        budget = batch.lanes[0].read
        for read, readable, _ in found:
            assert len(set(read)) == len(read) and bool(readable[read].all())
            missing = 3 if selection["name"] == "quest" else 0  # the newest page is not full
            assert budget - missing <= len(read) <= budget
        mass[name_of(selection)] = torch.stack([probs[read].sum() for read, _, probs in found])
    best = mass.pop("topk_oracle")
    assert torch.equal(best, mass.pop("topk_oracle-query_head"))
    for name, of_heads in mass.items():
        assert bool((of_heads <= best + 1e-9).all()), name
