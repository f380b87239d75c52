"""Budgets, and what a budget rule makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal, InvalidOperation

from kvbench.config.errors import UserError
from kvbench.config.typed import whole
from kvbench.methods.snapshot import Kept


@dataclass(frozen=True)
class Budget:
    """How much a method may keep or read, per KV head and layer.

    Exactly one of `tokens` and `ratio` is set. A ratio is the fraction retained of the compressed tokens,
    floored in decimal arithmetic (0.1 of 1000 is 100) and at least 1.

    Attributes:
        tokens: a whole number, of numpy or torch too.
        ratio: a decimal number in (0, 1], kept as text.
    """

    tokens: int | None = None
    ratio: str | None = None

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.ratio is None):
            raise UserError("budget: give exactly one of tokens and ratio")
        if self.tokens is not None:
            object.__setattr__(self, "tokens", whole("budget.tokens", self.tokens, 1))
        if self.ratio is not None:
            object.__setattr__(self, "ratio", _fraction(self.ratio))

    def of(self, compressed: int) -> int:
        """The budget in tokens for a prompt of `compressed` tokens."""
        if self.tokens is not None:
            return self.tokens
        exact = Decimal(str(self.ratio)) * compressed
        return max(1, int(exact.to_integral_value(ROUND_FLOOR)))

    def label(self) -> str:
        """Short form for tables: `256`, `0.1x`."""
        return str(self.tokens) if self.tokens is not None else f"{self.ratio}x"


def _fraction(ratio: object) -> str:
    text = " ".join(str(ratio).split())
    try:
        exact = Decimal(text)
    except InvalidOperation:
        exact = Decimal(0)
    if not exact.is_finite() or not 0 < exact <= 1:
        raise UserError(f"budget.ratio: {text[:60]} is not in (0, 1]")
    return text


@dataclass(frozen=True)
class Shape:
    """What a budget rule may depend on.

    Attributes:
        compressed: prompt tokens that are compressed, L.
        max_new_tokens: tokens generated at most, M.
        num_layers: layers of the model.
        head_dim: channels per head, D.
        fed: tokens of the prompt in neither of these: 1 if its last token is a decode step, else 0.
    """

    compressed: int
    max_new_tokens: int
    num_layers: int
    head_dim: int
    fed: int = 0


@dataclass(frozen=True)
class Quota:
    """How much an eviction keeps.

    Attributes:
        tokens: tokens per KV head; in `Eviction.keep` those of its layer, elsewhere the budget of the method.
        ratio: the fraction retained as the user wrote it, None for a budget in tokens (kvpress rounds from it).
        earlier: what the same eviction kept in the layers before, for index reuse.
    """

    tokens: int
    ratio: str | None = None
    earlier: Sequence[Kept] = ()


@dataclass(frozen=True, kw_only=True)
class LayerRule:
    """Tokens per KV head of one layer.

    Attributes:
        keep: prompt tokens kept, None for all.
        read: tokens read at a decode step, None for all held.
        hold: tokens held while decoding, None for no limit; `Eviction.step` drops the rest.
    """

    keep: int | None = None
    read: int | None = None
    hold: int | None = None
