"""ChunkKV: keeps or evicts whole chunks of consecutive tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from kvbench.config.errors import UserError
from kvbench.kernels.pool import chunk_sums, pool
from kvbench.kernels.top_k import top_k, top_k_mask
from kvbench.methods.base import BY_MODE, Eviction, Kept, LayerSnapshot, Quota, Shape
from kvbench.methods.keydiff import KeyDiff
from kvbench.methods.knorm import KNorm
from kvbench.methods.registry import register
from kvbench.methods.snapkv import SnapKV


class Chunks(NamedTuple):
    """The chunk of each token, `of_T`, and the score of each chunk, `scores_HC` (H = 1: one choice per layer)."""

    of_T: Tensor
    scores_HC: Tensor


@register("chunkkv")
@dataclass(frozen=True, kw_only=True)
class ChunkKV(Eviction):
    """Keeps the observation window and the chunks of tokens that it attends to most.

    `mode=paper`: the chunks before the window are ranked by their summed attention and taken in this order until budget
    - window tokens are kept; the last one is cut to its first tokens, so that the budget is met exactly. Each run of
    `n_reuse` layers shares the indices of its first layer. Algorithm 1 to the letter ranks the window's chunks too,
    takes the best floor(budget / chunk), cuts their tokens by position to budget - window, and appends the window. So a
    token of the window may be held twice, and the latest chosen chunks go whatever their rank; here the window's part
    of the budget is set aside first, and the last chunk by rank is cut. Both keep the same tokens where the window's
    chunks are among the chosen ones and the chunk divides window, budget and prompt: seldom, as 10 does not divide a
    window of 32. The softmax, which the pseudo-code omits, is used.

    `mode=kvpress`: as kvpress 0.5.5 around the press that `scorer` names: one ranking per layer, by the mean over the
    chunk of the sum over heads, and `int(chunks * fraction)` whole chunks but at least one, so that fewer tokens than
    the budget may be kept and parts of the window evicted.

    Both modes cut the prompt at `offset` and every `chunk` tokens from there. As an ablation, `chunks=sentence` or
    `chunks=punctuation` cuts it at boundaries of the text and, between them, every `chunk` tokens; chunks of unequal
    length are ranked by their mean, and `mode=kvpress` then takes chunks while they fit.
    """

    differs = (
        "The paper's own evaluation code is not public; the paper links to kvpress, whose press uses chunks "
        "of 20, means instead of sums, SnapKV's pooled scores, int(chunks * fraction) whole chunks, and no "
        "index reuse, and may drop parts of its window."
    )
    source = (
        "Liu et al. 2025, arXiv 2502.00299, Algorithms 1 and 2; chunk 10 is the paper's, 20 kvpress'; "
        "boundary-aware chunks are kvbench's own"
    )
    budget_meaning = (
        "tokens kept per KV head, window included (kvpress: whole chunks, the same share of them as the "
        "budget is of the prompt, rounded down, at least one; a cut chunk counts as whole)"
    )

    positive = ("window", "chunk", "n_reuse", "kernel")
    source_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"window": 32, "chunk": 10, "kernel": 1},
        "kvpress": {"window": 64, "chunk": 20, "kernel": 5},
    }

    mode: Literal["paper", "kvpress"] = "paper"
    heads: Literal["layer", "kv_head"] = "layer"
    scorer: Literal["snapkv", "knorm", "keydiff"] = "snapkv"
    chunks: Literal["fixed", "sentence", "punctuation"] = "fixed"
    window: int = BY_MODE
    chunk: int = BY_MODE
    offset: int = 0
    n_reuse: int = 1
    kernel: int = BY_MODE

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "paper" and self.scorer != "snapkv":
            raise UserError(f"scorer: {self.scorer} needs mode=kvpress; mode=paper uses snapkv")
        if self.mode == "kvpress" and self.heads != "layer":
            raise UserError("heads: kv_head needs mode=paper; mode=kvpress chooses per layer")
        if not 0 <= self.offset < self.chunk:
            raise UserError(f"offset: {self.offset} is not in [0, chunk)")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset() if self.chunks == "fixed" else frozenset({"boundaries"})

    @property
    def meets_budget(self) -> bool:
        return self.mode == "paper"

    @property
    def excess(self) -> int:
        # the first and the last chunk may be cut but count as whole
        return 2 * (self.chunk - 1) if self.mode == "kvpress" and self.chunks == "fixed" else 0

    def layer_tokens(self, quota: Quota, shape: Shape) -> list[int]:
        tokens = quota.tokens
        if self.mode == "kvpress" and shape.compressed >= self.chunk:
            tokens = max(tokens, self.chunk)
        return [tokens] * shape.num_layers

    def scores(self, snapshot: LayerSnapshot) -> Chunks:
        """The chunks before the window, or all of them in `mode=kvpress`."""
        if self.mode == "kvpress":
            scores_HT = press_scores(self.scorer, snapshot, self.window, self.kernel).sum(0, keepdim=True)
        else:
            window = snapshot.observed(self.window)
            early_QT = snapshot.window_scores(window)[:, : snapshot.length - window]
            scores_HT = early_QT.unflatten(0, (snapshot.heads, -1)).sum(1)
            if self.heads == "layer":
                scores_HT = scores_HT.sum(0, keepdim=True)
            scores_HT = pool(scores_HT, self.kernel, "max")
        if self.chunks == "fixed":
            position = torch.arange(scores_HT.shape[1], device=scores_HT.device)
            of_T = (position + -self.offset % self.chunk) // self.chunk
            scores_HC = chunk_sums(scores_HT, self.chunk, self.offset)
            return Chunks(of_T, scores_HC if self.mode == "paper" else scores_HC / of_T.bincount())
        of_T, place_T = self._cut(snapshot, scores_HT.shape[1])
        sizes = of_T.bincount()
        # one row per chunk, so that sums have the same order on every device
        rows_HX = scores_HT.new_zeros(len(scores_HT), len(sizes) * self.chunk)
        rows_HX[:, of_T * self.chunk + place_T] = scores_HT
        return Chunks(of_T, rows_HX.view(len(scores_HT), len(sizes), self.chunk).sum(-1) / sizes)

    def keep(self, snapshot: LayerSnapshot, scores: Any, quota: Quota) -> Kept:
        if snapshot.layer % self.n_reuse:
            return quota.earlier[snapshot.layer - snapshot.layer % self.n_reuse]
        if self.mode == "kvpress":
            return self._keep_kvpress(snapshot, scores, quota)
        early = len(scores.of_T)
        tail = torch.arange(early, snapshot.length, device=scores.of_T.device)
        if quota.tokens <= len(tail):
            return Kept([tail[len(tail) - quota.tokens :]] * snapshot.heads)
        rows = [_fill(row, scores.of_T, quota.tokens - len(tail)) for row in scores.scores_HC]
        return Kept([torch.cat([row, tail]) for row in rows] * (snapshot.heads // len(rows)))

    def _cut(self, snapshot: LayerSnapshot, length: int) -> tuple[Tensor, Tensor]:
        """Chunks cut at the text's boundaries: of each of the first `length` tokens the chunk and the place in it."""
        position = torch.arange(length, device=snapshot.k_HTD.device)
        begins = position == 0
        assert snapshot.boundaries_T is not None
        ends = snapshot.boundaries_T >= (2 if self.chunks == "sentence" else 1)
        begins[1:] |= ends[: max(0, length - 1)]
        begun = torch.where(begins, position, 0).cummax(0).values if length else position
        place = (position - begun) % self.chunk
        return (place == 0).cumsum(0) - 1, place

    def _keep_kvpress(self, snapshot: LayerSnapshot, chunks: Chunks, quota: Quota) -> Kept:
        if snapshot.length < self.chunk:
            return Kept.uniform(
                top_k(press_scores(self.scorer, snapshot, self.window, self.kernel), quota.tokens)
            )
        total = chunks.scores_HC.shape[1]
        if self.chunks != "fixed":
            ranked = chunks.scores_HC[0].sort(descending=True, stable=True).indices
            count = int((chunks.of_T.bincount()[ranked].cumsum(0) <= quota.tokens).sum())
        elif quota.ratio is None:
            count = total * quota.tokens // snapshot.length
        else:
            # kvpress rounds in binary floating point from the fraction removed: int(10 * (1 - 0.8)) is 1
            count = int(total * (1 - float(1 - Decimal(quota.ratio))))
        chosen = top_k_mask(chunks.scores_HC[0], max(1, count))
        return Kept([chosen[chunks.of_T].nonzero()[:, 0]] * snapshot.heads)


def _fill(scores_C: Tensor, of_T: Tensor, tokens: int) -> Tensor:
    """Positions of the first `tokens` tokens of the chunks in order of rank; ascending."""
    rank_C = scores_C.sort(descending=True, stable=True).indices.argsort()
    return rank_C[of_T].argsort(stable=True)[:tokens].sort().values


def press_scores(scorer: str, snapshot: LayerSnapshot, window: int, kernel: int) -> Tensor:
    """Scores of all tokens in kvpress 0.5.5 `[H, T]`; SnapKV's window scores above all others."""
    if scorer == "knorm":
        return KNorm().scores(snapshot)
    if scorer == "keydiff":
        return KeyDiff().scores(snapshot)
    window = snapshot.observed(window)
    snapkv = SnapKV(mode="kvpress", window=window, kernel=kernel, pool="avg")
    early_HT = snapkv.scores(snapshot) / window
    highest = early_HT.max() + 1 if early_HT.numel() else torch.ones(())
    return torch.cat([early_HT, highest.to(early_HT).expand(snapshot.heads, window)], dim=-1)
