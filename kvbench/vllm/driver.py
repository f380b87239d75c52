"""Talks to any OpenAI-compatible vLLM server over HTTP.

Everything is asynchronous. What was not accepted (nobody listening, 503 while loading, 429) is tried again until
the patience ends; what was accepted is never repeated, because it has already filled the server's cache, but
raises one line. Only whole answers are returned.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx2

from kvbench.vllm.errors import BadAnswer, CutOff, NotReady, Rejected, ServingError, TooSlow
from kvbench.vllm.metrics import Scrape, parse

Json = Mapping[str, Any]

AGAIN = (429, 503)
PAUSE, LONGEST_PAUSE = 0.1, 2.0  # seconds between tries
# below the 5 s after which the server closes an idle connection: no request meets a closing one
IDLE = 2.0


@dataclass(frozen=True)
class Answer:
    """A whole answer of a model.

    Attributes:
        text: what it wrote.
        finish_reason: as given, `stop` or `length`.
        prompt_tokens: tokens of the prompt.
        cached_tokens: those of them that came from the prefix cache; None where the server does not say.
        output_tokens: tokens written.
        token_ids: their ids; None where the server does not give them.
        waited: seconds until the server took the request, over all tries.
        tries: how often it was sent.
        first_token: seconds from the accepted sending to the first token; None where nothing was streamed.
        last_token: seconds from there to the last token; None likewise.
        total: seconds from there to the end.
        tool_calls: of a chat answer, as given.
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
class Scored:
    """Log probabilities of a given text, token by token.

    Attributes:
        tokens: as given; `token_id:N` by vLLM.
        logprobs: of each token given those before it; None for the first.
        top: the most probable tokens at each place, with their log probabilities; None for the first.
    """

    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]
    top: tuple[Mapping[str, float] | None, ...]


class Driver:
    """One server; an asynchronous context manager.

    Args:
        base_url: as `http://127.0.0.1:8000`, with or without `/v1`.
        model: name under which the server serves the model; None takes the only one it lists.
        api_key: sent as bearer token.
        timeout: seconds for one whole answer.
        patience: seconds of trying again while the server does not take requests.
        reports_cached: the server was started with `--enable-prompt-tokens-details`, so that an answer without
            the number of cached tokens means none. Otherwise that number is unknown (None).
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 120.0,
        patience: float = 10.0,
        reports_cached: bool = False,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ServingError(f"serving.base_url: {base_url!r} is not of the form http://HOST:PORT")
        self.url = base_url.rstrip("/").removesuffix("/v1")
        self.timeout = timeout
        self.patience = patience
        self.reports_cached = reports_cached
        self._model = model
        self._http = httpx2.AsyncClient(
            base_url=self.url,
            headers={"authorization": f"Bearer {api_key}"} if api_key else None,
            # the limit for a whole answer is ours; this one is for connecting only
            timeout=httpx2.Timeout(None, connect=min(timeout, 10.0)),
            limits=httpx2.Limits(max_connections=None, keepalive_expiry=IDLE),
            # a proxy of the environment is not for a server of one's own
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def complete(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int,
        salt: str | None = None,
        stream: bool = True,
        **options: Any,
    ) -> Answer:
        """Continues a prompt, greedily unless the options say otherwise.

        Args:
            prompt: text, or token ids.
            max_tokens: tokens to write at most.
            salt: prompts share cached prefixes only with those of the same salt (vLLM's `cache_salt`: at most 128
                characters, without `@`, `/` and backslashes).
            stream: measure the time of each token.
            options: further fields of the request, as `ignore_eos=True`.

        Raises:
            ServingError: one of its kinds; nothing of a half answer is kept.
        """
        body = {"prompt": prompt if isinstance(prompt, str) else list(prompt), "max_tokens": max_tokens}
        return await self._ask("/v1/completions", body, salt, stream, options)

    async def chat(
        self,
        messages: Sequence[Json],
        *,
        max_tokens: int,
        salt: str | None = None,
        stream: bool = True,
        **options: Any,
    ) -> Answer:
        """Answers a conversation; everything else as for `complete`."""
        body = {"messages": list(messages), "max_tokens": max_tokens}
        return await self._ask("/v1/chat/completions", body, salt, stream, options)

    async def score(self, prompt: str | Sequence[int], *, top: int = 1, salt: str | None = None) -> Scored:
        """Log probabilities of every token of a text, and of the `top` most probable ones at each place."""
        body = {
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": 1,
            "echo": True,
            "logprobs": top,
            "return_tokens_as_token_ids": True,
        }
        path = "/v1/completions"
        answer = (await self._json("POST", path, await self._body(body, salt, {}))).content
        try:
            choice, prompt_tokens = answer["choices"][0], answer["usage"]["prompt_tokens"]
            found = choice["logprobs"]
            # the last token is the one that the server wrote
            tokens = tuple(found["tokens"][:prompt_tokens])
            logprobs = tuple(found["token_logprobs"][:prompt_tokens])
            tops = tuple(found["top_logprobs"][:prompt_tokens])
        except (KeyError, IndexError, TypeError):
            raise BadAnswer(f"{self.url}{path}: scoring gave no log probabilities of the prompt") from None
        if not len(tokens) == len(logprobs) == len(tops) == prompt_tokens or None in logprobs[1:]:
            raise BadAnswer(
                f"{self.url}{path}: log probabilities for {len(tokens)} of {prompt_tokens} tokens"
            )
        return Scored(tokens, logprobs, tops)

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        body = {"model": await self.model(), "prompt": text, "add_special_tokens": add_special_tokens}
        return _field(
            (await self._json("POST", "/tokenize", body)).content, "tokens", list, f"{self.url}/tokenize"
        )

    async def model(self) -> str:
        """The name of the model: the one given, else the only one that the server lists.

        Raises:
            ServingError: it lists none, or several.
        """
        if self._model is None:
            listed = (await self._json("GET", "/v1/models")).content
            names = [str(item["id"]) for item in _field(listed, "data", list, f"{self.url}/v1/models")]
            if len(names) != 1:
                raise ServingError(f"serving.model: {self.url} serves {names or 'none'}, name one")
            self._model = names[0]
        return self._model

    async def version(self) -> str | None:
        """Version of vLLM; None where the server does not say."""
        try:
            found = (await self._json("GET", "/version")).content
        except Rejected:
            return None
        return _field(found, "version", str, f"{self.url}/version")

    async def metrics(self) -> Scrape:
        """What `/metrics` says now."""
        async with self._limit(), self._accepted("GET", "/metrics", None) as (response, _):
            return parse((await response.aread()).decode())

    async def reset_prefix_cache(self) -> bool:
        """Empties the prefix cache; False where the server has no such endpoint (then use a salt)."""
        try:
            async with self._limit(), self._accepted("POST", "/reset_prefix_cache", None) as (response, _):
                await response.aread()
        except Rejected as error:
            if error.status in (404, 405):
                return False
            raise
        return True

    async def wait_ready(self, seconds: float) -> None:
        """Waits until `/health` says 200.

        Raises:
            ServingError: it does not within this time.
        """
        async with (
            self._limit(seconds + self.timeout),
            self._accepted("GET", "/health", None, patience=seconds) as (response, _),
        ):
            await response.aread()

    async def _body(self, body: Json, salt: str | None, options: Json) -> dict[str, Any]:
        salted = {} if salt is None else {"cache_salt": salt}
        return {"model": await self.model(), "temperature": 0.0, **body, **salted, **options}

    async def _ask(self, path: str, body: Json, salt: str | None, stream: bool, options: Json) -> Answer:
        full = await self._body({**body, "return_token_ids": True}, salt, options)
        if not stream:
            replied = await self._json("POST", path, full)
            collected = _Collected(f"{self.url}{path}")
            collected.whole(replied.content)
            return collected.answer(replied.timing, replied.total, self.reports_cached)
        full |= {"stream": True, "stream_options": {"include_usage": True}}
        collected = _Collected(f"{self.url}{path}")
        async with self._limit(), self._accepted("POST", path, full) as (response, timing):
            async for line in response.aiter_lines():
                if line.startswith("data:") and collected.event(line[5:].strip(), timing.elapsed()):
                    break
            return collected.answer(timing, timing.elapsed(), self.reports_cached)

    async def _json(self, method: str, path: str, body: Json | None = None) -> _Replied:
        async with self._limit(), self._accepted(method, path, body) as (response, timing):
            raw = await response.aread()
            total = timing.elapsed()
        try:
            content = json.loads(raw)
        except ValueError:
            raise BadAnswer(f"{self.url}{path}: not JSON: {raw[:80]!r}") from None
        if not isinstance(content, dict):
            raise BadAnswer(f"{self.url}{path}: not a JSON object: {raw[:80]!r}")
        return _Replied(content, timing, total)

    @asynccontextmanager
    async def _limit(self, seconds: float | None = None) -> AsyncIterator[None]:
        """The time limit of one answer, waiting for the server included."""
        seconds = self.timeout + self.patience if seconds is None else seconds
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise TooSlow(f"{self.url}: no whole answer within {seconds:g} s") from None

    @asynccontextmanager
    async def _accepted(
        self, method: str, path: str, body: Json | None, patience: float | None = None
    ) -> AsyncIterator[tuple[httpx2.Response, _Timing]]:
        """A response whose status is good, not yet read; tries again while the server takes nothing."""
        patience = self.patience if patience is None else patience
        asked, pause, tries = time.perf_counter(), PAUSE, 0
        where = f"{self.url}{path}"
        while True:
            sent, tries = time.perf_counter(), tries + 1
            request = self._http.build_request(method, path, json=body)
            try:
                response = await self._http.send(request, stream=True)
            except httpx2.ConnectError:
                why = "nobody listens there"
            except httpx2.ConnectTimeout:
                why = "connecting takes too long"
            except httpx2.HTTPError as error:
                raise CutOff(f"{where}: no answer ({type(error).__name__})") from None
            else:
                try:
                    if response.status_code not in AGAIN:
                        if response.status_code != 200:
                            raise await _rejected(response, where)
                        yield response, _Timing(asked, sent, tries)
                        return
                    why = str(await _rejected(response, where))
                except httpx2.HTTPError as error:
                    raise CutOff(f"{where}: the answer broke off ({type(error).__name__})") from None
                finally:
                    await response.aclose()
            if time.perf_counter() + pause - asked > patience:
                raise NotReady(f"{where}: not ready after {patience:g} s: {why}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


@dataclass(frozen=True)
class _Timing:
    """When a request was first sent, and when the try that was accepted; clock readings in seconds."""

    asked: float
    sent: float
    tries: int

    def elapsed(self) -> float:
        """Seconds since the accepted try was sent."""
        return time.perf_counter() - self.sent


@dataclass(frozen=True)
class _Replied:
    content: dict[str, Any]
    timing: _Timing
    total: float


class _Collected:
    """Gathers an answer, in one piece or from the events of a stream."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.texts: list[str] = []
        self.ids: list[int] | None = None
        self.calls: list[Json] = []
        self.reason: str | None = None
        self.usage: Json | None = None
        self.first: float | None = None
        self.last: float | None = None
        self.ended = False

    def whole(self, content: Json) -> None:
        """An answer that was not streamed."""
        self._choices(content, "message", None)
        self.usage = content.get("usage")
        self.ended = True

    def event(self, data: str, now: float) -> bool:
        """One event of a stream; true for the last."""
        if data == "[DONE]":
            self.ended = True
            return True
        try:
            content = json.loads(data)
        except ValueError:
            raise BadAnswer(f"{self.where}: an event is not JSON: {data[:80]!r}") from None
        if "error" in content:
            raise Rejected(f"{self.where}: {_reason(content)}", 200)
        self._choices(content, "delta", now)
        self.usage = content.get("usage") or self.usage
        return False

    def answer(self, timing: _Timing, total: float, reports_cached: bool) -> Answer:
        """The whole answer.

        Raises:
            CutOff: it has no end.
            BadAnswer: it has no usage.
        """
        if not self.ended or self.reason is None:
            raise CutOff(f"{self.where}: the answer broke off after {len(''.join(self.texts))} characters")
        if self.usage is None:
            raise BadAnswer(f"{self.where}: the answer has no usage, so its tokens are unknown")
        details = self.usage.get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens")
        if cached is None and reports_cached:
            cached = 0
        try:
            prompt, output = int(self.usage["prompt_tokens"]), int(self.usage["completion_tokens"])
        except (KeyError, TypeError, ValueError):
            raise BadAnswer(f"{self.where}: the usage lacks token counts: {self.usage}") from None
        return Answer(
            text="".join(self.texts),
            finish_reason=self.reason,
            prompt_tokens=prompt,
            cached_tokens=cached,
            output_tokens=output,
            token_ids=None if self.ids is None else tuple(self.ids),
            waited=timing.sent - timing.asked,
            tries=timing.tries,
            first_token=self.first,
            last_token=self.last,
            total=total,
            tool_calls=tuple(self.calls),
        )

    def _choices(self, content: Json, part: str, now: float | None) -> None:
        for choice in content.get("choices") or ():
            piece = choice.get(part) or choice
            text, ids = piece.get("content") or piece.get("text") or "", choice.get("token_ids")
            self.calls += piece.get("tool_calls") or ()
            self.texts.append(text)
            if ids:
                self.ids = [*(self.ids or ()), *ids]
            # the first event of a chat names the role only
            if now is not None and (text or ids or piece.get("tool_calls") or choice.get("finish_reason")):
                self.first = now if self.first is None else self.first
                self.last = now
            self.reason = choice.get("finish_reason") or self.reason


async def _rejected(response: httpx2.Response, where: str) -> Rejected:
    raw = await response.aread()
    try:
        reason = _reason(json.loads(raw))
    except ValueError:
        reason = raw.decode(errors="replace")[:200]
    return Rejected(
        f"{where}: HTTP {response.status_code}: {reason or 'no reason given'}", response.status_code
    )


def _reason(content: Any) -> str:
    """The message of an error body, on one line."""
    error = content.get("error", content) if isinstance(content, Mapping) else content
    message = error.get("message", error) if isinstance(error, Mapping) else error
    return " ".join(str(message).split())[:300]


def _field(content: Json, name: str, kind: type, where: str) -> Any:
    value = content.get(name)
    if not isinstance(value, kind):
        raise BadAnswer(f"{where}: the answer has no {name}")
    return value
