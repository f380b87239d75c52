import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.config.errors import UserError
from kvbench.report import significance, stats
from kvbench.report.clusters import Clusters
from kvbench.report.summary import budget_key, distinguish, pooled, prepare, summarise
from kvbench.report.tables import all_tables

DOCUMENTED = (
    "run, model, task, task_version, length, protocol, method, eviction, selection, format, params, "
    "budget_requested, budget_covers_prompt, max_new_tokens, seed, metric, kept_tokens, bytes_resident, "
    "bytes_read_per_step, score, ci_low, ci_high, n, delta_vs_dense, delta_ci_low, delta_ci_high, p_value, "
    "kl_to_dense, prefill_s, compress_s, decode_ms_per_token, timing, device, dtype"
).split(", ")


def summary_of(records):
    return summarise(prepare(pd.DataFrame(records)), "r")


def alone(values):
    """Each value a cluster of its own."""
    return Clusters(values, range(len(values)))


def row_of(summary, **where):
    for column, value in where.items():
        summary = summary[summary[column] == value]
    assert len(summary) == 1
    return summary.iloc[0]


@pytest.fixture(scope="module")
def summary(accuracy):
    return summary_of(accuracy())


def test_documented_columns_come_first_and_in_order(summary):
    assert list(summary.columns[: len(DOCUMENTED)]) == DOCUMENTED


def test_one_row_per_task_method_and_budget(summary):
    assert len(summary) == 2 * (1 + 7 * 3)
    assert (summary["n"] == 20).all() and (summary["run"] == "r").all()
    first = summary[summary["task"] == "niah_single"].head(4)
    assert first["label"].tolist() == ["dense", "chunkkv", "chunkkv", "chunkkv"]
    assert first["budget_requested"].tolist() == ["", "64", "256", "1024"]


def test_scores_and_paired_differences(summary, accuracy):
    cells = pd.DataFrame(accuracy())
    cells = cells[cells["task"] == "niah_single"]
    mine = cells[(cells["method"] == "quest") & (cells["budget_requested"] == "64")].set_index("sample")
    dense = cells[cells["method"] == "dense"].set_index("sample")
    row = row_of(summary, task="niah_single", method="quest", budget_requested="64")
    difference = mine["score"] - dense["score"]
    assert row["score"] == pytest.approx(mine["score"].mean())
    assert (row["ci_low"], row["ci_high"]) == stats.score_interval(alone(mine["score"]))
    assert row["delta_vs_dense"] == pytest.approx(difference.mean())
    assert row["p_value"] == significance.difference_p_value(alone(difference))
    assert (row["delta_ci_low"], row["delta_ci_high"]) == stats.difference_interval(alone(difference))
    assert row["bytes_resident"] == pytest.approx(mine["bytes_resident"].mean())
    assert row["bytes_read_share"] == pytest.approx(
        (mine["bytes_read_per_step"] / dense["bytes_read_per_step"]).mean()
    )
    assert json.loads(row["params"]) == {"page": 16}


def test_missing_samples_leave_pairs_not_rows(accuracy):
    records = [
        record
        for record in accuracy(tasks=("niah_single",), samples=10)
        if not (record["method"] == "dense" and record["sample"] < 3)
        and not (record["method"] == "snapkv" and record["sample"] == 9)
    ]
    summary = summary_of(records)
    cells = {(r["method"], r["budget_requested"], r["sample"]): r["score"] for r in records}
    row = row_of(summary, method="snapkv", budget_requested="64")
    paired = [cells["snapkv", "64", i] - cells["dense", "", i] for i in range(3, 9)]
    assert (row["n"], row["n_pairs"]) == (9, 6)
    assert row["delta_vs_dense"] == pytest.approx(np.mean(paired))
    assert row["verdict"] == "no difference detectable at n = 6"


def test_without_dense_nothing_is_compared(accuracy):
    records = [
        record for record in accuracy(tasks=("niah_single",), samples=3) if record["method"] != "dense"
    ]
    summary = summary_of(records)
    assert (summary["verdict"] == "no pair to compare").all() and summary["p_value"].isna().all()


def test_order_of_the_cells_does_not_matter(accuracy, summary):
    shuffled = pd.DataFrame(accuracy()).sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(summarise(prepare(shuffled), "r"), summary)


def test_null_kl_is_left_out(accuracy, summary):
    records = [r for r in accuracy() if r["method"] == "random" and r["task"] == "niah_single"]
    kl = [r["kl_to_dense"] for r in records if r["budget_requested"] == "64" and r["kl_to_dense"] is not None]
    row = row_of(summary, task="niah_single", method="random", budget_requested="64")
    assert len(kl) == 19 and row["kl_to_dense"] == pytest.approx(np.mean(kl))


def test_floor_is_not_compared(accuracy):
    summary = summary_of(accuracy(tasks=("niah_single", "vt")))
    floor = summary[summary["task"] == "vt"]
    assert floor["floor"].all() and (floor["verdict"] == "floor").all()
    assert floor["p_value"].isna().all() and floor["p_holm"].isna().all()
    assert not summary.loc[summary["task"] == "niah_single", "floor"].any()


def test_covered_rows_are_no_hypotheses(accuracy):
    summary = summary_of(accuracy(tasks=("niah_single",), budgets=(64, 4096)))
    covered = summary[summary["budget_covers_prompt"]]
    assert len(covered) == 7 and covered["p_holm"].isna().all()
    assert (covered["verdict"] == "equal to dense: the budget covers the prompt").all()


def test_holm_counts_the_whole_table_and_each_table_alone(accuracy):
    two = summary_of(accuracy(tasks=("niah_single",), protocols=("query_aware", "query_agnostic")))
    for _, table in two.groupby("protocol"):
        assert table["p_holm"].dropna().tolist() == significance.holm(table["p_value"].dropna()).tolist()
        assert table["p_holm"].notna().sum() == 21
    worst = two.loc[two["p_holm"].idxmin()]
    assert worst["p_holm"] == pytest.approx(21 * worst["p_value"])
    assert worst["verdict"].startswith("worse by 0.")


def test_seeds_are_rows_and_pooled_by_sample(accuracy):
    first = accuracy(tasks=("niah_single",), samples=8)
    # the second seed repeats the samples, as a task from a file does
    second = [r | {"cell": r["cell"] + "b", "seed": 1, "score": r["score"] * 0.5} for r in first]
    summary = summary_of(first + second)
    row = row_of(summary, method="snapkv", budget_requested="64", seed="all")
    parts = [row_of(summary, method="snapkv", budget_requested="64", seed=seed) for seed in (0, 1)]
    assert (row["n"], row["n_cells"], parts[0]["n"]) == (8, 16, 8)
    assert row["score"] == pytest.approx((parts[0]["score"] + parts[1]["score"]) / 2)
    assert (pooled(summary)["seed"] == "all").all()

    fresh = summary_of(accuracy(tasks=("niah_single",), samples=8, seeds=(0, 1)))
    assert row_of(fresh, method="snapkv", budget_requested="64", seed="all")["n"] == 16


def test_isolated_rows_are_kept_apart(accuracy, efficiency):
    summary = summary_of(accuracy(tasks=("niah_single",), samples=3) + efficiency())
    isolated = summary[summary["timing"] == "isolated"]
    assert len(isolated) == 48 and isolated["score"].isna().all() and (isolated["verdict"] == "").all()
    row = row_of(isolated, method="snapkv", length=4096, batch=4)
    dense = row_of(isolated, method="dense", length=4096, batch=4)
    assert row["speedup"] == pytest.approx(dense["decode_ms_per_token"] / row["decode_ms_per_token"])
    assert summary.loc[summary["timing"] == "amortised", "speedup"].isna().all()


def test_isolated_rows_say_how_steps_run(accuracy, efficiency):
    records = [r | {"step": "eager" if r["method"] == "dense" else "graph"} for r in efficiency()] + accuracy(
        tasks=("niah_single",), samples=1
    )
    summary = summary_of(records)
    assert set(summary.loc[summary["timing"] == "amortised", "step"]) == {""}
    isolated = summary[summary["timing"] == "isolated"]
    assert (isolated["step"] == isolated["is_dense"].map({True: "eager", False: "graph"})).all()
    row = ["method", "length", "batch", "budget_requested"]
    same = [r for r in records if r.get("step") and all(r[key] == records[0][key] for key in row)]
    other = same[0] | {"cell": "other", "step": "graph" if same[0]["step"] == "eager" else "eager"}
    assert "eager + graph" in set(summary_of([*records, other])["step"])


def test_mixed_devices_stay_one_row_that_says_so(accuracy):
    records = accuracy(tasks=("niah_single",), samples=2)
    records[0] = records[0] | {"device": "cuda:0"}
    assert row_of(summary_of(records), method="dense")["device"] == "cpu + cuda:0"


def test_dtypes_are_never_paired(accuracy):
    records = accuracy(tasks=("niah_single",), samples=2)
    records = [r | {"dtype": "float32" if r["method"] == "dense" else "bfloat16"} for r in records]
    summary = summary_of(records)
    assert (summary["n_pairs"] == 0).all()


def test_dense_in_another_format_is_no_baseline(accuracy):
    records = accuracy(tasks=("niah_single",), samples=2)
    fp8 = [r | {"cell": r["cell"] + "8", "format": "fp8_e4m3"} for r in records if r["method"] == "dense"]
    summary = summary_of(records + fp8)
    assert sorted(summary.loc[summary["method"] == "dense", "label"]) == ["dense", "dense (format=fp8_e4m3)"]
    assert summary["is_dense"].sum() == 1


def test_distinguish_names_what_differs():
    names = pd.Series(["a", "a", "b"])
    settings = [{"chunk": 10, "mode": "x"}, {"chunk": 20, "mode": "x"}, {"chunk": 10}]
    assert distinguish(names, settings) == ["a (chunk=10)", "a (chunk=20)", "b"]


def test_budget_order():
    budgets = ["0.5x", "1024", "", "0.1x", "64"]
    assert sorted(budgets, key=budget_key) == ["", "64", "1024", "0.1x", "0.5x"]


@pytest.mark.parametrize("where", ["conversation", "line"])
def test_the_turns_of_a_conversation_are_one_sample(accuracy, where):
    records = accuracy(tasks=("niah_single",), samples=8, budgets=(64,))
    for record in records:
        record["meta"] = {where: record["sample"] // 4, "turn": record["sample"] % 4}
    summary, cells = summary_of(records), pd.DataFrame(records)
    row = row_of(summary, method="quest")
    scores = cells[cells["method"] == "quest"].groupby(cells["sample"] // 4)["score"].mean()
    assert (row["n"], row["n_cells"]) == (2, 8)
    assert row["score"] == pytest.approx(scores.mean())
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(stats.score_interval(alone(scores)))
    # the same conversations of another seed: other texts where they were made for it, not where they are a file's
    again = [r | {"cell": r["cell"] + "2", "seed": 1} for r in records]
    assert row_of(summary_of(records + again), method="quest", seed="all")["n"] == (
        4 if where == "conversation" else 2
    )


@settings(max_examples=15, deadline=None)
@given(st.sets(st.integers(0, 200), max_size=60), st.sets(st.integers(0, 200), max_size=60))
def test_scored_samples_are_counted_and_dense_plus_difference_is_the_score(accuracy, unscored, missing):
    records = accuracy(tasks=("niah_multivalue",), samples=9, budgets=(64,), methods=("snapkv", "quest"))
    for place, record in enumerate(records):
        record["meta"] = {"conversation": record["sample"] // 2, "turn": record["sample"] % 2}
        record["score"] = None if place in unscored else record["score"]
    records = [r for place, r in enumerate(records) if place not in missing or place in unscored]
    summary = summary_of(records)
    for row in summary[~summary["is_dense"]].itertuples():
        scored = {
            r["meta"]["conversation"] for r in records if r["method"] == row.method and r["score"] is not None
        }
        assert row.n == len(scored) and row.n_pairs <= row.n
        cells = prepare(pd.DataFrame(records)).query("method == @row.method and score.notna()")
        if len(cells) and cells["dense_score"].notna().all():
            assert row.dense_score + row.delta_vs_dense == pytest.approx(row.score)
        assert (row.n_pairs == 0) == np.isnan(row.delta_vs_dense)


def test_cells_without_a_score_are_no_samples(accuracy, efficiency):
    records = accuracy(tasks=("niah_single",), samples=5, budgets=(64,), methods=("quest",))
    for record in records:
        record["score"] = None if record["method"] == "quest" and record["sample"] == 4 else record["score"]
    row = row_of(summary_of(records), method="quest")
    assert (row["n"], row["n_cells"], row["n_pairs"]) == (4, 5, 4)
    assert (summary_of(efficiency())["n"] == 0).all()


def test_cells_that_nothing_compressed_are_left_out_and_counted(accuracy):
    records = accuracy(tasks=("niah_single",), samples=5, budgets=(64,), methods=("quest", "snapkv"))
    plain = summary_of(records)
    for record in records:
        idle = record["method"] == "snapkv" or (record["method"] == "quest" and record["sample"] == 4)
        record["compressed"] = record["method"] != "dense" and not idle
    summary = summary_of(records)
    some, none = row_of(summary, method="quest"), row_of(summary, method="snapkv")
    assert (some["n"], some["n_cells"], some["n_pairs"], some["n_not_compressed"]) == (4, 5, 4, 1)
    assert none["n"] == 0 and none["n_not_compressed"] == 5 and none["verdict"] == "never compressed"
    assert np.isnan(none["score"]) and np.isnan(none["kl_to_dense"]) and np.isnan(none["bytes_resident"])
    assert row_of(summary, method="dense")["n"] == 5
    assert (plain["n_not_compressed"] == 0).all() and row_of(plain, method="snapkv")["n"] == 5


def test_no_row_contradicts_itself_without_a_word(summary):
    for row in summary[~summary["is_dense"]].itertuples():
        holds_0 = row.delta_ci_low <= 0 <= row.delta_ci_high
        if row.verdict == f"no difference detectable at n = {row.n_pairs}":
            assert holds_0 and row.p_value >= 0.05
        if row.verdict == f"worse by {-row.delta_vs_dense:.2f}":
            assert not holds_0 and row.p_holm < 0.05


def test_answers_cut_by_the_token_limit_are_counted(accuracy):
    records = accuracy(tasks=("niah_single",), samples=5, budgets=(64,), methods=("quest", "snapkv"))
    for record in records:
        record["stop"] = "length" if record["method"] == "quest" and record["sample"] < 3 else "eos"
        if record["method"] == "snapkv":
            del record["stop"]
    summary = summary_of(records)
    assert row_of(summary, method="quest")["n_cut"] == 3 and row_of(summary, method="dense")["n_cut"] == 0
    assert np.isnan(row_of(summary, method="snapkv")["n_cut"])
    (table,) = (table for table in all_tables(summary) if table.title.startswith("Scores"))
    cut = table.header.index("cut")
    assert [(row[0], row[cut]) for row in table.rows] == [("dense", "0/5"), ("quest", "3/5"), ("snapkv", "-")]


def test_a_score_outside_0_and_1_is_one_line(accuracy):
    records = accuracy(tasks=("niah_single",), samples=2)
    records[3]["score"] = 55.0
    with pytest.raises(UserError, match="score: 55 of task niah_single, allowed: 0 to 1"):
        summary_of(records)
