"""The Triton form of the decode attention: dtypes, fp8 codes, ragged lengths, bounds and races."""

import pytest
import torch
from kvbench_testing.interpreter import watched
from kvbench_testing.triton import DEVICE, INTERPRETED, needs_triton

from kvbench.kernels.forms import using
from kvbench.kernels.sparse_decode import FP8, naive, portable, sparse_decode

pytestmark = needs_triton


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def layout(group=4, dim=64, kept=331, room=5, dtype=torch.float32, rows=2, heads=2, shared=True):
    """q, k, v, k_tail, v_tail."""
    prefix = (1 if shared else rows, heads, kept, dim)
    shapes = [(rows, heads, group, dim), prefix, prefix, (rows, heads, room, dim), (rows, heads, room, dim)]
    return [draw(*shape, seed=n).to(dtype) for n, shape in enumerate(shapes)]


def run(*args, **more):
    from kvbench.kernels.sparse_decode import triton_form

    there = [x.to(DEVICE) if torch.is_tensor(x) else x for x in args]
    more = {name: x.to(DEVICE) if torch.is_tensor(x) else x for name, x in more.items()}
    return tuple(x.cpu() for x in triton_form.sparse_decode(*there, **more))


def reference(q, k, v, k_tail, v_tail, tail, scaling, slots=None):
    """fp64 output; `slots(row, head)` gives what is read, of the prefix and then the tail."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    for r in range(q.shape[0]):
        for h in range(q.shape[1]):
            keys, values = (
                torch.cat([prefix[r if prefix.shape[0] > 1 else 0, h], late[r, h, :tail]])
                for prefix, late in ((k, k_tail), (v, v_tail))
            )
            if slots is not None:
                keys, values = keys[slots(r, h)], values[slots(r, h)]
            out[r, h] = naive.of_head(q[r, h], keys, values, scaling)[0]
    return out


def rms(x):
    return float(x.double().square().mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("group", "dim"), [(1, 128), (3, 80), (4, 128), (8, 64)])
@pytest.mark.parametrize("selected", [None, 17, 150])
def test_error_is_at_most_twice_that_of_torch(dtype, group, dim, selected):
    args = layout(group, dim, dtype=dtype)
    index = None
    if selected is not None:
        order = [torch.randperm(334, generator=torch.Generator().manual_seed(n))[:selected] for n in range(4)]
        index = torch.stack(order).view(2, 2, -1).int()
    scaling = dim**-0.5
    expected = reference(*args, 3, scaling, None if index is None else lambda r, h: index[r, h].long())
    out, _ = run(*args, torch.tensor(3), scaling, index)
    torch_out, _ = portable.sparse_decode(*args, torch.tensor(3), scaling, index)
    assert out.dtype == dtype
    assert rms(out - expected) <= 2 * rms(torch_out - expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("code", "stored"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_fp8_codes_are_read_exactly(dtype, code, stored):
    q, *numbers = layout(dtype=dtype, shared=False)
    codes = [x.float().to(stored) for x in numbers]
    # every finite code once, subnormals and both zeros too
    finite = torch.arange(256, dtype=torch.uint8).view(stored)
    finite = finite[finite.float().isfinite()]
    codes[1][0, 0, : len(finite), 0] = finite
    k_scale, v_scale = torch.tensor([0.5, 1.0]), torch.tensor([0.25, 0.7])
    plain = [x.float() * s[:, None, None] for x, s in zip(codes, [k_scale, v_scale] * 2, strict=True)]
    expected = reference(q, *plain, 3, 0.125)
    fp8 = FP8(code, k_scale.view(1, 2, 1, 1).to(DEVICE), v_scale.view(1, 2, 1, 1).to(DEVICE))
    out, _ = run(q, *(x.view(torch.uint8) for x in codes), torch.tensor(3), 0.125, fp8=fp8)
    torch_out, _ = portable.sparse_decode(q, *(x.to(dtype) for x in plain), torch.tensor(3), 0.125)
    assert rms(out - expected) <= 2 * rms(torch_out - expected)
    # other forms get decoded numbers
    fp8 = FP8(code, k_scale.view(1, 2, 1, 1), v_scale.view(1, 2, 1, 1))
    with using("portable"):
        decoded, _ = sparse_decode(q, *(x.view(torch.uint8) for x in codes), torch.tensor(3), 0.125, fp8=fp8)
    assert torch.equal(decoded, torch_out)


def test_rows_and_heads_of_different_lengths():
    q, k, v, k_tail, v_tail = args = layout(group=3, shared=False)
    used = torch.tensor([[331, 17], [0, 200]])
    for r in range(2):
        for h in range(2):
            # slots beyond must not be read
            k[r, h, used[r, h] :] = v[r, h, used[r, h] :] = torch.nan
    out, _ = run(*args, torch.tensor(2), 0.125, used_RH=used.int())

    def slots(r, h):
        return torch.cat([torch.arange(int(used[r, h])), torch.tensor([331, 332])])

    expected = reference(q, k, v, k_tail, v_tail, 2, 0.125, slots)
    assert torch.allclose(out.double(), expected, atol=2e-6)


def test_slots_per_query_head_and_members():
    args = layout(group=3)
    index = torch.stack(
        [torch.randperm(334, generator=torch.Generator().manual_seed(n))[:20] for n in range(12)]
    )
    index = index.view(2, 2, 3, 20).int()
    mask = torch.rand(2, 3, 331, generator=torch.Generator().manual_seed(1)) > 0.4
    for members in (None, mask):
        out, lse = run(*args, torch.tensor(3), 0.125, index, members)
        expected, expected_lse = portable.sparse_decode(*args, torch.tensor(3), 0.125, index, members)
        assert torch.allclose(out, expected, atol=2e-6) and torch.allclose(lse, expected_lse, atol=1e-5)


def test_empty_selection_gives_zeros():
    args = layout()
    index = torch.full((2, 2, 200), -1, dtype=torch.int32)
    index[1, 1, 150] = 7
    out, lse = run(*args, torch.tensor(3), 0.125, index)
    assert not out[:, 0].any() and torch.isneginf(lse[:, 0]).all() and not out.isnan().any()
    assert torch.allclose(out[1, 1], args[2][0, 1, 7].expand(4, -1))


def test_repeated_keys_and_an_all_minus_infinity_row():
    q, k, v, k_tail, v_tail = layout()
    k[:] = k[:, :, :1]
    out, _ = run(q, k, v, k_tail, v_tail, torch.tensor(0), 0.125)
    assert torch.allclose(out, v.mean(2, keepdim=True).expand_as(out), atol=1e-5)


def test_rows_do_not_depend_on_their_neighbours():
    args = layout(rows=3, shared=False)
    together, _ = run(*args, torch.tensor(3), 0.125)
    alone, _ = run(*(x[1:2] for x in args), torch.tensor(3), 0.125)
    assert torch.equal(together[1:2], alone)


@pytest.mark.skipif(not INTERPRETED, reason="needs the interpreter")
@pytest.mark.parametrize("selected", [False, True])
def test_no_access_out_of_bounds_and_no_race(selected):
    args = layout(kept=129, room=3, dim=80, rows=1)
    index = torch.randint(132, (1, 2, 140), generator=torch.Generator().manual_seed(0)).int()
    with watched():
        run(*args, torch.tensor(3), 0.125, index if selected else None)


@pytest.mark.skipif(not INTERPRETED, reason="needs the interpreter")
@pytest.mark.parametrize("selected", [False, True])
def test_the_loads_for_amd_give_the_same_numbers_and_bytes(monkeypatch, selected):
    import triton.language as tl

    args = layout(kept=129, room=3, rows=1)
    index = torch.randint(132, (1, 2, 140), generator=torch.Generator().manual_seed(0)).int()
    named = dict(zip(("k", "v", "k_tail", "v_tail"), args[1:], strict=True))

    def decode():
        with watched(**named) as traffic:
            out, _ = run(*args, torch.tensor(3), 0.125, index if selected else None)
        return out, {name: traffic.loaded[name] for name in named}

    expected, loaded = decode()
    monkeypatch.setattr(tl.target_info, "is_hip", lambda: True)
    out, loaded_too = decode()
    assert torch.equal(out, expected) and loaded_too == loaded and all(loaded.values())


@pytest.mark.skipif(not INTERPRETED, reason="needs the interpreter")
def test_the_watch_sees_an_access_out_of_bounds():
    from kvbench.kernels.top_k import triton_form

    with watched(), pytest.raises(Exception, match="outside every tensor"):
        # the length lies behind its storage
        triton_form.select_tokens(torch.rand(1, 4), 9, 1, torch.tensor([4])[1:])
