"""Renders samples to the exact tokens that the model reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from kvbench.config.errors import UserError
from kvbench.tasks.chat import TEMPLATE_ARGUMENTS, ChatTemplate
from kvbench.tasks.stop import Stop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER = "An answer."


@dataclass(frozen=True)
class Turn:
    """A question of a conversation and its answer; used as in `Sample`.

    Attributes:
        joiner: text between prefix and answer.
    """

    question: str
    answer_prefix: str
    answer: str
    joiner: str = " "


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are drawn.

    Attributes:
        temperature: above 0.
        top_p: probability of the likeliest tokens that are drawn from.
        key: seeds the random numbers; of seed, document and repeat, and nothing of a method.
    """

    temperature: float
    top_p: float
    key: str


@dataclass(frozen=True)
class Sample:
    """One question with its context and its expected answers.

    The user's message is `context + question`, the answer starts with `answer_prefix`; all three are used verbatim,
    including line breaks and spaces. In a conversation the context is part of the first message, and earlier turns have
    fixed answers, so that every method sees the same prompt.

    Attributes:
        context: the part that a query-agnostic method may compress, the task's instructions included.
        question: the question about it.
        answer_prefix: forced start of the answer.
        gold: the expected answers.
        max_new_tokens: tokens to generate.
        meta: facts for tables and plots (depth, haystack ...).
        earlier: the turns before this question.
        repeat: number of equal samples before it in its task, each of which counts.
        stop: texts that end the answer.
        plain: whether the prompt is text with the tokenizer's special tokens, even where the model has a chat template.
        context_known: whether the context ends where it says; otherwise it may hold part of the question.
        sampling: how tokens are drawn; None for the likeliest.
        shared: whether neighbouring samples have the same compressed tokens, so that their prefill is kept.
        continuations: texts that are judged by their log probabilities behind the prompt; nothing is generated then.
        one_prompt: whether the earlier turns are compressed with the question, as one prompt.
    """

    context: str
    question: str
    answer_prefix: str
    gold: tuple[str, ...]
    max_new_tokens: int
    meta: Mapping[str, Any] = field(default_factory=dict)
    earlier: tuple[Turn, ...] = ()
    repeat: int = 0
    stop: Stop = field(default_factory=Stop)
    plain: bool = False
    context_known: bool = True
    sampling: Sampling | None = None
    shared: bool = False
    continuations: tuple[str, ...] = ()
    one_prompt: bool = False


@dataclass(frozen=True)
class Prompt:
    """A rendered sample.

    Attributes:
        ids: token ids, [T].
        context_end: number of leading tokens that lie wholly in the template's head and the context.
        text: the tokenised text.
        hash: SHA-256 of the ids, of context_end and of the gold answers, of first_end if there is one, and of the
            number of the repeat if it is one.
        first_end: in a later turn of a conversation the number of tokens of the first turn's prompt, else None.
        turn_start: likewise of the previous turn's prompt; its answer and what follows are the present turn.
        plain: whether the text has no chat template.
    """

    ids: list[int]
    context_end: int
    text: str
    hash: str
    first_end: int | None = None
    turn_start: int | None = None
    plain: bool = False


class Renderer:
    """Turns samples into prompts for one tokenizer.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        chat_template: use the tokenizer's chat template; otherwise the plain text with the special tokens that the
            tokenizer adds.
        system: the system turn. None leaves it to the template, which may have a default; "" suppresses that too.
        limit: maximum tokens of the model, prompt and answer together.

    Raises:
        UserError: the tokenizer is slow or has no chat template, or the template refuses a system turn or changes
            the message.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: bool = True,
        system: str | None = None,
        limit: int | None = None,
    ) -> None:
        if not tokenizer.is_fast:
            raise UserError("model.path: the tokenizer is slow, a fast one (tokenizer.json) is needed")
        if chat_template and not tokenizer.chat_template:
            raise UserError("model.chat_template: the tokenizer has no chat template, allowed: false")
        if system and not chat_template:
            raise UserError("model.system: needs model.chat_template=true")
        self.tokenizer = tokenizer
        self.chat_template = ChatTemplate(tokenizer) if chat_template else None
        self.system = system
        self.limit = limit
        # report defects of the template at once
        self._text(Sample("The context.", "\nThe question?", "", (), 1))

    @property
    def style(self) -> dict[str, Any]:
        """Settings besides the sample that determine the prompt, for the cell's identity."""
        if self.chat_template is None:
            return {"chat_template": None}
        digest = hashlib.sha256(self.chat_template.text.encode()).hexdigest()
        return {"chat_template": digest, "system": self.system, **TEMPLATE_ARGUMENTS}

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 of all that says how text becomes tokens."""
        tokenizer = self.tokenizer
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        # checked to be a fast one
        backend = cast(Any, tokenizer).backend_tokenizer.to_str()
        parts = [type(tokenizer).__name__, special, backend]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def render(self, sample: Sample) -> Prompt:
        """Render the sample; find the ends of its context and of a conversation's first prompt.

        Raises:
            UserError: the chat template cannot continue a conversation.
        """
        text, *char_ends = self._text(sample)
        plain = self._template(sample) is None
        encoded = self._encode(text, plain)
        ids = encoded["input_ids"]
        ends = [end for _, end in encoded["offset_mapping"]]
        context_end, first_end, turn_start = (
            next((i for i, end in enumerate(ends) if end > char), len(ids)) for char in char_ends
        )
        later = [first_end] if sample.earlier and not sample.one_prompt else []
        repeat = [{"repeat": sample.repeat}] if sample.repeat else []
        key = json.dumps([ids, context_end, list(sample.gold), *later, *repeat])
        digest = hashlib.sha256(key.encode()).hexdigest()
        if not later:
            return Prompt(ids, context_end, text, digest, plain=plain)
        return Prompt(ids, context_end, text, digest, first_end, turn_start, plain)

    def tail(self, sample: Sample, question: str) -> list[int]:
        """The tokens that follow the context in a prompt with another question and no start of an answer."""
        text, context_end, *_ = self._text(replace(sample, question=question, answer_prefix="", earlier=()))
        return self.tokenizer(text[context_end:], add_special_tokens=False, verbose=False)["input_ids"]

    def count(self, sample: Sample) -> int:
        """Number of tokens of the sample's prompt."""
        return len(self._encode(self._text(sample)[0], self._template(sample) is None)["input_ids"])

    def continuation(self, prompt: Prompt, text: str) -> list[int]:
        """The tokens of a text behind a prompt: those of both together, without as many as the prompt has.

        Raises:
            UserError: the text is only part of a token.
        """
        ids = self._encode(prompt.text + text, prompt.plain)["input_ids"][len(prompt.ids) :]
        if not ids:
            raise UserError(f"a text of {text[:40]!r} behind the prompt has no token of its own")
        return ids

    def spans(self, prompt: Prompt) -> list[tuple[int, int]]:
        """Character range [start, end) in `prompt.text` of every token of a prompt; empty for special tokens."""
        return self._encode(prompt.text, prompt.plain)["offset_mapping"]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Character range [start, end) of every token of a text, without special tokens."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return encoded["offset_mapping"]

    def _template(self, sample: Sample) -> ChatTemplate | None:
        return None if sample.plain else self.chat_template

    def _encode(self, text: str, plain: bool) -> Any:
        # a chat template writes the special tokens into the text
        return self.tokenizer(text, add_special_tokens=plain, return_offsets_mapping=True, verbose=False)

    def _text(self, sample: Sample) -> tuple[str, int, int, int]:
        """The text to tokenise, and the characters of head and context, the first prompt, and the previous prompt."""
        turns = (*sample.earlier, sample)
        template = self._template(sample)
        text, context_end = self._opening(sample.context, turns[0].question, template)
        text += turns[0].answer_prefix
        first_end = turn_start = len(text)
        for done, following in zip(sample.earlier, turns[1:], strict=True):
            turn_start = len(text)
            question = following.question if template is None else self._next_turn(following.question)
            text += f"{done.joiner}{done.answer}{question}{following.answer_prefix}"
        return text, context_end, first_end, turn_start

    def _opening(self, context: str, question: str, template: ChatTemplate | None) -> tuple[str, int]:
        """The text up to the answer prefix, and the number of characters of head and context."""
        message = context + question
        if template is None:
            return message, len(context)
        text = self._chat(message)
        # some templates strip the message
        body = message.strip()
        start = text.rfind(body)
        if start < 0 or not body:
            raise UserError("model.chat_template: the template rewrites the message, allowed: false")
        stripped = len(message) - len(message.lstrip())
        return text, start + min(max(len(context) - stripped, 0), len(body))

    def _next_turn(self, question: str) -> str:
        """The text between two answers: the end of the first, the question, the head of the second."""
        earlier, turn = self._second_turn({"role": "user", "content": question.strip()})
        if turn is None or _ANSWER not in earlier:
            raise UserError("model.chat_template: the template rewrites earlier turns, allowed: false")
        return earlier[earlier.rindex(_ANSWER) + len(_ANSWER) :] + turn

    def _chat(self, message: str) -> str:
        user = {"role": "user", "content": message}
        if self.system == "":
            return self._without_system(user)
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return self._apply([*system, user], generate=True)

    def _without_system(self, user: dict[str, str]) -> str:
        """The user's turn as a later turn of a conversation, before which no template writes a system turn."""
        plain = self._apply([user], generate=True)
        _, turn = self._second_turn(user)
        if turn is None:
            return plain
        bos = str(self.tokenizer.bos_token or "")
        return bos + turn if plain.startswith(bos) and not turn.startswith(bos) else turn

    def _second_turn(self, user: dict[str, str]) -> tuple[str, str | None]:
        """A first turn, and the text that the user's turn appends; None if the template rewrites the first."""
        before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]
        earlier = self._apply(before, generate=False)
        both = self._apply([*before, user], generate=True)
        return earlier, both.removeprefix(earlier) if both.startswith(earlier) else None

    def _apply(self, messages: list[dict[str, str]], generate: bool) -> str:
        assert self.chat_template is not None
        return self.chat_template.render(messages, generate, self.system)
