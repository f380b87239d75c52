"""Kept tokens of PyramidKV: github.com/Zefan-Cai/KVCache-Factory, its PyramidKVCluster.

python tests/parity/check_pyramidkv.py PATH_OF_CLONE
"""

import random
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from common import difference, draw, expanded, load, main, positions, ties_to_the_earlier

import kvbench


def compare(clone: Path, pick: random.Random) -> Iterator[str | None]:
    official = load(clone, "pyramidkv/pyramidkv_utils.py")
    query_heads, heads = pick.choice([(4, 4), (8, 2), (6, 2)])
    length, window, layers = pick.randrange(120, 500), pick.choice([8, 32]), pick.choice([4, 8, 32])
    tokens, beta, layer = (
        pick.randrange(window + 20, length),
        pick.choice([2, 10, 20]),
        pick.randrange(layers),
    )
    q, k, v = draw(pick, query_heads, heads, length, 32)
    wide_k, wide_v = expanded(k, query_heads // heads), expanded(v, query_heads // heads)
    cluster = official.PyramidKVCluster(layers, window, tokens, 7, "maxpool", beta, layer_idx=layer)
    with ties_to_the_earlier(), redirect_stdout(StringIO()):
        theirs, _ = cluster.update_kv(wide_k, q, wide_v, None, query_heads // heads)
    settings = {"heads": "query_head", "window": window, "kernel": 7, "beta": beta}
    (ours,) = kvbench.keep("pyramidkv", q, k, v, tokens=tokens, layer=layer, num_layers=layers, **settings)
    for head, kept in enumerate(ours):
        yield difference(
            f"layer {layer}, head {head}", positions(theirs[0, head], wide_k[0, head]), kept.tolist()
        )


if __name__ == "__main__":
    sys.exit(main(compare, __doc__))
