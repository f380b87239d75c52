"""Arithmetic on printed numbers: whether a paper's headlines and averages follow from its own tables.

Sums and means are exact fractions of the printed decimals, so that a result does not depend on the order of its terms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kvbench.claims.claim import Finding, Reading
from kvbench.claims.exact import total


def change(readings: Mapping[str, Sequence[float]]) -> Finding:
    """Relative changes in percent.

    Args:
        readings: number before and after, by name of the reading.
    """
    found = [
        Reading(name=name, value=100 * (after - before) / before, basis="printed")
        for name, (before, after) in readings.items()
    ]
    return Finding(tuple(found))


def changes(rows: Mapping[str, Sequence[float]]) -> Finding:
    """Whether relative changes are as printed, in percent.

    Args:
        rows: number before and after, and the printed change, by name.
    """
    ours = {name: 100 * (after - before) / before for name, (before, after, _) in rows.items()}
    return _all_as_printed(ours, {name: printed for name, (*_, printed) in rows.items()})


def difference(larger: float, smaller: float) -> Finding:
    """One printed number minus another."""
    return Finding((Reading(value=larger - smaller, basis="printed"),))


def quotient(readings: Mapping[str, Sequence[float]]) -> Finding:
    """One printed number over another.

    Args:
        readings: numerator and denominator, by name of the reading.
    """
    found = [
        Reading(name=name, value=above / below, basis="printed") for name, (above, below) in readings.items()
    ]
    return Finding(tuple(found))


def largest_saving(rows: Mapping[str, Sequence[float]]) -> Finding:
    """The largest relative saving in percent.

    Args:
        rows: number before and after, by name.
    """
    savings = {name: 100 * (1 - after / before) for name, (before, after) in rows.items()}
    best = max(savings, key=lambda name: savings[name])
    return Finding((Reading(name=best, value=savings[best], basis="printed"),), f"{len(rows)} rows")


def mean_loss(rows: Mapping[str, Sequence[float]]) -> Finding:
    """Mean relative loss over the rows in percent.

    Args:
        rows: score with all of the cache and with a method, by name.
    """
    losses = {name: 100 * (1 - after / before) for name, (before, after) in rows.items()}
    note = ", ".join(f"{name} {loss:.2f} %" for name, loss in losses.items())
    return Finding(
        (
            Reading(
                name="mean relative loss", value=math.fsum(losses.values()) / len(losses), basis="printed"
            ),
        ),
        note,
    )


def larger_column(rows: Mapping[str, Sequence[float]]) -> Finding:
    """Whether the first number is larger than the second in most rows: 1 or 0.

    Args:
        rows: the two numbers, by name.
    """
    larger = sum(first > second for first, second in rows.values())
    name = f"in {larger} of {len(rows)} rows"
    return Finding((Reading(name=name, value=float(2 * larger > len(rows)), basis="printed"),))


def equal_scores(rows: Mapping[str, Sequence[float]]) -> Finding:
    """Whether two tables that are said to differ print different scores: 1 or 0.

    Args:
        rows: the scores in both tables, by name.
    """
    equal = [name for name, (first, second) in rows.items() if first == second]
    name = f"{len(equal)} of {len(rows)} scores are the same"
    return Finding((Reading(name=name, value=float(not equal), basis="printed"),), ", ".join(equal))


def throughput(seconds: float, prompt: int, new: int) -> Finding:
    """Tokens per second from a latency, for all tokens and for the new ones."""
    found = [
        Reading(name=name, value=tokens / seconds, basis="printed")
        for name, tokens in (("prompt and new tokens", prompt + new), ("new tokens", new))
    ]
    return Finding(tuple(found))


def saving_without_prompt(seconds: Mapping[int, float], prompt: int) -> Finding:
    """The most that a method can save in percent: the time of full KV without any prompt, on a line through its times.

    Args:
        seconds: printed time of full KV by tokens of the prompt, two of them.
        prompt: tokens of the prompt in question.
    """
    (short, fast), (long, slow) = sorted(seconds.items())
    empty = fast - short * (slow - fast) / (long - short)
    name = f"an empty prompt takes {empty:.2f} s on a line through its own rows"
    value = 100 * (1 - empty / seconds[prompt])
    return Finding((Reading(name=name, value=value, basis="printed", limit=True),))


def step_milliseconds(
    seconds: float, first: float, tokens: int, other: Sequence[float], printed: Sequence[float]
) -> Finding:
    """Milliseconds per token after the first, from a total and the time to the first token.

    Args:
        seconds: for all tokens.
        first: seconds to the first token.
        tokens: new tokens.
        other: total and time to first token of the method compared.
        printed: printed milliseconds per token of both.
    """
    ours, theirs = (1000 * (all_of - one) / (tokens - 1) for all_of, one in ((seconds, first), other))
    before, after = printed
    saved, said = 100 * (1 - theirs / ours), 100 * (1 - after / before)
    note = f"{theirs:.2f} ms for the other, so {saved:.1f} % are saved, not {said:.1f} %"
    return Finding((Reading(name="from total and first token", value=ours, basis="printed"),), note)


def weighted_means(rows: Mapping[str, Sequence[float]], weights: Sequence[int]) -> Finding:
    """Whether averages are means over the tasks of their groups, as printed.

    Args:
        rows: means of the groups, and last the printed average, by name.
        weights: tasks per group.
    """
    ours = {name: float(total(row[:-1], weights) / sum(weights)) for name, row in rows.items()}
    return _all_as_printed(ours, {name: row[-1] for name, row in rows.items()})


def best_setting(scores: Mapping[int, Sequence[float]]) -> Finding:
    """The setting that is best in most columns of a printed table.

    Args:
        scores: score in each column, by setting.
    """
    columns = list(zip(*scores.values(), strict=True))
    wins = {
        setting: sum(score == max(column) for score, column in zip(row, columns, strict=True))
        for setting, row in scores.items()
    }
    best = max(wins, key=lambda setting: wins[setting])
    note = f"best or equal in {wins[best]} of {len(columns)} columns"
    return Finding((Reading(value=best, basis="printed"),), note)


def _all_as_printed(ours: Mapping[str, float], printed: Mapping[str, float]) -> Finding:
    """Whether every number is as printed with two decimals, rounded or cut off."""
    wrong = [name for name, value in printed.items() if abs(ours[name] - value) >= 0.01 * (1 - 1e-9)]
    name = f"{len(printed) - len(wrong)} of {len(printed)} are as printed"
    note = ", ".join(f"{name} {ours[name]:.3f} against {printed[name]:g}" for name in wrong or printed)
    return Finding((Reading(name=name, value=float(not wrong), basis="printed"),), note)
