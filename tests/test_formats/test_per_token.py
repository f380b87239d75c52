"""Formats with a scale per token and KV head: the values that vLLM's definitions give, and what follows from them."""

import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kvbench_testing.golden import numbers

from kvbench.config.errors import UserError
from kvbench.formats.bits import pack_bits, round_half_away, unpack_bits, walsh_hadamard
from kvbench.formats.turboquant import VLLM_TABLE, lloyd_max
from kvbench.methods import build
from kvbench.methods.base import Native

DIM = 64
BYTES = {"fp8_token": (DIM + 4,) * 2, "int8_token": (DIM + 4,) * 2, "int4_token": (DIM // 2 + 4,) * 2}
#: vLLM's documented slot of D = 128, keys and values together
SLOTS = {"k8v4": 196, "4bit_nc": 134, "k3v4_nc": 118, "3bit_nc": 102}


@pytest.fixture(scope="module")
def x():
    """Eight tokens of 64 channels, one of them 8 times as large."""
    x = torch.from_numpy(numbers(8 * DIM, 11) * 4).float().view(8, DIM).clone()
    x[:, 3] *= 8
    return x


def codecs(name, like, **params):
    return build({"format": {"name": name, **params}}).format.codecs(like[None, None], like[None, None])


def digest(codes):
    return hashlib.sha256(json.dumps(codes.tolist(), separators=(",", ":")).encode()).hexdigest()[:16]


def error(codec, x):
    return float((codec.decode(codec.encode(x)) - x).square().sum() / x.square().sum())


def as_floats(stored):
    return stored.contiguous().view(torch.float32).flatten()


def test_fp8_per_token(x):
    codec, _ = codecs("fp8_token", x)
    stored = codec.encode(x)
    assert as_floats(stored[:3, DIM:]).tolist() == pytest.approx(
        [0.0353491, 0.00439958, 0.00441443], rel=1e-5
    )
    assert stored[0, :8].tolist() == [100, 228, 209, 254, 226, 87, 217, 61]
    assert hashlib.sha256(stored[:, :DIM].numpy().tobytes()).hexdigest()[:16] == "d7eb16c78c127a71"
    assert error(codec, x) == pytest.approx(3.24e-4, rel=2e-3)


def test_int8_per_token(x):
    codec, _ = codecs("int8_token", x)
    stored = codec.encode(x)
    codes = stored[:, :DIM].contiguous().view(torch.int8)
    assert float(as_floats(stored[:1, DIM:])) == pytest.approx(0.12469602)
    assert codes[0, :8].tolist() == [14, -14, -3, -127, -12, 4, -5, 0]
    assert digest(codes) == "59bc0fa4f22db7f8"
    assert error(codec, x) == pytest.approx(1.79e-4, rel=3e-3)


def test_int4_per_token(x):
    codec, _ = codecs("int4_token", x)
    stored = codec.encode(x)
    marked = stored[:, DIM // 2 :].contiguous().view(torch.int32).flatten()
    assert (marked & 15)[:4].tolist() == [9, 9, 9, 8]
    # four bits of the scale's 24 belong to the zero point
    scales = (marked & ~15)[:3].view(torch.float32).tolist()
    assert scales == pytest.approx([4.526061, 2.708366, 3.126176], rel=2**-19)
    assert unpack_bits(stored[0, : DIM // 2], 4, DIM)[:12].tolist() == [
        10,
        15,
        14,
        7,
        7,
        13,
        13,
        7,
        7,
        11,
        12,
        5,
    ]
    signs = "".join("1" if column > 0 else "0" for column in codec.signs_D)
    assert signs == "1011000010011010110011101010011010001101101011000000000100000001"
    assert error(codec, x) == pytest.approx(6.63e-3, rel=1e-3)


def test_turboquant_keys(x):
    for preset, codes, sha, read, loss in (
        ("4bit_nc", [5, 11, 11, 5, 2, 11, 14, 4, 3, 9, 12, 7], "7ab220ae4a9b975f",
         [1.64454, -1.78132, -0.24186, -15.56111], 8.766e-3),
        ("3bit_nc", [2, 5, 5, 2, 1, 5, 7, 2, 1, 4, 6, 3], "4d5edd059678a637", None, 3.339e-2),
    ):  # fmt: skip
        keys, _ = codecs("turboquant", x, preset=preset, table="vllm")
        stored = keys.encode(x)
        found = unpack_bits(stored[:, :-2], keys.bits, DIM)
        assert found[0, :12].tolist() == codes and digest(found) == sha
        assert float(stored[0, -2:].view(torch.float16)) == 18.25
        assert error(keys, x) == pytest.approx(loss, rel=1e-3)
        if read:
            assert keys.decode(stored)[0, :4].tolist() == pytest.approx(read, abs=1e-5)


def test_turboquant_values(x):
    for preset, first, sha, loss in (
        ("4bit_nc", [15, 12, 13, 0, 12, 14, 13, 13], "90f19b0ce17c2771", 1.843e-2),
        ("3bit_nc", None, "94abec9ac37ac2fb", 8.919e-2),
    ):
        _, values = codecs("turboquant", x, preset=preset)
        found = unpack_bits(values.encode(x)[:, :-4], values.bits, DIM)
        assert digest(found) == sha and error(values, x) == pytest.approx(loss, rel=1e-3)
        assert first is None or found[0, :8].tolist() == first


def test_the_centroids_of_a_normal_distribution():
    assert lloyd_max(2)[2:] == pytest.approx([0.45278, 1.51042], abs=1e-5)
    for bits, loss in ((2, 0.117482), (3, 0.034548), (4, 0.009501)):
        table = torch.tensor(lloyd_max(bits), dtype=torch.float64)
        assert torch.allclose(table, -table.flip(0), atol=1e-9)
        # the published distortions, by integration over a fine grid
        grid = torch.linspace(-9, 9, 200_001, dtype=torch.float64)
        nearest = (grid[:, None] - table).abs().amin(1).square()
        density = torch.exp(-grid.square() / 2)
        assert float((nearest * density).sum() / density.sum()) == pytest.approx(loss, abs=2e-6)
        if bits in VLLM_TABLE:
            assert VLLM_TABLE[bits] == pytest.approx(lloyd_max(bits)[2 ** (bits - 1) :], abs=2e-3)


@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_codes_and_scale(name):
    k = torch.randn(1, 2, 10, DIM)
    store = build({"format": name}).format.store(k, k, 3, 5)
    store.append(*(torch.randn(3, 2, 2, DIM) for _ in range(2)))
    assert store.bytes() == (2 * 12 * sum(BYTES[name]),) * 2


@pytest.mark.parametrize(("preset", "size"), SLOTS.items())
def test_a_slot_of_turboquant_has_the_bytes_of_vllm(preset, size):
    form = build({"format": {"name": "turboquant", "preset": preset}}).format
    k = torch.randn(1, 1, 7, 128)
    assert form.store(k, k, 1, 0).bytes() == (7 * size, 7 * size)
    layers = [form.in_layer(layer, 9) for layer in range(9)]
    assert [isinstance(one, Native) for one in layers] == [True] * 2 + [False] * 5 + [True] * 2


@given(
    data=st.data(), bits=st.sampled_from([1, 2, 3, 4, 8]), words=st.integers(1, 5), rows=st.integers(1, 3)
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_packed_integers_come_back(data, bits, words, rows):
    count = 8 * words
    numbers = st.lists(st.integers(0, 2**bits - 1), min_size=rows * count, max_size=rows * count)
    codes = torch.tensor(data.draw(numbers), dtype=torch.uint8).view(rows, count)
    packed = pack_bits(codes, bits)
    assert packed.shape == (rows, words * bits) and torch.equal(unpack_bits(packed, bits, count), codes)
    # the first integer lies in the lowest bits
    by_hand = [sum(int(code) << (bits * n) for n, code in enumerate(row)) for row in codes]
    assert [int.from_bytes(bytes(row.tolist()), "little") for row in packed] == by_hand


def test_halves_go_away_from_zero():
    assert round_half_away(torch.tensor([0.5, 1.5, 2.5, -0.5, -2.5, 2.4])).tolist() == [1, 2, 3, -1, -3, 2]


def test_the_rotation_is_sylvesters_matrix_for_any_number_of_tokens(x):
    matrix = torch.ones(1, 1)
    while len(matrix) < DIM:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    assert torch.equal(walsh_hadamard(torch.eye(DIM)), matrix)
    assert torch.allclose(walsh_hadamard(x), x @ matrix, atol=1e-4)
    for format in ("int4_token", "turboquant"):
        for codec in codecs(format, x):
            whole = codec.encode(x)
            for n in range(len(x)):
                alone = codec.encode(x[n : n + 1])
                assert torch.equal(alone, whole[n : n + 1])
                assert torch.equal(codec.decode(alone), codec.decode(whole)[n : n + 1])


def test_a_rotation_needs_a_power_of_two():
    for name in ("int4_token", "turboquant"):
        with pytest.raises(
            UserError, match=f"^format: {name} needs a head dimension that is a power of 2, .* 96$"
        ):
            codecs(name, torch.zeros(1, 96))
    assert codecs("int8_token", torch.zeros(1, 96))
