"""Block top-k: reads the pages whose mean key fits the group's mean query best."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kvbench.kernels.top_k import select_tokens
from kvbench.methods.base import Selection, Shape
from kvbench.methods.registry import register


@register("block_topk")
@dataclass(frozen=True, kw_only=True)
class BlockTopK(Selection):
    """Reads the pages whose mean key has the largest product with the group's mean query; nothing is evicted.

    The first `sinks` pages and the last `recent` ones, the newest token's among them, are always read and count within
    the budget. `heads=layer` sums the products over the KV heads: one list for the layer. The first `dense_layers`
    layers read everything.
    """

    differs = (
        "Vortex and SGLang read sinks and recent pages on top of the budget; here the budget counts everything that is "
        "read. They make the mean of a page when it is full; here the newest page has one too, but is always read."
    )
    source = (
        "block sparse attention as in Vortex, arXiv 2606.06453 (page 16, one sink and one recent page, the first layer "
        "dense) and SGLang's mean pooling of pages (`heads=layer`)"
    )
    budget_meaning = "tokens attended per step: max(sinks + recent, budget // page) pages"
    bytes_formula = "2 * T * D * element + ceil((T + M) / page) * D * element + 4 * D"

    reads_keys = False

    positive = ("page", "recent")

    heads: Literal["kv_head", "layer"] = "kv_head"
    page: int = 16
    sinks: int = 1
    recent: int = 1
    dense_layers: int = 1

    def resolve(self, read: int, shape: Shape) -> tuple[Selection, list[int | None]]:
        total = shape.compressed + shape.max_new_tokens
        tokens = max(self.sinks + self.recent, read // self.page) * self.page
        layers = [None if layer < self.dense_layers else tokens for layer in range(shape.num_layers)]
        return self, layers if max(read, tokens) < total else [None] * shape.num_layers

    def prepare(self, k_BHKD: Tensor, v_BHKD: Tensor, rows: int, room: int) -> tuple[Tensor, Tensor]:
        """Mean keys `[R, H, P, D]` in the keys' dtype, and the sum of the newest page's fp32 `[R, H, D]`."""
        batch, heads, kept, dim = k_BHKD.shape
        pages = -(-(kept + room) // self.page)
        sums = k_BHKD.new_zeros(batch, heads, pages, dim, dtype=torch.float32)
        page = torch.arange(kept, device=k_BHKD.device) // self.page
        sums.index_add_(2, page, k_BHKD.float())
        count = (kept - torch.arange(pages, device=k_BHKD.device) * self.page).clamp(1, self.page)
        means = (sums / count[:, None]).to(k_BHKD.dtype)
        # a full page leaves nothing to add to
        newest = sums[:, :, kept // self.page] if kept % self.page else torch.zeros_like(sums[:, :, 0])
        return means.repeat(rows // batch, 1, 1, 1), newest.repeat(rows // batch, 1, 1)

    def append(self, state: Any, k_RHD: Tensor, v_RHD: Tensor, slot: Tensor) -> None:
        means_RHPD, newest_RHD = state
        inside = slot % self.page
        # the first key of a page starts a new sum
        newest_RHD.mul_(inside > 0).add_(k_RHD)
        mean = newest_RHD / (inside + 1)
        means_RHPD.index_copy_(2, slot // self.page, mean[:, :, None].to(means_RHPD.dtype))

    def select(
        self, q_RHGD: Tensor, k_BHKD: Tensor, k_tail_RHMD: Tensor, length: Tensor, state: Any, tokens: int,
        scaling: float,
    ) -> Tensor:  # fmt: skip
        means_RHPD = state[0]
        q_RHD = q_RHGD.float().mean(2)
        scores_RHP = (means_RHPD.float() @ q_RHD[..., None]).squeeze(-1)
        if self.heads == "layer":
            scores_RHP = scores_RHP.sum(1, keepdim=True).expand_as(scores_RHP)
        newest = (length - 1) // self.page
        pages = torch.arange(scores_RHP.shape[-1], device=scores_RHP.device)
        always = (pages < self.sinks) | (pages > newest - self.recent)
        chosen = select_tokens(scores_RHP.masked_fill(always, torch.inf), tokens // self.page, 1, newest + 1)
        slots = (chosen[..., None] * self.page + torch.arange(self.page, device=chosen.device)).flatten(-2)
        return torch.where(slots < length, slots, -1).int()

    def resident_bytes(self, state: Any) -> int:
        return sum(part[0].numel() * part.element_size() for part in state)

    def fixed_bytes(self, state: Any) -> int:
        return state[1][0].numel() * state[1].element_size()

    def score_bytes(self, state: Any, length: int, element: int) -> int:
        _, heads, _, dim = state[0].shape
        return heads * -(-length // self.page) * dim * element

    def slots(self, tokens: int, length: int) -> int:
        # the newest page is always chosen and seldom full
        return min(length, tokens - -length % self.page)

    def append_bytes(self, head_dim: int, element: int) -> tuple[int, int]:
        return 4 * head_dim, (4 + element) * head_dim
