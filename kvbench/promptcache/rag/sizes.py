"""Sizes of a prompt's parts; apart from the graphs, so that a configuration needs no LangChain."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the parts of a prompt; the defaults are those of the article's code.

    Attributes:
        system: tokens that the system prompt is filled up to, 0 to leave it short.
        tool: tokens that the tool's description is filled up to.
        passage: characters per passage.
        overlap: characters that neighbouring passages share.
        passages: passages per search.
    """

    system: int = 0
    tool: int = 0
    passage: int = 500
    overlap: int = 100
    passages: int = 5
