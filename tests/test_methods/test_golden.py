"""Kept positions equal those of kvpress 0.5.5 on the same tensors, by their hashes."""

import pytest
import torch
from kvbench_testing.golden import digest, future_rope, snapshot, tensors

import kvbench
from kvbench.methods import Quota
from kvbench.methods.chunkkv import ChunkKV

KVPRESS = {"mode": "kvpress", "window": 64, "kernel": 5}
SNAPKV = {**KVPRESS, "pool": "avg"}

# method, parameters, layer of 4, ratio retained, tokens kept per KV head, hash
GOLDEN = [
    ("snapkv", SNAPKV, 0, "0.5", [165, 165], "9e455a81d1eebf88"),
    ("snapkv", SNAPKV, 0, "0.2", [66, 66], "b84cf4a8b5d86fcb"),
    ("chunkkv", {**KVPRESS, "chunk": 10}, 0, "0.5", [161, 161], "43661e8316291b85"),
    ("chunkkv", {**KVPRESS, "chunk": 20}, 0, "0.5", [151, 151], "6ffa3d82e2a7082b"),
    ("chunkkv", {**KVPRESS, "chunk": 20}, 0, "0.2", [51, 51], "a3b23ad9220517ed"),
    ("chunkkv", {**KVPRESS, "chunk": 10, "scorer": "knorm"}, 0, "0.5", [161, 161], "89a86ce10feb10fa"),
    ("chunkkv", {**KVPRESS, "chunk": 10, "scorer": "knorm"}, 0, "0.2", [51, 51], "2b8b73f059b0fe90"),
    ("egchunkkv", {}, 0, "0.5", [165, 165], "a3ab396a0c0f1658"),
    ("egchunkkv", {}, 0, "0.2", [66, 66], "bb6383d4387b5ac5"),
    ("tova", {"mode": "kvpress"}, 0, "0.5", [165, 165], "d1ed62074617eda1"),
    ("tova", {"mode": "kvpress"}, 0, "0.2", [66, 66], "2e37e4611bda81f7"),
    ("knorm", {}, 0, "0.5", [165, 165], "c21c5565a0076cde"),
    ("knorm", {}, 0, "0.2", [66, 66], "70fe7e4374b330ff"),
    ("keydiff", {}, 0, "0.5", [165, 165], "f1265f395a3f6f20"),
    ("keydiff", {}, 0, "0.2", [66, 66], "4d55ac583ff730b4"),
    ("streaming_llm", {}, 0, "0.5", [165, 165], "1a4b1cba2eac4f04"),
    ("streaming_llm", {}, 0, "0.2", [66, 66], "e6b8b4e916702791"),
    ("expected_attention", {}, 0, "0.5", [165, 165], "dc54683b1a4dd524"),
    ("expected_attention", {}, 0, "0.2", [66, 66], "f3785b5d1d32f7e0"),
    ("observed_attention", {}, 0, "0.5", [165, 165], "ec13254e5d4aaea3"),
    ("observed_attention", {}, 0, "0.2", [66, 66], "2d6b11436215f251"),
    ("pyramidkv", SNAPKV, 0, "0.5", [267, 267], "8fcc85f9865ece05"),
    ("pyramidkv", SNAPKV, 1, "0.5", [199, 199], "4f6e6783a678871b"),
    ("pyramidkv", SNAPKV, 2, "0.5", [132, 132], "8ac4b42a68fe2b76"),
    ("pyramidkv", SNAPKV, 3, "0.5", [64, 64], "8d4316837c8056cf"),
    # kvpress's fallback: the same budget in every layer, as SnapKV
    ("pyramidkv", SNAPKV, 0, "0.2", [66, 66], "b84cf4a8b5d86fcb"),
    ("pyramidkv", SNAPKV, 3, "0.2", [66, 66], "b84cf4a8b5d86fcb"),
    ("adakv", SNAPKV, 0, "0.5", [176, 154], "af9856f712753bbf"),
    ("adakv", SNAPKV, 0, "0.2", [66, 66], "b84cf4a8b5d86fcb"),
]


@pytest.mark.parametrize(("method", "params", "layer", "ratio", "counts", "expected"), GOLDEN)
def test_kept_positions_are_those_of_kvpress(method, params, layer, ratio, counts, expected):
    (kept,) = kvbench.keep(
        method, *tensors(), ratio=ratio, layer=layer, num_layers=4, rope=future_rope(), **params
    )
    assert [len(positions) for positions in kept] == counts
    assert digest(kept) == expected


def test_chunkkv_as_kvpress_breaks_its_boundary_tie_towards_the_start():
    # kvpress keeps 51 tokens here: five whole chunks and the one-token tail, which ties with whole ones
    layer, method = snapshot(), ChunkKV(**KVPRESS, chunk=10)
    chunks = method.scores(layer)
    kept = method.keep(layer, chunks, Quota(66, "0.2"))
    assert len((kept.positions[0] // 10).unique()) == int(34 * (1 - 0.8)) == 6
    ranked = chunks.scores_HC[0].sort(descending=True).values
    assert torch.equal(ranked[5], ranked[6]), "the hash is not checked because of this tie"
