"""HTTP client for any OpenAI-compatible vLLM server.

Everything is asynchronous. A request that the server does not accept (no listener, 503 while loading, 429) is sent
again until the patience ends. An accepted request is never repeated, because it has already filled the server's
cache: its failure is an error of one line. Only complete answers are returned.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx2

from kvbench.vllm import answers
from kvbench.vllm.answers import Answer, AnswerCollector, Json, Timing, TokenLogprobs
from kvbench.vllm.errors import CutOff, NotReady, Rejected, ServingError, TooSlow
from kvbench.vllm.metrics import Scrape, parse

RETRIED = (429, 503)  # HTTP status
PAUSE, LONGEST_PAUSE = 0.1, 2.0  # seconds between tries
# seconds; below the 5 s after which the server closes an idle connection, so that no request meets a closing one
IDLE = 2.0


class Driver:
    """Client of one server; an asynchronous context manager.

    Args:
        base_url: as `http://127.0.0.1:8000`, with or without `/v1`.
        model: name under which the server serves the model; None takes the only one it lists.
        api_key: sent as bearer token.
        timeout: seconds for one whole answer.
        patience: seconds of retrying while the server does not accept requests.
        reports_cached: whether the server was started with `--enable-prompt-tokens-details`, so that an answer
            without the number of cached tokens means 0. Otherwise that number is unknown (None).
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
            # the limit for a whole answer is enforced here; this one is for connecting only
            timeout=httpx2.Timeout(None, connect=min(timeout, 10.0)),
            limits=httpx2.Limits(max_connections=None, keepalive_expiry=IDLE),
            # proxies of the environment are not meant for the user's own server
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
        """Continues a prompt, greedily unless the options change that.

        Args:
            prompt: text, or token ids.
            max_tokens: maximum number of generated tokens.
            salt: prompts share cached prefixes only with those of the same salt (vLLM's `cache_salt`: at most 128
                characters, without `@`, `/` and backslashes).
            stream: whether to measure the time of each token.
            options: further fields of the request, as `ignore_eos=True`.

        Raises:
            ServingError: no complete answer.
        """
        body = {"prompt": prompt if isinstance(prompt, str) else list(prompt), "max_tokens": max_tokens}
        return await self._generate("/v1/completions", body, salt, stream, options)

    async def chat(
        self,
        messages: Sequence[Json],
        *,
        max_tokens: int,
        salt: str | None = None,
        stream: bool = True,
        **options: Any,
    ) -> Answer:
        """Answers a conversation; all else as in `complete`."""
        body = {"messages": list(messages), "max_tokens": max_tokens}
        return await self._generate("/v1/chat/completions", body, salt, stream, options)

    async def score(
        self, prompt: str | Sequence[int], *, top: int = 1, salt: str | None = None
    ) -> TokenLogprobs:
        """Log probabilities of every token of a text, and of the `top` most probable tokens at each position."""
        body = {
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": 1,
            "echo": True,
            "logprobs": top,
            "return_tokens_as_token_ids": True,
        }
        path = "/v1/completions"
        response = await self._json("POST", path, await self._body(body, salt, {}))
        return answers.token_logprobs(response.content, f"{self.url}{path}")

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        body = {"model": await self.model(), "prompt": text, "add_special_tokens": add_special_tokens}
        response = await self._json("POST", "/tokenize", body)
        return answers.field(response.content, "tokens", list, f"{self.url}/tokenize")

    async def prompt_tokens(self, messages: Sequence[Json], tools: Sequence[Json]) -> list[int]:
        """Token ids of a conversation, as the server's chat template makes them.

        Args:
            messages: the conversation.
            tools: as in a request.
        """
        body: dict[str, Any] = {"model": await self.model(), "messages": list(messages)}
        response = await self._json(
            "POST", "/tokenize", {**body, **({"tools": list(tools)} if tools else {})}
        )
        return answers.field(response.content, "tokens", list, f"{self.url}/tokenize")

    async def model(self) -> str:
        """Name of the model: the one passed in, else the only one that the server lists.

        Raises:
            ServingError: the server lists none, or several.
        """
        if self._model is None:
            listed = (await self._json("GET", "/v1/models")).content
            names = [str(item["id"]) for item in answers.field(listed, "data", list, f"{self.url}/v1/models")]
            if len(names) != 1:
                raise ServingError(
                    f"serving.served_model: {self.url} serves {', '.join(names) or 'none'}, give one name"
                )
            self._model = names[0]
        return self._model

    async def version(self) -> str | None:
        """Version of vLLM; None if the server does not report it."""
        try:
            found = (await self._json("GET", "/version")).content
        except Rejected:
            return None
        return answers.field(found, "version", str, f"{self.url}/version")

    async def metrics(self) -> Scrape:
        """A scrape of `/metrics`."""
        async with self._limit(), self._accepted("GET", "/metrics", None) as (response, _):
            return parse((await response.aread()).decode())

    async def reset_prefix_cache(self) -> bool:
        """Empties the prefix cache; returns False if the server has no such endpoint (use a salt then)."""
        try:
            async with self._limit(), self._accepted("POST", "/reset_prefix_cache", None) as (response, _):
                await response.aread()
        except Rejected as error:
            if error.status in (404, 405):
                return False
            raise
        return True

    async def wait_ready(self, seconds: float) -> None:
        """Waits until `/health` answers 200.

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

    async def _generate(self, path: str, body: Json, salt: str | None, stream: bool, options: Json) -> Answer:
        full = await self._body({**body, "return_token_ids": True}, salt, options)
        collector = AnswerCollector(f"{self.url}{path}")
        if not stream:
            response = await self._json("POST", path, full)
            collector.add_whole(response.content)
            return collector.answer(response.timing, response.total, self.reports_cached)
        full |= {"stream": True, "stream_options": {"include_usage": True}}
        async with self._limit(), self._accepted("POST", path, full) as (response, timing):
            async for line in response.aiter_lines():
                if line.startswith("data:") and collector.add_event(line[5:].strip(), timing.elapsed()):
                    break
            return collector.answer(timing, timing.elapsed(), self.reports_cached)

    async def _json(self, method: str, path: str, body: Json | None = None) -> _JsonResponse:
        async with self._limit(), self._accepted(method, path, body) as (response, timing):
            raw = await response.aread()
            total = timing.elapsed()
        return _JsonResponse(answers.json_object(raw, f"{self.url}{path}"), timing, total)

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
    ) -> AsyncIterator[tuple[httpx2.Response, Timing]]:
        """A response with status 200, not yet read; retries while the server accepts no requests."""
        patience = self.patience if patience is None else patience
        started, pause, tries = time.perf_counter(), PAUSE, 0
        url = f"{self.url}{path}"
        while True:
            sent, tries = time.perf_counter(), tries + 1
            request = self._http.build_request(method, path, json=body)
            try:
                response = await self._http.send(request, stream=True)
            except httpx2.ConnectError:
                why = "no server listens there"
            except httpx2.ConnectTimeout:
                why = "connecting takes too long"
            except httpx2.HTTPError as error:
                raise CutOff(f"{url}: no answer ({type(error).__name__})") from None
            else:
                try:
                    if response.status_code == 200:
                        yield response, Timing(started, sent, tries)
                        return
                    rejected = answers.rejection(response.status_code, await response.aread(), url)
                    if response.status_code not in RETRIED:
                        raise rejected
                    why = str(rejected)
                except httpx2.HTTPError as error:
                    raise CutOff(f"{url}: the answer broke off ({type(error).__name__})") from None
                finally:
                    await response.aclose()
            if time.perf_counter() + pause - started > patience:
                raise NotReady(f"{url}: not ready after {patience:g} s: {why}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


@dataclass(frozen=True)
class _JsonResponse:
    content: Mapping[str, Any]
    timing: Timing
    total: float
