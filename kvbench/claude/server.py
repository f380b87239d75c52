"""A Messages API server on 127.0.0.1, driven by the same rule engine as the simulator.

The real `anthropic` SDK talks to it over HTTP. Answers come from a script or a local model, as headers and ids state;
only the usage figures follow the documented rules.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvbench.claude import request_json, validate
from kvbench.claude.assumptions import Assumptions
from kvbench.claude.changes import first_change
from kvbench.claude.http import CONNECTIONS, Handler, Loopback, RequestError
from kvbench.claude.prices import PriceBook
from kvbench.claude.request import Request, Usage, digest
from kvbench.claude.responder import Responder, fixed
from kvbench.claude.rules import Cache
from kvbench.claude.shape import offer_errors, shape_errors
from kvbench.claude.tokens import CharCounter, Counter
from kvbench.claude.traces.checks import MALFORMED
from kvbench.config.errors import UserError
from kvbench.config.numbers import read_json
from kvbench.config.text import one_line

Json = Mapping[str, Any]

# sampling parameters are rejected from this API version onwards, even at their defaults
NO_SAMPLING = "2026-10-21"
SAMPLING = ("temperature", "top_p", "top_k")
ANSWERED_BY, ANSWERER = "x-answered-by", "kvbench loopback server, not Claude"


@dataclass(frozen=True)
class LoggedRequest:
    """One answered request.

    Attributes:
        id: its request id.
        body: its JSON.
        usage: reported usage, None if the request was rejected.
    """

    id: str
    body: Json
    usage: Usage | None


class Engine:
    """The server without HTTP."""

    def __init__(
        self,
        prices: PriceBook,
        *,
        responder: Responder | None = None,
        counter: Counter | None = None,
        assumptions: Assumptions | None = None,
        clock: Callable[[], float] = time.time,
        ttft: float = 0.0,
    ) -> None:
        """An engine with an empty cache.

        Args:
            prices: gives the known models and their minimums.
            responder: answers; default is one fixed text.
            counter: counts tokens; default is by characters.
            assumptions: assumptions on undocumented points.
            clock: seconds since the epoch.
            ttft: seconds until an answer begins, for the cache only.
        """
        self.prices = prices
        self.responder = responder or fixed()
        self.counter = counter or CharCounter()
        self.assumptions = assumptions or Assumptions()
        self.clock = clock
        self.ttft = ttft
        self.log: list[LoggedRequest] = []
        self._cache = Cache(self.assumptions)
        self._diagnosed: dict[
            str, Request
        ] = {}  # requests that asked for diagnostics, by the id of their answer
        self._lock = threading.Lock()

    def message(self, body: Json, headers: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
        """Answers a request; returns its id and the message.

        Raises:
            RequestError: the request is not valid.
        """
        with self._lock:
            number = len(self.log) + 1
            name, message = f"req_loopback_{number}", f"msg_loopback_{number}"
            try:
                usage, diagnostics = self._serve(body, headers, name, message)
            except RequestError as error:
                error.request_id = name
                self.log.append(LoggedRequest(name, body, None))
                raise
            content = self.responder(body) if body["max_tokens"] else []
            if content:
                usage.output = sum(
                    self.counter.count(request_json.text_of(block), body["model"])[0] for block in content
                )
            self.log.append(LoggedRequest(name, body, usage))
        calls = any(block["type"] == "tool_use" for block in content)
        return name, {
            "id": message,
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": content,
            "stop_reason": "tool_use" if calls else "end_turn" if content else "max_tokens",
            "stop_sequence": None,
            "usage": {**usage_json(usage), **_terms(body, self._speed(body))},
            "diagnostics": diagnostics,
        }

    def count(self, body: Json) -> int:
        """Input tokens of a request, regardless of the cache.

        Raises:
            RequestError: the request is not valid.
        """
        self._check(body, {}, needs_max=False)
        parsed = request_json.parse(body, self.counter, masks=False)
        hidden = self.prices.tool_prompt(body["model"], parsed.tool_prompt)
        return hidden + sum(block.tokens for block in parsed.blocks)

    def _serve(
        self, body: Json, headers: Mapping[str, str], name: str, message: str
    ) -> tuple[Usage, dict[str, Any] | None]:
        self._check(body, headers, needs_max=True)
        betas = [beta.strip() for beta in headers.get("anthropic-beta", "").split(",") if beta.strip()]
        parsed = request_json.parse(body, self.counter, betas, masks=False)
        if not parsed.blocks:
            raise RequestError(400, "invalid_request_error", "messages: at least one block is required")
        request = request_json.build_request(
            parsed,
            id=name,
            t=self.clock(),
            model=self.prices.resolve(body["model"]),
            hashing=self.assumptions.hashing,
            ttft=self.ttft,
            workspace=workspace_of(headers),
            speed=self._speed(body),
            hidden=self.prices.tool_prompt(body["model"], parsed.tool_prompt),
        )
        minimum = self.prices.minimum(request.model, request.t, self.assumptions.unknown_minimum)
        usage = self._cache.serve(request, request.markers, minimum).usage
        diagnostics = self._diagnostics(body, request, usage)
        if isinstance(body.get("diagnostics"), Mapping):
            self._diagnosed[message] = request
        return usage, diagnostics

    def _speed(self, body: Json) -> str:
        """The speed at which a request is served."""
        return self.prices.served_speed(body["model"], self.clock(), body.get("speed") or "")

    def _diagnostics(self, body: Json, request: Request, usage: Usage) -> dict[str, Any] | None:
        """The reason for a miss against the request that the body names; None if none was asked for or found."""
        asked = body.get("diagnostics")
        name = asked.get("previous_message_id") if isinstance(asked, Mapping) else None
        if name is None:
            return None
        before = self._diagnosed.get(name)
        if before is None or before.workspace != request.workspace:
            return {"cache_miss_reason": {"type": "previous_message_not_found"}}
        change = first_change(before, request)
        if change is None:
            return None
        reason: dict[str, Any] = {"type": change.api}
        if change.api != "unavailable":
            written = max((node.tokens for node, _ in before.markers), default=0)
            reason["cache_missed_input_tokens"] = max(0, min(written, usage.total) - usage.read)
        return {"cache_miss_reason": reason}

    def _check(self, body: Any, headers: Mapping[str, str], *, needs_max: bool) -> None:
        """Refuses what the API refuses.

        Raises:
            RequestError: the first error that is found.
        """
        if found := next(shape_errors(body, needs_max=needs_max), None):
            raise RequestError(400, "invalid_request_error", found)
        try:
            model = self.prices.resolve(body["model"])
        except UserError as error:
            raise RequestError(404, "not_found_error", str(error)) from error
        offered = offer_errors(
            body, geo=self.prices.takes_geo(model), fast=self.prices.has_fast(model, self.clock())
        )
        if found := next(offered, None):
            raise RequestError(400, "invalid_request_error", found)
        if headers.get("anthropic-version", "") >= NO_SAMPLING:
            for name in SAMPLING:
                if name in body:
                    raise RequestError(
                        400,
                        "invalid_request_error",
                        f"{name}: not accepted from API version {NO_SAMPLING} on",
                    )
        asked = body.get("diagnostics")
        name = asked.get("previous_message_id") if isinstance(asked, Mapping) else None
        if not (asked is None or isinstance(asked, Mapping)) or not (name is None or isinstance(name, str)):
            place = "diagnostics.previous_message_id" if isinstance(asked, Mapping) else "diagnostics"
            kind = "string" if isinstance(asked, Mapping) else "object"
            raise RequestError(400, "invalid_request_error", f"{place}: Input should be a valid {kind}")
        if found := validate.errors(body):
            raise RequestError(400, "invalid_request_error", found[0])


def workspace_of(headers: Mapping[str, str]) -> str:
    """Name of the workspace of a request: a hash of its key (one key, one workspace), never the key itself."""
    key = headers.get("x-api-key") or headers.get("authorization") or ""
    return f"{digest(key.removeprefix('Bearer ')):016x}"


def _terms(body: Json, speed: str) -> dict[str, Any]:
    """Terms of a request as its usage reports them."""
    terms = {"speed": speed or "standard"}
    return {**terms, "inference_geo": body["inference_geo"]} if body.get("inference_geo") else terms


def usage_json(usage: Usage) -> dict[str, Any]:
    """The documented usage object."""
    return {
        "input_tokens": usage.uncached,
        "cache_creation_input_tokens": usage.write_5m + usage.write_1h,
        "cache_read_input_tokens": usage.read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.write_5m,
            "ephemeral_1h_input_tokens": usage.write_1h,
        },
        "output_tokens": usage.output,
        "service_tier": "standard",
    }


def events(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The event stream of a message, in the documented order."""
    usage = message["usage"]
    opening = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    yield {"type": "message_start", "message": opening}
    yield {"type": "ping"}
    for index, block in enumerate(message["content"]):
        if block["type"] == "tool_use":
            start = {**block, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        else:
            start = {"type": "text", "text": ""}
            delta = {"type": "text_delta", "text": block["text"]}
        yield {"type": "content_block_start", "index": index, "content_block": start}
        yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": message["stop_reason"], "stop_sequence": None},
        "usage": {key: value for key, value in usage.items() if key.endswith("_tokens")},
    }
    yield {"type": "message_stop"}


class _Handler(Handler):
    engine: Engine

    def do_POST(self) -> None:
        """Serves the two endpoints."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        name = "req_loopback"
        try:
            body = _json(self.read_body())
            path = self.path.split("?")[0]
            if path == "/v1/messages":
                name, message = self.engine.message(body, headers)
                if body.get("stream"):
                    self._stream(name, message)
                else:
                    self._send(200, name, message)
            elif path == "/v1/messages/count_tokens":
                self._send(200, name, {"input_tokens": self.engine.count(body)})
            else:
                raise RequestError(404, "not_found_error", f"{path} is not served here")
        except RequestError as error:
            self._send(error.status, error.request_id, error.body())
        except MALFORMED as error:
            # a field of a kind that no check knows
            refused = RequestError(400, "invalid_request_error", one_line(error))
            self._send(400, name, refused.body())

    def do_GET(self) -> None:
        """Refuses; there is nothing to get."""
        self._send(
            405, "req_loopback", RequestError(405, "invalid_request_error", "only POST is served here").body()
        )

    def _send(self, status: int, name: str, content: Json) -> None:
        self.send_json(status, content, {"request-id": name, ANSWERED_BY: ANSWERER})

    def _stream(self, name: str, message: Mapping[str, Any]) -> None:
        self.close_connection = True
        self.send_response(200)
        for header, value in (
            ("content-type", "text/event-stream"),
            ("request-id", name),
            (ANSWERED_BY, ANSWERER),
        ):
            self.send_header(header, value)
        self.send_header("connection", "close")
        self.end_headers()
        for event in events(message):
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()


def _json(raw: bytes) -> Any:
    try:
        return read_json(raw)
    except (ValueError, RecursionError) as error:
        detail = one_line(error)
        raise RequestError(
            400, "invalid_request_error", f"The request body is not valid JSON: {detail}"
        ) from error


class LoopbackServer(Loopback):
    """Runs an engine behind HTTP on 127.0.0.1, as a context manager; `url` is the SDK's base_url."""

    def __init__(self, engine: Engine, port: int = 0, connections: int = CONNECTIONS) -> None:
        """Binds a port; arguments and errors as for `Loopback`."""
        super().__init__(type("EngineHandler", (_Handler,), {"engine": engine}), port, connections)
        self.engine = engine
