"""The simulated device by hand, against one that takes every step by itself, and against queueing theory."""

import itertools
import math
import random
from collections import deque
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.experiments.two_layer.breakeven import DAY
from kvbench.experiments.two_layer.sessions import HostedRequest, PrefixPool
from kvbench.experiments.two_layer.simulate import (
    COUNTED,
    NEAR,
    WARM,
    Memory,
    Server,
    _Run,
    alone,
    capacity,
    loaded,
)


@dataclass(frozen=True)
class Made:
    """Made-up times and sizes: `per_token` seconds per computed token, steps of `shared` plus `own` per sequence."""

    per_token: float = 0.0
    shared: float = 1.0
    own_s: float = 0.0
    bytes: float = 1.0

    def before(self, request, reused):
        return self.per_token * (request.prompt - reused)

    def own(self, request):
        return self.own_s, 0.0

    def step(self, batch, by_bytes, by_flops):
        return self.shared + by_bytes

    def while_decoding(self, request):
        return self.bytes * request.prompt

    def while_prefilled(self, request):
        return self.bytes * request.prompt


class Evenly:
    """A source of "random" numbers that makes sessions begin at equal intervals."""

    def expovariate(self, rate):
        return 1 / rate


def server(made=None, **memory):
    made = made or Made()
    return Server(made, made, Memory(**{"room": math.inf, "batch": 64, **memory}))


def session(*requests):
    return tuple(HostedRequest(float(t), path, output) for t, path, output in requests)


ONE = session((0, ((1, 2),), 4))  # two tokens in, four out


def evenly(recorded, made, interval, **memory):
    return _Run(recorded, server(made, **memory), DAY / interval, Evenly()).load()  # type: ignore[arg-type]


def test_requests_that_never_meet():
    """Prefill 0 to 2, steps 3 to 6; the next request comes at 10."""
    load = evenly([ONE], Made(per_token=1.0), 10)
    assert (load.seconds, load.prefill, load.batch, load.first_token) == (6.0, 1 / 3, 1.0, 3.0)
    assert load == alone([ONE], server(Made(per_token=1.0)))


def test_requests_that_meet_share_steps():
    """Every 4 s: prefill for 2 s, then two steps with the request before, of whose four steps two are left."""
    load = evenly([ONE], Made(per_token=1.0), 4)
    assert (load.seconds, load.batch, load.first_token) == (4.0, 2.0, 3.0)
    # one at a time, 6 s of work come every 4 s, and the queue grows
    crowded = evenly([ONE], Made(per_token=1.0), 4, batch=1)
    assert (crowded.seconds, crowded.batch) == (6.0, 1.0)
    assert crowded.first_token > 100
    # room for the caches of one request only
    assert evenly([ONE], Made(per_token=1.0), 4, room=3.0) == crowded


def test_caches_are_not_shared():
    """With 0.5 s of its own per step, a request takes 2 + 4 (1 / 2 + 0.5) = 6 s in company, 8 s alone."""
    load = evenly([ONE], Made(per_token=1.0, own_s=0.5), 6)
    assert (load.seconds, load.batch) == (6.0, 2.0)
    assert alone([ONE], server(Made(per_token=1.0, own_s=0.5))).seconds == 8.0


def test_a_request_waits_for_the_answer_before_it():
    """Recorded 1 s apart, but the first answer takes 6 s: the second is sent then; its first token comes 3 s later."""
    two = session((0, ((1, 2),), 4), (1, ((2, 2),), 4))
    load = evenly([two], Made(per_token=1.0), 100)
    assert (load.seconds, load.batch, load.first_token) == (12.0, 1.0, 3.0)


def test_a_step_follows_every_prefill():
    """Two requests at once: prefill 0 to 2, a step for the first, prefill 3 to 5, a step for both."""
    pair = [session((0, ((1, 2),), 4)), session((0, ((1, 2),), 4))]

    class Pairs(Evenly):
        numbers = iter([1000.0, 0.0] * 200)

        def expovariate(self, rate):
            return next(self.numbers)

    load = _Run(pair, server(Made(per_token=1.0)), DAY, Pairs()).load()  # type: ignore[arg-type]
    # one step alone, three together, one alone: five steps for eight tokens
    assert (load.batch, load.seconds, load.first_token) == (8 / 5, (4 + 5) / 2, 6.0)


def test_copies_take_room_from_the_prefix_cache():
    assert Memory(100.0, 8, token=2.0).pool(30.0) == 50
    assert Memory(100.0, 8, token=2.0, copies=True).pool(30.0) == 35
    assert Memory(100.0, 8).pool(30.0) == 0
    two = session((0, ((1, 32),), 1), (50, ((1, 32), (2, 16)), 1))
    made = Made(per_token=1.0)
    # 48 tokens fit only where no copy of 48 bytes lies beside them
    assert alone([two], server(made, room=48.0, token=1.0)).reused == 32 / 80
    assert alone([two], server(made, room=60.0, token=1.0, copies=True)).reused < 32 / 80


def reference(recorded, server, per_day, source):
    """The same device, one decode step at a time: device seconds, batch and the latest 5 % of first tokens."""
    interval, longest = DAY / per_day, max(one[-1].t for one in recorded)
    margin = WARM + math.ceil(longest / interval)
    count = max(COUNTED, len(recorded))
    counted = range(margin, margin + count)
    now, begins = 0.0, []
    for _ in range(2 * margin + count):
        now += source.expovariate(1.0) * interval
        begins.append(now)
    coming = [(begin, number, 0) for number, begin in enumerate(begins)]
    waiting, running, pool = deque(), [], PrefixPool(server.memory.fresh)
    now, spent, waits, left = 0.0, 0.0, [], sum(len(recorded[n % len(recorded)]) for n in counted)
    slots, steps = 0, 0.0
    while left:
        coming.sort()
        while coming and coming[0][0] <= now:
            waiting.append(coming.pop(0))
        taken = sum(one["bytes"] for one in running)
        if waiting and not any(one["first"] for one in running):
            sent, number, turn = waiting[0]
            request = recorded[number % len(recorded)][turn]
            size = server.sizes.while_decoding(request)
            room = len(running) < server.memory.batch and taken + size <= server.memory.room
            if not running or room:
                waiting.popleft()
                before = server.timing.before(
                    request, pool.serve(number, request, server.memory.pool(taken + size))
                )
                now += before
                spent += before * (number in counted)
                running.append(
                    {"left": request.output, "number": number, "turn": turn, "sent": sent, "bytes": size,
                     "own": server.timing.own(request)[0], "first": True}
                )  # fmt: skip
                continue
        if not running:
            now = coming[0][0]
            continue
        step = server.timing.step(len(running), math.fsum(one["own"] for one in running), 0.0)
        now += step
        for one in running:
            here = one["number"] in counted
            spent += here * step / len(running)
            slots, steps = slots + here, steps + here / len(running)
            if one["first"] and here:
                waits.append(now - one["sent"])
            one["first"], one["left"] = False, one["left"] - 1
            if not one["left"]:
                left -= here
                whole = recorded[one["number"] % len(recorded)]
                if one["turn"] + 1 < len(whole):
                    sent = max(begins[one["number"]] + whole[one["turn"] + 1].t, now)
                    coming.append((sent, one["number"], one["turn"] + 1))
        running = [one for one in running if one["left"]]
    tail = sorted(waits)[math.ceil(0.95 * len(waits)) - 1]
    return spent / count, slots / steps, tail


requests = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 8), st.floats(0, 30)), min_size=1, max_size=3
)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(requests, min_size=1, max_size=3), st.floats(1, 200), st.integers(1, 4), st.floats(0, 0.5),
    st.booleans(), st.integers(0, 100),
)  # fmt: skip
def test_jumping_over_steps_changes_nothing(kinds, interval, batch, own, cached, seed):
    recorded = []
    for kind in kinds:
        path, t, made = (), 0.0, []
        for number, (tokens, output, gap) in enumerate(kind):
            path = (*path, (number, tokens))
            made.append((t, path, output))
            t += gap
        recorded.append(session(*made))
    device = server(
        Made(per_token=0.1, own_s=own),
        batch=batch,
        room=150.0,
        token=1.0 if cached else 0.0,
        copies=seed % 2 == 1,
    )
    found = loaded(recorded, device, DAY / interval, seed)
    seconds, mean_batch, tail = reference(recorded, device, DAY / interval, random.Random(seed))
    assert found.seconds == pytest.approx(seconds)
    assert found.batch == pytest.approx(mean_batch)
    assert found.first_token == pytest.approx(tail)


@pytest.mark.parametrize("occupancy", [0.2, 1.0, 3.0])
def test_the_batch_is_what_littles_law_says(occupancy):
    """Steps that take as long for many as for one, and no prefill: an M/G/inf queue.

    By Little's law a of them are decoded on average, a = rate x duration, Poisson distributed; steps are taken while
    there is at least one, so that a step has a / (1 - exp(-a)) sequences.
    """
    steps, step = 400, 0.01
    request = session((0, ((1, 1),), steps))
    per_day = DAY * occupancy / (steps * step)
    device = server(Made(shared=step), batch=10_000)
    draws = [loaded([request], device, per_day, seed) for seed in range(40)]
    batch = sum(load.batch for load in draws) / len(draws)
    expected = occupancy / (1 - math.exp(-occupancy))
    assert batch == pytest.approx(expected, rel=0.05)
    # device time per session is the duration shared by the batch
    seconds = sum(load.seconds for load in draws) / len(draws)
    assert seconds == pytest.approx(steps * step / expected, rel=0.05)


def test_waiting_for_prefill_is_that_of_a_queue():
    """One step of no length after a prefill of 1 s: an M/D/1 queue; at load 0.5, 5 % wait longer than 2.14 s."""
    request = session((0, ((1, 1),), 1))
    device = server(Made(per_token=1.0, shared=1e-9))
    draws = [loaded([request], device, DAY / 2, seed) for seed in range(60)]
    found = sum(load.first_token for load in draws) / len(draws)
    assert found == pytest.approx(1 + _wait(0.5, 0.95), rel=0.06)


def _wait(load, share):
    """Quantile of the waiting time of an M/D/1 queue with service time 1 (Erlang's formula), by bisection."""

    def below(t):
        terms = (
            (-load * (t - k)) ** k / math.factorial(k) * math.exp(load * (t - k)) for k in range(int(t) + 1)
        )
        return (1 - load) * math.fsum(terms)

    low, high = 0.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < share else (low, middle)
    return low


def mean(recorded, device, per_day, field):
    return sum(getattr(loaded(recorded, device, per_day, seed), field) for seed in range(8)) / 8


@settings(max_examples=10, deadline=None)
@given(st.floats(0.2, 3), st.integers(1, 12), st.floats(0, 0.4), st.integers(1, 6))
def test_more_load_means_larger_batches_within_the_limit(per_token, output, own, limit):
    recorded = [session((0, ((1, 2),), output))]
    device = server(Made(per_token=per_token, own_s=own), batch=limit)
    quiet = alone(recorded, device)
    assert quiet.batch == 1
    batches, seconds = [], []
    for share in (0.001, 0.1, 0.4, 0.8):
        per_day = share * DAY / quiet.seconds
        batches.append(mean(recorded, device, per_day, "batch"))
        seconds.append(mean(recorded, device, per_day, "seconds"))
    assert batches[0] == pytest.approx(1, abs=0.02)
    assert seconds[0] == pytest.approx(quiet.seconds, rel=0.02)
    assert all(1 - 1e-9 <= batch <= limit + 1e-9 for batch in batches)
    assert all(later >= earlier * (1 - 1e-9) for earlier, later in itertools.pairwise(batches))
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(seconds))


def test_sessions_evict_each_other_under_load():
    longer = session((0, ((1, 160),), 2), (50, ((1, 160), (2, 64)), 2))
    device = server(Made(per_token=0.01, shared=0.01), room=600.0, token=1.0)
    reused = [mean([longer], device, per_day, "reused") for per_day in (10, 3000, 20_000)]
    assert reused == sorted(reused, reverse=True)
    assert reused[0] == pytest.approx(alone([longer], device).reused) == pytest.approx(160 / 384)
    assert reused[-1] < 0.1


@pytest.mark.parametrize("utilisation", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("token", [0.0, 1.0])
def test_capacity_is_the_highest_load_within_the_utilisation(utilisation, token):
    longer = session((0, ((1, 160),), 5), (50, ((1, 160), (2, 64)), 5))
    device = server(Made(per_token=0.1, own_s=0.1), room=2000.0, token=token)
    found = capacity([longer], device, utilisation, draws=3)

    def busy(per_day):
        return per_day * sum(loaded([longer], device, per_day, seed).seconds for seed in range(3)) / 3 / DAY

    assert busy(found) <= utilisation
    assert busy(found * NEAR**2 + 1) > utilisation


def test_a_device_that_serves_less_than_a_session_a_day():
    slow = server(Made(per_token=DAY))
    assert capacity([ONE], slow, 0.4, draws=2) == 0


def test_a_batch_that_the_load_does_not_supply_would_show():
    """A fault planted: a step that every load shares by the limit makes sessions cheaper than they are."""

    class Assumed(Made):
        def step(self, batch, by_bytes, by_flops):
            return super().step(batch, by_bytes, by_flops) * batch / 8

    honest, wrong = server(Made(per_token=0.1), batch=8), server(Assumed(per_token=0.1), batch=8)
    at = DAY / 40
    assert mean([ONE], honest, at, "seconds") > 3 * mean([ONE], wrong, at, "seconds")
    assert alone([ONE], honest).seconds == pytest.approx(0.2 + 4)


def test_draws_are_reproducible_and_differ():
    device = server(Made(per_token=1.0))
    first, again, other = (loaded([ONE], device, DAY / 8, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert replace(device, memory=replace(device.memory, batch=1)) != device
