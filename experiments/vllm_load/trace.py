"""Sessions of a recorded trace, whose blocks have hashes and token counts but no text."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.traces.open import open_trace
from kvbench.config.errors import UserError
from kvbench.experiments.vllm_load.config import TraceConfig
from kvbench.tasks import Renderer
from kvbench.vllm.arrivals import Session, SessionTurn

if TYPE_CHECKING:
    from kvbench.claude.request import Request


def recorded_sessions(
    cfg: TraceConfig, path: str, renderer: Renderer, max_context: int
) -> tuple[list[Session], str]:
    """The sessions of a trace, and their description for captions.

    Args:
        cfg: how the trace is sent.
        path: folder or file of the trace.
        renderer: has the tokenizer whose tokens the prompts are made of.
        max_context: longest context in tokens of the servers.

    Raises:
        UserError: the trace cannot be read, or no request fits.
    """
    special = set(renderer.tokenizer.added_tokens_decoder)
    vocabulary = [token for token in range(len(renderer.tokenizer)) if token not in special]
    requests = list(open_trace(path, None).requests(Assumptions()))
    sessions = of_trace(
        requests,
        vocabulary,
        shrink=cfg.shrink,
        speed=cfg.speed,
        max_context=max_context,
        max_output=cfg.max_output,
    )
    left = len(requests) - sum(len(session.turns) for session in sessions)
    cut = f" ({left} of its {len(requests)} requests left out: beyond the server's context)" if left else ""
    return sessions, f"the trace {Path(path).name}{cut}"


def of_trace(
    requests: Iterable[Request],
    vocabulary: Sequence[int],
    *,
    shrink: int = 1,
    speed: float = 1.0,
    max_context: int,
    max_output: int,
) -> list[Session]:
    """Sessions of a trace, with random tokens in place of its text.

    The tokens of a content block depend only on the hash of the prompt up to its end, so that two prompts share
    exactly the blocks that they shared when they were recorded. Such prompts measure caching, batching and latency;
    the answers are meaningless.

    Args:
        requests: of `kvbench.claude.traces`, by start time.
        vocabulary: token ids to draw from, without special ones.
        shrink: every block gets 1/shrink of its tokens, at least one.
        speed: factor by which the trace's clock is accelerated.
        max_context: a request with more tokens than this, its answer included, is left out and ends its session, as
            it would on the server.
        max_output: longest answer in tokens.

    Raises:
        UserError: a number that is not allowed, or no request fits.
    """
    for name, value in (("shrink", shrink), ("speed", speed)):
        if value <= 0:
            raise UserError(f"{name}: {value} is not allowed, give a number above 0")
    grouped: dict[str, list[tuple[Request, SessionTurn]]] = {}
    ended: set[str] = set()
    start: float | None = None
    for request in requests:
        start = request.t if start is None else start
        prompt = _tokens(request, vocabulary, shrink)
        output = max(1, min(max_output, request.output // shrink))
        if request.session in ended or len(prompt) + output > max_context:
            ended.add(request.session)
            continue
        grouped.setdefault(request.session, []).append((request, SessionTurn(prompt, output)))
    if not grouped:
        raise UserError(f"trace: no prompt of it fits {max_context} tokens; give a larger shrink")
    assert start is not None
    return [_session(name, pairs, start, speed) for name, pairs in grouped.items()]


def _session(name: str, pairs: Sequence[tuple[Request, SessionTurn]], start: float, speed: float) -> Session:
    turns, before = [], None
    for request, turn in pairs:
        # the trace does not hold the end of an answer, only its first byte: gaps count from there
        idle = 0.0 if before is None else max(0.0, request.t - before.t - before.ttft)
        turns.append(replace(turn, gap=idle / speed))
        before = request
    return Session(name or "trace", tuple(turns), at=(pairs[0][0].t - start) / speed)


def _tokens(request: Request, vocabulary: Sequence[int], shrink: int) -> tuple[int, ...]:
    ids: list[int] = []
    node = request.head
    chain = []
    while node is not None and node.index:
        chain.append(node)
        node = node.parent
    for link in reversed(chain):
        before = link.parent.tokens if link.parent is not None else 0
        count = max(1, (link.tokens - before) // shrink)
        # seeded by the hash of the whole prefix: equal blocks at different positions are cached separately
        ids += random.Random(link.cum).choices(vocabulary, k=count)
    return tuple(ids)
