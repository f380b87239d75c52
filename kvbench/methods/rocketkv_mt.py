"""RocketKV-MT: RocketKV for conversations; it filters again at every turn and evicts nothing."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from kvbench.methods.base import Budget, Resolved, Shape
from kvbench.methods.registry import register
from kvbench.methods.rocketkv import RocketKV


@register("rocketkv_mt")
@dataclass(frozen=True, kw_only=True)
class RocketKVMT(RocketKV):
    """RocketKV for conversations: keeps all tokens of all turns, and the last queries of each turn filter what it
    reads.

    Within a turn, and so in a single-turn task, it generates what RocketKV does and reads as much: hybrid sparse
    attention runs on a copy of the filtered tokens, as in the official code. In a conversation each turn attends
    densely to everything before it and then filters all of it, with the window's queries taken from this turn alone:
    min(window, turn) of them. Sizes follow from the length of the first turn, as in the official code. It saves
    traffic, not memory: its storage is larger than dense. The official window of the multi-turn runs is 128. The
    official code treats a turn of one token as a decode step and does not filter; here every turn filters.
    """

    source = "Behnam et al. 2025, arXiv 2502.14051v3, section 3.5; window 128 is official for SCBench"
    bytes_formula = (
        "2 * (T + keep) * D * element + (keep + M if page == 1 else 2 * ceil((keep + M) / page)) * D "
        "* element; keep = C1 - M"
    )

    window: int = 128

    @property
    def on_turn(self) -> Literal["keep", "filter"]:
        return "filter"

    def resolve(self, shape: Shape, budget: Budget | None) -> Resolved:
        return dataclasses.replace(super().resolve(shape, budget), retains=True)
