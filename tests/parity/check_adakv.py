"""Kept tokens of AdaKV: github.com/FFY0/AdaKV, its AdaptiveSnapKVCluster, per query head and with --gqa_support.

python tests/parity/check_adakv.py PATH_OF_CLONE
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

from common import difference, draw, expanded, load, main, positions, ties_to_the_earlier

import kvbench


def compare(clone: Path, pick: random.Random) -> Iterator[str | None]:
    official = load(clone, "adaptive_snapkv/monkeypatch/snapkv_utils.py")
    query_heads, heads = pick.choice([(8, 2), (6, 2), (4, 2)])
    length, window, grouped = pick.randrange(120, 400), pick.choice([8, 32]), pick.random() < 0.5
    tokens, alpha, kernel = (
        pick.randrange(window + 4, length),
        pick.choice([0.0, 0.2, 0.5]),
        pick.choice([1, 7]),
    )
    q, k, v = draw(pick, query_heads, heads, length, 32)
    cluster = official.AdaptiveSnapKVCluster(
        window, kernel, "maxpool", tokens, alpha, skip=0, normalize=False, layer_idx=0, num_hidden_layers=4,
        gqa_support=grouped, num_key_value_groups=query_heads // heads, gqa_func="mean",
    )  # fmt: skip
    with ties_to_the_earlier():
        flat, _ = cluster.update_kv(k, q, v)
    held = k[0] if grouped else expanded(k, query_heads // heads)[0]
    settings = {
        "heads": "kv_head" if grouped else "query_head",
        "window": window,
        "kernel": kernel,
        "alpha": alpha,
    }
    (ours,) = kvbench.keep("adakv", q, k, v, tokens=tokens, **settings)
    for head, (part, kept) in enumerate(zip(flat.split(cluster.head_lens.tolist()), ours, strict=True)):
        yield difference(f"head {head}", positions(part, held[head]), kept.tolist())


if __name__ == "__main__":
    sys.exit(main(compare, __doc__))
