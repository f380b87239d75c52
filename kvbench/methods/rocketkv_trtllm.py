"""RocketKV as NVIDIA ships it in TensorRT-LLM."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.kernels.pool import pool
from kvbench.methods.base import (
    Budget,
    Eviction,
    LayerRule,
    LayerSnapshot,
    Method,
    Resolved,
    Selection,
    Shape,
)
from kvbench.methods.hsa import HSA
from kvbench.methods.registry import register
from kvbench.methods.snapkv import SnapKV


@dataclass(frozen=True, kw_only=True)
class PrefixSnapKV(SnapKV):
    """SnapKV whose softmax leaves out the window; per KV head, summed over the group."""

    name = "snapkv_prefix"

    def scores(self, snapshot: LayerSnapshot) -> Tensor:
        window = snapshot.observed(self.window)
        early = snapshot.length - window
        scores = torch.zeros(snapshot.heads, early, device=snapshot.k_HTD.device)
        q_HRD = snapshot.q_QWD[:, snapshot.q_QWD.shape[1] - window :].reshape(
            snapshot.heads, -1, snapshot.k_HTD.shape[2]
        )
        for head in range(snapshot.heads):
            # products in the model's dtype would tie
            logits = q_HRD[head].float() @ snapshot.k_HTD[head, :early].float().T * snapshot.scaling
            scores[head] = logits.softmax(-1).sum(0)
        return pool(scores, self.kernel, self.pool)


@register("rocketkv_trtllm")
@dataclass(frozen=True, kw_only=True)
class RocketKVTensorRT(Method):
    """RocketKV with TensorRT-LLM's fixed sizes: keeps 2048 prompt tokens and reads the best 64 pages of 4 tokens.

    There is no budget: every prompt gets the same sizes. Pages are scored in all channels, so that the temperature is 1
    / sqrt(D); the original's `topr` of 128 is all of them too, unless a head has more. Not copied: a softmax over
    pages, in which a last, partial page counts as much as a full one (here each token counts); zeros that widen the
    bounds of that page; and pages stored as fp8 (use format fp8_e5m2 for K and V). `pages * page` tokens are read where
    the original reads `pages` pages, one of which may be partial.
    """

    differs = (
        "Unlike the paper: softmax without the window's keys, no temperature, no adaptive split, no choice "
        "of channels (topr is 128)."
    )
    source = (
        "TensorRT-LLM, tensorrt_llm/_torch/attention_backend/sparse/rocket, its defaults; not the paper's"
    )
    budget_meaning = "none: sizes are fixed"
    bytes_formula = "2 * keep * D * element + 2 * ceil((keep + M) / page) * D * element; keep = prompt_budget"

    positive = ("window", "kernel", "prompt_budget", "page", "pages")

    window: int = 32
    kernel: int = 63
    prompt_budget: int = 2048
    page: int = 4
    pages: int = 64

    @property
    def needs_budget(self) -> bool:
        return False

    def parts(self) -> tuple[Eviction, Selection]:
        return PrefixSnapKV(window=self.window, kernel=self.kernel), HSA(page=self.page)

    def resolve(self, shape: Shape, budget: Budget | None) -> Resolved:
        eviction, _ = self.parts()
        total, read = shape.compressed + shape.max_new_tokens, self.pages * self.page
        keep = self.prompt_budget if self.prompt_budget < shape.compressed else None
        held = (keep or shape.compressed) + shape.max_new_tokens
        rule = LayerRule(keep=keep, read=read if read < held else None)
        return Resolved(
            eviction=eviction,
            selection=HSA(page=self.page, channels=shape.head_dim),
            format=self.format,
            rules=(rule,) * shape.num_layers,
            covers_prompt=rule == LayerRule(),
            dense=self.lossless and keep is None and read >= total,
            notes=(f"fixed sizes: {self.prompt_budget} tokens kept, {self.pages} pages of {self.page} read",),
        )
