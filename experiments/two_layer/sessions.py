"""Recorded sessions: their requests, and the reuse of their prompts by a prefix cache."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.request import Request
from kvbench.claude.simulate import Trace
from kvbench.config.errors import UserError

PAGE = 16  # tokens per page of the prefix cache (vLLM's default block size)


@dataclass(frozen=True)
class HostedRequest:
    """A request to a self-hosted model.

    Attributes:
        t: seconds since the start of its session.
        path: (name, tokens) of every piece of the prompt, in order; the name identifies the prefix up to its end.
        output: tokens of the answer.
    """

    t: float
    path: tuple[tuple[int, int], ...]
    output: int

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return sum(tokens for _, tokens in self.path)


Session = tuple[HostedRequest, ...]


class IsolatedSessions(Trace):
    """A trace whose sessions share no cache: each gets a separate workspace."""

    def __init__(self, trace: Trace) -> None:
        """Wraps a trace."""
        self._trace = trace

    def requests(self, assumptions: Assumptions) -> Iterator[Request]:
        """See Trace."""
        for request in self._trace.requests(assumptions):
            yield replace(request, workspace=f"{request.workspace}/{request.session}")


def sessions(requests: Iterable[Request]) -> list[Session]:
    """The sessions of a trace, without the tokens that the API itself adds to a prompt (R21).

    Raises:
        UserError: no request, or one without an answer.
    """
    grouped: dict[str, list[Request]] = {}
    for request in requests:
        if request.output < 1:
            raise UserError(f"request {request.id}: no output tokens, nothing to decode")
        grouped.setdefault(request.session, []).append(request)
    if not grouped:
        raise UserError("trace: it contains no requests")
    return [
        tuple(
            HostedRequest(request.t - group[0].t, path, request.output)
            for request, path in zip(group, _joined([_path(request) for request in group]), strict=True)
        )
        for group in grouped.values()
    ]


def _path(request: Request) -> tuple[tuple[int, int], ...]:
    path: list[tuple[int, int]] = []
    node = request.head
    while node.parent is not None:
        path.append((node.cum, node.tokens - node.parent.tokens))
        node = node.parent
    return tuple(reversed(path))


def _joined(paths: list[tuple[tuple[int, int], ...]]) -> list[tuple[tuple[int, int], ...]]:
    """Paths whose blocks that always occur together are one piece."""
    uses = Counter(name for path in paths for name, _ in path)
    joined = []
    for path in paths:
        pieces: list[tuple[int, int]] = []
        for place, (name, tokens) in enumerate(path):
            # whatever holds the later of two blocks holds the earlier one too
            if place and uses[path[place - 1][0]] == uses[name]:
                tokens += pieces.pop()[1]
            pieces.append((name, tokens))
        joined.append(tuple(pieces))
    return joined


class PrefixPool:
    """A prefix cache of limited size with LRU eviction; the end of a prompt is evicted before its beginning."""

    def __init__(self, fresh: int = 1) -> None:
        """An empty pool; the last `fresh` tokens of a prompt are computed even if they are found."""
        self._fresh = fresh
        self._used = 0.0
        self._held: OrderedDict[tuple[int, int], float] = OrderedDict()

    def serve(self, session: int, request: HostedRequest, room: float) -> int:
        """Looks up a prompt and stores it.

        Args:
            session: number of the session; sessions share no prefix.
            request: the request.
            room: tokens that the pool may hold from now on.

        Returns:
            Number of tokens found: whole pages, without the last `fresh` tokens of the prompt.
        """
        if room <= 0:
            return 0
        held, found = self._held, 0.0
        for name, tokens in request.path:
            here = held.get((session, name), 0)
            found += here
            if here < tokens:
                break
        # the beginning is moved to the end of the queue last, so that it is evicted last
        for name, tokens in reversed(request.path):
            key = (session, name)
            self._used += tokens - held.get(key, 0)
            held[key] = tokens
            held.move_to_end(key)
        while self._used > room:
            key, tokens = next(iter(held.items()))
            excess = self._used - room
            if excess < tokens:
                held[key] = tokens - excess
                self._used = room
            else:
                del held[key]
                self._used -= tokens
        whole = max(0, min(int(found), request.prompt - self._fresh))
        return whole - whole % PAGE
