"""Pages that Quest reads: github.com/mit-han-lab/Quest, the rule of its CUDA path and that of its evaluation path.

    python tests/parity/check_quest.py PATH_OF_CLONE

The CUDA path's rule is the torch reference of its own tests. The evaluation path does not force the newest page: only
steps where it is chosen anyway are compared.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from common import difference, draw, expanded, load, main

import kvbench


def compare(clone: Path, pick: random.Random) -> Iterator[str | None]:
    page = pick.choice([4, 16])
    query_heads, heads = pick.choice([(4, 4), (8, 2)])
    length, pages = pick.randrange(6 * page, 20 * page), pick.randrange(3, 6)
    q, k, v = draw(pick, query_heads, heads, length, 32)
    now, wide_k, wide_v = q[:, :, -1], expanded(k, query_heads // heads), expanded(v, query_heads // heads)
    settings = {"heads": "query_head", "page": page, "dense_layers": 0, "tokens": pages * page}
    (ours,) = kvbench.select("quest", now, k, v, **settings)

    cuda = load(clone, "quest/tests/test_approx_attention.py")
    _, chosen = cuda._ref_self_approx_attention(
        now, *(x[0].transpose(0, 1) for x in (wide_k, wide_v)), page, pages
    )
    newest = (length - 1) // page
    for head, slots in enumerate(ours):
        theirs = sorted({newest, *chosen[head].tolist()})
        yield difference(f"CUDA path, head {head}", theirs, sorted({n // page for n in slots.tolist()}))

    evaluation = load(clone, "evaluation/quest_attention.py")
    padded = torch.nn.functional.pad(wide_k[0], (0, 0, 0, -length % page), value=torch.nan).unflatten(
        1, (-1, page)
    )
    high, low = padded.nan_to_num(-torch.inf).amax(2), padded.nan_to_num(torch.inf).amin(2)
    bounds = torch.maximum(now[0, :, None] * high, now[0, :, None] * low).sum(-1)
    mask = evaluation.local_heavy_hitter_mask(
        bounds.repeat_interleave(page, 1)[None, :, None, :length], pages * page, page
    )[0, :, 0]
    for head, slots in enumerate(ours):
        if mask[head, -1]:
            theirs = mask[head].nonzero()[:, 0].tolist()
            yield difference(f"evaluation path, head {head}", theirs, slots.tolist())


if __name__ == "__main__":
    sys.exit(main(compare, __doc__))
