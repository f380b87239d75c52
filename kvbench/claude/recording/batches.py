"""Message batches as exchanges: what was posted, joined with the results that are fetched later.

Schema: anthropic 2.12.0, types/messages (`batch_create_params.py`, `message_batch.py`,
`message_batch_individual_response.py`). A batch is posted to /v1/messages/batches; its results are JSON lines at
/v1/messages/batches/ID/results, one per item, in any order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kvbench.claude.recording.exchange import Exchange
from kvbench.claude.recording.sse import decoded

_BATCHES = re.compile(r"/v1/messages/batches/?$")
_RESULTS = re.compile(r"/v1/messages/batches/([^/]+)/results/?$")


def is_batch(method: str, path: str) -> bool:
    """Whether a call posts a batch or fetches its results."""
    return bool(_BATCHES.search(path) if method == "POST" else method == "GET" and _RESULTS.search(path))


@dataclass(frozen=True)
class Item:
    """An item of a batch with its result, as an exchange of its own.

    Attributes:
        batch: id of the batch.
        name: the item's `custom_id`.
        exchange: its request (model alone, if it was posted elsewhere) and its answer.
    """

    batch: str
    name: str
    exchange: Exchange


@dataclass
class Batches:
    """The batches that were posted, until their results come."""

    _posted: dict[str, tuple[Exchange, dict[str, Any]]] = field(default_factory=dict)
    _done: set[tuple[str, str]] = field(default_factory=set)

    def items(self, exchange: Exchange) -> Iterator[Item]:
        """The items whose results an exchange brings for the first time; none for one that posts a batch."""
        body = decoded(exchange.body, exchange.encoding)
        found = _RESULTS.search(exchange.path)
        if exchange.status >= 400:
            return
        if found is None:
            self._post(exchange, json.loads(body))
            return
        batch = found[1]
        posted, requests = self._posted.get(batch, (exchange, {}))
        for line in body.splitlines():
            if not line.strip():
                continue
            row = json.loads(line)
            name, result = str(row["custom_id"]), row["result"]
            if (batch, name) in self._done or result["type"] not in ("succeeded", "errored"):
                continue
            self._done.add((batch, name))
            answer = result["message"] if result["type"] == "succeeded" else result["error"]
            request = requests.get(name) or {"model": answer.get("model", ""), "messages": []}
            item = replace(
                exchange,
                sent=posted.sent,
                request=json.dumps(request).encode(),
                status=200 if result["type"] == "succeeded" else 400,
                encoding="",
                body=json.dumps(answer).encode(),
                # when an item ran is not told: all of them begin with the batch
                start=posted.start,
                began=posted.start,
                end=posted.start,
                session=batch,
            )
            yield Item(batch, name, item)

    def _post(self, exchange: Exchange, answer: Mapping[str, Any]) -> None:
        requests = json.loads(exchange.request)["requests"]
        params = {str(request["custom_id"]): request["params"] for request in requests}
        self._posted[str(answer["id"])] = exchange, params
