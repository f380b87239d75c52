"""Every format under every dtype of a model: extreme numbers stay finite, numbers that are not finite stay visible."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.methods import build, registry

FORMATS = sorted(name for name, cls in registry().items() if cls.family == "format")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HEADS, TOKENS, DIM, ROOM = 2, 64, 32, 40
#: largest relative error of numbers in the middle of a format's range, and what larger numbers become
RELATIVE = {"native": 0, "bf16": 2**-8, "fp16": 2**-10, "fp8_e4m3": 2**-4, "fp8_e5m2": 2**-3}
LIMIT = {"fp16": 65504.0}
#: how far codes of rotated tokens may read a number beyond the largest one: a step of a token of one large number
BEYOND = {"int4_token": 1.15, "turboquant": 1.3}


def read(name, k, v, appended=()):
    """Everything held after some tokens are appended one by one `[1, H, T, D]`, keys and values."""
    params = {"group": 16, "residual": 16} if name in ("int8", "int4", "int2") else {}
    store = build({"format": {"name": name, **params}}).format.store(k, v, 1, ROOM)
    for pair in appended:
        store.append(*pair)
    prefix_k, prefix_v, tail_k, tail_v, count = store.read()
    ends = (tail_k[:, :, : int(count)], tail_v[:, :, : int(count)])
    return [torch.cat(pair, 2) for pair in zip((prefix_k, prefix_v), ends, strict=True)]


def draw(dtype, tokens=TOKENS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, HEADS, tokens, DIM, generator=generator).to(dtype)


def outliers(dtype):
    limit = torch.finfo(dtype).max
    return [0.0, 1e-30, 1e-7, 1e3, 3e4, 65504.0, 65519.0, 65520.0, 1e5, 1e20, limit / 2, limit]


@settings(deadline=None, max_examples=80)
@given(
    name=st.sampled_from(FORMATS), dtype=st.sampled_from(DTYPES), data=st.data(), seed=st.integers(0, 9),
    zeros=st.sampled_from([None, "channel", "token", "everything"]),
)  # fmt: skip
def test_finite_numbers_are_read_as_finite_ones(name, dtype, data, seed, zeros):
    k, v = draw(dtype, seed=seed), draw(dtype, seed=seed + 50)
    new = [(draw(dtype, 1, seed + n), draw(dtype, 1, seed + 70 + n)) for n in range(18)]
    if zeros == "channel":
        k[..., 3] = v[..., 3] = 0
    elif zeros == "token":
        k[:, :, 5] = v[:, :, 5] = 0
    elif zeros == "everything":
        k.zero_(), v.zero_()
    for tensor in (k, v, *new[data.draw(st.integers(0, 17))]):
        spots = data.draw(st.lists(st.integers(0, tensor.numel() - 1), max_size=3))
        for spot in spots:
            value = data.draw(st.sampled_from([x for x in outliers(dtype) if x <= torch.finfo(dtype).max]))
            tensor.view(-1)[spot] = data.draw(st.sampled_from([1, -1])) * value
    for found, exact in zip(read(name, k, v, new), zip(*([(k, v), *new]), strict=True), strict=True):
        exact = torch.cat(exact, 2)
        assert found.dtype == dtype and bool(found.isfinite().all())
        bound = LIMIT.get(name, torch.finfo(dtype).max)
        # steps and scales are rounded; recent tokens of integers are as the model computed them
        assert float(found.abs().max()) <= max(
            BEYOND.get(name, 1.01) * min(bound, float(exact.abs().max())), 1e-5
        )
        if name in ("native", "bf16", "fp16"):
            # beyond 65504 they saturate
            nearest = exact.double().clamp(-bound, bound)
            error = (found.double() - nearest).abs()
            allowed = RELATIVE[name] * nearest.abs() + (2**-24 if name == "fp16" else 1e-38)
            assert bool((error <= allowed).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["prompt", "appended"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_a_number_that_is_not_finite_is_not_read_as_a_finite_one(name, dtype, where, bad):
    for side in (0, 1):
        pair, new = (
            [draw(dtype), draw(dtype, seed=1)],
            [[draw(dtype, 1, n), draw(dtype, 1, 9 + n)] for n in range(36)],
        )
        place, spot = (pair[side], (0, 1, 7, 4)) if where == "prompt" else (new[3][side], (0, 1, 0, 4))
        place[spot] = bad
        token = 7 if where == "prompt" else TOKENS + 3
        found = read(name, *pair, new)
        assert not bool(found[side][0, 1, token, 4].isfinite())
        assert bool(found[1 - side].isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("scales", ["tensor", "head"])
def test_fp8_saturates_appended_numbers_beyond_its_scale(name, scales, dtype):
    k = draw(dtype).clamp(-2, 2)
    k[0, :, 0, 0] = 2
    form = build({"format": {"name": name, "scales": scales}}).format
    store = form.store(k, k, 1, ROOM)
    back, _ = store.append(torch.full_like(k[:, :, :1], 1000.0), k[:, :, :1])
    assert torch.allclose(back.float(), torch.full_like(back.float(), 2.0), rtol=1e-2)
    # and a cache of its own has its own scales
    assert bool(store.read()[0].isfinite().all())


def test_a_bf16_cache_under_a_float16_model_reads_the_largest_number():
    k = torch.full((1, HEADS, TOKENS, DIM), 65504.0, dtype=torch.float16)
    assert all(bool((found == 65504).all()) for found in read("bf16", k, -k.neg()))
    wide = torch.full((1, HEADS, TOKENS, DIM), 1e6, dtype=torch.bfloat16)
    assert all(bool((found == torch.tensor(65504.0).bfloat16()).all()) for found in read("fp16", wide, wide))
