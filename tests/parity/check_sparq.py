"""Tokens and outputs of SparQ: github.com/graphcore-research/llm-inference-research, its AnnAttention.

python tests/parity/check_sparq.py PATH_OF_CLONE
"""

import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import torch
from common import difference, draw, load, main

from kvbench.kernels.sparse_decode import sparse_decode
from kvbench.methods import build


def compare(clone: Path, pick: random.Random) -> Iterator[str | None]:
    package = clone / "llminference"
    for name, folder in (("llminference", package), ("llminference.methods", package / "methods")):
        if name not in sys.modules:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = [str(folder)]
    load(clone, "llminference/methods/sparse_attention.py", "llminference.methods.sparse_attention")
    official = load(clone, "llminference/methods/ann_attention.py", "llminference.methods.ann_attention")
    query_heads, heads = pick.choice([(4, 4), (8, 2), (6, 2)])
    length, dim, rank = pick.randrange(40, 300), 32, pick.choice([4, 16, 32])
    tokens, recent, mean = pick.randrange(8, length - 1), pick.choice([0, 4, 16]), pick.random() < 0.5
    recent = min(recent, tokens - 1)
    q, k, v = draw(pick, query_heads, heads, length, dim)
    now = q[:, :, -1]
    settings = official.Settings(tokens - 1, recent, mean, "sparse_q", rank=rank)
    attention = official.AnnAttention(settings, heads, dim)
    attention.debug_indices = []
    theirs, _ = attention(now[:, :, None], k, v, torch.zeros(1, query_heads, 1, length))

    selection = build({"method": "sparq", "channels": rank, "recent": recent, "reallocate": mean}).selection
    state, filled, empty = selection.prepare(k, v, 1, 0), torch.tensor(length), k[:, :, :0]
    grouped = now.unflatten(1, (heads, -1))
    slots = selection.select(grouped, k, empty, filled, state, tokens, dim**-0.5)
    (indices,) = attention.debug_indices
    for head in range(heads):
        expected = sorted(indices[0, head, 0, 0].tolist())
        yield difference(f"head {head}", expected, sorted(slots[0, head].tolist()))
    out, lse = sparse_decode(grouped, k, v, k[:, :, :1], v[:, :, :1], torch.tensor(0), dim**-0.5, slots)
    if selection.combines:
        out = selection.combine(out, lse, state)
    error = float((out.flatten(1, 2)[:, :, None] - theirs).abs().max())
    yield None if error < 1e-4 else f"output: off by {error:.2g}"


if __name__ == "__main__":
    sys.exit(main(compare, __doc__))
