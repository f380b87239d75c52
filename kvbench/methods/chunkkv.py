"""ChunkKV: whole chunks of consecutive tokens are kept or evicted."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import torch
from torch import Tensor

from kvbench.kernels.top_k import top_k
from kvbench.kernels.window_scores import pool
from kvbench.methods.base import Eviction, Kept, LayerSnapshot
from kvbench.methods.registry import register


@register("chunkkv")
@dataclass(frozen=True, kw_only=True)
class ChunkKV(Eviction):
    """Keeps the chunks that the observation window attends to most, and the window.

    `mode=paper`: chunks are ranked by their summed attention; those before the window compete for budget - window
    tokens, in order of rank, the last one cut to its first tokens so that the budget is met exactly. The paper takes
    the window from the tail of the selection instead, which is the same when the window's chunks rank first; softmax
    is used, which its pseudo-code leaves out. `n_reuse` layers share the indices of the first of them.
    `mode=kvpress`: as kvpress 0.5.5 with its SnapKV scores (softmax, averaged over the window, pooled by 5, mean over
    the group): one ranking per layer by the mean over the chunk of the sum over heads, the window padded with the
    highest score, `int(chunks * fraction)` whole chunks, so that fewer tokens than the budget may be kept.
    """

    source = "Liu et al. 2025, arXiv 2502.00299, Algorithms 1 and 2; chunk 10 is the paper's, 20 kvpress' default"
    budget_meaning = "tokens kept per KV head, window included (kvpress: whole chunks, rounded down)"

    mode: Literal["paper", "kvpress"] = "paper"
    heads: Literal["layer", "kv_head"] = "layer"
    window: int = 32
    chunk: int = 10
    n_reuse: int = 1
    kernel: int = 1

    def scores(self, snapshot: LayerSnapshot) -> Tensor:
        """Score of each chunk, `[H, C]` (`[1, C]` for one choice per layer)."""
        window = min(self.window, snapshot.length)
        raw_QT = snapshot.window_scores(window)
        if self.mode == "kvpress":
            early_QT = pool(raw_QT[:, : snapshot.length - window] / window, self.kernel, "avg")
            early_HT = early_QT.unflatten(0, (snapshot.heads, -1)).mean(1)
            highest = early_HT.max() + 1 if early_HT.numel() else torch.tensor(1.0)
            padding = highest.expand(snapshot.heads, window).to(early_HT)
            return _chunk_sums(torch.cat([early_HT, padding], -1).sum(0, keepdim=True), self.chunk, mean=True)
        early_HT = raw_QT[:, : snapshot.length - window].unflatten(0, (snapshot.heads, -1)).sum(1)
        if self.heads == "layer":
            early_HT = early_HT.sum(0, keepdim=True)
        return _chunk_sums(pool(early_HT, self.kernel, "max"), self.chunk, mean=False)

    def keep(
        self, snapshot: LayerSnapshot, scores: Any, tokens: int, earlier: Sequence[Kept], ratio: str | None = None
    ) -> Kept:
        if snapshot.layer % self.n_reuse:
            return earlier[snapshot.layer - snapshot.layer % self.n_reuse]
        if self.mode == "kvpress":
            return self._keep_kvpress(snapshot, scores, tokens, ratio)
        window = min(self.window, snapshot.length)
        early = snapshot.length - window
        tail = torch.arange(early, snapshot.length, device=scores.device)
        if tokens <= window:
            return Kept([tail[window - tokens :]] * snapshot.heads)
        rows = [torch.cat([_fill(row, self.chunk, early, tokens - window), tail]) for row in scores]
        return Kept(rows * (snapshot.heads // len(rows)))

    def _keep_kvpress(self, snapshot: LayerSnapshot, scores: Tensor, tokens: int, ratio: str | None) -> Kept:
        chunks = scores.shape[1]
        if ratio is None:
            count = chunks * tokens // snapshot.length
        else:
            # kvpress rounds in binary floating point from the fraction removed: int(10 * (1 - 0.8)) is 1
            count = int(chunks * (1 - float(1 - Decimal(str(ratio)))))
        chosen = top_k(scores[0], max(1, count))
        positions = (chosen[:, None] * self.chunk + torch.arange(self.chunk, device=scores.device)).flatten()
        return Kept([positions[positions < snapshot.length]] * snapshot.heads)


def _chunk_sums(scores_HT: Tensor, chunk: int, mean: bool) -> Tensor:
    """Sum (or mean over its own tokens) of each chunk `[H, ceil(T / chunk)]`, the last one possibly partial."""
    heads, length = scores_HT.shape
    chunks = -(-length // chunk)
    padded = torch.nn.functional.pad(scores_HT, (0, chunks * chunk - length))
    sums = padded.view(heads, chunks, chunk).sum(-1)
    if mean:
        sizes = torch.full((chunks,), chunk, device=sums.device)
        if chunks:
            sizes[-1] = length - (chunks - 1) * chunk
        sums = sums / sizes
    return sums


def _fill(scores_C: Tensor, chunk: int, length: int, tokens: int) -> Tensor:
    """Positions of whole chunks by rank until `tokens` are filled, the last one cut; ascending."""
    order = scores_C.sort(descending=True, stable=True).indices
    positions = (order[:, None] * chunk + torch.arange(chunk, device=order.device)).flatten()
    return positions[positions < length][:tokens].sort().values
