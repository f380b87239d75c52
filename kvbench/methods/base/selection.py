"""Selections: the tokens read at a decode step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from kvbench.methods.base.component import Component
from kvbench.methods.budget import Shape


class Selection(Component):
    """The tokens read at one decode step.

    A slot is a place in the compact cache: the kept prompt tokens in order of position, then every appended token.
    State lives on the device and is updated in place, so that a CUDA graph can hold a step.
    """

    family = "selection"
    #: whether a step reads less than what is kept
    selects: ClassVar[bool] = True
    #: whether `select` reads the keys that are passed to it, rather than only its own data
    reads_keys: bool = True

    def resolve(self, read: int, shape: Shape) -> tuple[Selection, list[int | None]]:
        """Final parameters, and the tokens to read per layer (None: all) for a budget of `read`.

        Args:
            read: the budget.
            shape: what the eviction leaves to select from, in the layer where that is largest.
        """
        total = shape.compressed + shape.max_new_tokens
        return self, [read if read < total else None] * shape.num_layers

    def prepare(self, k_BHKD: Tensor, v_BHKD: Tensor, rows: int, room: int) -> Any:
        """Auxiliary data of one layer.

        Args:
            k_BHKD: kept keys `[B, H, K, D]`, B = 1 when the rows share them.
            v_BHKD: kept values.
            rows: rows R.
            room: maximum number of slots appended later.
        """
        return None

    def append(self, state: Any, k_RHD: Tensor, v_RHD: Tensor, slot: Tensor) -> None:
        """Updates the state for a key and a value `[R, H, D]` appended at `slot`, a 1-element integer tensor."""

    def select(
        self, q_RHGD: Tensor, k_BHKD: Tensor, k_tail_RHMD: Tensor, length: Tensor, state: Any, tokens: int,
        scaling: float,
    ) -> Tensor:  # fmt: skip
        """Slots to read, int32 `[R, H, N]` or, per query head, `[R, H, G, N]`; negative entries read nothing.

        Args:
            q_RHGD: post-RoPE queries.
            k_BHKD: kept keys.
            k_tail_RHMD: keys appended since.
            length: filled slots including the newest token, a 0-dim integer tensor.
            state: what `prepare` returned.
            tokens: tokens to read.
            scaling: factor on the attention logits.
        """
        raise NotImplementedError

    def combine(self, out_RHGD: Tensor, lse_RHG: Tensor, state: Any) -> Tensor:
        """Corrects the attention output over the selected slots; called if `combines` is true.

        Args:
            out_RHGD: the output.
            lse_RHG: natural-log sum of exponentials of the selected logits, fp32.
            state: what `prepare` returned, after this step's `select`.
        """
        return out_RHGD

    @property
    def combines(self) -> bool:
        """Whether `combine` changes the output."""
        return type(self).combine is not Selection.combine

    def resident_bytes(self, state: Any) -> int:
        """Bytes of the auxiliary data for one row."""
        return 0

    def fixed_bytes(self, state: Any) -> int:
        """The part of `resident_bytes` that does not depend on the model's dtype."""
        return 0

    def score_bytes(self, state: Any, length: int, element: int) -> int:
        """Bytes that scoring reads at one step for one row, summed over the layer's KV heads."""
        return 0

    def slots(self, tokens: int, length: int) -> int:
        """Slots that `select` returns per list when `length` are filled."""
        return min(tokens, length)

    def append_bytes(self, head_dim: int, element: int) -> tuple[int, int]:
        """Bytes that `append` reads and writes per KV head."""
        return 0, 0


@dataclass(frozen=True, kw_only=True)
class ReadAll(Selection):
    """No selection: every kept token is read."""

    name = "all"
    selects = False
    reads_keys = False
