"""What the doctor says about a trace: findings, and the sums over their causes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from kvbench.claude.causes import CAUSES


@dataclass(frozen=True)
class Finding:
    """One cause of the misses of one request.

    Attributes:
        request: id of the request.
        cause: a key of `CAUSES`.
        place: the first different block or parameter, "" if nothing changed.
        detail: the numbers behind it.
        tokens: tokens sent before that were not read for this cause.
        cost: what reading them would have saved on this request, nano-dollars.
        blocks: how many blocks they are (hash ids, if the trace has no blocks).
        behind: tokens from the change on that were not read, new ones included; 0 if nothing changed.
        within: tokens of the changed block, if only a date, a time, a number or a random id in it changed: at most so
            many would be read as well if that stood apart.
        within_cost: what reading them would save beyond `cost`, nano-dollars; no part of the difference, which goes by
            whole blocks.
        compared: id of the request that it differs from, or whose entry it could have read.
        api_reason: the API's own reason, "" if it gave none.
        agrees: the API names the same part of the request; None if it gave no reason.
    """

    request: str
    cause: str
    place: str
    detail: str
    tokens: int
    cost: int
    blocks: int = 0
    behind: int = 0
    within: int = 0
    within_cost: int = 0
    compared: str = ""
    api_reason: str = ""
    agrees: bool | None = None


@dataclass
class Diagnosis:
    """All misses of a trace under a placement.

    Attributes:
        requests: number of requests.
        cost: input cost in nano-dollars; as billed, where the markers are those sent and the trace has usage.
        perfect: input cost with a perfect cache; the findings add up to `cost - perfect`.
        findings: one or more per request with misses.
        elsewhere: prompts that only another workspace had sent; not part of the difference.
        net: saving per fix when the whole trace is replayed with it, nano-dollars (negative: it costs more).
    """

    requests: int = 0
    cost: int = 0
    perfect: int = 0
    findings: list[Finding] = field(default_factory=list)
    elsewhere: list[Finding] = field(default_factory=list)
    net: dict[str, int] = field(default_factory=dict)

    def causes(self) -> dict[str, tuple[int, int, int]]:
        """Number of findings, tokens and cost in nano-dollars, by cause, most expensive first."""
        count, tokens, money = Counter[str](), Counter[str](), Counter[str]()
        for finding in self.findings:
            count[finding.cause] += 1
            tokens[finding.cause] += finding.tokens
            money[finding.cause] += finding.cost
        return {cause: (count[cause], tokens[cause], money[cause]) for cause, _ in money.most_common()}

    def within(self) -> dict[str, int]:
        """What changed blocks hide, in nano-dollars, by cause."""
        money = Counter[str]()
        for finding in self.findings:
            money[finding.cause] += finding.within_cost
        return dict(money)

    def fixable(self) -> dict[str, int]:
        """Cost in nano-dollars by who can avoid it."""
        money = Counter[str]()
        for finding in self.findings:
            money[CAUSES[finding.cause].by] += finding.cost
        return dict(money.most_common())
