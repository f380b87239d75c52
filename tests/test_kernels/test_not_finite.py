"""Numbers that are not finite come out as such, in every form; and no form reads outside its memory because of them."""

import math

import pytest
import torch
from kvbench_testing.forms import forms_of
from kvbench_testing.triton import DEVICE

from kvbench.kernels import (
    forms,
    hsa_scores,
    masked_attention,
    page_bounds,
    quest_scores,
    sparse_decode,
    top_k,
    window_scores,
)
from kvbench.kernels.top_k import naive

ATTENTION = forms_of(sparse_decode, "sparse_decode")
WINDOWS = forms_of(window_scores, "window_scores")


class Case:
    """R rows, H KV heads of G query heads; a prefix of K slots that the rows share and a tail of three."""

    def __init__(self, rows, heads, group, kept, dim=16):
        draw = torch.Generator().manual_seed(kept)
        shapes = {"q": (rows, heads, group, dim), "k": (1, heads, kept, dim), "v": (1, heads, kept, dim)}
        shapes |= dict.fromkeys(["k_tail", "v_tail"], (rows, heads, 5, dim))
        self.tensors = {name: torch.randn(*shape, generator=draw) for name, shape in shapes.items()}

    def run(self, form, index=None, mask=None):
        on = DEVICE if form == "triton" else "cpu"
        index, mask = (x if x is None else x.to(on) for x in (index, mask))
        tensors = [x.to(on) for x in self.tensors.values()]
        decode = forms.load(sparse_decode.__name__, form).sparse_decode
        out, lse = decode(*tensors, torch.tensor(3).to(on), 0.25, index, mask)
        return out.cpu(), lse.cpu()


@pytest.mark.parametrize("form", ATTENTION)
@pytest.mark.parametrize(
    ("reads", "kept"), [("all", 700), ("all", 40), ("listed", 40), ("masked", 40), ("per query head", 40)]
)
@pytest.mark.parametrize("where", ["q", "k", "v_tail"])
def test_nan_is_in_the_output_of_its_head_and_in_no_other(form, reads, kept, where):
    case = Case(rows=2, heads=2, group=3, kept=kept)
    index = mask = None
    if reads in ("listed", "per query head"):
        shape = (2, 2, 30) if reads == "listed" else (2, 2, 3, 30)
        index = torch.arange(0, 30).expand(shape).clone().int()
        index[..., -1] = kept + 1
    if reads == "masked":
        mask = torch.ones(2, 3, kept, dtype=torch.bool)
        mask[:, :, 20:] = False
    clean, clean_lse = case.run(form, index, mask)
    row, head = (0 if where in ("k", "v") else 1), 1
    case.tensors[where][row, head, slice(None) if where == "q" else 1, 3] = math.nan
    out, lse = case.run(form, index, mask)
    rows = slice(0, 2) if where in ("k", "v") else slice(row, row + 1)  # the prefix is shared
    broken = torch.zeros(2, 2, dtype=torch.bool)
    broken[rows, head] = True
    assert out[broken].isnan().any(-1).all()
    assert where in ("v", "v_tail") or lse[broken].isnan().all()
    torch.testing.assert_close(out[~broken], clean[~broken])
    torch.testing.assert_close(lse[~broken], clean_lse[~broken])


@pytest.mark.parametrize("form", ATTENTION)
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_minus_infinity_are_not_an_empty_head(form, sign):
    case = Case(rows=1, heads=1, group=2, kept=200)
    for name in ("k", "k_tail"):
        case.tensors[name][..., 0].abs_()
    case.tensors["q"][..., 0] = sign * math.inf
    out, lse = case.run(form)
    assert not out.isfinite().any() and not lse.isfinite().any()


@pytest.mark.parametrize("form", forms_of(top_k, "top_k"))
@pytest.mark.parametrize("nan", [math.nan, -math.nan, torch.tensor(0.0).log().sub(-torch.inf).item()])
def test_nan_ranks_as_infinity(form, nan):
    draw = torch.Generator().manual_seed(3)
    on = DEVICE if form == "triton" else "cpu"
    module = forms.load(top_k.__name__, form)
    for length, count in [(1, 1), (40, 1), (331, 100)]:
        scores = torch.randn(2, length, generator=draw)
        if form == "triton" and math.copysign(1, nan) < 0:
            # ranks last: no GPU makes it
            assert module.top_k(scores.fill_(nan).to(on), count).max() < length
            continue
        where = torch.rand(2, length, generator=draw) < 0.5
        infinite = scores.masked_fill(where, math.inf)
        expected = [naive.slots_of(row, count, 1, length) for row in infinite]
        assert module.top_k(scores.masked_fill(where, nan).to(on), count).tolist() == expected
        # nothing but NaN: the first ones, and none outside
        alone = module.top_k(torch.full((1, length), nan).to(on), count)
        assert alone.tolist() == [list(range(min(count, length)))]
        chosen = module.select_tokens(
            scores.masked_fill(where, nan)[:, : -(-length // 4)].to(on), count, 4, torch.tensor(length).to(on)
        )
        assert chosen.max() < length


@pytest.mark.parametrize("form", forms_of(page_bounds, "page_bounds", "triton"))
def test_bounds_of_a_page_with_nan_are_nan_and_stay_so(form):
    # not Triton: its minimum and maximum leave NaN out; the key itself is read where its page is
    module = forms.load(page_bounds.__name__, form)
    k = torch.randn(1, 2, 9, 20, generator=torch.Generator().manual_seed(7))
    k[0, 1, 4, 18] = math.nan
    low, high = module.page_bounds(k, 3, 4)
    module.update_page_bounds(low, high, k[:, :, 0], torch.tensor([1]))
    module.update_page_bounds(low, high, torch.full((1, 2, 20), math.nan), torch.tensor([2]))
    for edge in (low, high):
        assert edge[0, 1, 1, 18].isnan() and edge[0, :, 2].isnan().all() and edge.isnan().sum() == 41


@pytest.mark.parametrize("form", forms_of(quest_scores, "quest_scores"))
@pytest.mark.parametrize("where", ["q", "low", "high"])
@pytest.mark.parametrize("sign", [1, -1])
def test_bounds_of_logits_pass_nan_on(form, where, sign):
    draw = torch.Generator().manual_seed(8)
    on = DEVICE if form == "triton" else "cpu"
    x = {"q": torch.full((1, 2, 3, 20), float(sign)), "low": torch.randn(1, 2, 21, 20, generator=draw)}
    x["high"] = x["low"] + 1
    x[where][0, 1, 2, 17] = math.nan
    module = forms.load(quest_scores.__name__, form)
    scores = module.quest_scores(*(value.to(on) for value in x.values())).cpu()
    hit = scores[0, 1, 2] if where == "q" else scores[0, 1, :, 2]
    assert hit.isnan().all() and scores.isnan().sum() == hit.numel()


@pytest.mark.parametrize("form", forms_of(hsa_scores, "hsa_scores"))
def test_channels_of_a_query_that_is_nan_are_channels(form):
    on = DEVICE if form == "triton" else "cpu"
    module = forms.load(hsa_scores.__name__, form)
    draw = torch.Generator().manual_seed(4)
    bounds = torch.randn(2, 2, 32, 20, generator=draw)
    q = torch.randn(2, 2, 3, 16, generator=draw)
    q[1, 0] = math.nan
    length = torch.tensor(77)
    scores = module.hsa_scores(q.to(on), bounds.to(on), 5, 4, length.to(on)).cpu()
    assert not scores[1, 0].isfinite().all()
    whole = module.hsa_scores(q.nan_to_num(0.5).to(on), bounds.to(on), 5, 4, length.to(on)).cpu()
    torch.testing.assert_close(scores[0], whole[0])


@pytest.mark.parametrize("form", WINDOWS)
@pytest.mark.parametrize("where", ["q", "k"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_window_scores_of_numbers_that_are_not_finite(form, where, value):
    draw = torch.Generator().manual_seed(5)
    on = DEVICE if form == "triton" else "cpu"
    q, k = torch.randn(4, 8, 16, generator=draw), torch.randn(2, 90, 16, generator=draw)
    (q if where == "q" else k)[1, 3, 2] = value
    scores = forms.load(window_scores.__name__, form).window_scores(q.to(on), k.to(on), 0.25).cpu()
    hit = scores[1] if where == "q" else scores[2:]
    assert not hit.isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prefill_passes_nan_on(masked, value):
    draw = torch.Generator().manual_seed(6)
    q, k, v = (torch.randn(1, n, 70, 16, generator=draw) for n in (4, 2, 2))
    v[0, 1, 30, 5] = value
    mask = torch.ones(70, 70, dtype=torch.bool).tril() if masked else None
    out = masked_attention.masked_attention(q, k, v, 0.25, mask)
    assert not out[0, 2:, 30:, 5].isfinite().any() and out[0, :2].isfinite().all()
    q[0, 0, 40] = value * 2
    out = masked_attention.masked_attention(q, k, v, 0.25, mask)
    assert not out[0, 0, 40].isfinite().any()
