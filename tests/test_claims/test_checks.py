"""Checks by themselves: their arguments, and the commands that exist."""

import dataclasses
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.claims import catalogue, table
from kvbench.claims.checks import find, limits, registry
from kvbench.claims.checks.paper_tables import _scbench_rule, longbench_best
from kvbench.claims.checks.printed import best_setting, saving_without_prompt, weighted_means
from kvbench.claims.claim import Claim
from kvbench.claims.evidence import Runs
from kvbench.claims.exact import mean
from kvbench.config.errors import UserError
from kvbench.runs import config

CLAIMS = {claim.id: claim for source in catalogue.sources() for claim in source.claims}


def test_every_check_is_used():
    used = {check["name"] for claim in CLAIMS.values() for check in (claim.check, claim.measure) if check}
    assert used == set(registry())


@pytest.mark.parametrize("name", [name for name, claim in CLAIMS.items() if claim.command])
def test_commands_exist_and_measure_what_is_claimed(name):
    claim = CLAIMS[name]
    assert claim.command is not None
    words = shlex.split(claim.command)
    assert words[:2] == ["kvbench", "run"]
    cfg = config.load(words[2:])
    check = claim.measure or claim.check
    where = check["where"]
    assert cfg.name == check["run"]
    assert cfg.model.name == where.get("model", cfg.model.name)
    assert where.get("method", "dense") in cfg.method
    budgets = [*map(str, cfg.budget.tokens), *(f"{ratio:g}x" for ratio in cfg.budget.ratio)]
    assert where.get("budget_requested", budgets[0]) in budgets
    assert where.get("task", next(iter(cfg.task))) in cfg.task
    lengths = {length for task in cfg.task.values() for length in task.get("length", [])}
    assert {where["length"]} <= lengths if "length" in where else set(check.get("lengths", [])) <= lengths
    if claim.hardware != "any":
        assert cfg.model.path or cfg.model.download


def test_the_needle_has_the_papers_grid_and_its_baselines():
    """RocketKV, appendix A.2 and A.3: 10 lengths x 10 depths x 3, SnapKV's budget divided, Quest's split."""
    for name in (
        "needle_256",
        "needle_hsa_256",
        "needle_snapkv_256",
        "needle_quest_1024",
        "needle_snapkv_mistral",
    ):
        claim = CLAIMS[f"rocketkv.{name}"]
        assert claim.command is not None
        cfg = config.load(shlex.split(claim.command)[2:])
        grid = cfg.task["passkey"]
        assert len(grid["length"]) == 10 and grid["samples"] == 30 and len(claim.check["lengths"]) == 10
        assert grid["length"][-1] == (20_480 if "mistral" in name else 81_920)
        steps = {b - a for a, b in zip(grid["length"], grid["length"][1:], strict=False)}
        assert max(steps) - min(steps) <= 1
        method = claim.check["where"]["method"]
        assert method.startswith(("rocketkv", "hsa")) or method in ("snapkv_rocketkv", "quest_rocketkv")


def test_numbers_of_tables_are_computed_not_assumed():
    rows = [
        ([100.0 * (n == group) for n in range(4)], 100 * size / 11) for group, size in enumerate((3, 4, 3, 2))
    ]
    assert _scbench_rule(rows) == ((3, 4, 3, 2), 11)
    assert best_setting({3: [1, 2], 10: [2, 2]}).readings[0].value == 10
    columns = ("longbench", "needle")
    lost = longbench_best("HSA", ["Quest", "SparQ"], columns)
    assert lost.readings[0].value == 0 and lost.note.startswith("SparQ at 4096")
    assert longbench_best("HSA", ["Quest"], columns).readings[0].value == 1
    besides = longbench_best("RocketKV", ["Quest"], ["longbench"], ["Exact-TopK"])
    assert besides.readings[0].value == 1 and "Exact-TopK at 256" in besides.note


def test_an_empty_prompt_on_the_line_through_two_times():
    (reading,) = saving_without_prompt({100: 20.0, 300: 40.0}, 300).readings
    assert reading.limit and reading.value == pytest.approx(75) and "takes 10.00 s" in reading.name


@pytest.mark.parametrize(
    ("bits", "batch", "limit"), [(16, 1, 1.30), (8, 1, 1.61), (4, 1, 2.08), (16, 8, 3.43)]
)
def test_limits_over_precision_and_batch(bits, batch, limit):
    """Llama-3.1-8B, 32K in and 4K out: (15.0 GB of 16-bit weights + 4.56 GB of K and V per sequence) / weights."""
    first = limits.gain_limit("llama31_8b", 32768, 4096, "speedup", batch=batch, bits=[bits]).readings[0]
    assert first.limit and first.value == pytest.approx(limit, abs=0.006)


def test_the_smallest_batch_is_the_first_within_the_limit():
    row = {"model": "llama31_8b", "prompt": 32768, "new": 4096, "speedups": [3.4]}
    found = limits.least_batches([row])
    assert [reading.value for reading in found.readings] == [0, 1] and "batch 8 on" in found.readings[1].name
    for batch, possible in ((7, False), (8, True)):
        limit = limits.gain_limit("llama31_8b", 32768, 4096, "speedup", batch=batch).readings[0].value
        assert (limit >= 3.4) == possible


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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"check": {}}, "check.name: missing"),
        ({"where": " "}, "where: chunkkv.abstract_8_7 has none"),
        ({"printed": ""}, "printed: chunkkv.abstract_8_7 has none"),
        ({"printed": "by up to 8.9%"}, "8.7 of chunkkv.abstract_8_7 does not stand in"),
        ({"command": "kvbench run"}, "widest: chunkkv.abstract_8_7 has a command"),
        ({"measure": {"name": "measured_score"}}, "command: chunkkv.abstract_8_7 has a measure"),
        ({"command": "kvbench run", "widest": 1.0, "measure": {}}, None),
    ],
)
def test_an_incomplete_claim_is_refused(fields, message):
    claim = CLAIMS["chunkkv.abstract_8_7"]
    if message is None:
        with pytest.raises(UserError, match="measure: missing, no check reads the run"):
            find(dataclasses.replace(claim, **fields), Runs())
    else:
        with pytest.raises(UserError, match=message):
            dataclasses.replace(claim, **fields)
    assert all(isinstance(claim, Claim) for claim in CLAIMS.values())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (652144, "KV cache size: 652,144 tokens"),
        (0.5, "about 50%"),
        (2, "after two reads"),
        (20, "by more than 20%"),
    ],
)
def test_numbers_stand_in_the_words_of_the_source(value, text):
    claim = CLAIMS["chunkkv.abstract_8_7"]
    assert dataclasses.replace(claim, value=value, printed=text).value == value
    with pytest.raises(UserError, match="does not stand in"):
        dataclasses.replace(claim, value=value + 1, printed=text)


GROUPS = [32.19, 34.59, 24.96, 68.48, 36.96, 54.41]  # ChunkKV, Table 12
WEIGHTS = [3, 3, 3, 3, 2, 2]
SCORES = st.integers(0, 10_000).map(lambda hundredths: hundredths / 100)


@given(st.lists(SCORES, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_a_mean_of_printed_numbers_does_not_depend_on_their_order(values, random):
    assert mean(values) == mean(random.sample(values, len(values)))


def test_weighted_means_are_judged_row_by_row():
    right = [*GROUPS, 41.46]
    found = weighted_means({"full": right, "other": [*GROUPS, 41.49]}, WEIGHTS)
    assert found.readings[0].value == 0 and found.note == "other 41.462 against 41.49"
    assert weighted_means({"full": right}, WEIGHTS).readings[0].value == 1


def test_a_tie_is_rounded_in_decimal():
    """663.40 / 16 is 41.4625 exactly; a sum of floats lies on either side of it, depending on the Python version."""
    claim = dataclasses.replace(CLAIMS["chunkkv.abstract_8_7"], value=41.46, printed="41.46")
    for noise in (-1e-14, 0.0, 1e-14):
        assert table._rounded(41.4625 + noise, claim) == 41.463
