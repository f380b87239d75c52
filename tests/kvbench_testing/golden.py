"""The deterministic tensors behind the golden hashes of kept positions, and the hash itself."""

import hashlib
import json

import numpy as np
import torch

from kvbench.methods import LayerSnapshot

QUERY_HEADS, KV_HEADS, LENGTH, DIM = 8, 2, 331, 16


def numbers(count: int, seed: int) -> np.ndarray:
    """`count` numbers in [-0.5, 0.5) from the splitmix64 mix of `(i + seed * 2**32) * golden ratio`."""
    with np.errstate(over="ignore"):
        z = (np.arange(count, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5


def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values `[1, heads, 331, 16]`, fp32."""
    sizes = ((QUERY_HEADS, 1, 8), (KV_HEADS, 2, 4), (KV_HEADS, 3, 1))
    return tuple(
        torch.from_numpy(numbers(heads * LENGTH * DIM, seed) * scale).float().view(1, heads, LENGTH, DIM)
        for heads, seed, scale in sizes
    )  # type: ignore[return-value]


def snapshot(window: int = 64, layer: int = 0, num_layers: int = 1) -> LayerSnapshot:
    """One layer of 8 query heads, 2 KV heads, 331 tokens and 16 channels, fp32."""
    q, k, v = (x[0] for x in tensors())
    return LayerSnapshot(k, v, q[:, LENGTH - window :], layer, num_layers, DIM**-0.5)


def future_rope() -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of RoPE (base 10,000) after the prompt; positions inside it are not rotated."""
    angles = torch.arange(LENGTH + 512)[:, None] * 10_000.0 ** (-torch.arange(0, DIM, 2) / DIM)
    angles[:LENGTH] = 0
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def digest(kept: list[torch.Tensor]) -> str:
    """Hash of the sorted kept positions per KV head."""
    lists = [positions.tolist() for positions in kept]
    return hashlib.sha256(json.dumps(lists, separators=(",", ":")).encode()).hexdigest()[:16]
