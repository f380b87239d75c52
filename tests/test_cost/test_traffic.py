"""Bytes that the Triton kernels load, counted in the interpreter, equal those of the cost model."""

import pytest
import torch
from kvbench_testing.interpreter import watched
from kvbench_testing.triton import INTERPRETED, needs_triton

from kvbench import cost
from kvbench.kernels.page_bounds import page_bounds

pytestmark = [needs_triton, pytest.mark.skipif(not INTERPRETED, reason="needs the interpreter")]

HEADS, GROUP, DIM = 2, 4, 128
NEW = 8
SHAPE = cost.ModelShape(
    name="one layer", layers=1, hidden=64, intermediate=64, heads=HEADS * GROUP, kv_heads=HEADS, head_dim=DIM,
    vocab=64, positions=4096, source="this test",
)  # fmt: skip
SETTINGS = {"quest": {"page": 16, "dense_layers": 0}}


def account_of(name, prompt, tokens=None):
    return cost.account(
        {"method": name, **SETTINGS.get(name, {})}, SHAPE, prompt=prompt, new=NEW, tokens=tokens
    )


def tensors(kept):
    generator = torch.Generator().manual_seed(kept)
    return [
        torch.randn(1, HEADS, n, DIM, generator=generator).bfloat16() for n in (GROUP, kept, kept, NEW, NEW)
    ]


def attention(q, k, v, k_tail, v_tail, tail, index=None):
    """Bytes of K and V that one step of attention loads."""
    from kvbench.kernels.sparse_decode.triton_form import sparse_decode

    with watched(k=k, v=v, k_tail=k_tail, v_tail=v_tail) as traffic:
        sparse_decode(q, k, v, k_tail, v_tail, torch.tensor([tail]), DIM**-0.5, index)
    return sum(traffic.loaded[name] for name in ("k", "v", "k_tail", "v_tail"))


@pytest.mark.parametrize(("name", "tokens"), [("dense", None), ("snapkv", 70), ("chunkkv", 70)])
def test_attention_over_everything_kept(name, tokens):
    account = account_of(name, 331, tokens)
    loaded = attention(*tensors(int(account.kept)), tail=NEW)
    assert loaded == account.step.read == account.resident_end


@pytest.mark.parametrize(
    ("name", "prompt", "tokens"), [("rocketkv", 500, 100), ("hsa", 331, 64), ("rocketkv", 500, 460)]
)
def test_hybrid_sparse_attention(name, prompt, tokens):
    from kvbench.kernels.hsa_scores.triton_form import hsa_scores
    from kvbench.kernels.top_k.triton_form import select_tokens

    account = account_of(name, prompt, tokens)
    selection, held = account.resolved.selection, int(account.kept) + NEW
    # all slots are in the prefix: bytes read do not depend on where they are
    q, k, v, k_tail, v_tail = tensors(held)
    low, high = page_bounds(k, selection.page, -(-held // selection.page))
    bounds = low if selection.page == 1 else torch.cat([low, high], -1)
    bounds, used = bounds.transpose(-1, -2).contiguous(), torch.tensor([held])
    with watched(bounds=bounds) as scoring:
        scores = hsa_scores(q, bounds, selection.channels, selection.page, used)
    index = select_tokens(scores, account.resolved.rules[0].read, selection.page, used)
    loaded = attention(q, k, v, k_tail, v_tail, 0, index) + scoring.loaded["bounds"]
    updates = HEADS * selection.append_bytes(DIM, 2)[0]
    assert loaded == account.step.read - updates
    assert bounds.numel() * 2 == account.resident_end - 2 * k.numel() * 2


def test_quest():
    from kvbench.kernels.quest_scores.triton_form import quest_scores

    account = account_of("quest", 331, 64)
    selection, held = account.resolved.selection, 331 + NEW
    q, k, v, k_tail, v_tail = tensors(held)
    low, high = page_bounds(k, selection.page, -(-held // selection.page))
    with watched(low=low, high=high) as scoring:
        quest_scores(q, low, high)
    index = selection.select(q, k, k_tail[:, :, :0], torch.tensor(held), (low, high), 64, DIM**-0.5)
    loaded = attention(q, k, v, k_tail, v_tail, 0, index) + scoring.loaded["low"] + scoring.loaded["high"]
    assert loaded == account.step.read - HEADS * selection.append_bytes(DIM, 2)[0]


def test_an_update_of_page_bounds():
    from kvbench.kernels.page_bounds.triton_form import update_page_bounds

    account = account_of("quest", 331, 64)
    key = torch.randn(1, HEADS, DIM).bfloat16()
    low, high = (torch.zeros(1, HEADS, 22, DIM).bfloat16() for _ in range(2))
    with watched(low=low, high=high) as traffic:
        update_page_bounds(low, high, key, torch.tensor([20]))
    read, written = (HEADS * size for size in account.resolved.selection.append_bytes(DIM, 2))
    assert traffic.loaded["low"] + traffic.loaded["high"] == read
    assert traffic.stored["low"] + traffic.stored["high"] == written
    # and the new key and value themselves
    assert account.step.written == written + 2 * HEADS * DIM * 2


def test_the_observation_window():
    from kvbench.kernels.window_scores.triton_form import window_scores

    # the group's window is one tile of 64 rows; each further tile reads the keys again, at the same time
    window = 16
    account = cost.account({"method": "snapkv", "window": window}, SHAPE, prompt=500, tokens=100)
    k = torch.randn(HEADS, 500, DIM).bfloat16()
    with watched(k=k) as traffic:
        window_scores(torch.randn(HEADS * GROUP, window, DIM).bfloat16(), k, DIM**-0.5)
    gathered = account.resident
    assert traffic.loaded["k"] == account.compress.read - gathered
