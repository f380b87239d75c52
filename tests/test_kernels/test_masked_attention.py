"""Attention of several tokens at once, by the calls of torch for a CPU and for a GPU."""

import pytest
import torch

from kvbench.kernels import masked_attention as module
from kvbench.kernels.masked_attention import masked_attention, newest, repeated


def reference(q, k, v, scaling, mask):
    group = q.shape[1] // k.shape[1]
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for head in range(q.shape[1]):
            logits = q[b, head] @ k[b, head // group].T * scaling
            seen = mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])[b, head]
            out[b, head] = logits.masked_fill(~seen, -torch.inf).softmax(-1) @ v[b, head // group]
    return out


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("dims", [2, 3, 4])
def test_both_ways_give_what_the_mask_says(group, dims):
    draw = torch.Generator().manual_seed(group)
    q, k, v = (
        torch.randn(2, heads, n, 16, dtype=torch.float64, generator=draw)
        for heads, n in ((2 * group, 5), (2, 21), (2, 21))
    )
    mask = torch.rand(*(2, 2 * group, 5, 21)[4 - dims :], generator=draw) < 0.6
    mask[..., 0] = True
    expected = reference(q, k, v, 0.3, mask)
    for form in (masked_attention, repeated):
        assert torch.allclose(form(q, k, v, 0.3, mask), expected, atol=1e-12), form


def test_without_a_mask_it_is_causal():
    q, k, v = (torch.randn(1, heads, 9, 16, dtype=torch.float64) for heads in (6, 2, 2))
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    assert torch.allclose(masked_attention(q, k, v, 0.3), reference(q, k, v, 0.3, mask), atol=1e-12)


@pytest.mark.parametrize(("count", "length"), [(1, 1), (1, 9), (4, 9), (9, 9), (7, 130)])
def test_the_newest_tokens_see_all_before_them(count, length):
    draw = torch.Generator().manual_seed(length)
    sizes = ((6, count), (2, length), (2, length))
    q, k, v = (torch.randn(1, heads, n, 16, dtype=torch.float64, generator=draw) for heads, n in sizes)
    mask = torch.ones(count, length, dtype=torch.bool).tril(length - count)
    expected = reference(q, k, v, 0.3, mask)
    for form in (masked_attention, newest):
        assert torch.allclose(form(q, k, v, 0.3), expected, atol=1e-12), form
    # numbers of earlier runs: the same call of torch
    if count != length:
        assert torch.equal(masked_attention(q, k, v, 0.3), masked_attention(q, k, v, 0.3, mask))


@pytest.mark.parametrize("takes", [True, False])
def test_flash_attention_gets_grouped_heads_and_no_mask(monkeypatch, takes):
    seen = {}

    def flash(q, k, v, dropout, is_causal, return_debug_mask, scale):
        seen.update(heads=(q.shape[1], k.shape[1]), is_causal=is_causal, scale=scale)
        return [q * 0 + 7]

    monkeypatch.setattr(module, "can_use_flash_attention", lambda parameters: takes)
    monkeypatch.setattr(torch.nn.attention.bias, "can_use_flash_attention", lambda parameters: True)
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_flash_attention", flash)
    monkeypatch.setattr(module, "repeated", lambda *args: args)
    q, k = torch.randn(1, 8, 5, 16).bfloat16(), torch.randn(1, 2, 9, 16).bfloat16()
    out = newest(q, k, k, 0.3)
    if takes:
        assert seen == {"heads": (8, 2), "is_causal": True, "scale": 0.3} and (out == 7).all()
    else:
        assert not seen and out[1].shape == (1, 2, 9, 16) and out[4].shape == (5, 9)
