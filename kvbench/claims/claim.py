"""A published number, our finding for it, and the rule for the verdict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from kvbench.config.errors import UserError
from kvbench.config.numbers import finite

REPRODUCED = "reproduced"
BY_MODEL = "reproduced by model"
DEPENDS = "depends on the reading"
CONTRADICTED = "contradicted"
UNDECIDED = "undecided"
NOT_DERIVABLE = "not derivable"
NEEDS_GPU = "needs a GPU: run this command"
VERDICTS = (REPRODUCED, BY_MODEL, DEPENDS, CONTRADICTED, UNDECIDED, NOT_DERIVABLE, NEEDS_GPU)

YES_OR_NO = "yes or no"

Basis = Literal["measured", "modelled", "formula", "printed"]
Axis = Literal[
    "accounting", "baseline", "batch", "counting", "date", "group size", "precision", "task set", "unit"
]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One published number, or a statement that is true or not.

    Attributes:
        id: unique, `paper.name`.
        claim: the statement, in one line.
        where: its place in the source: page, section, table or figure.
        printed: the words or cells of the source that state it; a number must stand in them.
        setting: model, prompt, budget, device and so on, as stated.
        value: the number as printed; for statements 1, or 0 for a denial.
        unit: unit of the number, `yes or no` for statements.
        relation: whether the number is the value itself, an upper or a lower limit.
        tolerance: allowed difference of ours; None: less than one unit of the last printed digit.
        widest: widest interval of a measurement that can reproduce the number; a command needs one.
        known: `read in the paper` (or page, or article), or `second-hand`, from notes or a quotation.
        how: how the number can be checked.
        hardware: hardware of the check, `any` for arithmetic or a model.
        check: name of the check, and its arguments.
        axis: what the readings differ in.
        defined: whether the source says what the number is; otherwise no reading can refute it.
        command: command that measures it, if that needs a GPU.
        measure: how to read the run of that command, as `check`, if `check` does not.
        headline: shown in the README.
    """

    id: str
    claim: str
    where: str
    printed: str
    setting: str
    value: float
    unit: str
    relation: Literal["equal", "at most", "at least"] = "equal"
    tolerance: float | None = None
    widest: float | None = None
    known: Literal["read in the paper", "second-hand"]
    how: str
    hardware: str = "any"
    check: dict[str, Any]
    axis: Axis | None = None
    defined: bool = True
    command: str | None = None
    measure: dict[str, Any] | None = None
    headline: bool = False

    def __post_init__(self) -> None:
        for key, check in (("check", self.check), ("measure", self.measure or {"name": ""})):
            if "name" not in check:
                raise UserError(f"{key}.name: missing")
        if not self.where.strip():
            raise UserError(f"where: {self.id} has none, give the page, section, table or figure")
        if not self.printed.strip():
            raise UserError(f"printed: {self.id} has none, give the words of the source")
        if self.unit != YES_OR_NO and abs(self.value) not in _numbers(self.printed):
            raise UserError(f"printed: {self.value:g} of {self.id} does not stand in {self.printed!r}")
        if self.command and not self.widest:
            raise UserError(f"widest: {self.id} has a command, give the widest interval that reproduces it")
        if self.measure and not self.command:
            raise UserError(f"command: {self.id} has a measure but nothing to measure")

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

    @property
    def width(self) -> float:
        """Width of the measured interval, 0 for a single number."""
        return 0.0 if self.low is None or self.high is None else self.high - self.low

    def __post_init__(self) -> None:
        # comparisons with NaN are false, and would read as a contradiction
        for number in (self.value, self.low, self.high):
            if number is not None:
                finite(number, f"our number {self.name}".strip())


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
    """A claim with its finding and verdict.

    Raises:
        UserError: the verdict depends on the reading, and the claim does not name the axis.
    """

    source: Source
    claim: Claim
    finding: Finding
    verdict: str = field(init=False)

    def __post_init__(self) -> None:
        found = verdict(self.claim, self.finding)
        if found == DEPENDS and self.claim.axis is None:
            raise UserError(f"{self.claim.id}: axis: missing, its verdict depends on the reading")
        object.__setattr__(self, "verdict", found)


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

    A measurement comes before all other readings; one that agrees only because its interval is wide leaves the claim
    undecided. A claim below the limit of its plain reading is neither refuted nor reproduced.

    Raises:
        AssertionError: no reading, and no command to measure one.
    """
    candidates = [reading for reading in finding.readings if not reading.beside]
    if not candidates:
        assert claim.command, f"{claim.id}: nothing found and no command to find it with"
        return NEEDS_GPU
    plain, *others = candidates
    if not agrees(claim, plain):
        if any(agrees(claim, reading) for reading in others):
            return DEPENDS
        return CONTRADICTED if claim.defined else NOT_DERIVABLE
    if plain.limit:
        return NEEDS_GPU if claim.command else NOT_DERIVABLE
    if claim.widest is not None and plain.width > claim.widest:
        return UNDECIDED
    return BY_MODEL if plain.basis == "modelled" else REPRODUCED


def _numbers(text: str) -> set[float]:
    """The numbers in a text: 652,144 and 1.25, 50% also as 0.5, and one to three in words."""
    found = set()
    for number, percent in re.findall(r"(\d+(?:,\d{3})*(?:\.\d+)?)(%?)", text):
        value = float(number.replace(",", ""))
        found |= {value, value / 100} if percent else {value}
    words = {"one": 1.0, "two": 2.0, "three": 3.0}
    return found | {number for word, number in words.items() if re.search(rf"\b{word}\b", text)}


def arguments(check: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a check, without its name."""
    return {name: value for name, value in check.items() if name != "name"}
