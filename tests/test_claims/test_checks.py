"""Checks by themselves: their arguments, runs of the user's own, and commands that exist."""

import dataclasses
import shlex

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.claims import catalogue, table
from kvbench.claims.checks import find, registry
from kvbench.claims.checks.printed import _scbench_rule, best_setting, longbench_wins, weighted_mean
from kvbench.claims.claim import CONTRADICTED, NEEDS_GPU, REPRODUCED, Claim, Result
from kvbench.claims.evidence import Runs
from kvbench.config.errors import UserError
from kvbench.runs import config

SOURCES = catalogue.sources()
CLAIMS = {claim.id: claim for source in SOURCES for claim in source.claims}


def scores(**columns):
    """Summary rows of a run on the paper's model."""
    row = {"model": "llama31_8b", "device": "NVIDIA A100", "task": "needle_grid", "method": "rocketkv"}
    row |= {"budget_requested": "256", "n": 30, "score": 1.0, "ci_low": 0.9, "ci_high": 1.0}
    return pd.DataFrame([row | columns])


def judged(name, frame):
    runs = Runs({CLAIMS[name].check["run"]: frame})
    return Result(SOURCES[0], CLAIMS[name], find(CLAIMS[name], runs))


def test_every_check_is_used():
    assert {claim.check["name"] for claim in CLAIMS.values()} == set(registry())


def test_a_run_on_the_device_decides():
    assert judged("rocketkv.needle_256", scores()).verdict == REPRODUCED
    worse = judged("rocketkv.needle_256", scores(score=0.8, ci_low=0.7, ci_high=0.9))
    assert worse.verdict == CONTRADICTED
    reading = worse.finding.readings[0]
    assert (reading.low, reading.value, reading.high) == pytest.approx((70, 80, 90))
    assert "NVIDIA A100" in worse.finding.note


def test_a_run_of_another_model_or_budget_does_not_decide():
    for columns in ({"model": "smollm2_135m"}, {"budget_requested": "64"}, {"method": "snapkv"}):
        assert judged("rocketkv.needle_256", scores(**columns)).verdict == NEEDS_GPU


def test_rows_of_several_lengths_are_pooled():
    frame = pd.concat([scores(), scores(score=0.5, ci_low=0.3, ci_high=0.7, n=10)])
    reading = judged("rocketkv.needle_256", frame).finding.readings[0]
    assert reading.value == pytest.approx(100 * (30 * 1.0 + 10 * 0.5) / 40)
    assert reading.low == pytest.approx(reading.value - 100 * ((0.75 * 0.1) ** 2 + (0.25 * 0.2) ** 2) ** 0.5)


def test_traffic_is_counted_in_tokens_of_dense():
    dense = scores(method="dense", bytes_resident=2000.0, kept_tokens=1000.0, bytes_read_per_step=2002.0)
    own = scores(bytes_resident=1.0, kept_tokens=9.0, bytes_read_per_step=510.0)
    result = judged("rocketkv.traffic_measured", pd.concat([dense, own]))
    assert [reading.value for reading in result.finding.readings] == [255]


@pytest.mark.parametrize("name", [name for name, claim in CLAIMS.items() if claim.command])
def test_commands_exist_and_measure_what_is_claimed(name):
    claim = CLAIMS[name]
    assert claim.command is not None
    words = shlex.split(claim.command)
    assert words[:2] == ["kvbench", "run"]
    cfg = config.load(words[2:])
    if "run" in claim.check:
        where = claim.check["where"]
        assert cfg.name == claim.check["run"]
        assert cfg.model.name == where.get("model", cfg.model.name)
        assert where.get("method", "dense") in cfg.method
        budgets = [*map(str, cfg.budget.tokens), *(f"{ratio:g}x" for ratio in cfg.budget.ratio)]
        assert where.get("budget_requested", budgets[0]) in budgets
        assert where.get("task", next(iter(cfg.task))) in cfg.task
    if claim.hardware != "any":
        assert cfg.model.path or cfg.model.download


def test_the_best_speedup_counts_with_the_spread_of_its_steps():
    times = {"length": 32768, "method": "rocketkv_trtllm", "decode_ms_per_token": 10.0}
    times |= {"decode_ms_p20": 9.0, "decode_ms_p80": 12.0}
    frame = pd.concat([scores(**times, speedup=1.5), scores(**times, speedup=2.4)], ignore_index=True)
    result = judged("rocketkv.trtllm_throughput_32k", frame)
    reading = result.finding.readings[0]
    assert (reading.low, reading.value, reading.high) == pytest.approx((2.0, 2.4, 2.4 / 0.9))
    assert result.verdict == REPRODUCED


def test_numbers_of_tables_are_computed_not_assumed():
    rows = [
        ([100.0 * (n == group) for n in range(4)], 100 * size / 11) for group, size in enumerate((3, 4, 3, 2))
    ]
    assert _scbench_rule(rows) == ((3, 4, 3, 2), 11)
    assert best_setting({3: [1, 2], 10: [2, 2]}).readings[0].value == 10
    wins = longbench_wins("HSA", ["Quest", "SparQ"])
    assert wins.readings[0].value == 90 and "SparQ at 4096" in wins.note


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ({"name": "gain_limits"}, "check.name: .*did you mean gain_limit"),
        ({"name": "change", "reading": {}}, "check.reading: .*did you mean readings"),
        ({"name": "difference", "larger": 1}, "check.smaller: missing"),
        ({"name": "measured_score", "runs": 1, "run": "x", "where": {}}, "check.runs"),
    ],
)
def test_a_wrong_check_is_one_line(check, message):
    claim = dataclasses.replace(CLAIMS["chunkkv.abstract_8_7"], check=check)
    with pytest.raises(UserError, match=message) as error:
        find(claim, Runs())
    assert "\n" not in str(error.value) and claim.id in str(error.value)


def test_a_claim_without_a_check_is_refused():
    with pytest.raises(UserError, match=r"check\.name: missing"):
        dataclasses.replace(CLAIMS["chunkkv.abstract_8_7"], check={})
    assert all(isinstance(claim, Claim) for claim in CLAIMS.values())


GROUPS = [(32.19, 3), (34.59, 3), (24.96, 3), (68.48, 3), (36.96, 2), (54.41, 2)]  # ChunkKV, Table 12
SCORES = st.decimals(0, 100, places=2).map(float)


@given(
    st.lists(st.tuples(SCORES, st.integers(1, 9)), min_size=1, max_size=12), st.randoms(use_true_random=False)
)
def test_a_mean_of_printed_numbers_does_not_depend_on_their_order(terms, random):
    shuffled = random.sample(terms, len(terms))
    found, other = (weighted_mean(*zip(*order, strict=True)).readings for order in (terms, shuffled))
    assert found == other


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_a_measured_score_does_not_depend_on_the_order_of_its_rows(cells, random):
    frames = [
        pd.concat([scores(n=n, score=score, ci_low=score, ci_high=score) for n, score in order])
        for order in (cells, random.sample(cells, len(cells)))
    ]
    (found,), (other,) = (judged("rocketkv.needle_256", frame).finding.readings for frame in frames)
    assert found == other


@pytest.mark.parametrize("terms", [GROUPS, GROUPS[::-1]])
def test_a_tie_is_rounded_in_decimal(terms):
    """663.40 / 16 is 41.4625 exactly; a sum of floats lies on either side of it, depending on the Python version."""
    found = weighted_mean(*zip(*terms, strict=True)).readings[0]
    assert found.value == 41.4625
    claim = CLAIMS["chunkkv.average_full"]
    for noise in (-1e-14, 0.0, 1e-14):
        assert table._rounded(found.value + noise, claim) == 41.463
