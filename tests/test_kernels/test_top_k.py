"""Selection against sorting, ties included."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kvbench_testing.forms import forms_of
from kvbench_testing.interpreter import histograms
from kvbench_testing.triton import DEVICE, INTERPRETED, needs_triton

from kvbench.kernels import forms, top_k
from kvbench.kernels.top_k import naive

FORMS = forms_of(top_k, "top_k", "naive")


def run(form, name, scores, *args):
    """`top_k` or `select_tokens` in one of its forms."""
    on = DEVICE if form == "triton" else "cpu"
    args = [x.to(on) if torch.is_tensor(x) else x for x in args]
    return getattr(forms.load(top_k.__name__, form), name)(scores.to(on), *args).cpu()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["distinct", "ties", "constant", "infinities", "tiny"])
def test_top_k(form, kind):
    generator = torch.Generator().manual_seed(0)
    for length, k in [(1, 1), (17, 4), (63, 63), (331, 40), (2500, 1000)]:
        scores = torch.randn(2, length, generator=generator)
        if kind == "ties":
            scores = (scores * 2).round() + 0.0
            scores[:, ::7] = -0.0
        elif kind == "constant":
            scores = torch.full_like(scores, -3.5)
        elif kind == "infinities":
            scores[:, ::3], scores[:, 1::5] = torch.inf, -torch.inf
        elif kind == "tiny":
            scores *= 1e-44
        out = run(form, "top_k", scores, k)
        for row in range(2):
            assert out[row].tolist() == naive.slots_of(scores[row], k, 1, length)


@pytest.mark.parametrize("form", forms_of(top_k, "top_k_mask", "naive"))
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    length=st.integers(1, 300), k=st.integers(-1, 310), levels=st.integers(1, 400), seed=st.integers(0, 99),
    special=st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan]),
)  # fmt: skip
def test_a_mask_marks_what_sorting_takes(form, length, k, levels, seed, special):
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(-levels, levels, (2, 3, length), generator=draw) / 7
    scores[torch.rand(2, 3, length, generator=draw) < 0.2] = special
    mask = run(form, "top_k_mask", scores, k)
    assert mask.dtype == torch.bool and mask.shape == scores.shape
    assert (mask.sum(-1) == max(0, min(k, length))).all()
    for marked, row in zip(mask.view(-1, length), scores.view(-1, length), strict=True):
        assert marked.nonzero().flatten().tolist() == naive.slots_of(row, max(0, k), 1, length)


@pytest.mark.parametrize("form", FORMS)
def test_more_than_there_are_and_none(form):
    scores = torch.randn(3, 5)
    assert run(form, "top_k", scores, 9).tolist() == [[0, 1, 2, 3, 4]] * 3
    assert run(form, "top_k", scores, 0).shape == (3, 0)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    length=st.integers(1, 80), page=st.integers(1, 5), tokens=st.integers(1, 100), spare=st.integers(0, 3),
    levels=st.integers(1, 6), seed=st.integers(0, 99),
)  # fmt: skip
def test_select_tokens_takes_whole_pages_and_a_part_of_the_last(
    form, length, page, tokens, spare, levels, seed
):
    pages = -(-length // page) + spare
    scores = torch.randint(levels, (pages,), generator=torch.Generator().manual_seed(seed)).float() / levels
    out = run(form, "select_tokens", scores[None], tokens, page, torch.tensor([length]))[0].tolist()
    expected = naive.slots_of(scores, tokens, page, length)
    assert out == expected + [-1] * (tokens - len(expected))


@needs_triton
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    pages=st.integers(6_145, 30_000), page=st.integers(1, 4), tokens=st.integers(1, 300), seed=st.integers(0, 99),
    levels=st.sampled_from([1, 3, 900, 10**6]), spare=st.integers(0, 6_000),
)  # fmt: skip
def test_a_long_row_is_shared_among_programs(pages, page, tokens, seed, levels, spare):
    from kvbench.kernels.top_k import triton_form

    assert triton_form.split(pages, tokens, page)[0] < pages
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(-levels, levels, (2, pages), generator=draw) / 7
    scores[1, ::5] = math.inf
    # the last chunks may hold no token, and the last page a part of one
    length = max(1, pages * page - spare - seed % page)
    out = run("triton", "select_tokens", scores, tokens, page, torch.tensor([length]))
    for row in range(2):
        expected = naive.slots_of(scores[row], tokens, page, length)
        assert out[row].tolist() == expected + [-1] * (tokens - len(expected))


@needs_triton
@pytest.mark.skipif(not INTERPRETED, reason="counts what the interpreter runs")
def test_no_program_walks_a_long_row():
    """A row of 131,072 scores: 640 blocks one after the other when one program walks it in blocks of 1,024."""
    from kvbench.kernels.top_k import triton_form

    with histograms() as counted:
        run("triton", "top_k", torch.randn(1, 131_072), 1024)
    (chunks, lists) = counted
    assert len(chunks) == 16 and len(lists) == 1
    # four rounds over the blocks count, and a fifth one writes
    assert 5 * (max(chunks.values()) + max(lists.values())) // 4 == 5 * (4 + 9)
    # most of a row: the lists would be as long as the row
    assert triton_form.split(131_072, 65_536, 1)[0] == 131_072
    assert triton_form.split(4_096, 512, 1)[0] == 4_096
