"""The load generator: order, limits, failures, and the numbers of a load."""

import asyncio
import math

import pytest

from kvbench.config.errors import UserError
from kvbench.vllm import latency, load
from kvbench.vllm.answers import Answer
from kvbench.vllm.arrivals import Session, SessionTurn
from kvbench.vllm.errors import CutOff
from kvbench.vllm.load import Outcome


class Server:
    """Answers after `seconds`, fails for the prompts in `fails`, and records the most requests in flight."""

    def __init__(self, seconds=0.01, fails=()):
        self.seconds, self.fails = seconds, fails
        self.prompts, self.busy, self.max_busy = [], 0, 0

    async def send(self, turn):
        self.prompts.append(turn.prompt)
        self.busy += 1
        self.max_busy = max(self.max_busy, self.busy)
        try:
            await asyncio.sleep(self.seconds)
            if turn.prompt in self.fails:
                raise CutOff("the answer broke off")
        finally:
            self.busy -= 1
        return Answer(
            "text", "length", len(turn.prompt), 1, turn.max_tokens, None, 0.0, 1,
            0.25 * self.seconds, self.seconds, self.seconds,
        )  # fmt: skip


def sessions(count, turns=1, at=0.0, gap=0.0):
    return [
        Session(f"s{i}", tuple(SessionTurn((i, j), 4, gap if j else 0.0) for j in range(turns)), at * i)
        for i in range(count)
    ]


def sent(loads, server, max_concurrency=8, stage=None):
    return asyncio.run(load.run(loads, server.send, max_concurrency=max_concurrency, stage=stage))


def test_turns_of_a_session_follow_each_other_and_sessions_run_together():
    server, reported = Server(), []
    found = sent(sessions(3, turns=2), server, stage=reported.append)
    assert [(o.session, o.turn) for o in found] == [(f"s{i}", j) for i in range(3) for j in range(2)]
    assert server.max_busy == 3
    assert server.prompts.index((0, 1)) > server.prompts.index((2, 0))
    assert all(b.due >= a.last for a, b in zip(found[::2], found[1::2], strict=True))
    assert reported == [f"{n} of 6 turns" for n in range(1, 7)]


def test_concurrency_is_limited_and_waiting_counts():
    server = Server(0.05)
    found = sent(sessions(4), server, max_concurrency=1)
    assert server.max_busy == 1
    # the last one waited for three answers of 50 ms; its own first token took 12.5 ms
    assert found[-1].sent - found[-1].due >= 0.149
    assert found[-1].ttft >= 0.149 + 0.0125
    assert latency.summary(found, 1.0)["waited_s"] >= 0.149


def test_sessions_arrive_when_due_and_gaps_are_kept():
    found = sent(sessions(2, turns=2, at=0.05, gap=0.03), Server())
    assert [o.due for o in found[::2]] == [0.0, 0.05]
    assert all(o.sent >= o.due for o in found)
    assert all(b.due - a.last >= 0.0299 for a, b in zip(found[::2], found[1::2], strict=True))


def test_a_failed_turn_ends_its_session_and_has_no_latency():
    reported = []
    found = sent(sessions(2, turns=3), Server(fails={(0, 1)}), stage=reported.append)
    assert [o.ok for o in found] == [True, False, False, True, True, True]
    assert found[1].error == "CutOff: the answer broke off"
    assert found[2].error == "not sent: the turn before it failed"
    assert reported[-1] == "6 of 6 turns"
    numbers = latency.summary(found, 10.0)
    assert (numbers["requests"], numbers["failed"], numbers["good"]) == (6, 2, 4)
    assert numbers["good_share"] == pytest.approx(4 / 6)
    assert numbers["output_tokens"] == 16


def test_a_bug_in_the_sender_is_not_a_failed_request():
    async def send(turn):
        raise KeyError("bug")

    with pytest.raises(ExceptionGroup):
        asyncio.run(load.run(sessions(1), send, max_concurrency=1))


def test_the_concurrency_limit_is_checked():
    with pytest.raises(UserError, match="max_concurrency: 0 is not allowed"):
        sent(sessions(1), Server(), max_concurrency=0)


def outcome(due, first, last, tokens=5, cached=2):
    return Outcome("s", 0, due, due, first, last, 10, cached, tokens)


def test_numbers_by_hand():
    # time to first token 1, 2, 3 s; 0.25, 0.5, 0.75 s per further token
    found = [outcome(0, 1, 2), outcome(1, 3, 5), outcome(2, 5, 8)]
    numbers = latency.summary(found, ttft_limit=2.0)
    assert numbers["seconds"] == 8
    assert numbers["requests_per_s"] == 3 / 8
    assert numbers["good"] == 2 and numbers["goodput_per_s"] == 2 / 8
    assert numbers["ttft_p50_s"] == 2 and numbers["per_token_p50_s"] == 0.5 and numbers["latency_p50_s"] == 4
    assert numbers["cached_tokens"] == 6 and numbers["prompt_tokens"] == 30
    assert numbers["output_tokens_per_s"] == 15 / 8


def test_percentiles_with_too_few_answers_are_unknown():
    values = list(range(1, 101))
    assert latency.percentile(values, 99) == pytest.approx(99.01)
    assert latency.percentile(values[:99], 99) is None
    assert latency.percentile(values[:9], 90) is None
    assert latency.percentile(values[:10], 90) == pytest.approx(9.1)
    assert latency.percentile([3.0], 50) == 3.0
    assert latency.percentile([], 50) is None


def test_unknown_cached_tokens_and_the_time_per_token_of_one_token():
    numbers = latency.summary([outcome(0, 1, 1, tokens=1, cached=None)], 2.0)
    assert numbers["cached_tokens"] is None
    assert numbers["per_token_p50_s"] is None


def test_a_load_without_answers():
    numbers = latency.summary([Outcome("s", 0, 0.0, 0.0, error="gone")], 2.0)
    assert numbers["failed"] == 1 and numbers["goodput_per_s"] == 0.0 and numbers["ttft_p50_s"] is None
    assert not math.isnan(numbers["seconds"])
