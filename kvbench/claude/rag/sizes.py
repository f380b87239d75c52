"""Sizes of a prompt's parts, separate from the graphs so that a configuration needs no LangChain."""

import dataclasses
from dataclasses import dataclass

from kvbench.config.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the parts of a prompt; the defaults are those of the article's code.

    Attributes:
        system: tokens that the system prompt is padded to, 0 for no padding.
        tool: tokens that the tool's description is padded to.
        passage: characters per passage.
        overlap: characters shared by neighbouring passages.
        passages: passages per search.
    """

    system: int = 0
    tool: int = 0
    passage: int = 500
    overlap: int = 100
    passages: int = 5

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            minimum = int(name in ("passage", "passages"))
            if value < minimum:
                raise UserError(f"{name}: {value} is not allowed, give {minimum} or more")
        if self.overlap >= self.passage:
            raise UserError(
                f"overlap: {self.overlap} is not allowed, give fewer characters than passage={self.passage}"
            )
