"""Every form of the scoring operations against the fp64 references."""

import pytest
import torch
from kvbench_testing.forms import forms_of
from kvbench_testing.triton import DEVICE, needs_triton

from kvbench.kernels import attention_sum, forms, hsa_scores, page_bounds, quest_scores, window_scores
from kvbench.kernels.attention_sum import naive as naive_sum
from kvbench.kernels.hsa_scores import naive as naive_hsa
from kvbench.kernels.page_bounds import naive as naive_bounds
from kvbench.kernels.quest_scores import naive as naive_quest
from kvbench.kernels.top_k import naive as naive_top_k
from kvbench.kernels.window_scores import naive as naive_window

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def call(form, module, name, *args):
    """Runs an operation's function in one form, on a device of that form."""
    function = getattr(forms.load(module.__name__, form), name)
    if form != "triton":
        return function(*args)
    result = function(*(x.to(DEVICE) if torch.is_tensor(x) else x for x in args))
    return tuple(x.cpu() for x in result) if isinstance(result, tuple) else result.cpu()


def close(out, expected, tolerance=1e-5):
    scale = max(1e-30, float(expected.abs().max()))
    assert float((out.double() - expected).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("form", forms_of(window_scores, "window_scores", "naive"))
@pytest.mark.parametrize(
    ("group", "dim", "length", "window"),
    [
        (1, 64, 1, 1), (3, 64, 17, 5), (4, 128, 63, 32), (8, 80, 331, 32), (2, 16, 130, 130), (1, 64, 1100, 33),
        (1, 64, 300, 1), (3, 64, 300, 16),
    ],
)  # fmt: skip
def test_window_scores(form, group, dim, length, window):
    q, k = draw(2 * group, window, dim), draw(2, length, dim)
    out = call(form, window_scores, "window_scores", q, k, dim**-0.5)
    close(out, naive_window.window_scores(q, k, dim**-0.5))
    assert torch.allclose(out.sum(-1), torch.tensor(float(window)), rtol=1e-5)


@pytest.mark.skipif(not window_scores.cpu.available(), reason="no C++ compiler with OpenMP")
@pytest.mark.parametrize("scratch", [0, 3 * 32 * 4 * 320, 5 * 32 * 4 * 320])
def test_window_scores_hold_few_logits_at_a_time(monkeypatch, scratch):
    # 3 heads of 6 blocks of rows, whose ends lie inside query heads
    q, k = draw(9, 50, 64), draw(3, 300, 64)
    whole = window_scores.cpu.window_scores(q, k, 0.125)
    monkeypatch.setattr(window_scores.cpu, "SCRATCH", scratch)
    parts = window_scores.cpu.window_scores(q, k, 0.125)
    close(parts, naive_window.window_scores(q, k, 0.125))
    assert torch.allclose(parts, whole, rtol=1e-6, atol=0) and not torch.equal(parts, whole)


@pytest.mark.parametrize("form", forms_of(window_scores, "window_scores", "naive"))
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_window_scores_take_16_bit_numbers_exactly(form, dtype):
    q, k = draw(6, 16, 64, dtype=dtype), draw(2, 200, 64, dtype=dtype)
    close(call(form, window_scores, "window_scores", q, k, 0.125), naive_window.window_scores(q, k, 0.125))


@pytest.mark.parametrize("form", forms_of(window_scores, "window_scores", "naive"))
def test_window_scores_of_extreme_logits(form):
    q, k = draw(2, 8, 64) * 300, draw(2, 100, 64)
    expected = naive_window.window_scores(q, k, 0.125)
    close(call(form, window_scores, "window_scores", q, k, 0.125), expected, tolerance=1e-3)


@pytest.mark.parametrize("form", forms_of(attention_sum, "attention_sum", "naive"))
@pytest.mark.parametrize(("group", "length"), [(1, 1), (3, 70), (4, 150)])
def test_attention_sum(form, group, length):
    q, k = draw(2 * group, length, 32), draw(2, length, 32)
    blocks = [64] if form == "portable" else []
    close(call(form, attention_sum, "attention_sum", q, k, 0.2, *blocks), naive_sum.attention_sum(q, k, 0.2))


@pytest.mark.parametrize("form", forms_of(page_bounds, "page_bounds", "naive"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "page"), [(1, 1), (2, 3), (17, 4), (63, 3), (331, 16)])
def test_page_bounds_built_and_widened(form, dtype, length, page):
    dim, pages = 80 if page == 3 else 64, -(-(length + 5) // page)
    k = draw(2, 2, length + 5, dim, dtype=dtype)
    low, high = call(form, page_bounds, "page_bounds", k[:, :, :length], page, pages)
    for slot in range(length, length + 5):
        at = torch.tensor([slot // page])
        on = DEVICE if form == "triton" else "cpu"
        low, high = low.to(on), high.to(on)
        update = forms.load(page_bounds.__name__, form).update_page_bounds
        update(low, high, k[:, :, slot].to(on), at.to(on))
    expected = naive_bounds.page_bounds(k, page, pages)
    assert torch.equal(low.cpu(), expected[0]) and torch.equal(high.cpu(), expected[1])


@pytest.mark.parametrize("form", forms_of(quest_scores, "quest_scores", "naive"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 3, 4, 8])
def test_quest_scores(form, dtype, group):
    dim, q = 80 if group == 3 else 64, draw(2, 2, group, 80 if group == 3 else 64, dtype=dtype)
    edges = torch.stack([draw(2, 2, 37, dim, dtype=dtype), draw(2, 2, 37, dim, dtype=dtype, seed=1)])
    low, high = edges.amin(0), edges.amax(0)
    out = call(form, quest_scores, "quest_scores", q, low, high)
    expected = naive_quest.quest_scores(q, low, high)
    # the torch form rounds its sums to the dtype
    tolerance = 1e-6 if form == "triton" or dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    close(out, expected, tolerance)


@pytest.mark.parametrize("form", forms_of(quest_scores, "quest_scores"))
@pytest.mark.parametrize("per_query_head", [False, True])
@pytest.mark.parametrize(
    ("length", "page", "chosen"), [(1, 4, 3), (63, 4, 5), (64, 16, 2), (331, 16, 20), (90, 7, 99)]
)
def test_quest_select_takes_the_newest_page_and_those_of_highest_bound(
    form, per_query_head, length, page, chosen
):
    k, q = draw(2, 2, length, 32), draw(2, 2, 3, 32)
    low, high = page_bounds.page_bounds(k, page, -(-length // page) + 2)
    on = DEVICE if form == "triton" else "cpu"
    with forms.using(form):
        out = quest_scores.quest_select(
            q.to(on), low.to(on), high.to(on), page, torch.tensor(length, device=on), chosen, per_query_head
        ).cpu()
    scores = naive_quest.quest_scores(q, low, high)[..., : -(-length // page)]
    scores = (scores if per_query_head else scores.sum(2, keepdim=True)).flatten(0, 2)
    scores[:, -1] = torch.inf
    assert out.dtype == torch.int32
    assert out.shape == (2, 2, *([3] if per_query_head else []), chosen * page)
    for ours, row in zip(out.flatten(0, -2), scores, strict=True):
        pages = naive_top_k.slots_of(row, chosen, 1, len(row))
        slots = [slot if slot < length else -1 for p in pages for slot in range(p * page, (p + 1) * page)]
        assert ours.tolist() == slots + [-1] * (chosen * page - len(slots))


@pytest.mark.parametrize("form", forms_of(hsa_scores, "hsa_scores", "naive"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("group", "dim", "length", "page", "channels"),
    [
        (1, 64, 1, 1, 64), (3, 64, 2, 3, 10), (4, 128, 17, 3, 70), (8, 80, 63, 2, 80), (4, 64, 331, 16, 1),
        (4, 64, 900, 3, 35), (3, 64, 331, 1, 20),
    ],
)  # fmt: skip
def test_hsa_scores(form, dtype, group, dim, length, page, channels):
    room = length + 7
    k, q = draw(2, 2, room, dim, dtype=dtype), draw(2, 2, group, dim, dtype=dtype)
    low, high = page_bounds.page_bounds(k[:, :, :length], page, -(-room // page))
    bounds = (low if page == 1 else torch.cat([low, high], -1)).transpose(-1, -2).contiguous()
    out = call(form, hsa_scores, "hsa_scores", q, bounds, channels, page, torch.tensor(length))
    for row in range(2):
        for head in range(2):
            expected = naive_hsa.of_keys(q[row, head], k[row, head, :length], page, channels)
            close(out[row, head].repeat_interleave(page)[:length], expected)
    assert not out[..., -(-length // page) :].any()


@pytest.mark.parametrize("form", forms_of(hsa_scores, "hsa_scores"))
def test_hsa_scores_of_query_heads_that_are_zero_in_all_chosen_channels(form):
    # tokens with a zero embedding have such queries in every head of the first layer of some models
    k, q = draw(1, 2, 40, 64), draw(1, 2, 3, 64)
    q[0, 0, 1], q[0, 1] = 0, 0
    q[0, 0, 2] = torch.where(q[0, 0, 0].abs() > 1, 0, q[0, 0, 2] / 100)
    keys = k.transpose(-1, -2).contiguous()
    out = call(form, hsa_scores, "hsa_scores", q, keys, 5, 1, torch.tensor(40))
    alone = naive_hsa.of_keys(q[0, 0, :1], k[0, 0], 1, 5)
    close(out[0, 0], (alone + 2 / 40) / 3)
    close(out[0, 1], torch.full((40,), 1 / 40, dtype=torch.float64))


@pytest.mark.parametrize("form", forms_of(hsa_scores, "channel_logits"))
def test_channel_logits_of_query_heads_that_are_zero_in_all_chosen_channels(form):
    k, q = draw(1, 2, 40, 64), draw(1, 2, 3, 64)
    q[0, 0, 1], q[0, 1] = 0, 0
    q[0, 0, 2] = torch.where(q[0, 0, 0].abs() > 1, 0, q[0, 0, 2] / 100)
    logits = call(
        form, hsa_scores, "channel_logits", q, k.transpose(-1, -2).contiguous(), 5, torch.tensor(40)
    )
    assert not logits[0, 0, 1:].any() and not logits[0, 1].any()


@pytest.mark.parametrize("form", forms_of(hsa_scores, "hsa_scores"))
@pytest.mark.parametrize(
    ("length", "page", "tokens"), [(1, 1, 3), (63, 3, 20), (331, 16, 100), (900, 3, 899)]
)
def test_hsa_select_takes_the_most_probable_pages(form, length, page, tokens):
    k, q = draw(2, 2, length + 5, 64), draw(2, 2, 3, 64)
    low, high = page_bounds.page_bounds(k[:, :, :length], page, -(-(length + 5) // page))
    bounds = (low if page == 1 else torch.cat([low, high], -1)).transpose(-1, -2).contiguous()
    on = DEVICE if form == "triton" else "cpu"
    with forms.using(form):
        out = hsa_scores.hsa_select(
            q.to(on), bounds.to(on), 20, page, torch.tensor(length, device=on), tokens
        ).cpu()
    assert out.dtype == torch.int32 and out.shape == (2, 2, tokens)
    for row in range(2):
        for head in range(2):
            scores = naive_hsa.of_keys(q[row, head], k[row, head, :length], page, 20)
            expected = naive_top_k.slots_of(scores[::page], tokens, page, length)
            assert out[row, head].tolist() == expected + [-1] * (tokens - len(expected))


@needs_triton
def test_hsa_select_of_a_long_row_takes_the_pages_of_highest_score():
    from kvbench.kernels.top_k import triton_form

    pages, page, tokens, length = 7_000, 3, 200, 20_000
    assert triton_form.split(pages, tokens, page)[0] < pages
    q, bounds = draw(1, 2, 3, 16).to(DEVICE), draw(1, 2, 32, pages).to(DEVICE)
    with forms.using("triton"):
        slots = torch.tensor(length, device=DEVICE)
        out = hsa_scores.hsa_select(q, bounds, 4, page, slots, tokens).cpu()
        scores = hsa_scores.hsa_scores(q, bounds, 4, page, slots).cpu()
    for head in range(2):
        assert out[0, head].tolist() == naive_top_k.slots_of(scores[0, head], tokens, page, length)


@pytest.mark.parametrize("form", forms_of(hsa_scores, "channel_logits", "naive"))
def test_channel_logits(form):
    q, keys = draw(2, 2, 3, 64), draw(2, 2, 64, 150)
    out = call(form, hsa_scores, "channel_logits", q, keys, 20, torch.tensor(140))[..., :140]
    close(out, naive_hsa.channel_logits(q, keys, 20, torch.tensor(140))[..., :140])
