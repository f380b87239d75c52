"""Tokens that H2O holds after the prompt and after decode steps: github.com/FMInference/H2O, utils_real_drop.

python tests/parity/check_h2o.py PATH_OF_CLONE
"""

import random
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from common import difference, draw, load, main, positions

from kvbench.kernels.attention_sum import attention_sum
from kvbench.methods import LayerSnapshot, Quota, build
from kvbench.methods.base import StepView

STEPS = 12


def compare(clone: Path, pick: random.Random) -> Iterator[str | None]:
    official = load(clone, "h2o_hf/utils_real_drop/modify_llama.py")
    heads, length, dim = pick.choice([2, 4]), pick.randrange(30, 150), 16
    heavy, recent = pick.randrange(1, length // 2), pick.randrange(1, length // 2)
    tokens, share = heavy + recent, recent / (heavy + recent)
    if int(tokens * share) != recent:
        return
    q, k, v = draw(pick, heads, heads, length + STEPS, dim)
    with redirect_stdout(StringIO()):
        cache = official.H2OKVCache_LayerWise(heavy, recent)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    logits = q[:, :, :length] @ k[:, :, :length].transpose(2, 3) / dim**0.5
    held = cache((k[:, :, :length], v[:, :, :length]), logits.masked_fill(future, -torch.inf).softmax(-1))

    method = build({"method": "h2o", "recent": share}).eviction
    layer = LayerSnapshot(k[0, :, :length], v[0, :, :length], q[0, :, :length], 0, 1, dim**-0.5)
    layer.attention_sum_QT = attention_sum(layer.q_QWD, layer.k_HTD, layer.scaling)
    scores = method.scores(layer)
    kept = method.keep(layer, scores, Quota(tokens))
    carried = method.carry(layer, scores, kept)
    sums, ours = torch.stack(carried["sums"])[None], [row.tolist() for row in kept.positions]
    for at in range(length, length + STEPS):
        for head in range(heads):
            yield difference(f"before {at}, head {head}", positions(held[0][0, head], k[0, head]), ours[head])
        held = tuple(torch.cat([x, y[:, :, at : at + 1]], 2) for x, y in zip(held, (k, v), strict=True))
        probs = (q[:, :, at : at + 1] @ held[0].transpose(2, 3) / dim**0.5).softmax(-1)
        held = cache(held, probs)
        ours = [[*row, at] for row in ours]
        seen = torch.stack([k[0, head, row] for head, row in enumerate(ours)])[None]
        probs = (q[:, :, at : at + 1] @ seen.transpose(2, 3) / dim**0.5).softmax(-1)[:, :, None]
        sums = torch.nn.functional.pad(sums, (0, 1))
        gone = method.step(StepView(attention=lambda p=probs: p, carried={"sums": sums}), 1)
        assert gone is not None
        stays = torch.ones(sums.shape, dtype=torch.bool).scatter(2, gone, False)
        ours = [
            [p for p, s in zip(row, stay, strict=True) if s] for row, stay in zip(ours, stays[0], strict=True)
        ]
        sums = sums[stays].view(1, heads, -1)


if __name__ == "__main__":
    sys.exit(main(compare, __doc__, cases=100))
