"""Every form of the decode attention against the fp64 reference."""

import platform

import pytest
import torch
from kvbench_testing.forms import forms_of
from kvbench_testing.triton import DEVICE

from kvbench.kernels import build, forms, sparse_decode
from kvbench.kernels.sparse_decode import cpu, naive

needs_compiler = pytest.mark.skipif(not cpu.available(), reason="no C++ compiler with OpenMP")


class Case:
    """R rows, H KV heads of G query heads; a prefix of K slots that the rows share and a tail of M of which `tail`."""

    def __init__(
        self, rows=2, heads=2, group=3, dim=64, kept=331, room=5, tail=3, dtype=torch.float32, scale=1.0
    ):
        self.generator = torch.Generator().manual_seed(rows + heads + group + dim + kept)
        self.q = self.draw(rows, heads, group, dim) * scale
        self.k, self.v = (self.draw(1, heads, kept, dim).to(dtype) for _ in range(2))
        self.k_tail, self.v_tail = (self.draw(rows, heads, room, dim).to(dtype) for _ in range(2))
        self.tail, self.scaling, self.dtype = tail, dim**-0.5, dtype

    def draw(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def expected(self, index=None, mask=None):
        rows, heads, group, dim = self.q.shape
        out, lse = torch.zeros(rows, heads, group, dim).double(), torch.zeros(rows, heads, group).double()
        for r in range(rows):
            for h in range(heads):
                k, v = (
                    torch.cat([prefix[0, h], tail[r, h, : self.tail]])
                    for prefix, tail in ((self.k, self.k_tail), (self.v, self.v_tail))
                )
                member = None
                if mask is not None:
                    member = torch.cat([mask[h], torch.ones(group, self.tail, dtype=torch.bool)], dim=1)
                if index is not None:
                    chosen = index[r, h][index[r, h] >= 0].long()
                    k, v = k[chosen], v[chosen]
                    member = member[:, chosen] if member is not None else None
                out[r, h], lse[r, h] = naive.of_head(self.q[r, h], k, v, self.scaling, member)
        return out, lse

    def run(self, form, index=None, mask=None):
        if form == "triton":
            return self.triton(index, mask)
        # 32-bit queries: the compiled form then shows its own error, not the queries' rounding
        q = self.q if form == "compiled" else self.q.to(self.dtype)
        return forms.load(sparse_decode.__name__, form).sparse_decode(
            q, self.k, self.v, self.k_tail, self.v_tail, torch.tensor(self.tail), self.scaling, index, mask
        )

    def triton(self, index=None, mask=None):
        from kvbench.kernels.sparse_decode import triton_form

        on = [
            x.to(DEVICE) if x is not None else None
            for x in (
                self.q.to(self.dtype),
                self.k,
                self.v,
                self.k_tail,
                self.v_tail,
                torch.tensor(self.tail),
            )
        ]
        index, mask = (x.to(DEVICE) if x is not None else None for x in (index, mask))
        out, lse = triton_form.sparse_decode(*on, self.scaling, index, mask)
        return out.cpu(), lse.cpu()


FORMS = forms_of(sparse_decode, "sparse_decode", "naive")


def check(case, form, index=None, mask=None, tolerance=2e-6):
    out, lse = case.run(form, index, mask)
    expected, expected_lse = case.expected(index, mask)
    scale = max(1.0, float(expected.abs().max()))
    assert float((out.double() - expected).abs().max()) <= tolerance * scale
    assert torch.allclose(lse.double(), expected_lse, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("group", [1, 3, 4, 8])
@pytest.mark.parametrize("dim", [16, 64, 80, 128])
def test_all_slots(form, group, dim):
    check(Case(group=group, dim=dim, kept=131), form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", [1, 2, 17, 63, 64, 65, 331, 512, 513, 1000, 4097])
def test_lengths(form, kept):
    check(Case(rows=1, kept=kept), form)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_queries_give_the_rounded_output_of_32_bit_ones(dtype):
    case = Case(dtype=dtype, dim=128, group=4)
    case.q = case.q.to(dtype).float()
    exact, exact_lse = case.run("compiled")
    case.q = case.q.to(dtype)
    out, lse = case.run("compiled")
    assert out.dtype == dtype and torch.equal(out, exact.to(dtype)) and torch.equal(lse, exact_lse)
    case.v[0, 0, 7, 5] = torch.nan
    out, _ = case.run("compiled")
    assert out[:, 0, :, 5].isnan().all() and out.isnan().sum() == out[:, 0, :, 5].numel()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(2, 2, 0), (2, 2, 3, 0)])
def test_an_empty_list_reads_nothing(form, shape):
    out, lse = Case().run(form, torch.zeros(shape, dtype=torch.int32))
    assert not out.any() and torch.isneginf(lse).all()


@needs_compiler
def test_a_jobs_empty_list_reads_nothing_and_no_list_reads_everything():
    case = Case(rows=1, tail=0)
    table = cpu.new_table(1, 2)
    fields = dict(zip(cpu.FIELDS, table, strict=True))
    for name, stored in (("k_prefix", case.k), ("v_prefix", case.v)):
        fields[name][:] = cpu.addresses(stored, 1)
    fields["prefix"][:] = 331
    empty = torch.zeros(1, 2, 0, dtype=torch.int32)
    fields["index"][0, 0], fields["indexed"][0, 0] = cpu.addresses(empty, 1)[0, 0], 0
    out, lse = cpu.decode_jobs(case.q[0], table, case.scaling, torch.float32, with_lse=True)
    expected, _ = case.expected()
    torch.testing.assert_close(out[1].double(), expected[0, 1], rtol=1e-5, atol=1e-5)
    assert not out[0].any() and torch.isneginf(lse[0]).all()


@pytest.mark.parametrize("form", FORMS)
def test_no_prefix_and_no_tail(form):
    check(Case(kept=0), form)
    check(Case(kept=0), form, mask=torch.zeros(2, 3, 0, dtype=torch.bool))
    case = Case(kept=0, tail=0)
    out, lse = case.run(form)
    assert not out.any() and torch.isneginf(lse).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 7, 64, 200])
def test_selected_slots_reach_prefix_and_tail(form, count):
    case = Case()
    index = torch.stack([torch.randperm(334, generator=case.generator)[:count] for _ in range(4)]).view(
        2, 2, count
    )
    index[0, 0, : count // 2] = -1
    index[1, 1, 0] = 333  # the newest token of the tail
    check(case, form, index.int())


@pytest.mark.parametrize("form", FORMS)
def test_all_slots_selected_is_dense(form):
    case = Case()
    everything = torch.randperm(334, generator=case.generator).int().expand(2, 2, -1).contiguous()
    selected, _ = case.run(form, everything)
    dense, _ = case.run(form)
    assert torch.allclose(selected, dense, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_members_hide_slots_from_query_heads(form):
    case = Case()
    mask = torch.rand(2, 3, 331, generator=case.generator) > 0.5
    mask[0, 1] = False  # this head sees the tail only
    check(case, form, mask=mask)
    index = torch.arange(0, 334, 3).int().expand(2, 2, -1).contiguous()
    check(case, form, index, mask)


@pytest.mark.parametrize("form", FORMS)
def test_slots_per_query_head(form):
    case = Case()
    index = torch.stack([torch.randperm(334, generator=case.generator)[:20] for _ in range(12)]).view(
        2, 2, 3, 20
    )
    out, _ = case.run(form, index)
    for g in range(3):
        expected, _ = case.expected(index[:, :, g])
        assert torch.allclose(out[:, :, g].double(), expected[:, :, g], atol=2e-6)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [32, 80, 128])
@pytest.mark.parametrize("group", [1, 4, 7])
@pytest.mark.parametrize("queries", [torch.float32, torch.bfloat16])
def test_16_bit_keys_are_read_exactly(dtype, dim, group, queries):
    # bf16 queries and keys take the processor's own products where it has them
    case = Case(dtype=dtype, dim=dim, group=group)
    case.q = case.q.to(queries).float()
    check(case, "compiled")


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 processors")
@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3"])
def test_without_avx512(march, monkeypatch, private_cache):
    flags = [f"-march={march}" if flag.startswith("-march") else flag for flag in build.FLAGS]
    monkeypatch.setattr(build, "FLAGS", flags)
    build.load.cache_clear()
    build.function.cache_clear()
    try:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for dim in (64, 80, 128):
                check(Case(dtype=dtype, dim=dim, group=4), "compiled")
    finally:
        build.load.cache_clear()
        build.function.cache_clear()


@pytest.mark.parametrize("form", FORMS)
def test_large_logits_do_not_overflow(form):
    # logits near 1,000 carry an fp32 rounding of 6e-5, which the weights inherit
    check(Case(scale=300.0), form, tolerance=6e-5)


@needs_compiler
def test_rows_do_not_depend_on_their_neighbours():
    case = Case(rows=4)
    together, _ = case.run("compiled")
    for row in range(4):
        alone = Case(rows=4)
        alone.q, alone.k_tail, alone.v_tail = (
            x[row : row + 1].clone() for x in (case.q, case.k_tail, case.v_tail)
        )
        assert torch.equal(alone.run("compiled")[0][0], together[row])


@needs_compiler
def test_other_shapes_than_the_compiled_ones_are_unavailable():
    assert not cpu.available(head_dim=48)
    assert not cpu.available(group=33)
