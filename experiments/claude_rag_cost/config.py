"""Configuration of `claude_rag_cost`."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.claude.rag.config import RagConfig


@dataclass(frozen=True, kw_only=True)
class RagCostConfig(RagConfig):
    """The workload, and the placements to compare on it.

    Attributes:
        placements: names of placements to put on the corrected and the append-only layout.
    """

    placements: tuple[str, ...] = ("none", "tools_system", "automatic", "explicit_four", "stable_1h_tail_5m")
