"""Pooling and chunk sums: every form against the fp64 reference; the compiled one is bit-identical to torch."""

import pytest
import torch
from kvbench_testing.forms import forms_of
from kvbench_testing.interpreter import watched
from kvbench_testing.triton import DEVICE, INTERPRETED, needs_triton

from kvbench.kernels import forms, pool
from kvbench.kernels.pool import cpu, naive, portable
from kvbench.methods.base import LayerSnapshot, Quota
from kvbench.methods.chunkkv import ChunkKV
from kvbench.methods.snapkv import SnapKV

needs_compiler = pytest.mark.skipif(not cpu.available(), reason="no C++ compiler with OpenMP")
COMPILED = pytest.param("compiled", marks=needs_compiler)
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs the interpreter")


def draw(*shape, seed=0):
    """Like attention: positive, and a few places with most of it."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) ** 8


def run(form, name, scores, *args):
    module = forms.load(pool.__name__, form)
    return getattr(module, name)(scores.to(DEVICE if form == "triton" else "cpu"), *args).cpu()


@pytest.mark.parametrize("form", forms_of(pool, "pool", "naive"))
@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize(
    ("length", "kernel", "group"),
    [(1, 7, 3), (2, 1, 1), (17, 63, 4), (331, 5, 8), (1000, 63, 1), (4097, 7, 2)],
)
def test_pool(form, kind, length, kernel, group):
    # not contiguous, as the rows before the window
    scores = draw(2 * group, length + 5)[:, :length]
    out = run(form, "pool", scores, kernel, kind, group)
    assert out.shape == (2, length)
    assert torch.allclose(out.double(), naive.pool(scores, kernel, kind, group), rtol=1e-5, atol=1e-7)


@needs_triton
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_neighbourhoods_wider_than_a_block(kind):
    scores = draw(1, 3000)
    out = run("triton", "pool", scores, 701, kind, 1)
    assert torch.allclose(out.double(), naive.pool(scores, 701, kind, 1), rtol=1e-5, atol=1e-7)


@needs_compiler
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_the_compiled_form_gives_the_bits_of_torch(kind):
    for kernel, group, length in [(1, 4, 5000), (5, 1, 333), (7, 4, 9001), (63, 4, 8192), (63, 8, 100)]:
        scores = draw(2 * group, length + 3)[:, :length]
        ours = cpu.pool(scores, kernel, kind, group)
        assert torch.equal(ours, portable.pool(scores, kernel, kind, group))


@pytest.mark.parametrize("form", forms_of(pool, "chunk_sums", "naive"))
@pytest.mark.parametrize(
    ("length", "chunk", "offset"),
    [(1, 10, 0), (3, 10, 5), (5, 10, 5), (331, 1, 0), (331, 10, 3), (1000, 20, 0)],
)
def test_chunk_sums(form, length, chunk, offset):
    scores = draw(2, length + 4)[:, :length]
    out = run(form, "chunk_sums", scores, chunk, offset)
    expected = naive.chunk_sums(scores, chunk, offset)
    assert out.shape == expected.shape and torch.allclose(out.double(), expected, rtol=1e-5)


@pytest.mark.parametrize("form", ["naive", "compiled", "triton"])
def test_nothing_to_score(form):
    with forms.using(form):
        assert pool.pool(torch.empty(6, 0), 7, "max", 3).shape == (2, 0)
        assert pool.chunk_sums(torch.empty(2, 0), 10, 3).shape == (2, 0)


@pytest.mark.parametrize(
    "form", ["naive", COMPILED, pytest.param("triton", marks=[needs_triton, interpreted])]
)
def test_methods_keep_the_same_tokens(form):
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(*shape, generator=generator) for shape in ((6, 8, 32), (2, 700, 32)))
    methods = [
        SnapKV(window=8, kernel=kernel, pool=kind, heads=heads)
        for kernel, kind in ((7, "max"), (63, "max"), (7, "avg"))
        for heads in ("kv_head", "query_head")
    ]
    methods += [SnapKV(window=8, mode="kvpress", kernel=5, pool="avg"), ChunkKV(window=8)]
    methods += [ChunkKV(window=8, mode="kvpress", kernel=5, chunk=20), ChunkKV(window=8, kernel=5, offset=3)]

    def kept(method):
        snapshot = LayerSnapshot(k, k, q, 0, 1, 0.3)
        # the attention in one form: only the operations after it are compared
        with forms.using("portable"):
            snapshot.window_scores(8)
        tokens = method.keep(snapshot, method.scores(snapshot), Quota(100))
        return [row.tolist() for row in tokens.positions]

    for method in methods:
        with forms.using("portable"):
            expected = kept(method)
        with forms.using(form):
            assert kept(method) == expected, method


@needs_triton
@interpreted
def test_scores_are_read_once():
    from kvbench.kernels.pool import triton_form

    scores = draw(8, 2000)
    with watched(scores=scores) as traffic:
        triton_form.pool(scores, 63, "max", 4)
    # three programs a row, of which two read the neighbourhood's width twice
    assert traffic.loaded["scores"] == 4 * 8 * (2000 + 2 * 62) and traffic.launches == 1
    assert sum(traffic.stored.values()) == 4 * 2 * 2000
    with watched(scores=scores) as traffic:
        triton_form.chunk_sums(scores, 10, 3)
    assert traffic.loaded["scores"] == 4 * 8 * 2000 and sum(traffic.stored.values()) == 4 * 8 * 201
