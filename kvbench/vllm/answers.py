"""Answers of a vLLM server, whole or streamed; incomplete ones are errors."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvbench.config.numbers import read_json
from kvbench.vllm.errors import BadAnswer, CutOff, Rejected

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """A complete answer of a model.

    Attributes:
        text: the generated text.
        finish_reason: as the server reports it, `stop` or `length`.
        prompt_tokens: tokens of the prompt.
        cached_tokens: prompt tokens that came from the prefix cache; None if the server does not report them.
        output_tokens: generated tokens.
        token_ids: their ids; None if the server does not report them.
        waited: seconds until the server accepted the request, over all tries.
        tries: number of times the request was sent.
        first_token: seconds from sending the accepted request to the first token; None without a stream.
        last_token: seconds from there to the last token; None without a stream.
        total: seconds from there to the end of the response.
        tool_calls: of a chat answer, as in the response.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int
    token_ids: tuple[int, ...] | None
    waited: float
    tries: int
    first_token: float | None
    last_token: float | None
    total: float
    tool_calls: tuple[Json, ...] = ()

    @property
    def per_token(self) -> float | None:
        """Mean seconds per token after the first; None for fewer than two tokens, or without a stream."""
        if self.first_token is None or self.last_token is None or self.output_tokens < 2:
            return None
        return (self.last_token - self.first_token) / (self.output_tokens - 1)


@dataclass(frozen=True)
class TokenLogprobs:
    """Log probabilities of a given text, token by token.

    Attributes:
        tokens: as the server names them; `token_id:N` for vLLM.
        logprobs: of each token given the preceding ones; None for the first.
        top: the most probable tokens at each position, with their log probabilities; None for the first.
    """

    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]
    top: tuple[Mapping[str, float] | None, ...]


@dataclass(frozen=True)
class Timing:
    """Clock readings of a request, in seconds.

    Attributes:
        started: when the first try was sent.
        sent: when the accepted try was sent.
        tries: number of tries.
    """

    started: float
    sent: float
    tries: int

    def elapsed(self) -> float:
        """Seconds since the accepted try was sent."""
        return time.perf_counter() - self.sent


class AnswerCollector:
    """Collects an answer, whole or from the events of a stream.

    Args:
        url: URL of the request, for error messages.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.texts: list[str] = []
        self.ids: list[int] | None = None
        self.calls: list[Json] = []
        self.reason: str | None = None
        self.usage: Json | None = None
        self.first: float | None = None
        self.last: float | None = None
        self.ended = False

    def add_whole(self, content: Json) -> None:
        """Takes an answer that was not streamed."""
        self._add_choices(content, "message", None)
        self.usage = content.get("usage")
        self.ended = True

    def add_event(self, data: str, now: float) -> bool:
        """Takes one event of a stream, received `now` seconds after sending; returns True for the last event."""
        if data == "[DONE]":
            self.ended = True
            return True
        try:
            content = read_json(data)
        except ValueError:
            raise BadAnswer(f"{self.url}: an event is not JSON: {data[:80]!r}") from None
        if "error" in content:
            raise Rejected(f"{self.url}: {error_message(content)}", 200)
        self._add_choices(content, "delta", now)
        self.usage = content.get("usage") or self.usage
        return False

    def answer(self, timing: Timing, total: float, reports_cached: bool) -> Answer:
        """The complete answer.

        Args:
            timing: of the request.
            total: seconds from sending to the end of the response.
            reports_cached: a missing number of cached tokens means 0, not unknown.

        Raises:
            CutOff: the answer has no end.
            BadAnswer: the answer has no usage.
        """
        if not self.ended or self.reason is None:
            raise CutOff(f"{self.url}: the answer broke off after {len(''.join(self.texts))} characters")
        if self.usage is None:
            raise BadAnswer(f"{self.url}: the answer has no usage, so its tokens are unknown")
        details = self.usage.get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens")
        if cached is None and reports_cached:
            cached = 0
        try:
            prompt, output = int(self.usage["prompt_tokens"]), int(self.usage["completion_tokens"])
        except (KeyError, TypeError, ValueError):
            raise BadAnswer(f"{self.url}: the usage lacks token counts: {self.usage}") from None
        return Answer(
            text="".join(self.texts),
            finish_reason=self.reason,
            prompt_tokens=prompt,
            cached_tokens=cached,
            output_tokens=output,
            token_ids=None if self.ids is None else tuple(self.ids),
            waited=timing.sent - timing.started,
            tries=timing.tries,
            first_token=self.first,
            last_token=self.last,
            total=total,
            tool_calls=tuple(self.calls),
        )

    def _add_choices(self, content: Json, part: str, now: float | None) -> None:
        for choice in content.get("choices") or ():
            piece = choice.get(part) or choice
            text, ids = piece.get("content") or piece.get("text") or "", choice.get("token_ids")
            self.calls += piece.get("tool_calls") or ()
            self.texts.append(text)
            if ids:
                self.ids = [*(self.ids or ()), *ids]
            # the first event of a chat contains only the role
            if now is not None and (text or ids or piece.get("tool_calls") or choice.get("finish_reason")):
                self.first = now if self.first is None else self.first
                self.last = now
            self.reason = choice.get("finish_reason") or self.reason


def token_logprobs(content: Json, url: str) -> TokenLogprobs:
    """The log probabilities of a prompt, from the response to a request with `echo`.

    Args:
        content: the response.
        url: URL of the request, for error messages.

    Raises:
        BadAnswer: the response lacks the log probability of a token.
    """
    try:
        choice, prompt_tokens = content["choices"][0], content["usage"]["prompt_tokens"]
        found = choice["logprobs"]
        # the last token is the generated one
        tokens = tuple(found["tokens"][:prompt_tokens])
        logprobs = tuple(found["token_logprobs"][:prompt_tokens])
        tops = tuple(found["top_logprobs"][:prompt_tokens])
    except (KeyError, IndexError, TypeError):
        raise BadAnswer(f"{url}: the answer has no log probabilities of the prompt") from None
    if not len(tokens) == len(logprobs) == len(tops) == prompt_tokens or None in logprobs[1:]:
        raise BadAnswer(f"{url}: log probabilities for {len(tokens)} of {prompt_tokens} tokens")
    numbers = [x for x in logprobs if x is not None] + [x for top in tops if top for x in top.values()]
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
        raise BadAnswer(f"{url}: a log probability is not a finite number")
    return TokenLogprobs(tokens, logprobs, tops)


def json_object(raw: bytes, url: str) -> dict[str, Any]:
    """The JSON object of a response.

    Raises:
        BadAnswer: it is none.
    """
    try:
        content = read_json(raw)
    except ValueError:
        raise BadAnswer(f"{url}: not JSON: {raw[:80]!r}") from None
    if not isinstance(content, dict):
        raise BadAnswer(f"{url}: not a JSON object: {raw[:80]!r}")
    return content


def field(content: Json, name: str, kind: type, url: str) -> Any:
    """A field of a response.

    Raises:
        BadAnswer: it is missing, or of another type.
    """
    value = content.get(name)
    if not isinstance(value, kind):
        raise BadAnswer(f"{url}: the answer has no {name}")
    return value


def rejection(status: int, raw: bytes, url: str) -> Rejected:
    """The error for a response with an error status."""
    try:
        reason = error_message(read_json(raw))
    except ValueError:
        reason = raw.decode(errors="replace")[:200]
    return Rejected(f"{url}: HTTP {status}: {reason or 'no reason given'}", status)


def error_message(content: Any) -> str:
    """The message of an error response, on one line."""
    error = content.get("error", content) if isinstance(content, Mapping) else content
    message = error.get("message", error) if isinstance(error, Mapping) else error
    return " ".join(str(message).split())[:300]
