"""Tokens that TOVA holds after the prompt and after decode steps: github.com/schwartz-lab-NLP/TOVA, its TOVACache.

python tests/parity/check_tova.py PATH_OF_CLONE
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from common import difference, draw, expanded, load, main, positions

from kvbench.methods import LayerSnapshot, Quota, build
from kvbench.methods.base import StepView

STEPS = 12


def attention(q_1QD: torch.Tensor, k_1HCD: torch.Tensor) -> torch.Tensor:
    """Attention of one token of every query head `[1, Q, 1, C]`."""
    k = expanded(k_1HCD, q_1QD.shape[1] // k_1HCD.shape[1])
    return (q_1QD[:, :, None] @ k.transpose(2, 3) / k.shape[-1] ** 0.5).softmax(-1)


def compare(clone: Path, pick: random.Random) -> Iterator[str | None]:
    official = load(clone, "src/tova_cache.py")
    query_heads, heads = pick.choice([(4, 4), (8, 2), (6, 2)])
    length, dim = pick.randrange(20, 150), 16
    tokens = pick.randrange(2, length)
    q, k, v = draw(pick, query_heads, heads, length + STEPS, dim)
    # the class builds on a cache that transformers has changed since; its rule needs only these
    cache = SimpleNamespace(cache_size=tokens, key_cache=[k[:, :, :length]], value_cache=[v[:, :, :length]])
    official.TOVACache.reduce(cache, 0, attention(q[:, :, length - 1], k[:, :, :length]))

    method = build({"method": "tova"}).eviction
    layer = LayerSnapshot(k[0, :, :length], v[0, :, :length], q[0, :, :length], 0, 1, dim**-0.5)
    ours = method.keep(layer, method.scores(layer), Quota(tokens)).positions[0].tolist()
    for at in range(length, length + STEPS):
        for head in range(heads):
            theirs = positions(cache.key_cache[0][0, head], k[0, head])
            yield difference(f"before {at}, head {head}", theirs, ours)
        for held, new in ((cache.key_cache, k), (cache.value_cache, v)):
            held[0] = torch.cat([held[0], new[:, :, at : at + 1]], 2)
        official.TOVACache.reduce(cache, 0, attention(q[:, :, at], cache.key_cache[0]))
        ours = [*ours, at]
        probs = attention(q[:, :, at], k[:, :, ours]).unflatten(1, (heads, -1))
        gone = method.step(StepView(attention=lambda p=probs: p), 1)
        assert gone is not None
        ours = [p for n, p in enumerate(ours) if n not in gone[0, 0].tolist()]


if __name__ == "__main__":
    sys.exit(main(compare, __doc__, cases=100))
