"""Compares kept positions with kvpress 0.5.5 on random tensors; exits 1 if any differ.

kvpress needs transformers < 5.3, so it needs its own environment:

    python -m venv kvpress-env
    kvpress-env/bin/pip install torch kvpress==0.5.5
    kvpress-env/bin/pip install --no-deps .
    kvpress-env/bin/python tests/parity/check_kvpress.py --cases 400

A case is one draw of queries, keys and values with real RoPE, a grouping of heads, a length and a fraction to
remove. Cases that kvpress leaves to chance or gets wrong are skipped: budgets that hold only part of its
observation window, whose tokens all score the same, and under ChunkKV the rows of a batch after the first, which
get the first one's chunks.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import kvpress
import torch
from torch import Tensor, nn

import kvbench

SHAPES = [(4, 4), (6, 2), (8, 2)]
REMOVED = ["0.1", "0.25", "0.3", "0.5", "0.7", "0.8", "0.9"]
LAYERS = 5


@dataclass
class Case:
    """One layer of a model: queries before and after RoPE, keys after it, values, and the fraction to remove."""

    q_pre: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    cos: Tensor
    sin: Tensor
    removed: str
    layer: int

    @property
    def length(self) -> int:
        return self.k.shape[2]

    @property
    def tokens(self) -> int:
        """Tokens that kvpress keeps, in its binary floating point."""
        return max(1, int(self.length * (1 - float(self.removed))))

    @property
    def kept_ratio(self) -> str:
        return str(round(1 - float(self.removed), 2))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def draw(seed: int) -> Case:
    """Case number `seed`."""
    pick, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    query_heads, heads = pick.choice(SHAPES)
    dim, length, batch = pick.choice([16, 32, 64]), pick.randrange(70, 700), pick.choice([1, 1, 2])
    angles = torch.arange(length + 512)[:, None] * 10_000.0 ** (-torch.arange(0, dim, 2) / dim)
    cos, sin = (f(torch.cat([angles, angles], -1)) for f in (torch.cos, torch.sin))
    # queries with a non-zero mean, as in real models
    q_pre = torch.randn(batch, query_heads, length, dim, generator=generator) * pick.choice([0.5, 1.0, 2.0])
    q_pre += torch.randn(1, query_heads, 1, dim, generator=generator)
    k_pre, v = (torch.randn(batch, heads, length, dim, generator=generator) for _ in range(2))
    q, k = (rotate(x, cos[:length], sin[:length]) for x in (q_pre, k_pre))
    return Case(q_pre, q, k, v, cos, sin, pick.choice(REMOVED), pick.randrange(LAYERS))


class Rotary(nn.Module):
    """The model's rotary embedding, from a table."""

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        super().__init__()
        self.cos, self.sin = cos, sin

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.cos[positions], self.sin[positions]


class Attention(nn.Module):
    """The parts of an attention module that kvpress uses; its hidden states are the queries."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            num_attention_heads=case.q.shape[1],
            num_key_value_heads=case.k.shape[1],
            num_hidden_layers=LAYERS,
            _attn_implementation="sdpa",
        )
        self.head_dim, self.layer_idx = case.k.shape[-1], case.layer
        self.q_proj, self.rotary_emb = nn.Identity(), Rotary(case.cos, case.sin)


def attention(case: Case) -> Tensor:
    """Causal attention probabilities `[B, Q, T, T]`."""
    k = case.k.repeat_interleave(case.q.shape[1] // case.k.shape[1], dim=1)
    logits = case.q @ k.transpose(2, 3) / k.shape[-1] ** 0.5
    future = torch.ones(case.length, case.length, dtype=torch.bool).triu(1)
    return logits.masked_fill(future, -torch.inf).softmax(-1)


def positions_of(press: object, case: Case, attentions: Tensor | None) -> list[list[list[int]]]:
    """Positions that a press keeps, by batch row and KV head, recovered from its keys or from what it masks."""
    module, batch, heads = Attention(case), case.k.shape[0], case.k.shape[1]
    hidden = case.q_pre.transpose(1, 2).flatten(2)
    embeddings = tuple(x[: case.length].expand(batch, -1, -1) for x in (case.cos, case.sin))
    kept, _ = press.compress(module, hidden, case.k, case.v, attentions, {"position_embeddings": embeddings})
    out = []
    masked = getattr(module, "masked_key_indices", None)
    alive = torch.ones(case.k.shape[:3], dtype=torch.bool)
    if masked is not None:
        alive[masked] = False
    for row in range(batch):
        out.append([])
        for head in range(heads):
            if masked is not None:
                out[row].append(alive[row, head].nonzero()[:, 0].tolist())
                continue
            at = {key.numpy().tobytes(): n for n, key in enumerate(case.k[row, head])}
            out[row].append(sorted(at[key.numpy().tobytes()] for key in kept[row, head]))
    return out


WINDOW = 64
#: its settings follow from the mode
LIKE_KVPRESS = {"mode": "kvpress"}


def always(case: Case) -> bool:
    return True


@dataclass
class Comparison:
    """A press, the equal method, and the cases in which kvpress leaves nothing to chance."""

    press: Callable[[float], object]
    method: str
    params: dict[str, object]
    fits: Callable[[Case], bool] = always
    by_ratio: bool = False
    rows: int | None = None
    attends: bool = False


def beyond_window(case: Case) -> bool:
    return case.length > WINDOW and case.tokens >= WINDOW


def beyond_sinks(case: Case) -> bool:
    """Whether the tokens guaranteed to each head include the four sinks, which tie with the highest score."""
    return int(case.tokens * 0.2) > 4


def pyramid_beyond_window(case: Case, beta: int) -> bool:
    press = kvpress.PyramidKVPress(float(case.removed), beta=beta)
    return case.length > WINDOW and press.get_layer_budget(Attention(case), case.length) >= WINDOW


def window_is_whole_chunks(case: Case) -> bool:
    """Whether no chunk of 10 holds only part of the window, of which the gate would keep any four tokens."""
    return beyond_window(case) and (case.length - WINDOW) % 10 == 0


def chunks_beyond_window(case: Case, chunk: int) -> bool:
    """Whether every chunk inside the window is kept, as they all score the same."""
    first_inside = -(-(case.length - WINDOW) // chunk)
    chunks = -(-case.length // chunk)
    return case.length > WINDOW and int(chunks * (1 - float(case.removed))) >= chunks - first_inside


def comparisons() -> dict[str, Comparison]:
    """Every press with an equal method."""
    found = {
        "SnapKV": Comparison(kvpress.SnapKVPress, "snapkv", LIKE_KVPRESS, beyond_window),
        "StreamingLLM": Comparison(kvpress.StreamingLLMPress, "streaming_llm", {}),
        "TOVA": Comparison(kvpress.TOVAPress, "tova", {"mode": "kvpress"}),
        "Knorm": Comparison(kvpress.KnormPress, "knorm", {}),
        "KeyDiff": Comparison(kvpress.KeyDiffPress, "keydiff", {}),
        "ExpectedAttention": Comparison(kvpress.ExpectedAttentionPress, "expected_attention", {}),
        "ObservedAttention": Comparison(
            kvpress.ObservedAttentionPress, "observed_attention", {}, attends=True
        ),
    }
    for beta in (2, 20):
        press = partial(kvpress.PyramidKVPress, beta=beta)
        fits = partial(pyramid_beyond_window, beta=beta)
        found[f"PyramidKV beta {beta}"] = Comparison(
            press, "pyramidkv", {**LIKE_KVPRESS, "beta": beta}, fits, by_ratio=True
        )
    for alpha in (0.2, 0.9):
        found[f"AdaKV(SnapKV) {alpha}"] = Comparison(
            lambda r, alpha=alpha: kvpress.AdaKVPress(kvpress.SnapKVPress(r), alpha),
            "adakv",
            {**LIKE_KVPRESS, "alpha": alpha},
            beyond_window,
        )
    found["AdaKV(ExpectedAttention)"] = Comparison(
        lambda r: kvpress.AdaKVPress(kvpress.ExpectedAttentionPress(r, epsilon=1e-2)),
        "adakv",
        {"mode": "kvpress", "scorer": "expected_attention"},
        beyond_sinks,
    )
    presses = {"snapkv": kvpress.SnapKVPress, "knorm": kvpress.KnormPress, "keydiff": kvpress.KeyDiffPress}
    for scorer, press in presses.items():
        for chunk in (7, 10, 20):
            # 20 is the default of both
            own, theirs = ({}, {}) if chunk == 20 else ({"chunk": chunk}, {"chunk_length": chunk})
            found[f"ChunkKV({scorer}) {chunk}"] = Comparison(
                lambda r, press=press, theirs=theirs: kvpress.ChunkKVPress(press(r), **theirs),
                "chunkkv",
                {**LIKE_KVPRESS, "scorer": scorer, **own},
                partial(chunks_beyond_window, chunk=chunk) if scorer == "snapkv" else always,
                by_ratio=True,
                rows=1,
            )
        found[f"EntropyGatedChunkKV({scorer})"] = Comparison(
            lambda r, press=press: kvpress.EntropyGatedChunkKVPress(press(r)),
            "egchunkkv",
            {"scorer": scorer},
            window_is_whole_chunks if scorer == "snapkv" else always,
            rows=1,
        )
    return found


def mismatches(comparison: Comparison, case: Case) -> Iterator[str]:
    """Descriptions of the heads for which the two keep different tokens."""
    attentions = attention(case) if comparison.attends else None
    theirs = positions_of(comparison.press(float(case.removed)), case, attentions)
    budget = {"ratio": case.kept_ratio} if comparison.by_ratio else {"tokens": case.tokens}
    ours = kvbench.keep(
        comparison.method, case.q, case.k, case.v, layer=case.layer, num_layers=LAYERS,
        rope=(case.cos, case.sin), **budget, **comparison.params,
    )  # fmt: skip
    for row in range(comparison.rows or len(theirs)):
        for head, (expected, got) in enumerate(zip(theirs[row], ours[row], strict=True)):
            if got.tolist() != expected:
                differ = len(set(got.tolist()) ^ set(expected))
                yield f"row {row}, head {head}: {len(got)} and {len(expected)} tokens kept, {differ} differ"


def main() -> int:
    """Runs the comparison and prints one line per method."""
    parser = argparse.ArgumentParser(description="kept positions of kvbench and kvpress on random tensors")
    parser.add_argument("--cases", type=int, default=400, help="draws per method")
    parser.add_argument("--only", default="", help="methods whose name contains this")
    args = parser.parse_args()
    failed = 0
    for name, comparison in comparisons().items():
        if args.only.lower() not in name.lower():
            continue
        started, compared, wrong = time.time(), 0, 0
        for seed in range(args.cases):
            case = draw(seed)
            if not comparison.fits(case):
                continue
            compared += 1
            found = list(mismatches(comparison, case))
            wrong += bool(found)
            for line in found[:1]:
                print(f"  {name}, case {seed} (T={case.length}, removed {case.removed}): {line}")
        failed += wrong
        print(f"{name:29} {compared:6} cases {wrong:4} mismatches {time.time() - started:6.1f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
