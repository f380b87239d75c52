"""The article's own code and figures about KV memory."""

from __future__ import annotations

from kvbench.claims.claim import Finding, Reading

GIB = 2**30


def article_kv_memory(
    tokens: int, layers: int, heads: int, head_dim: int, element: int, kv_heads: int, printed: float
) -> Finding:
    """The result of the article's function for the article's arguments, and with grouped-query attention."""
    per_token = 2 * layers * head_dim * element
    multi_head, grouped = (per_token * n * tokens / GIB for n in (heads, kv_heads))
    fits = printed * GIB / (per_token * heads)
    return Finding(
        (
            Reading(name="the article's function", value=multi_head, basis="formula"),
            Reading(name=f"with {kv_heads} KV heads", value=grouped, basis="formula", beside=True),
        ),
        f"{printed} GiB is what {fits / 1000:.0f}k tokens take",
    )
