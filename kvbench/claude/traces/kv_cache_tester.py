"""Sessions of the kv-cache-tester project (callanjfox/kv-cache-tester), recorded from Claude Code: a JSON file each.

The traces contain hash ids of 64-token blocks, but no content-block boundaries, no dates and mostly no time to first
byte. `Choices` names what is assumed instead; `Choices.flips` yields the alternatives.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.files import UNREADABLE, content_of, files_of, place_of
from kvbench.claude.prices import PriceBook
from kvbench.claude.request import SYSTEM, TEXT, THINKING, TOOL_RESULT, TOOL_USE, TOOLS, Request, digest
from kvbench.claude.simulate import Trace
from kvbench.claude.traces.checks import MALFORMED, check, misfit, whole
from kvbench.claude.traces.hashed import HashChain
from kvbench.claude.traces.problems import Problems
from kvbench.config.errors import UserError

_KINDS = {"text": TEXT, "tool_use": TOOL_USE, "tool_result": TOOL_RESULT, "thinking": THINKING}
SUBAGENT = "subagent"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Modelling choices on points that the data leave open.

    Attributes:
        blocks: content blocks of a request's new part: "types" = one per listed type of the previous reply and of the
            new input, "turn" = a single one, "hash" = every 64-token block (the lookback then spans 1,280 tokens).
        ttft: seconds until an entry can be read, if not recorded: "zero", or "api_time" = the duration of the request.
        subagents: "shared" = sub-agents use the cache of their session, "left_out" = they are not replayed.
    """

    blocks: Literal["types", "turn", "hash"] = "types"
    ttft: Literal["zero", "api_time"] = "zero"
    subagents: Literal["shared", "left_out"] = "shared"

    def flips(self) -> Iterator[tuple[str, Choices]]:
        """Every alternative value of every choice, one at a time."""
        yield "blocks=turn", replace(self, blocks="turn")
        yield "blocks=hash", replace(self, blocks="hash")
        yield "ttft=api_time", replace(self, ttft="api_time")
        yield "subagents=left_out", replace(self, subagents="left_out")


@dataclass
class KvCacheTesterTrace(Trace):
    """All sessions of a folder in sequence; only one file is held in memory at a time.

    Attributes:
        path: a JSON file, or a folder of them and of sub-folders; .gz too.
        prices: defines the known models.
        choices: modelling choices.
        problems: collects defects of the files on the first pass.
        date: first day of every session, which selects prices and minimums (the traces have no dates).
    """

    path: Path
    prices: PriceBook
    choices: Choices = field(default_factory=Choices)
    problems: Problems = field(default_factory=Problems)
    date: datetime.date = datetime.date(2026, 11, 24)

    def __post_init__(self) -> None:
        """Lists the files.

        Raises:
            UserError: no such folder, or no JSON file in it.
        """
        self.path = Path(self.path)
        self.files = files_of(self.path, (".json",))
        self._reported = False

    def requests(self, assumptions: Assumptions) -> Iterator[Request]:
        """See Trace; hash ids do not depend on the assumptions."""
        for file in self.files:
            yield from self._session(file)
        self._reported = True

    def _session(self, file: Path) -> Iterable[Request]:
        problems = Problems(strict=self.problems.strict) if not self._reported else Problems()
        place = place_of(file, self.path)
        try:
            session = json.loads(content_of(file))
            items, size = session["requests"], session["block_size"]
            tiers = (session["tool_tokens"], session["system_tokens"])
            _require(isinstance(items, list) and isinstance(size, int) and size > 0, "requests or block_size")
            _require(all(isinstance(n, int) and n >= 0 for n in tiers), "tool_tokens or system_tokens")
        except (*MALFORMED, *UNREADABLE) as error:
            line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            problems.skip(f"{place}{line}", f"not a session ({type(error).__name__}: {error})")
            self._report(problems)
            return []
        start = datetime.datetime.combine(self.date, datetime.time(), datetime.UTC).timestamp()
        reader = _Session(place, size, self.prices, self.choices, problems)
        requests = reader.read(items, start, tiers, "")
        if len(reader.agents) > 1:
            requests.sort(key=lambda request: request.t)
        self._report(problems)
        return requests

    def _report(self, problems: Problems) -> None:
        if not self._reported:
            self.problems.lines += problems.lines
            self.problems.skipped += problems.skipped


class _Session:
    """Reads one session file into requests."""

    def __init__(
        self, name: str, block_size: int, prices: PriceBook, choices: Choices, problems: Problems
    ) -> None:
        self.name = name
        self.block_size = block_size
        self.prices = prices
        self.choices = choices
        self.problems = problems
        self.agents: list[str] = []
        self._known: dict[str, str] = {}

    def read(
        self, items: Sequence[Mapping[str, Any]], start: float, tiers: tuple[int, int], agent: str
    ) -> list[Request]:
        """Requests of one agent and its sub-agents."""
        self.agents.append(agent)
        tools, system = tiers[0] // self.block_size, (tiers[0] + tiers[1]) // self.block_size
        # ids are local to the file
        chain = HashChain(self.block_size, ((tools, TOOLS), (system, SYSTEM)), digest(self.name))
        requests: list[Request] = []
        latest = start
        replied: Sequence[str] = ()
        for number, item in enumerate(items):
            place = f"{self.name}: request {agent}{number}"
            try:
                if item["type"] == SUBAGENT:
                    if self.choices.subagents == "shared":
                        requests += self._subagent(item, start, f"{agent}{number}.")
                    continue
                request = self._request(item, start, f"{agent}{number}", chain, replied)
            except UserError as error:
                self.problems.skip(place, str(error))
                continue
            except MALFORMED as error:
                self.problems.skip(place, f"{type(error).__name__}: {error}")
                continue
            replied = item.get("output_types") or ()
            if request.t < latest:
                self.problems.corrected(
                    place, f"its time {item['t']} runs backwards; set to the time of the previous one"
                )
                request.t = latest
            latest = request.t
            requests.append(request)
        return requests

    def _subagent(self, item: Mapping[str, Any], start: float, agent: str) -> list[Request]:
        tiers = (int(item.get("tool_tokens", 0)), int(item.get("system_tokens", 0)))
        return self.read(item["requests"], start + item["t"], tiers, agent)

    def _request(
        self, item: Mapping[str, Any], start: float, name: str, chain: HashChain, replied: Sequence[str]
    ) -> Request:
        t, model, tokens, output, ids = _fields(item)
        tokens, output = whole("in", tokens), whole("out", output)
        if not isinstance(ids, list) or not ids or len(ids) != tokens // self.block_size:
            raise misfit(ids, "in", tokens, self.block_size)
        if model not in self._known:
            self._known[model] = self.prices.resolve(model)
        head = chain.extend(ids, self._kinds(item, replied), 0 if self.choices.blocks == "hash" else 1)
        ttft = item.get("ttft")
        if ttft is None:
            ttft = (item.get("api_time") or 0.0) if self.choices.ttft == "api_time" else 0.0
        tools_end, system_end = chain.tier_ends()
        request = Request(
            id=f"{self.name}/{name}",
            t=start + t,
            model=self._known[model],
            head=head,
            tools_end=tools_end,
            system_end=system_end,
            session=self.name,
            workspace=self.name,
            ttft=ttft,
            output=output,
            source="usage",
            tail=tokens - head.tokens,
        )
        check(request, self.prices)
        return request

    def _kinds(self, item: Mapping[str, Any], replied: Sequence[str]) -> Sequence[int]:
        if self.choices.blocks != "types":
            return (TEXT,)
        # a reply is sent back in its original order: thinking, text, tool calls; their results follow
        types = [*sorted(replied, key=_order), *(item.get("input_types") or ())]
        return tuple(_KINDS.get(name, TEXT) for name in types) or (TEXT,)


def _order(name: str) -> int:
    return ("thinking", "text", "tool_use").index(name) if name in ("thinking", "text", "tool_use") else 3


_fields = itemgetter("t", "model", "in", "out", "hash_ids")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"{what} is missing or wrong")
