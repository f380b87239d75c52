"""Kept positions against hashes from the official or reference code."""

import pytest
import torch
from support.golden import LENGTH, digest, snapshot

from kvbench.methods.chunkkv import ChunkKV
from kvbench.methods.snapkv import SnapKV
from kvbench.methods.streaming_llm import StreamingLLM

KVPRESS = {"mode": "kvpress", "window": 64, "kernel": 5}


@pytest.mark.parametrize(("tokens", "expected"), [(165, "9e455a81d1eebf88"), (66, "b84cf4a8b5d86fcb")])
def test_snapkv_as_kvpress(tokens, expected):
    layer, method = snapshot(), SnapKV(**KVPRESS, pool="avg")
    assert digest(method.keep(layer, method.scores(layer), tokens, [])) == expected


@pytest.mark.parametrize(("tokens", "expected"), [(165, "1a4b1cba2eac4f04"), (66, "e6b8b4e916702791")])
def test_streaming_llm(tokens, expected):
    assert digest(StreamingLLM().keep(snapshot(), None, tokens, [])) == expected


@pytest.mark.parametrize(
    ("chunk", "ratio", "count", "expected"),
    [
        (10, "0.5", 161, "43661e8316291b85"),
        (20, "0.5", 151, "6ffa3d82e2a7082b"),
        (20, "0.2", 51, "a3b23ad9220517ed"),
    ],
)
def test_chunkkv_as_kvpress(chunk, ratio, count, expected):
    layer, method = snapshot(), ChunkKV(**KVPRESS, chunk=chunk)
    kept = method.keep(layer, method.scores(layer), int(float(ratio) * LENGTH), [], ratio)
    assert [len(p) for p in kept.positions] == [count, count]
    assert digest(kept) == expected


def test_chunkkv_as_kvpress_breaks_its_boundary_tie_towards_the_start():
    # kvpress keeps 51 tokens here: five whole chunks and the one-token tail, which ties with whole ones
    layer, method = snapshot(), ChunkKV(**KVPRESS, chunk=10)
    scores = method.scores(layer)
    kept = method.keep(layer, scores, 66, [], "0.2")
    chunks = (kept.positions[0] // 10).unique()
    assert len(chunks) == int(34 * (1 - 0.8)) == 6
    ranked = scores[0].sort(descending=True).values
    assert torch.equal(ranked[5], ranked[6]), "the hash is not checked because of this tie"
    assert torch.equal(chunks, scores[0].sort(descending=True, stable=True).indices[:6].sort().values)
