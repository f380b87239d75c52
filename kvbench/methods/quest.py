"""Quest: reads the pages with the highest upper bounds of attention."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from kvbench.kernels.page_bounds import page_bounds, update_page_bounds
from kvbench.kernels.quest_scores import quest_select
from kvbench.methods.base import Selection, Shape
from kvbench.methods.registry import register


@register("quest")
@dataclass(frozen=True, kw_only=True)
class Quest(Selection):
    """Reads the pages whose channel-wise bounds allow the highest logit; nothing is evicted.

    The page of the newest token is always read and counts within the budget, as in the official CUDA path.
    `heads=query_head` is the official form (every query head chooses its own pages); `heads=kv_head` sums the bounds
    over the group. The first `dense_layers` layers read everything.
    """

    differs = (
        "The official CUDA path reads budget // page pages, the newest always among them, and has no minimum; the "
        "official evaluation path reads at least 3 pages and does not force the newest. Here both hold: at least 3 "
        "pages, the newest among them. The paper chooses per query head; RocketKV's baseline is group-wise, as is "
        "the default here."
    )
    source = (
        "Tang et al. 2024, arXiv 2406.10774, section 3; page 16 and 2 dense layers are official, at least 3 pages "
        "those of its evaluation path"
    )
    budget_meaning = "tokens attended per step: max(3, budget // page) pages"
    bytes_formula = "2 * T * D * element + 2 * ceil((T + M) / page) * D * element"

    reads_keys = False

    positive = ("page",)

    heads: Literal["kv_head", "query_head"] = "kv_head"
    page: int = 16
    dense_layers: int = 2

    def resolve(self, read: int, shape: Shape) -> tuple[Selection, list[int | None]]:
        total = shape.compressed + shape.max_new_tokens
        pages = max(3, read // self.page)
        tokens = pages * self.page if max(read, pages * self.page) < total else None
        return self, [None if layer < self.dense_layers else tokens for layer in range(shape.num_layers)]

    def prepare(self, k_BHKD: Tensor, v_BHKD: Tensor, rows: int, room: int) -> tuple[Tensor, Tensor]:
        pages = -(-(k_BHKD.shape[2] + room) // self.page)
        low, high = page_bounds(k_BHKD, self.page, pages)
        return low.expand(rows, -1, -1, -1).contiguous(), high.expand(rows, -1, -1, -1).contiguous()

    def append(self, state: Any, k_RHD: Tensor, v_RHD: Tensor, slot: Tensor) -> None:
        low, high = state
        update_page_bounds(low, high, k_RHD, slot // self.page)

    def select(
        self, q_RHGD: Tensor, k_BHKD: Tensor, k_tail_RHMD: Tensor, length: Tensor, state: Any, tokens: int,
        scaling: float,
    ) -> Tensor:  # fmt: skip
        low, high = state
        pages = tokens // self.page
        return quest_select(q_RHGD, low, high, self.page, length, pages, self.heads == "query_head")

    def resident_bytes(self, state: Any) -> int:
        return sum(bound[0].numel() * bound.element_size() for bound in state)

    def score_bytes(self, state: Any, length: int, element: int) -> int:
        _, heads, _, dim = state[0].shape
        return 2 * heads * -(-length // self.page) * dim * element

    def slots(self, tokens: int, length: int) -> int:
        # the newest page is always chosen and seldom full
        return min(length, tokens - -length % self.page)

    def append_bytes(self, head_dim: int, element: int) -> tuple[int, int]:
        return 2 * head_dim * element, 2 * head_dim * element
