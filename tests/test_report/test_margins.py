import numpy as np
import pandas as pd
import pytest

from kvbench.report import margins, stats
from kvbench.report.clusters import Clusters
from kvbench.report.summary import prepare


def row_of(frame, **where):
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


@pytest.fixture(scope="module")
def cells(accuracy):
    records = accuracy(tasks=("niah_single", "niah_multivalue", "vt"), samples=20, budgets=(64, 1024))
    # the second task has half of the samples
    return prepare(pd.DataFrame([r for r in records if r["task"] != "niah_multivalue" or r["sample"] < 10]))


def test_every_method_has_a_row_per_task_and_one_over_tasks(cells):
    frame = margins.losses(cells, 0.05)
    assert len(frame) == 7 * 2 * 4
    both = frame[frame["task_label"] == margins.OVER_TASKS].set_index(["label", "budget_requested"])
    assert (both["tasks"] == 2).all() and (both["n"] == 30).all()
    for key, of_method in frame[~frame["floor"]].groupby(["label", "budget_requested"]):
        each = of_method[of_method["task_label"] != margins.OVER_TASKS]["delta"]
        assert both.loc[key, "delta"] == pytest.approx(each.mean())
    assert frame.loc[frame["task_label"] == "vt", "floor"].all()
    assert not frame.loc[frame["task_label"] == "vt", "within"].any()


def test_intervals_are_those_of_the_paired_differences(cells):
    mine = cells[(cells["label"] == "quest") & (cells["budget_requested"] == "64")]
    mine = mine[mine["task"] == "niah_single"]
    row = row_of(margins.losses(cells, 0.3), label="quest", budget_requested="64", task_label="niah_single")
    differences = Clusters(mine["difference"], mine["cluster"])
    assert (row["ci_low"], row["ci_high"]) == stats.difference_interval(differences)
    assert row["kl_p_value"] == stats.kl_p_value(Clusters(mine["kl_to_dense"], mine["cluster"]), 0.1)
    assert row["within"] == (row["ci_low"] > -0.3)
    assert row["delta"] > -0.3 or np.isnan(row["n_needed"])


def test_n_needed_is_where_the_interval_fits(accuracy):
    """Two samples of ten are lost; so many samples with the same share of losses are within, one fewer are not."""

    def within(n):
        records = accuracy(tasks=("niah_single",), samples=n, budgets=(64,), methods=("quest",))
        records = [r | {"score": float(r["method"] == "dense" or r["sample"] >= 0.2 * n)} for r in records]
        return margins.losses(prepare(pd.DataFrame(records)), 0.3).iloc[0]

    needed = int(within(10)["n_needed"])
    assert not within(10)["within"] and needed > 10
    up = -(-needed // 5) * 5
    assert within(up)["within"] and not within(up - 10)["within"]


def test_a_bad_margin_is_refused(cells):
    with pytest.raises(ValueError, match="above 0"):
        margins.losses(cells, 0)
