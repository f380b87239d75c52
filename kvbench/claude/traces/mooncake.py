"""Mooncake-style JSONL: one request per line with `timestamp` (ms), lengths and 512-token hash ids.

The traces name no sessions and no model: the caller gives the model, every request is cut at its 512-token blocks or
taken as one block, and the prefix hashes alone determine what is shared.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.files import lines_of
from kvbench.claude.prices import PriceBook
from kvbench.claude.request import MESSAGES, TEXT, Node, Request, mix, root
from kvbench.claude.simulate import Trace
from kvbench.claude.traces.checks import MALFORMED, check, misfit, whole
from kvbench.claude.traces.problems import Problems
from kvbench.config.errors import UserError
from kvbench.config.numbers import read_json


@dataclass
class MooncakeTrace(Trace):
    """One file, read line by line.

    Attributes:
        path: the JSONL file; .gz too.
        prices: defines the known models.
        model: model to price every request with.
        block_size: tokens per hash id.
        blocks: content blocks: "hash" = one per hash id, so that requests can share a prefix; "turn" = the whole prompt
            is one block, so that only equal prompts share.
        date: first day of the trace.
        problems: collects defects of the file on the first pass.
    """

    path: Path
    prices: PriceBook
    model: str = "claude-sonnet-4-6"
    block_size: int = 512
    blocks: Literal["hash", "turn"] = "hash"
    date: datetime.date = datetime.date(2026, 11, 24)
    problems: Problems = field(default_factory=Problems)

    def __post_init__(self) -> None:
        """Checks the file and the model.

        Raises:
            UserError: no such file, or an unknown model.
        """
        self.path = Path(self.path)
        if not self.path.is_file():
            raise UserError(f"trace={self.path}: no such file; a Mooncake trace is one file")
        self.model = self.prices.resolve(self.model)
        self._reported = False

    def requests(self, assumptions: Assumptions) -> Iterator[Request]:
        """See Trace; hash ids do not depend on the assumptions."""
        problems = Problems() if self._reported else self.problems
        start = datetime.datetime.combine(self.date, datetime.time(), datetime.UTC).timestamp()
        latest = start
        for number, line in lines_of(self.path, self.path.name, problems):
            place = f"{self.path.name}, line {number}"
            try:
                request = self._request(read_json(line), start, f"{self.path.name}/{number}")
            except UserError as error:
                problems.skip(place, str(error))
                continue
            except MALFORMED as error:
                problems.skip(place, f"{type(error).__name__}: {error}")
                continue
            if request.t < latest:
                problems.corrected(
                    place, "its timestamp runs backwards; set to the time of the previous line"
                )
                request.t = latest
            latest = request.t
            yield request
        self._reported = True

    def _request(self, row: dict[str, Any], start: float, name: str) -> Request:
        ids, tokens, output = row["hash_ids"], row["input_length"], row["output_length"]
        tokens, output = whole("input_length", tokens), whole("output_length", output)
        if not isinstance(ids, list) or not ids or not self._fit(len(ids), tokens):
            raise misfit(ids, "input_length", tokens, self.block_size)
        # the id of an incomplete last block changes once it is complete, so its end cannot be shared
        full = len(ids) if len(ids) * self.block_size <= tokens else len(ids) - 1
        head = self._chain(ids[:full], full * self.block_size) if full else self._chain(ids, tokens)
        request = Request(
            id=name,
            t=start + row["timestamp"] / 1000,
            model=self.model,
            head=head,
            output=output,
            source="usage",
            tail=tokens - head.tokens,
        )
        check(request, self.prices)
        return request

    def _fit(self, count: int, tokens: int) -> bool:
        """Whether there is an id per whole block; an incomplete last one may have an id."""
        whole_blocks, rest = divmod(tokens, self.block_size)
        return whole_blocks <= count <= whole_blocks + (rest > 0)

    def _chain(self, ids: list[int], tokens: int) -> Node:
        if self.blocks == "turn":
            return Node(root(), mix(root().cum, ids), tokens, MESSAGES, TEXT, 0, contents=(mix(1, ids),))
        node = root()
        for number, value in enumerate(ids, 1):
            size = min(number * self.block_size, tokens)
            node = Node(node, mix(node.cum, (value,)), size, MESSAGES, TEXT, 0, contents=(value,))
        return node
