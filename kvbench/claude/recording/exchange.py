"""One call of the API and its response, as the recorder and the proxy see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ENDPOINT = "/v1/messages"


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A request and its response.

    Attributes:
        sent: headers of the request, names in lower case.
        request: its body.
        path: its path, without a query.
        status: of the response.
        encoding: content encoding of the response's body.
        body: the response's body, as far as it was read.
        start, began, end: when the request was sent, the response began and ended; seconds since the epoch.
        session: conversation.
        retries: attempts before this one.
    """

    sent: Mapping[str, str]
    request: bytes
    path: str = ENDPOINT
    status: int
    encoding: str
    body: bytes
    start: float
    began: float
    end: float
    session: str = ""
    retries: int = 0
