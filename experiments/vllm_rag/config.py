"""Configuration of `vllm_rag`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kvbench.claude.rag.sizes import Sizes
from kvbench.config.errors import UserError
from kvbench.vllm.servers import MultiServerConfig

Grades = Literal["yes", "model"]
LAYOUTS = ("article_graph", "corrected", "append_only")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The conversations of a run.

    Attributes:
        turns: questions per conversation.
        conversations: number of conversations, one after another.
        grades: `yes` forces every grade to yes, so that all layouts take the same path: search, grade, answer.
            `model` leaves it to the model, as the article does; a small one may rewrite without end.
        sizes: sizes of the prompt's parts.
        max_tokens: longest answer of a step.
        seed: of the questions.
    """

    turns: int = 4
    conversations: int = 1
    grades: Grades = "yes"
    sizes: Sizes
    max_tokens: int = 64
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RagRunConfig(MultiServerConfig):
    """The configuration.

    Attributes:
        layouts: prompt layouts, of `LAYOUTS`.
        turns: questions per conversation.
        conversations: number of conversations, one after another.
        grades: see `Workload`.
        max_tokens: longest answer of a step.
        sizes: sizes of the prompt's parts.
        seed: of the questions.
    """

    layouts: tuple[str, ...] = LAYOUTS
    turns: int = 4
    conversations: int = 1
    grades: Grades = "yes"
    max_tokens: int = 128
    sizes: Sizes = field(default_factory=lambda: Sizes(system=300, tool=150))
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("turns", "conversations", "max_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} is not allowed, give 1 or more")
        for layout in self.layouts:
            if layout not in LAYOUTS:
                raise UserError(f"layouts: {layout!r} is not allowed, allowed are {', '.join(LAYOUTS)}")

    @property
    def workload(self) -> Workload:
        """The conversations."""
        return Workload(
            turns=self.turns,
            conversations=self.conversations,
            grades=self.grades,
            sizes=self.sizes,
            max_tokens=self.max_tokens,
            seed=self.seed,
        )
