"""SparQ: the query's largest channels choose the tokens, and the mean value stands for the others."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvbench.kernels.hsa_scores import channel_logits
from kvbench.kernels.top_k import top_k
from kvbench.methods.base import Selection
from kvbench.methods.registry import register


@dataclass
class SparQState:
    """A channel-major copy of the keys, the sum of the values, and results of the last step.

    Attributes:
        keys_RHDT: `[R, H, D, K + room]` in the model's dtype.
        v_sum_RHD: sum of all values so far, fp32; None without reallocation.
        covered_RHG: estimated attention on the selected slots.
        length: slots filled.
    """

    keys_RHDT: Tensor
    v_sum_RHD: Tensor | None
    covered_RHG: Tensor | None = None
    length: Tensor | None = None


@register("sparq")
@dataclass(frozen=True, kw_only=True)
class SparQ(Selection):
    """Reads the tokens with the highest estimated logit, from the channels where the group's query is largest.

    Estimates are summed over the group: one set of tokens per KV head. The newest token and the `recent` before it are
    always included; the official code reads k + 1 tokens for a budget of k, here the newest counts within it. With
    `reallocate` the output is mixed with the mean of all values, weighted by the estimated attention on tokens not
    read. RocketKV's SparQ baseline is a different method: `hsa` with page 1.
    """

    source = (
        "Ribar et al. 2024, arXiv 2312.04985, section 4; r 16, local window 16 as in the official example"
    )
    budget_meaning = "tokens attended per step, recent ones included; scoring comes on top"
    bytes_formula = (
        "2 * T * D * element + (T + M) * D * element + 4 * D; a second copy of K and, with reallocate, a "
        "sum of V"
    )

    version = 2
    reads_keys = False

    positive = ("channels",)

    channels: int = 16
    recent: int = 16
    reallocate: bool = True

    def prepare(self, k_BHKD: Tensor, v_BHKD: Tensor, rows: int, room: int) -> SparQState:
        keys = torch.nn.functional.pad(k_BHKD.transpose(-1, -2), (0, room))
        v_sum = v_BHKD.sum(2, dtype=torch.float32).expand(rows, -1, -1).clone() if self.reallocate else None
        return SparQState(keys.expand(rows, -1, -1, -1).contiguous(), v_sum)

    def append(self, state: Any, k_RHD: Tensor, v_RHD: Tensor, slot: Tensor) -> None:
        state.keys_RHDT.index_copy_(3, slot, k_RHD.unsqueeze(3))
        if self.reallocate:
            state.v_sum_RHD += v_RHD

    def select(
        self, q_RHGD: Tensor, k_BHKD: Tensor, k_tail_RHMD: Tensor, length: Tensor, state: Any, tokens: int,
        scaling: float,
    ) -> Tensor:  # fmt: skip
        dim = q_RHGD.shape[-1]
        logits_RHGT = channel_logits(q_RHGD, state.keys_RHDT, min(self.channels, dim), length)
        # channel_logits assumes the usual logit scaling, 1 / sqrt(D)
        logits_RHGT = logits_RHGT * (scaling * dim**0.5)
        slot = torch.arange(logits_RHGT.shape[-1], device=logits_RHGT.device)
        logits_RHGT = logits_RHGT.masked_fill(slot >= length, -torch.inf)
        recent = (slot >= length - min(self.recent + 1, tokens)) & (slot < length)
        chosen_RHN = top_k(logits_RHGT.sum(2).masked_fill(recent, torch.inf), tokens)
        if self.reallocate:
            probs = logits_RHGT.softmax(-1)
            chosen = chosen_RHN[:, :, None].expand(-1, -1, probs.shape[2], -1)
            state.covered_RHG, state.length = probs.gather(-1, chosen).sum(-1), length
        return torch.where(chosen_RHN < length, chosen_RHN, -1).int()

    def combine(self, out_RHGD: Tensor, lse_RHG: Tensor, state: Any) -> Tensor:
        if not self.reallocate:
            return out_RHGD
        mean_RHD = state.v_sum_RHD / state.length
        covered = state.covered_RHG[..., None]
        return (covered * out_RHGD + (1 - covered) * mean_RHD[:, :, None]).to(out_RHGD.dtype)

    @property
    def combines(self) -> bool:
        return self.reallocate

    def resident_bytes(self, state: Any) -> int:
        return state.keys_RHDT[0].numel() * state.keys_RHDT.element_size() + self.fixed_bytes(state)

    def fixed_bytes(self, state: Any) -> int:
        return 0 if state.v_sum_RHD is None else 4 * state.v_sum_RHD[0].numel()

    def score_bytes(self, state: Any, length: int, element: int) -> int:
        _, heads, dim, _ = state.keys_RHDT.shape
        return heads * (min(self.channels, dim) * length * element + (4 * dim if self.reallocate else 0))

    def append_bytes(self, head_dim: int, element: int) -> tuple[int, int]:
        sums = 4 * head_dim if self.reallocate else 0
        return sums, sums + head_dim * element
