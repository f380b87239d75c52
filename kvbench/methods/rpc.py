"""Reasoning path compression: the answer is thinned period by period, the prompt never."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kvbench.config.errors import UserError
from kvbench.kernels.pool import pool
from kvbench.kernels.top_k import top_k_mask
from kvbench.methods.base import Eviction, Quota, Shape, StepView
from kvbench.methods.base.eviction import crossed
from kvbench.methods.registry import register


@register("rpc")
@dataclass(frozen=True, kw_only=True)
class RPC(Eviction):
    """Every `interval` tokens of the answer, cuts it to interval / `ratio` tokens per period and the last `window`.

    The first cut comes after interval + window tokens. The last w queries vote: softmax over the answer's tokens but
    the last w, summed over these queries and averaged over all query heads (`heads=layer`: one choice per layer) or
    over the group (`heads=kv_head`), then an average over `kernel` neighbours. After the n-th cut the best
    n * (interval // ratio) tokens of the answer are held besides the prompt and the last w; all of them compete again
    each time. There is no budget: what is held grows with the answer.
    """

    differs = (
        "In the official code the newest query votes twice and the oldest of the last w not at all (`selectors=code`); "
        "here each of them votes once. With `first_token=compressed` the prompt's last token, which is fed as a decode "
        "step, counts as the first of the answer."
    )
    source = (
        "Song et al. 2025, arXiv 2505.13866; official code: interval 1024 or 4096, window 32, ratio 4, one choice per "
        "layer, average pooling 7"
    )
    budget_meaning = "none: the prompt, a share of each period of the answer, and the last window"
    bytes_formula = "2 * T * D * element + min(window, T) * G * D * element; the last queries are held"

    positive = ("interval", "ratio", "window", "kernel")

    interval: int = 1024
    ratio: int = 4
    window: int = 32
    kernel: int = 7
    heads: Literal["layer", "kv_head"] = "layer"
    selectors: Literal["exact", "code"] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio > self.interval:
            raise UserError(
                f"ratio: {self.ratio} is above interval ({self.interval}), so that nothing would be left"
            )

    @property
    def needs_budget(self) -> bool:
        return False

    @property
    def at_prefill(self) -> bool:
        return False

    @property
    def observes(self) -> int:
        return self.window

    def layer_tokens(self, quota: Quota, shape: Shape) -> list[int]:
        """Tokens held after the last cut of an answer of full length; more than there are if none is due."""
        cuts = (shape.max_new_tokens - self.window) // self.interval
        if cuts < 1:
            return [shape.compressed + shape.max_new_tokens] * shape.num_layers
        return [shape.compressed + cuts * (self.interval // self.ratio) + self.window] * shape.num_layers

    def held_after(self, hold: int, prompt: int, before: int, length: int) -> int | None:
        first = prompt + self.window
        if not crossed(self.interval, before - first, length - first):
            return None
        cuts = (length - first) // self.interval
        return prompt + cuts * (self.interval // self.ratio) + self.window

    def step(self, view: StepView, drop: int) -> Tensor | None:
        if not drop:
            return None
        assert view.q_RHGWD is not None
        end = view.k_RHCD.shape[2] - self.window
        q = view.q_RHGWD.float()
        if self.selectors == "code":
            q = torch.cat([q[:, :, :, 1:], q[:, :, :, -1:]], dim=3)
        k_RHSD = view.k_RHCD[:, :, view.prompt : end].float()
        votes_RHGS = (q @ k_RHSD[:, :, None].transpose(-1, -2) * view.scaling).softmax(-1).sum(3)
        votes_RHS = votes_RHGS.mean(2)
        if self.heads == "layer":
            votes_RHS = votes_RHS.mean(1, keepdim=True).expand_as(votes_RHS)
        pooled = pool(votes_RHS.flatten(0, 1), self.kernel, "avg").view(votes_RHS.shape)
        gone = ~top_k_mask(pooled, pooled.shape[-1] - drop)
        return view.prompt + gone.nonzero()[:, 2].view(*gone.shape[:2], drop)

    def eager(self) -> RPC:
        return RPC(
            interval=2, ratio=2, window=1, kernel=self.kernel, heads=self.heads, selectors=self.selectors
        )
