"""Claims about vLLM, checked against its paging arithmetic and its source."""

from __future__ import annotations

from collections.abc import Mapping

from kvbench.claims.claim import Finding, Reading


def pool_tokens(
    layers: int, kv_heads: int, head_dim: int, element: int, gib: float, block: int, rounding: float
) -> Finding:
    """Tokens held by the whole blocks of a pool whose printed size is rounded.

    Args:
        layers: layers of the model.
        kv_heads: KV heads per layer.
        head_dim: channels per head.
        element: bytes per number.
        gib: printed size of the pool.
        block: tokens per block.
        rounding: half a unit of the last digit of that size.
    """
    per_block = block * 2 * layers * kv_heads * head_dim * element
    low, value, high = (float((gib + off) * 2**30 // per_block * block) for off in (-rounding, 0.0, rounding))
    name = f"a pool of {gib - rounding:g} to {gib + rounding:g} GiB"
    return Finding((Reading(name=name, value=value, low=low, high=high, basis="formula"),))


def capacity_doubles(before: int, after: int) -> Finding:
    """Whether twice as many tokens fit with elements of `after` instead of `before` bytes: 1 or 0."""
    name = f"{before / after:g} times the tokens"
    return Finding((Reading(name=name, value=float(before == 2 * after), basis="formula"),))


def no_backend_for(compute_capability: int, backends: Mapping[str, int]) -> Finding:
    """Whether no attention backend stores FP8 K and V on a GPU: 1 or 0.

    Args:
        compute_capability: of the GPU, 80 for sm_80.
        backends: smallest compute capability with FP8 support, by backend.
    """
    able = [name for name, smallest in backends.items() if compute_capability >= smallest]
    name = f"{', '.join(able)} does" if able else f"none of {', '.join(backends)} does"
    return Finding((Reading(name=name, value=float(not able), basis="printed"),))


def option_exists(versions: Mapping[str, bool], then: str) -> Finding:
    """Whether vLLM had an option at the time of the claim, and besides whether the newest version has it: 1 or 0.

    Args:
        versions: whether each version has it, oldest first.
        then: the version to judge by.
    """
    *_, newest = versions
    found = [Reading(name=f"in {then}", value=float(versions[then]), basis="printed")]
    if newest != then:
        found.append(
            Reading(name=f"in {newest}", value=float(versions[newest]), basis="printed", beside=True)
        )
    having = [version for version, there in versions.items() if there]
    return Finding(tuple(found), f"found in {', '.join(having) or 'none'}; looked at {', '.join(versions)}")
