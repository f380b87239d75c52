"""Named assumptions on the points that the documentation leaves open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from kvbench.claude.request import Hashing
from kvbench.config.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Assumptions where the documentation is silent; the defaults follow its literal reading.

    Metadata of each field: `code`, `text`, and `alternative`, the opposite assumption. The first eight fields are the
    points U1-U8, the others belong to single rules. `lost_reads` has no published rate: its alternative is an
    illustration and labelled so.
    """

    lookback: Literal["counted", "before"] = field(
        default="counted",
        metadata={
            "code": "U1",
            "alternative": "before",
            "text": "20 positions include the breakpoint, or not",
        },
    )
    ttl_lookup: Literal["ignored", "matched"] = field(
        default="ignored",
        metadata={"code": "U2", "alternative": "matched", "text": "a 5m marker may read a 1h entry, or not"},
    )
    refresh: Literal["hit", "markers", "prefixes"] = field(
        default="hit",
        metadata={
            "code": "U3",
            "alternative": "prefixes",
            "text": "a read refreshes shorter entries (all, or those under the request's own markers), or not",
        },
    )
    string_form: Literal["equal", "distinct"] = field(
        default="equal",
        metadata={"code": "U4", "alternative": "distinct", "text": "a string equals one text block, or not"},
    )
    positions: Literal["all", "conversation"] = field(
        default="all",
        metadata={
            "code": "U5",
            "alternative": "conversation",
            "text": "thinking, tool and system blocks count as lookback positions, or not",
        },
    )
    key_order: Literal["significant", "ignored"] = field(
        default="significant",
        metadata={
            "code": "U6",
            "alternative": "ignored",
            "text": "JSON key order changes the prefix, or not",
        },
    )
    lost_reads: float = field(
        default=0.0,
        metadata={"code": "U7", "alternative": 0.02, "text": "share of reads lost under load (illustration)"},
    )
    granularity: int = field(
        default=1,
        metadata={"code": "U8", "alternative": 128, "text": "a hit is exact, or rounded down to 128 tokens"},
    )
    params_scope: Literal["messages", "tools"] = field(
        default="messages",
        metadata={
            "code": "R-thinking",
            "alternative": "tools",
            "text": "thinking, effort and betas invalidate messages only, or everything (models without a figure)",
        },
    )
    unknown_minimum: int = field(
        default=512,
        metadata={
            "code": "R-minimum",
            "alternative": 4096,
            "text": "minimum of models without a published one",
        },
    )
    tool_prompt: Literal["prefix", "uncached"] = field(
        default="prefix",
        metadata={
            "code": "R21",
            "alternative": "uncached",
            "text": "the API's own tool-use prompt is cached with the prefix, or always billed as uncached",
        },
    )
    near_minimum: Literal["counted", "cached", "uncached"] = field(
        default="counted",
        metadata={
            "code": "R-tokens",
            "alternative": "uncached",
            "text": "estimated prefixes within 5 % of the minimum are taken at their count, or never cached",
        },
    )
    unverified_prices: bool = field(
        default=False,
        metadata={
            "code": "R-prices",
            "alternative": True,
            "text": "apply long-prompt prices marked unverified",
        },
    )
    tool_runs: Literal["one", "each"] = field(
        default="one",
        metadata={
            "code": "R9",
            "alternative": "each",
            "text": "a run of tool blocks is one position (documented since 2026-09), or each block is",
        },
    )

    def __post_init__(self) -> None:
        """Validates every value.

        Raises:
            UserError: a value that is not allowed.
        """
        for name, hint in get_type_hints(type(self)).items():
            choices, value = get_args(hint), getattr(self, name)
            if choices and value not in choices:
                raise UserError(f"switches.{name}={value}: allowed are {', '.join(map(str, choices))}")
        if not 0 <= self.lost_reads <= 1:
            raise UserError(f"switches.lost_reads={self.lost_reads}: allowed are 0 to 1")
        if self.granularity < 1 or self.unknown_minimum < 0:
            raise UserError("switches.granularity must be at least 1 and switches.unknown_minimum at least 0")

    @property
    def hashing(self) -> Hashing:
        """The assumptions that affect the prefix hash, before the lookup."""
        return Hashing(self.string_form, self.key_order, self.params_scope, self.tool_prompt)

    def flips(self) -> Iterator[tuple[str, str, Assumptions]]:
        """One open point at a time changed to its alternative: (code, text, assumptions)."""
        for spec in fields(self):
            if "alternative" not in spec.metadata:
                continue
            other: Any = spec.metadata["alternative"]
            if getattr(self, spec.name) == other:
                other = spec.default
            yield spec.metadata["code"], spec.metadata["text"], replace(self, **{spec.name: other})

    def combined(self, others: Sequence[Assumptions]) -> Assumptions:
        """These assumptions with every change that any of the others makes."""
        changed = {
            spec.name: getattr(other, spec.name)
            for other in others
            for spec in fields(self)
            if getattr(other, spec.name) != getattr(self, spec.name)
        }
        return replace(self, **changed)
