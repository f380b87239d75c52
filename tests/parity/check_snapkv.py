"""Kept tokens of SnapKV: github.com/FasterDecoding/SnapKV, its SnapKVCluster.

python tests/parity/check_snapkv.py PATH_OF_CLONE
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

from common import difference, draw, expanded, load, main, positions, ties_to_the_earlier

import kvbench


def compare(clone: Path, pick: random.Random) -> Iterator[str | None]:
    official = load(clone, "snapkv/monkeypatch/snapkv_utils.py")
    query_heads, heads = pick.choice([(4, 4), (8, 2), (6, 2)])
    length, window = pick.randrange(120, 400), pick.choice([8, 16, 32, 64])
    tokens, kernel = pick.randrange(window + 1, length), pick.choice([1, 5, 7, 63])
    pool = pick.choice(["max", "avg"])
    q, k, v = draw(pick, query_heads, heads, length, 32)
    wide_k, wide_v = expanded(k, query_heads // heads), expanded(v, query_heads // heads)
    cluster = official.SnapKVCluster(window, tokens, kernel, f"{pool}pool")
    with ties_to_the_earlier():
        theirs, _ = cluster.update_kv(wide_k, q, wide_v, None, query_heads // heads)
    settings = {"heads": "query_head", "window": window, "kernel": kernel, "pool": pool}
    (ours,) = kvbench.keep("snapkv", q, k, v, tokens=tokens, **settings)
    for head, kept in enumerate(ours):
        yield difference(f"head {head}", positions(theirs[0, head], wide_k[0, head]), kept.tolist())


if __name__ == "__main__":
    sys.exit(main(compare, __doc__))
