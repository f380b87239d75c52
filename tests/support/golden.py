"""The deterministic tensors behind the golden hashes of kept positions, and the hash itself."""

import hashlib
import json

import numpy as np
import torch

from kvbench.methods import Kept, LayerSnapshot

QUERY_HEADS, KV_HEADS, LENGTH, DIM = 8, 2, 331, 16


def numbers(count: int, seed: int) -> np.ndarray:
    """`count` numbers in [-0.5, 0.5) from the splitmix64 mix of `(i + seed * 2**32) * golden ratio`."""
    with np.errstate(over="ignore"):
        z = (np.arange(count, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5


def snapshot(window: int = 64, layer: int = 0, num_layers: int = 1) -> LayerSnapshot:
    """One layer of 8 query heads, 2 KV heads, 331 tokens and 16 channels, fp32."""
    q = torch.from_numpy(numbers(QUERY_HEADS * LENGTH * DIM, 1) * 8).float().view(QUERY_HEADS, LENGTH, DIM)
    k, v = (
        torch.from_numpy(numbers(KV_HEADS * LENGTH * DIM, seed) * scale).float().view(KV_HEADS, LENGTH, DIM)
        for seed, scale in ((2, 4), (3, 1))
    )
    return LayerSnapshot(k, v, q[:, LENGTH - window :], layer, num_layers, DIM**-0.5)


def digest(kept: Kept) -> str:
    """Hash of the sorted kept positions per KV head."""
    lists = [positions.tolist() for positions in kept.positions]
    return hashlib.sha256(json.dumps(lists, separators=(",", ":")).encode()).hexdigest()[:16]
