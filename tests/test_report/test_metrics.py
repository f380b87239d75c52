"""Metrics besides the score, each summed up by its rule, and averages over tasks."""

import math

import pandas as pd
import pytest

from kvbench.report import averages, metrics, summary
from kvbench.report.metrics import pass_at, summed


def cells(scores, metas=None, rules=None):
    metas = metas or [{}] * len(scores)
    return [
        {"scores": one, "aggregate": rules, "meta": meta, "output_ids": [1, 2], "seed": 0}
        for one, meta in zip(scores, metas, strict=True)
    ]


def by_name(found):
    return {value.name: value for value in found}


def test_lists_count_by_their_parts():
    found = by_name(summed(cells([{"x": [1, 1, 1]}, {"x": [0]}], rules={"x": "instances"})))
    assert found["x"].value == 0.75 and found["x"].n == 4


def test_an_empty_bucket_has_no_value():
    rows = cells([{"x": 1}, {"x": 0}], [{"words": 3999}, {"words": 8000}], {"x": "buckets:words:4000,8000"})
    found = by_name(summed(rows))
    assert found["x, words < 4000"].value == 1 and found["x, words >= 8000"].value == 0
    assert math.isnan(found["x, words < 8000"].value) and found["x, words < 8000"].n == 0


def test_perplexity_is_no_mean_of_perplexities():
    rows = cells([{"nll": 10, "tokens": 10}, {"nll": 30, "tokens": 20}], rules={"nll": "exp_weighted:tokens"})
    assert by_name(summed(rows))["exp of nll per tokens"].value == pytest.approx(3.794, abs=5e-4)


def test_pass_at_k_counts_documents():
    metas = [{"document": d} for d in (0, 0, 0, 1, 1, 1)]
    rows = cells([{"x": s} for s in (1, 0, 0, 0, 0, 0)], metas, {"x": "pass@k"})
    found = by_name(summed(rows))
    assert found["x, avg@3"].value == pytest.approx(1 / 6) and found["x, avg@3"].n == 6
    assert found["x, pass@1"].value == pytest.approx(1 / 6) and found["x, pass@3"].value == 0.5
    assert found["x, pass@3"].n == 2
    assert pass_at(2, 4, 1) == pytest.approx(0.5)


def test_values_of_a_field_have_their_means():
    rows = cells(
        [{"x": 1}, {"x": 0}, {"x": 1}], [{"level": 1}, {"level": 2}, {"level": 1}], {"x": "by:level"}
    )
    found = by_name(summed(rows))
    assert found["x, level 1"].value == 1 and found["x, level 2"].value == 0
    assert found["x"].value == pytest.approx(2 / 3)


def longbench(accuracy, scores: dict[str, float], **more) -> pd.DataFrame:
    (first, *_) = accuracy(samples=1, methods=("snapkv",), budgets=(64,))
    rows = [
        {
            **first,
            "task": f"longbench_{name}",
            "task_family": "longbench",
            "score": score,
            "cell": name,
            **more,
        }
        for name, score in scores.items()
    ]
    return summary.prepare(pd.DataFrame(rows))


ENGLISH = {
    "narrativeqa": 0.1, "qasper": 0.2, "multifieldqa_en": 0.3, "hotpotqa": 0.4, "2wikimqa": 0.5, "musique": 0.6,
    "gov_report": 0.1, "qmsum": 0.1, "multi_news": 0.1, "trec": 0.5, "triviaqa": 0.6, "samsum": 0.4,
    "passage_count": 0.0, "passage_retrieval_en": 1.0, "lcc": 0.6, "repobench-p": 0.5,
}  # fmt: skip


def test_the_averages_of_longbench_follow_their_rules(accuracy):
    found = {row[6]: row[8] for row in averages.rows(longbench(accuracy, ENGLISH))}
    assert found["average readme, English"] == pytest.approx((20 + 50 + 10 + 50 + 50 + 55) / 6)
    assert found["average rocketkv"] == pytest.approx(100 * sum(ENGLISH.values()) / 15)
    assert found["average leaves"] == pytest.approx(100 * sum(ENGLISH.values()) / 16)


@pytest.mark.parametrize("missing", ["qasper", "lcc"])
def test_an_average_without_one_of_its_tasks_is_left_out(accuracy, missing):
    scores = {name: score for name, score in ENGLISH.items() if name != missing}
    assert {row[6] for row in averages.rows(longbench(accuracy, scores))} == {"average leaves"}


def test_longbench_e_has_a_curve_and_no_other_average(accuracy):
    frame = longbench(accuracy, {"qasper": 0.5, "lcc": 0.7}, aggregate={"x": "buckets"}, meta={"words": 3999})
    found = {row[6]: row[8] for row in averages.rows(frame)}
    assert found == {"average E, 0-4k words": pytest.approx(60)}


def test_a_run_without_several_metrics_has_no_such_table(accuracy):
    frame = summary.prepare(pd.DataFrame(accuracy(samples=2)))
    assert metrics.further(frame).empty and metrics.tables(frame) == []


def test_scbenchs_averages_count_a_kind_that_a_turn_lacks_as_zero():
    from kvbench.tasks.scbench_names import NAMES

    rows = []
    for name in NAMES:
        for turn in (0, 1):
            fixed, official = (1.0, 0.5) if turn == 0 else (0.5, 0.5)
            scores = {"fixed": fixed, "official": official}
            if name == "summary_with_needles":
                scores |= {"summary" if turn == 0 else "passkey": fixed}
            rows.append({"task": f"scbench_{name}", "score": fixed, "scores": scores, "meta": {"turn": turn}})
    found = {name: (value, n) for name, _, value, n in averages._scbench(pd.DataFrame(rows))}
    # eleven tasks of 0.75, and one whose four numbers are 1, 0, 0 and 0.5
    assert found["mean12"] == (pytest.approx(100 * (11 * 0.75 + 0.375) / 12), 12)
    assert found["rocketkv11"] == (pytest.approx(100 * (11 * 0.5 + 0.25) / 11), 12)
    assert found["turn 1"] == (pytest.approx(100), 12) and found["later turns"] == (pytest.approx(50), 12)
    some = averages._scbench(pd.DataFrame(rows[:4]))
    assert {name for name, *_ in some} == {"turn 1", "later turns"}
