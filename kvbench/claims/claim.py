"""A published number, our finding for it, and the rule for the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from kvbench.config.errors import UserError

REPRODUCED = "reproduced"
BY_MODEL = "reproduced by model"
DEPENDS = "depends on the baseline"
CONTRADICTED = "contradicted"
NEEDS_GPU = "needs a GPU: run this command"
VERDICTS = (REPRODUCED, BY_MODEL, DEPENDS, CONTRADICTED, NEEDS_GPU)

Basis = Literal["measured", "modelled", "formula", "printed"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One published number.

    Attributes:
        id: unique, `paper.name`.
        claim: the statement, in one line.
        where: table, figure or section.
        setting: model, prompt, budget, device and so on, as stated.
        value: the number as printed.
        unit: unit of the number.
        relation: whether the number is the value itself, an upper or a lower limit.
        tolerance: allowed difference of ours; None: less than one unit of the last printed digit.
        known: `read in the paper` (or page, or article), or `second-hand`, from notes or a quotation.
        how: how the number can be checked.
        hardware: hardware of the check, `any` for arithmetic or a model.
        check: name of the check, and its arguments.
        command: command that measures it, if that needs a GPU.
        headline: shown in the README.
    """

    id: str
    claim: str
    where: str
    setting: str
    value: float
    unit: str
    relation: Literal["equal", "at most", "at least"] = "equal"
    tolerance: float | None = None
    known: Literal["read in the paper", "second-hand"]
    how: str
    hardware: str = "any"
    check: dict[str, Any]
    command: str | None = None
    headline: bool = False

    def __post_init__(self) -> None:
        if "name" not in self.check:
            raise UserError("check.name: missing")

    @property
    def slack(self) -> float:
        """Allowed difference of ours: printed numbers are rounded or truncated, so one unit of the last digit."""
        if self.tolerance is not None:
            return self.tolerance
        exponent = Decimal(str(self.value)).normalize().as_tuple().exponent
        assert isinstance(exponent, int)
        return 10.0**exponent if exponent < 0 else 1.0


@dataclass(frozen=True)
class Source:
    """A paper, page or article, with its claims.

    Attributes:
        paper: name for the tables.
        source: reference or address.
        order: position in the tables.
        claims: its claims.
    """

    paper: str
    source: str
    order: int
    claims: tuple[Claim, ...]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Our number under one interpretation of a claim.

    Attributes:
        name: the interpretation, empty if there is only one.
        value: our number.
        basis: `measured` on a device or by the real API; `modelled` by the cost model or the rule engine; `formula`,
            from what the code itself runs or dated prices; `printed`, recomputed from the source's own numbers.
        low: lower end of a measured interval.
        high: its upper end.
        limit: the value is an upper limit, not an estimate: it can refute but not reproduce.
        beside: additional information, such as the origin of the printed number, but not an interpretation.
    """

    name: str = ""
    value: float
    basis: Basis
    low: float | None = None
    high: float | None = None
    limit: bool = False
    beside: bool = False


@dataclass(frozen=True)
class Finding:
    """All readings of a claim, the plain one first; empty if it needs a device that is not available.

    Attributes:
        readings: the readings.
        note: further findings of the check, for display.
    """

    readings: tuple[Reading, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Result:
    """A claim with its finding and verdict."""

    source: Source
    claim: Claim
    finding: Finding
    verdict: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "verdict", verdict(self.claim, self.finding))


def agrees(claim: Claim, reading: Reading) -> bool:
    """Whether a reading is compatible with the printed number.

    Equal: closer than the claim's slack (minus one part in 10^9 for rounding), or inside a measured interval. A limit
    is compatible with everything up to it.
    """
    slack = claim.slack * (1 - 1e-9)
    low, high = (reading.value if end is None else end for end in (reading.low, reading.high))
    above = high > claim.value - slack
    below = low < claim.value + slack
    if reading.limit:
        return above
    return {"equal": above and below, "at least": above, "at most": below}[claim.relation]


def verdict(claim: Claim, finding: Finding) -> str:
    """One of `VERDICTS`: decided by the plain reading, else by whether another one agrees.

    A claim below the limit of its plain reading is neither refuted nor reproduced.

    Raises:
        AssertionError: no reading, and no command to measure one.
    """
    candidates = [reading for reading in finding.readings if not reading.beside]
    if candidates and not agrees(claim, candidates[0]):
        return DEPENDS if any(agrees(claim, reading) for reading in candidates[1:]) else CONTRADICTED
    if candidates and not candidates[0].limit:
        return BY_MODEL if candidates[0].basis == "modelled" else REPRODUCED
    assert claim.command, f"{claim.id}: nothing found and no command to find it with"
    return NEEDS_GPU


def arguments(check: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a check, without its name."""
    return {name: value for name, value in check.items() if name != "name"}
