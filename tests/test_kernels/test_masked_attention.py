"""Attention of several tokens at once, by the calls of torch for a CPU and for a GPU."""

import pytest
import torch

from kvbench.kernels.masked_attention import masked_attention, repeated


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
