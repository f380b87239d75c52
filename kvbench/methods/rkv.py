"""R-KV: keeps tokens that are attended to and unlike others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.config.errors import UserError
from kvbench.kernels.pool import pool
from kvbench.kernels.top_k import top_k_mask
from kvbench.methods.base import Eviction, Kept, LayerSnapshot, Quota, StepView
from kvbench.methods.base.eviction import crossed
from kvbench.methods.registry import register


@register("rkv")
@dataclass(frozen=True, kw_only=True)
class RKV(Eviction):
    """Keeps the last `window` tokens and those that these attend to and whose keys are not redundant.

    Cuts the cache to its budget after prefill, and again whenever the text has grown by `interval` tokens: after the
    tokens of number 1 + k * interval. Over everything held, per KV head:

        I_j = max-pooled mean over the last w queries of softmax_j(max over the group of q . k_j / sqrt(D)), j < S - w
        C   = cosine similarities of all keys, 0 on the diagonal; in each row i, the `retain` last columns above
              `threshold` become 0 (column 0 where there is none)
        R   = softmax over all S of the column means of C
        Z   = lam * I - (1 - lam) * R

    The softmax of I leaves the window's keys out.
    """

    differs = (
        "The official code keeps one similar token (`retain=1`), the paper beta of them. Its interval counts from the "
        "first sample of a run on, so that the phase depends on the samples before; here every text counts its own "
        "tokens. For a batch it takes the redundancy of row 0; here every row has its own. It stores what it keeps in "
        "the order of the scores, so that from the second cut on pooling and `retain` meet other neighbours; here "
        "slots stay in order of position."
    )
    source = (
        "Cai et al. 2025, arXiv 2505.24133; official code: lam 0.07 (paper 0.1), window 8, pooling 7, threshold 0.5, "
        "interval 128"
    )
    budget_meaning = (
        "tokens held per KV head after each drop, window included; up to interval - 1 more before the next"
    )
    bytes_formula = "2 * keep * D * element + min(window, T) * G * D * element; the last queries are held"

    positive = ("window", "kernel", "retain", "interval")

    lam: float = 0.07
    window: int = 8
    kernel: int = 7
    threshold: float = 0.5
    retain: int = 1
    interval: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.lam <= 1:
            raise UserError(f"lam: {self.lam} is not in [0, 1]")

    @property
    def observes(self) -> int:
        return self.window

    def held_after(self, hold: int, prompt: int, before: int, length: int) -> int | None:
        # a step decides for the next one
        return hold if crossed(self.interval, before - 1, length - 1) else None

    def scores(self, snapshot: LayerSnapshot) -> Tensor:
        """Z of the tokens before the window `[H, S - w]`."""
        early = snapshot.length - snapshot.observed(self.window)
        attended, redundant = self._attended(snapshot, early), self._redundant(snapshot, early)
        return self.lam * attended - (1 - self.lam) * redundant

    def keep(self, snapshot: LayerSnapshot, scores: Tensor, quota: Quota) -> Kept:
        early, length = scores.shape[-1], snapshot.length
        window = torch.arange(early, length, device=scores.device)
        if quota.tokens <= len(window):
            return Kept([window[len(window) - quota.tokens :]] * snapshot.heads)
        chosen = top_k_mask(scores, quota.tokens - len(window))
        return Kept([torch.cat([row.nonzero()[:, 0], window]) for row in chosen])

    def step(self, view: StepView, drop: int) -> Tensor | None:
        if not drop:
            return None
        gone = []
        for row in range(len(view.k_RHCD)):
            held = view.snapshot(row)
            kept = self.keep(held, self.scores(held), Quota(held.length - drop))
            gone.append(kept.others(held.length))
        return torch.stack(gone)

    def _attended(self, snapshot: LayerSnapshot, early: int) -> Tensor:
        """I: `[H, early]` fp32."""
        window = snapshot.length - early
        q_HGWD = (
            snapshot.q_QWD[:, snapshot.q_QWD.shape[1] - window :].float().unflatten(0, (snapshot.heads, -1))
        )
        logits_HGWT = q_HGWD @ snapshot.k_HTD[:, None, :early].float().transpose(-1, -2) * snapshot.scaling
        return pool(logits_HGWT.amax(1).softmax(-1).mean(1), self.kernel, "max")

    def _redundant(self, snapshot: LayerSnapshot, early: int) -> Tensor:
        """R: `[H, early]` fp32."""
        k_HTD = snapshot.k_HTD.float()
        unit = k_HTD / (k_HTD.norm(dim=-1, keepdim=True) + 1e-8)
        similar = unit @ unit.transpose(-1, -2)
        similar.diagonal(dim1=-2, dim2=-1).zero_()
        slots = torch.arange(snapshot.length, device=k_HTD.device)
        # columns above the threshold by number + 1, the others 0
        last = (
            torch.where(similar > self.threshold, slots + 1, 0).topk(min(self.retain, snapshot.length)).values
        )
        similar.scatter_(-1, (last - 1).clamp(min=0), 0.0)
        return similar.mean(-2).softmax(-1)[:, :early]
