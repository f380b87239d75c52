"""Every form of the storage formats against their definitions."""

import pytest
import torch
from kvbench_testing.forms import forms_of
from kvbench_testing.interpreter import watched
from kvbench_testing.triton import DEVICE, INTERPRETED, needs_triton

from kvbench.kernels import forms, quantise_kv
from kvbench.kernels.quantise_kv import FP8, naive

FORMS = forms_of(quantise_kv, "pack", "naive")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw(*shape, dtype=torch.float32, scale=1.0):
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))).to(dtype)


def run(form, name, *args):
    """Runs an operation in one form, on a device of that form."""
    on = DEVICE if form == "triton" else "cpu"
    function = getattr(forms.load(quantise_kv.__name__, form), name)
    result = function(*(x.to(on) if torch.is_tensor(x) else x for x in args))
    return tuple(x.cpu() for x in result) if isinstance(result, tuple) else result.cpu()


@pytest.mark.parametrize("form", forms_of(quantise_kv, "pack"))
@pytest.mark.parametrize("code", FP8)
def test_every_fp8_code_stands_for_the_number_that_torch_gives_it(form, code):
    codes = torch.arange(256).to(torch.uint8)
    codes = codes[codes.view(FP8[code]).float().isfinite()].view(1, 1, -1, 1)
    exact = codes.view(FP8[code]).float()
    assert codes.numel() > 240
    assert torch.equal(run(form, "from_fp8", codes, torch.ones(1), code, torch.float32), exact)
    assert torch.equal(run(form, "to_fp8", exact, torch.ones(1), code), codes)


@pytest.mark.parametrize("form", forms_of(quantise_kv, "pack"))
@pytest.mark.parametrize("code", FP8)
def test_between_two_fp8_numbers_the_nearer_is_taken_and_the_even_one_of_ties(form, code):
    table = naive.fp8_table(code).float()
    middle = (table[1:] + table[:-1]) / 2
    x = torch.stack([torch.nextafter(middle, torch.tensor(0.0)), middle, torch.nextafter(middle, table[1:])])
    low = torch.arange(len(middle))
    expected = torch.stack([low, low + low % 2, low + 1]).to(torch.uint8)
    one = torch.ones(())
    assert torch.equal(run(form, "to_fp8", x[None, None], one, code)[0, 0], expected)
    assert torch.equal(run(form, "to_fp8", -x[None, None], one, code)[0, 0], expected + 128)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("code", FP8)
@pytest.mark.parametrize("per_head", [False, True])
def test_fp8_there_and_back(form, dtype, code, per_head):
    # heads of a wider tensor, tiny and saturating numbers
    x = draw(2, 4, 19, 40, dtype=dtype)[:, 1:]
    x[0, 0, 0] *= 1e-4
    x[1, 2, 3] *= 100
    scale = torch.tensor([0.01, 0.5, 2e-3]).view(1, 3, 1, 1) if per_head else torch.tensor(0.01)
    codes = run(form, "to_fp8", x, scale, code)
    assert torch.equal(codes, naive.to_fp8(x, scale, code))
    back = run(form, "from_fp8", codes[:, :, 2:], scale, code, dtype)
    assert torch.equal(back, naive.from_fp8(codes[:, :, 2:], scale, code, dtype))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    ("axis", "group", "length", "dim"),
    [(2, 32, 64, 80), (2, 5, 15, 16), (3, 32, 17, 64), (3, 20, 3, 80), (3, 64, 1, 64)],
)
def test_packed_groups_there_and_back(form, bits, axis, group, length, dim):
    x = draw(2, 3, length, dim, scale=3.0)[:, 1:]
    x[0, 0, 0] = 1.5  # groups of one number
    codes, scale, zero = run(form, "pack", x, bits, group, axis)
    expected = naive.pack(x, bits, group, axis)
    assert torch.equal(scale, expected[1]) and torch.equal(zero, expected[2])
    back = run(form, "unpack", codes, scale, zero, bits, group, axis, torch.float32)
    exact = naive.unpack(*expected, bits, group, axis, torch.float32)
    # a quotient in fp32 may round to the other side of a tie
    assert float((codes != expected[0]).float().mean()) <= 0.002
    assert bool(((back - exact).abs() <= 1.01 * scale.float().repeat_interleave(group, axis)).all())
    own = naive.unpack(codes, scale, zero, bits, group, axis, torch.float32)
    assert torch.allclose(back, own, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_of_16_bits_are_packed_alike(form, dtype):
    x = draw(1, 2, 32, 64, dtype=dtype)
    for axis in (2, 3):
        parts = run(form, "pack", x, 4, 32, axis)
        wide = run("portable", "pack", x.float(), 4, 32, axis)
        assert all(torch.equal(a, b) for a, b in zip(parts, wide, strict=True))
        back = run(form, "unpack", *parts, 4, 32, axis, dtype)
        assert back.dtype == dtype
        assert torch.equal(back, run("portable", "unpack", *parts, 4, 32, axis, torch.float32).to(dtype))


@pytest.mark.parametrize("form", forms_of(quantise_kv, "pack"))
def test_nothing_is_packed_to_nothing(form):
    x = draw(1, 2, 0, 64)
    codes, scale, zero = run(form, "pack", x, 4, 32, 2)
    assert codes.shape == (1, 2, 0, 32) and scale.shape == zero.shape == (1, 2, 0, 64)
    assert run(form, "unpack", codes, scale, zero, 4, 32, 2, torch.float32).shape == x.shape
    assert run(form, "to_fp8", x, torch.ones(1), "e4m3").shape == x.shape


@needs_triton
@pytest.mark.skipif(not INTERPRETED, reason="needs the interpreter")
def test_traffic():
    x, scale = draw(1, 2, 64, 80).bfloat16(), torch.ones(2).view(1, 2, 1, 1)
    with watched(x=x) as traffic:
        codes = run("triton", "to_fp8", x, scale, "e4m3")
    assert traffic.loaded["x"] == x.numel() * 2 and traffic.stored["scratch"] == x.numel()
    with watched(x=x) as traffic:
        parts = run("triton", "pack", x, 4, 32, 2)
    assert traffic.loaded["x"] == 2 * x.numel() * 2 and traffic.launches == 2
    assert sum(traffic.stored.values()) == sum(part.nbytes for part in parts)
    with watched(codes=codes, packed=parts[0]) as traffic:
        run("triton", "from_fp8", codes, scale, "e4m3", torch.bfloat16)
        run("triton", "unpack", *parts, 4, 32, 2, torch.bfloat16)
    assert traffic.loaded["codes"] == codes.numel() and traffic.loaded["packed"] == parts[0].numel()
    assert traffic.launches == 2
