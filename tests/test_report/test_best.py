"""`kvbench best` on constructed tables: the three states, their smallest budgets, and what cannot be judged."""

import json
import math

import pandas as pd
import pytest

from kvbench.cli.main import main
from kvbench.config.errors import UserError
from kvbench.report import load, stats
from kvbench.report.best import ORACLES, best, judged
from kvbench.report.clusters import Clusters
from kvbench.report.margins import OVER_TASKS
from kvbench.report.summary import prepare
from kvbench.runs.store import Store

PER_TOKEN = 1000  # bytes


@pytest.fixture(scope="module")
def table(accuracy):
    """Records of a run: `methods` maps (method, budget) to (scores lost per task, KL), tasks to samples."""
    template = accuracy(tasks=("niah_single",), samples=60, budgets=(64,), methods=("snapkv",))

    def build(methods, tasks=None, dense=1.0):
        records = []
        for task, n in (tasks or {"one": 20}).items():
            for base in template:
                if base["method"] != "dense" or base["sample"] >= n:
                    continue
                same = {"task": task, "sample_hash": f"{task}{base['sample']}"}
                record = base | same | {"score": dense if isinstance(dense, float) else dense[task]}
                records.append(record | {"bytes_resident": 2000 * PER_TOKEN, "cell": f"{task} {n} dense"})
                for (method, budget), (lost, kl) in methods.items():
                    failed = base["sample"] < (lost if isinstance(lost, int) else lost.get(task, 0))
                    if isinstance(lost, dict) and task not in lost:
                        continue
                    tokens = float(budget.rstrip("x") or 2000) * (2000 if budget.endswith("x") else 1)
                    records.append(
                        record
                        | {
                            "method": method,
                            "eviction": method,
                            "cell": f"{task} {method} {budget}",
                            "budget_requested": budget,
                            "score": 0.0 if failed else record["score"],
                            # a spread, without which there is no interval
                            "kl_to_dense": kl * (0.8 + 0.4 * (base["sample"] % 2)),
                            "bytes_resident": int(tokens * PER_TOKEN),
                            "bytes_read_per_step": tokens * PER_TOKEN + 500,
                        }
                    )
        for number, record in enumerate(records):
            record["cell"] += f" {number}"
        return records

    return build


def states(records, margin=0.05, kl=0.1, failures=(), task=OVER_TASKS):
    rows = judged(prepare(pd.DataFrame(records)), margin, kl, failures)
    rows = rows[rows["task_label"] == task].set_index(["label", "budget_requested"])
    return rows["state"].to_dict(), rows["kl_state"].to_dict(), rows


def of(records, **margins):
    return best(prepare(pd.DataFrame(records)), "mine", **margins)


def test_the_three_states_are_those_of_the_interval(table):
    """53 samples without a change are not enough for 0.05, 54 are; two of 54 lost are inside and cannot be told."""
    for n, expected in ((53, "cannot be told"), (54, "within")):
        found, _, rows = states(table({("snapkv", "64"): (0, 0.01)}, {"one": n}))
        assert found == {("snapkv", "64"): expected}
        low = stats.difference_interval(Clusters([0.0] * n, range(n)))[0]
        assert (low > -0.05) == (expected == "within") and rows["ci_low"].iloc[0] == low
        assert rows["n_needed"].iloc[0] == 54
    found, _, _ = states(table({("snapkv", "64"): (2, 0.01), ("quest", "64"): (3, 0.01)}, {"one": 54}))
    assert found == {("snapkv", "64"): "cannot be told", ("quest", "64"): "worse"}


def test_kl_has_states_of_its_own(table):
    methods = {("a", "64"): (0, 0.02), ("b", "64"): (0, 0.095), ("c", "64"): (0, 0.1), ("d", "64"): (0, 3.0)}
    _, kl, rows = states(table(methods, {"one": 8}))
    assert list(kl.values()) == ["within", "cannot be told", "worse", "worse"]
    needed = rows["kl_n_needed"].loc["b", "64"]
    assert needed > 8 and states(table(methods, {"one": 2 * math.ceil(needed / 2)}))[1]["b", "64"] == "within"
    # three samples have no interval
    assert states(table(methods, {"one": 3}))[1]["a", "64"] == "cannot be told"


def test_the_smallest_budget_within_is_named_with_its_bytes_and_dense(table):
    methods = {("snapkv", str(b)): (lost, 0.01) for b, lost in ((64, 30), (128, 2), (256, 0), (512, 0))}
    records = table(methods | {("random", "512"): (50, 3.0)}, {"one": 60})
    assert of(records).answer()[0] == (
        "Within 0.05 of dense's score (1.00), snapkv at 256 tokens needs 13 % of the memory and reads 13 % per step."
    ).replace("reads 13 %", f"reads {100 * 256_500 / records[0]['bytes_read_per_step']:.2g} %")
    scores = of(records).tables()[0]
    assert [row[:3] for row in scores.rows] == [
        ["snapkv", "256", "within"],
        ["snapkv", "128", "cannot be told"],
        ["snapkv", "64", "worse"],
        ["random", "512", "worse"],
    ]
    assert scores.rows[0][4] == "0.256 (12.8 %)"
    assert scores.caption.startswith("Reference: dense, score 1.00, 2 MB resident, ")
    assert "not corrected" in scores.caption
    needed = scores.rows[1][scores.header.index("n needed")]
    assert int(needed) > 60 and [row[-1] for row in scores.rows if row[2] != "cannot be told"] == ["", "", ""]


def test_a_larger_budget_that_is_worse_is_told(table):
    rows = of(table({("rocketkv", "64"): (0, 0.01), ("rocketkv", "128"): (40, 2.0)}, {"one": 60})).tables()
    assert [row[2] for row in rows[0].rows] == ["within (but worse at 128)", "worse"]
    assert [row[2] for row in rows[1].rows] == ["within (but worse at 128)", "worse"]


def test_no_method_is_good_enough(table):
    answer = of(table({("snapkv", "64"): (30, 2.0), ("quest", "64"): (20, 1.0)}, {"one": 60})).answer()
    assert answer[0] == (
        "Within 0.05 of dense's score (1.00): no method's mean is good enough here. quest at 64 tokens comes closest: "
        "-0.33 [-0.45, -0.20] at n = 60."
    )
    assert answer[1].startswith(
        "With a KL from dense below 0.1 nats: no method's mean is good enough here. quest at 64 "
    )


def test_a_small_run_says_that_it_cannot_tell_and_what_would_do(table):
    answer = of(table({("snapkv", "64"): (0, 0.01)}, {"one": 8})).answer()
    assert answer[0] == (
        "Within 0.05 of dense's score (1.00): this run cannot tell. snapkv at 64 tokens comes closest: "
        "+0.00 [-0.28, +0.28] at n = 8, n = 54 would do."
    )
    # the same eight samples answer by KL
    assert answer[1].startswith(
        "With a KL from dense below 0.1 nats, snapkv at 64 tokens needs 3.2 % of the memory"
    )


def test_ties_are_all_named(table):
    methods = {(name, "64"): (0, 0.01) for name in ("a", "b")} | {("c", "128"): (0, 0.01)}
    answer = of(table(methods, {"one": 60})).answer()[0]
    assert (
        "a at 64 tokens and b at 64 tokens need 3.2 % of the memory and read " in answer
        and "c at" not in answer
    )


def test_an_oracle_is_listed_and_not_recommended(table):
    from kvbench.methods.registry import registry

    assert set(registry()) >= ORACLES
    found = of(table({("topk_oracle", "64"): (0, 0.01), ("snapkv", "512"): (0, 0.01)}, {"one": 60}))
    assert "snapkv at 512 tokens needs" in found.answer()[0] and "topk_oracle" not in found.answer()[0]
    assert found.overview()[0].rows[0][0] == "topk_oracle (a bound)"
    only = of(table({("topk_oracle", "64"): (0, 0.01)}, {"one": 60}))
    assert only.answer()[0].endswith("no method but bounds was run.")


def test_floor_tasks_say_nothing(table):
    methods = {("snapkv", "64"): (0, 0.01)}
    records = table(methods, {"one": 60, "two": 60}, dense={"one": 1.0, "two": 0.1})
    assert states(records)[0] == {("snapkv", "64"): "within"} and states(records)[2]["n"].iloc[0] == 60
    assert states(records, task="two")[0] == {("snapkv", "64"): "floor"}
    alone = of(table(methods, {"two": 60}, dense=0.1))
    assert alone.answer()[0] == "This run cannot tell: dense itself scores below 0.2 on every task."
    assert alone.overview()[0].rows[0][2] == "floor" and "Dense is below 0.2" in alone.overview()[0].caption


def test_a_method_that_lacks_a_task_is_not_within(table):
    methods = {("snapkv", "64"): (0, 0.01), ("part", "64"): ({"one": 0}, 0.01)}
    records = table(methods, {"one": 60, "two": 60})
    assert states(records)[0] == {("snapkv", "64"): "within", ("part", "64"): "cannot be told"}
    row = next(row for row in of(records).overview()[0].rows if row[0] == "part")
    assert row[2] == "cannot be told (1 of 2 tasks)"
    assert states(records, task="one")[0]["part", "64"] == "within"


def test_failed_cells_keep_a_method_from_being_within(table):
    records = table({("snapkv", "64"): (0, 0.01), ("quest", "64"): (0, 0.01)}, {"one": 60})
    snapkv = next(record for record in records if record["method"] == "snapkv")
    failures = [snapkv | {"cell": "f", "sample": 61, "failure": "raised", "reason": "x"}]
    lost = snapkv | {"method": "lost", "eviction": "lost", "cell": "g", "failure": "raised", "reason": "x"}
    found, kl, _ = states(records, failures=[*failures, lost])
    assert found == kl == {("snapkv", "64"): "cannot be told", ("quest", "64"): "within"}
    judgement = best(prepare(pd.DataFrame(records)), "mine", [*failures, lost])
    assert judgement.answer()[-1] == "Every cell failed of lost."
    assert "cannot be told (1 of 61 failed)" in judgement.text()


def test_budgets_of_tokens_and_shares_are_ordered_by_what_they_read(table):
    methods = {("snapkv", b): (0, 0.01) for b in ("512", "0.1x", "1024")}
    answer = of(table(methods, {"one": 60})).answer()[0]
    assert "snapkv at 10% of the prompt (0.1x) needs 10 % of the memory" in answer


def test_a_budget_that_covers_the_prompt_is_dense_and_left_out(table):
    records = table({("snapkv", "64"): (30, 2.0), ("snapkv", "4096"): (0, 0.0)}, {"one": 60})
    covered = [r | {"budget_covers_prompt": r["budget_requested"] == "4096"} for r in records]
    assert list(states(covered)[0]) == [("snapkv", "64")]
    with pytest.raises(UserError, match="no scores of methods beside dense's"):
        of([r for r in covered if r["budget_requested"] != "64"])


def test_times_are_shown_where_methods_ran_alone(table):
    records = table({("snapkv", "64"): (0, 0.01)}, {"one": 60})
    alone = {"timing": "isolated", "score": None, "kl_to_dense": None}
    timed = [
        records[1] | alone | {"cell": f"t{batch}", "batch": batch, "decode_ms_per_token": ms}
        for batch, ms in ((1, 12.5), (4, 40.0))
    ]
    found = of([*records, *timed]).overview()[0]
    assert found.rows[0][found.header.index("ms/token")] == "12.5"
    assert "ms/token" not in of(records).overview()[0].header


def test_settings_have_answers_of_their_own(table):
    records = table({("snapkv", "64"): (0, 0.01)}, {"one": 60})
    other = [r | {"protocol": "query_agnostic", "cell": f"{r['cell']} b"} for r in records]
    found = of([*records, *other])
    assert len(found.answer()) == 4 and found.answer()[2].startswith(
        "smollm2_135m, query_agnostic, 2,048 tokens: "
    )
    with pytest.raises(UserError, match="several models, protocols or lengths"):
        found.smallest_within()


@pytest.fixture(scope="module")
def stored(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("best") / "mine"
    store = Store(folder, worker="w")
    store.extend(table({("snapkv", "64"): (30, 2.0), ("snapkv", "256"): (0, 0.01)}, {"one": 60}))
    return folder


def test_the_command_prints_text_or_json(stored, capsys):
    assert main(["best", str(stored), "--within", "0.05"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "Within 0.05 of dense's score (1.00), snapkv at 256 tokens needs 13 % of the memory"
    )
    assert load(stored).best(within=0.05).text() == text.rstrip("\n")
    assert main(["best", str(stored), "--json", "--kl", "5"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["within"] == 0.05 and content["kl"] == 5
    assert {(row["budget_requested"], row["state"], row["kl_state"]) for row in content["rows"]} == {
        ("64", "worse", "within"),
        ("256", "within", "within"),
    }
    # one task: a row of it, and one over tasks
    assert len(content["rows"]) == 4 and content["rows"][0]["dense_score"] == 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere is not a run folder"),
        (["RUN", "--within", "0"], "within: 0 is not allowed, give a number above 0"),
        (["RUN", "--within", "-0.1"], "within: -0.1 is not allowed, give a number above 0"),
        (["RUN", "--within", "nan"], "within: nan is not allowed, give a number above 0"),
        (["RUN", "--kl", "inf"], "kl: inf is not allowed, give a number above 0"),
        (["RUN", "--within", "much"], "argument --within: invalid float value: 'much'"),
        ([], "the following arguments are required: RUN"),
        (["RUN", "more"], "unrecognized arguments: more"),
        (["EFFICIENCY"], "has no scores of methods beside dense's"),
        (["EMPTY"], "has no finished cell yet"),
    ],
)
def test_bad_input_is_one_line(stored, efficiency, tmp_path, words, message, capsys):
    Store(tmp_path / "e", worker="w").extend(efficiency((1,), (1024,)))
    Store(tmp_path / "n").write_config("name: x\n")
    places = {"RUN": stored, "EFFICIENCY": tmp_path / "e", "EMPTY": tmp_path / "n"}
    before = sorted(stored.rglob("*"))
    assert main(["best", *(str(places.get(word, word)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert sorted(stored.rglob("*")) == before


def test_python_refuses_what_is_no_number(stored):
    for margins in ({"within": "0.05"}, {"kl": True}, {"within": -1}):
        with pytest.raises(UserError, match=rf"^{next(iter(margins))}: "):
            load(stored).best(**margins)


def test_the_page_begins_with_the_answer(stored):
    from kvbench.report.html import page

    text = page(load(stored), [])
    box = text.partition('<div class="answer">')[2].partition("</div>\n{% endif")[0]
    assert box.index("snapkv at 256 tokens needs 13 % of the memory") < box.index(
        "Score within 0.05 of dense"
    )
    assert text.index('<div class="answer">') < text.index("<nav>")
