"""Tokens that StreamingLLM holds: github.com/mit-han-lab/streaming-llm, its StartRecentKVCache.

python tests/parity/check_streaming_llm.py PATH_OF_CLONE
"""

import random
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from common import difference, draw, load, main, positions

import kvbench


def compare(clone: Path, pick: random.Random) -> Iterator[str | None]:
    official = load(clone, "streaming_llm/kv_cache.py")
    length, sinks = pick.randrange(20, 300), pick.choice([0, 1, 4, 8])
    recent = pick.randrange(1, length - sinks)
    q, k, v = draw(pick, 4, 2, length, 16)
    with redirect_stdout(StringIO()):
        cache = official.StartRecentKVCache(sinks, recent)
    ((theirs, _),) = cache([[k, v]])
    (ours,) = kvbench.keep("streaming_llm", q, k, v, tokens=sinks + recent, sinks=sinks)
    for head, kept in enumerate(ours):
        yield difference(f"head {head}", positions(theirs[0, head], k[0, head]), kept.tolist())


if __name__ == "__main__":
    sys.exit(main(compare, __doc__))
