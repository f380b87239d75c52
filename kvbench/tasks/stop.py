"""Where an answer ends before its token limit: at a text, or behind its first line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# tokens behind a stop text whose bytes may begin in the same token, with room for what decoding holds back
_SLACK = 8


@dataclass(frozen=True)
class Stop:
    """The end of an answer, by its text; end tokens end it in any case.

    Texts are compared, not tokens: a line break is also part of tokens as ".\\n".

    Attributes:
        strings: an answer ends before the earliest of them.
        first_line: it ends at the first line break that is not at its start.
    """

    strings: tuple[str, ...] = ()
    first_line: bool = False

    def __bool__(self) -> bool:
        return bool(self.strings) or self.first_line

    @property
    def identity(self) -> dict[str, Any]:
        """What the numbers of a cell depend on."""
        return {"strings": list(self.strings), "first_line": self.first_line}

    def ends(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[int]], bool]:
        """A function that says whether tokens, the last of them new, complete an answer.

        Args:
            tokenizer: decodes them; a stop text that holds one of its special tokens is looked for among these too.
        """
        special, plain = self._kinds(tokenizer)
        longest = max((len(text.encode()) for text in (*special, *plain)), default=1)

        def complete(ids: Sequence[int]) -> bool:
            tail = list(ids[-(longest + _SLACK) :])
            text = tokenizer.decode(tail, skip_special_tokens=True) if plain or self.first_line else ""
            if any(stop in text for stop in plain):
                return True
            if special:
                whole = tokenizer.decode(tail, skip_special_tokens=False)
                if any(stop in whole for stop in special):
                    return True
            return (
                self.first_line
                and "\n" in text
                and "\n" in str(tokenizer.decode(list(ids), skip_special_tokens=True)).lstrip("\n")
            )

        return complete

    def cut(self, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
        """The text of an answer: what stands before the earliest stop text, without special tokens."""
        special, plain = self._kinds(tokenizer)
        if special:
            text = _before(str(tokenizer.decode(list(ids), skip_special_tokens=False)), special)
            for token in tokenizer.all_special_tokens:
                text = text.replace(token, "")
        else:
            text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
        return self.cut_text(text, plain)

    def cut_text(self, text: str, stops: Sequence[str] | None = None) -> str:
        """The part of a text that stands before the earliest stop text, or is its first line.

        Args:
            text: without special tokens.
            stops: those of the stop texts to look for; None for all.
        """
        text = _before(text, self.strings if stops is None else stops)
        if self.first_line:
            start = len(text) - len(text.lstrip("\n"))
            end = text.find("\n", start)
            text = text if end < 0 else text[:end]
        return text

    def _kinds(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
        """Stop texts that hold a special token of the tokenizer, and the others; those of other models are text."""
        tokens = tokenizer.all_special_tokens
        special = [text for text in self.strings if any(token in text for token in tokens)]
        return special, [text for text in self.strings if text not in special]


def _before(text: str, stops: Sequence[str]) -> str:
    """The text before the earliest of the stop texts."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]
