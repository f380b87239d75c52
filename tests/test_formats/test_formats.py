"""Formats: contents, errors, appended tokens and bytes."""

import pytest
import torch

from kvbench.config.errors import UserError
from kvbench.methods import build

ROWS, HEADS, KEPT, DIM, ROOM = 2, 3, 300, 64, 9
LOSSY = ["bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "int8", "int4", "int2"]
PER_TOKEN = ["fp8_token", "int8_token", "int4_token", "turboquant"]


def draw(tokens, seed=0, rows=1, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, HEADS, tokens, DIM, generator=generator)


def make(name, k=None, v=None, **params):
    form = build({"format": {"name": name, **params}}).format
    k = draw(KEPT) if k is None else k
    return form.store(k, draw(KEPT, 1) if v is None else v, ROWS, ROOM)


def contents(store):
    """Keys and values of every token held `[R, H, C, D]`."""
    k, v, k_tail, v_tail, appended = store.read()
    ends = (k_tail[:, :, : int(appended)], v_tail[:, :, : int(appended)])
    joined = [torch.cat([x.expand(ROWS, -1, -1, -1), t], 2) for x, t in zip((k, v), ends, strict=True)]
    assert joined[0].shape[2] == store.count
    return joined


@pytest.mark.parametrize("name", ["native", *LOSSY])
@pytest.mark.parametrize("appended", [0, ROOM])
def test_what_is_read_is_close_to_what_was_stored(name, appended):
    store, k, v = make(name), draw(KEPT), draw(KEPT, 1)
    k, v = (x.expand(ROWS, -1, -1, -1) for x in (k, v))
    for n in range(appended):
        new = draw(1, 2 + n, ROWS, 1.0), draw(1, 50 + n, ROWS, 1.0)
        back = store.append(*new)
        k, v = torch.cat([k, new[0]], 2), torch.cat([v, new[1]], 2)
        assert all(x.shape == y.shape for x, y in zip(back, new, strict=True))
    for found, exact, per_channel in zip(contents(store), (k, v), (True, False), strict=True):
        error = (found - exact).abs()
        if name.startswith("int"):
            # half a step of the widest group, and the rounding of scale and zero point to fp16
            groups = exact[:, :, : KEPT // 32 * 32]
            groups = groups.unflatten(2, (-1, 32)) if per_channel else groups.unflatten(3, (-1, 32))
            axis = 3 if per_channel else 4
            width = (groups.amax(axis) - groups.amin(axis)).max()
            assert error.max() <= width / (2 ** int(name[3:]) - 1) / 2 + 2e-3 * exact.abs().max()
        else:
            relative = {"native": 0, "bf16": 2**-8, "fp16": 2**-11, "fp8_e4m3": 2**-4, "fp8_e5m2": 2**-3}[
                name
            ]
            smallest = exact.abs().max() * 2**-8  # fp8: below its normal numbers the error is absolute
            assert bool((error <= relative * exact.abs().clamp(min=smallest)).all())


@pytest.mark.parametrize("name", ["native", *LOSSY, *PER_TOKEN])
def test_all_rows_hold_the_same_prompt_and_their_own_tokens(name):
    store = make(name)
    new = draw(1, 2, ROWS), draw(1, 3, ROWS)
    store.append(*new)
    for found, exact in zip(contents(store), new, strict=True):
        assert torch.equal(found[0, :, :KEPT], found[1, :, :KEPT])
        assert torch.allclose(
            found[:, :, KEPT:], exact, rtol=0.13, atol=1.0 if "4" in name or "turbo" in name else 0.3
        )


def test_bytes_of_token_formats_are_those_of_the_tensors():
    payload = 2 * HEADS * DIM
    for name, element, scales in (
        ("native", 4, 0), ("bf16", 2, 0), ("fp16", 2, 0), ("fp8_e4m3", 1, 2 * 4), ("fp8_e5m2", 1, 2 * 4),
    ):  # fmt: skip
        store = make(name)
        held = sum(x[0].nbytes for x in store.prefix)
        assert store.bytes()[0] == held + scales == payload * KEPT * element + scales
        store.append(draw(2, 2, ROWS), draw(2, 3, ROWS))
        assert store.bytes()[0] == payload * (KEPT + 2) * element + scales
        assert store.bytes()[1] == (0 if name == "native" else store.bytes()[0])
    assert make("fp8_e4m3", scales="head").bytes()[0] == payload * KEPT + 2 * 4 * HEADS


def test_fp8_scales_are_of_the_layer_or_of_each_head():
    k = draw(KEPT)
    k[:, 1] *= 1e5
    exact = k[0, 0].abs()
    coarse, fine = (contents(make("fp8_e4m3", k, scales=s))[0][0, 0].abs() for s in ("tensor", "head"))
    assert (fine - exact).abs().max() <= exact.max() * 2**-4
    # with one scale for all heads, small numbers drown next to a head of numbers 1e5 times as large
    assert (coarse - exact).abs().mean() > 2 * (fine - exact).abs().mean()


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2"])
def test_appended_tokens_use_the_scales_of_the_prompt_and_saturate(name):
    store, highest = make(name), float(draw(KEPT).abs().max())
    k, _ = store.append(draw(1, 2, ROWS) * 1e4, draw(1, 3, ROWS))
    assert float(k.abs().max()) == pytest.approx(highest)
    assert bool(torch.isfinite(contents(store)[0]).all())


@pytest.mark.parametrize("kept", [1, 31, 127, 128, 129, 256, 300, 385])
@pytest.mark.parametrize("residual", [32, 128])
def test_kivi_keeps_the_official_residual(kept, residual):
    k, v = draw(kept), draw(kept, 1)
    store = make("int4", k, v, residual=residual)
    k, v = (x.expand(ROWS, -1, -1, -1) for x in (k, v))
    for n in range(residual + 3):
        # full runs of keys and old values are quantised after the step that completes them
        count = kept + n
        old_keys, old_values = count // residual * residual, max(0, count - residual)
        if n:
            new = draw(1, 2 + n, ROWS), draw(1, 500 + n, ROWS)
            store.append(*new)
            k, v = torch.cat([k, new[0]], 2), torch.cat([v, new[1]], 2)
            old_keys, old_values = (count - 1) // residual * residual, max(0, count - 1 - residual)
        found = contents(store)
        assert store.k_recent.shape[2] == count - old_keys
        assert store.v_recent.shape[2] == count - old_values
        assert torch.equal(found[0][:, :, old_keys:], k[:, :, old_keys:])
        assert torch.equal(found[1][:, :, old_values:], v[:, :, old_values:])
        for old, exact, axis in ((found[0][:, :, :old_keys], k, 2), (found[1][:, :, :old_values], v, 3)):
            expected = by_hand(exact[:, :, : old.shape[2]], 4, axis)
            # rounding scales to fp16 moves a few numbers to the next step
            assert float(((old - expected).abs() > 2e-2).float().sum()) <= 5 + 0.005 * old.numel()


def by_hand(x, bits, axis):
    """Asymmetric rounding in groups of 32 along an axis, with scales in full precision."""
    if x.shape[2] == 0:
        return x
    groups = x.unflatten(axis, (-1, 32))
    low, high = groups.amin(axis + 1, keepdim=True), groups.amax(axis + 1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    return (((groups - low) / scale).round() * scale + low).flatten(axis, axis + 1)


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int4", 4), ("int2", 2)])
def test_kivi_bytes_are_codes_scales_zeros_and_the_residual(name, bits):
    store = make(name)
    old_keys, old_values = 256, KEPT - 128
    codes = HEADS * DIM * bits // 8 * (old_keys + old_values)
    scales = 2 * 2 * HEADS * DIM // 32 * (old_keys + old_values)
    recent = HEADS * DIM * 4 * (2 * KEPT - old_keys - old_values)
    assert store.bytes() == (codes + scales + recent, codes + scales)
    assert store.prefix[0].codes.dtype == torch.uint8 and store.prefix[0].codes.shape[-1] == DIM * bits // 8


def test_kivi_refuses_groups_that_do_not_fit():
    with pytest.raises(UserError, match="residual: 100 is not a multiple of group"):
        build({"format": {"name": "int4", "residual": 100}})
    with pytest.raises(UserError, match="group: 48 does not divide the head dimension 64"):
        make("int4", group=48, residual=96)


def test_a_constant_group_has_no_error():
    k = torch.full((1, HEADS, KEPT, DIM), 0.5)
    assert torch.equal(contents(make("int2", k, k))[0], k.expand(ROWS, -1, -1, -1))


def test_rolling_storage_keeps_its_size():
    for name in ("native", "fp8_e4m3", "fp16", "fp8_token", "int8_token"):
        form = build({"format": name}).format
        store = form.roll(
            draw(10), draw(10, 1), ROWS, 10, carried={"number": torch.arange(30.0).view(HEADS, 10)}
        )
        exact = [draw(10).expand(ROWS, -1, -1, -1), draw(10, 1).expand(ROWS, -1, -1, -1)]
        places, before = [x.data_ptr() for x in store.slots], store.bytes()
        for n in range(5):
            new = draw(1, 2 + n, ROWS, 1.0), draw(1, 50 + n, ROWS, 1.0)
            store.append(*new)
            gone = torch.tensor([[[n], [0], [10]], [[2], [10], [5]]])
            numbers = store.carried["number"]
            assert numbers.shape == (ROWS, HEADS, 11) and not numbers[..., -1].any()
            store.drop(gone)
            stay = torch.ones(ROWS, HEADS, 11, dtype=torch.bool).scatter(2, gone, False)
            exact = [
                torch.cat([x, y], 2)[stay].view(ROWS, HEADS, 10, DIM) for x, y in zip(exact, new, strict=True)
            ]
            k, v, *_ = store.read()
            assert torch.allclose(k, exact[0], rtol=0.07, atol=0.1)
            assert torch.allclose(v, exact[1], rtol=0.07, atol=0.1)
            assert [x.data_ptr() for x in store.slots] == places and store.bytes() == before
        # a whole question at once, then back to the size before
        store.append(draw(7, 9, ROWS), draw(7, 8, ROWS))
        store.drop(torch.arange(7).expand(ROWS, HEADS, -1))
        assert store.bytes() == before and store.slots[0].shape[2] == 11
