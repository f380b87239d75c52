"""Claims about vLLM, checked against its paging arithmetic and its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvbench.claims.claim import Finding, Reading


def kv_bytes_per_token(layers: int, kv_heads: int, head_dim: int, element: int) -> Finding:
    """Bytes of K and V of one token."""
    return Finding((Reading(value=_per_token(layers, kv_heads, head_dim, element), basis="formula"),))


def paged_capacity(
    layers: int, kv_heads: int, head_dim: int, element: int, pool_mib: int, block: int
) -> Finding:
    """Tokens held by the whole blocks of a pool."""
    per_block = block * _per_token(layers, kv_heads, head_dim, element)
    return Finding((Reading(value=pool_mib * 2**20 // per_block * block, basis="formula"),))


def capacity_gain(before: int, after: int) -> Finding:
    """Factor of tokens that fit with elements of `after` instead of `before` bytes."""
    return Finding((Reading(value=before / after, basis="formula"),))


def prefix_hit(shared: int, block: int) -> Finding:
    """Tokens of a shared prefix found in whole blocks."""
    return Finding((Reading(value=shared // block * block, basis="formula"),))


def backends_for(compute_capability: int, backends: Mapping[str, int]) -> Finding:
    """Whether any attention backend stores FP8 K and V on a GPU: 1 or 0.

    Args:
        compute_capability: of the GPU, 80 for sm_80.
        backends: smallest compute capability with FP8 support, by backend.
    """
    able = [name for name, smallest in backends.items() if compute_capability >= smallest]
    name = ", ".join(able) or f"none of {', '.join(backends)}"
    return Finding((Reading(name=name, value=float(bool(able)), basis="printed"),))


def option_exists(versions: Mapping[str, bool]) -> Finding:
    """Whether the newest inspected version has an option: 1 or 0.

    Args:
        versions: whether each version has it, oldest first.
    """
    *_, newest = versions
    having: Sequence[str] = [version for version, there in versions.items() if there]
    note = f"found in {', '.join(having) or 'none'}; looked at {', '.join(versions)}"
    return Finding((Reading(name=f"in {newest}", value=float(versions[newest]), basis="printed"),), note)


def _per_token(layers: int, kv_heads: int, head_dim: int, element: int) -> int:
    return 2 * layers * kv_heads * head_dim * element
