import json
import re
from pathlib import Path

import pandas as pd
import pytest

from kvbench.cli.main import _kept, main
from kvbench.config.errors import UserError
from kvbench.report import compare, comparison_text, explain, load, status, write_report
from kvbench.runs.store import Store


def test_views(run_dir):
    run = load(run_dir)
    assert run.name == "small" and run.config["model"] == {"name": "smollm2_135m"}
    assert len(run.cells()) == len(run.records) and isinstance(run.cells()["params"].iloc[0], dict)
    assert len(run.summary()) == 7 + 16
    assert "### Scores: smollm2_135m, query_aware, 2048" in run.table()
    assert run.plot("score_vs_resident", task="niah_single").get_figwidth() > 3


def test_load_by_name(run_dir, tmp_path, monkeypatch):
    runs = tmp_path / "results" / "runs"
    runs.mkdir(parents=True)
    (runs / "mine").symlink_to(run_dir)
    monkeypatch.chdir(tmp_path)
    assert len(load("mine").records) == len(load(run_dir).records)
    with pytest.raises(UserError, match=r"^run: nope is not a run folder; runs in results/runs: mine$"):
        load("nope")


def test_an_empty_run_is_one_line(tmp_path):
    Store(tmp_path).write_config("name: x\n")
    for ask in (Store(tmp_path).read, lambda: status(tmp_path)):
        ask()
    for ask in (load(tmp_path).summary, load(tmp_path).table, lambda: write_report(tmp_path)):
        with pytest.raises(UserError, match=r"^run: [^\n]+ has no finished cell yet$"):
            ask()


def test_an_experiment_without_cells_has_its_table_and_files(tmp_path):
    (tmp_path / "table.md").write_text("# Costs\n")
    pd.DataFrame({"placement": ["none"], "usd": [0.5]}).to_csv(tmp_path / "costs.csv", index=False)
    run = load(tmp_path)
    assert run.table() == run._repr_markdown_() == "# Costs\n"
    assert run.frame("costs")["usd"].tolist() == [0.5]
    with pytest.raises(UserError, match=r"^name: no file moves.csv in [^\n]+, but costs$"):
        run.frame("moves")
    message = (
        r"has no cells of methods; its results are in costs.csv, table.md \(in Python: .table\(\) and .frame"
    )
    for ask in (run.cells, run.summary, lambda: run.plot("score_vs_read")):
        with pytest.raises(UserError, match=message):
            ask()
    assert write_report(tmp_path) == {"report.html": tmp_path / "report.html"}
    assert status(tmp_path) == f"{tmp_path}: no cells of methods; results are in costs.csv, table.md"
    with pytest.raises(UserError, match="has no cells of methods"):
        explain(tmp_path, "abc")


def test_rows_of_other_experiments_are_cells_without_a_summary(tmp_path):
    (tmp_path / "table.md").write_text("# A server\n")
    Store(tmp_path).extend([{"cell": "a", "row": "setup"}, {"cell": "b", "row": "load", "ttft_s": 0.5}])
    run = load(tmp_path)
    assert run.cells()["row"].tolist() == ["setup", "load"] and run.table() == "# A server\n"
    with pytest.raises(UserError, match="has no cells of methods"):
        run.summary()


def test_cells_have_a_budget_for_plots(accuracy, tmp_path):
    records = [
        r for r in accuracy(tasks=("vt",), samples=2, budgets=(64, 256)) if r["method"] in ("dense", "snapkv")
    ]
    for record in records:
        if record["budget_requested"] == "256":
            record |= {"budget_requested": "0.1x", "kept_tokens": 200 + record["sample"]}
        elif not record["budget_requested"]:
            record["kept_tokens"] = 2000
    Store(tmp_path).extend(records)
    found = load(tmp_path).cells().groupby("budget_requested")["budget_tokens"].agg(["min", "max"])
    assert found.loc["64"].tolist() == [64, 64]
    assert found.loc["0.1x"].tolist() == [200.5, 200.5] and found.loc[""].tolist() == [2000, 2000]


def test_a_notebook_shows_the_table(run_dir):
    assert load(run_dir)._repr_markdown_() == load(run_dir).table()


@pytest.mark.parametrize(
    ("kind", "where", "message"),
    [
        ("pie", {}, "kind: 'pie' is not one of answer, "),
        ("stages", {}, "kind: 2 figures of 'stages', choose"),
        ("needle", {"taks": "vt"}, "taks: not a column"),
        ("needle", {"task": "other"}, "nothing to draw"),
    ],
)
def test_plot_mistakes(run_dir, kind, where, message):
    with pytest.raises(UserError, match=message):
        load(run_dir).plot(kind, **where)


def test_the_report_has_every_file(run_dir, tmp_path):
    Store(tmp_path / "r", worker="w").extend(load(run_dir).records)
    paths = write_report(tmp_path / "r")
    assert all(path.is_file() and path == tmp_path / "r" / name for name, path in paths.items())
    assert {"summary.csv", "table.md", "report.html"} <= set(paths)
    assert next(path for path in paths.values() if path.suffix == ".png").read_bytes().startswith(b"\x89PNG")
    kinds = {re.match(r"figures/(\w+)\.", name)[1] for name in paths if name.startswith("figures")}
    assert {"score_vs_resident", "score_vs_read", "kl_vs_resident", "kl_vs_read", "needle", "stages"} <= kinds
    stored = pd.read_csv(paths["summary.csv"], keep_default_na=False)
    assert len(stored) == 7 + 16 and "no difference detectable at n = 8" in set(stored["verdict"])


def test_status(run_dir, accuracy, tmp_path):
    assert re.search(r"niah_single quest +20$", status(run_dir), re.MULTILINE)
    records = accuracy(tasks=("vt",), samples=2)
    Store(tmp_path).extend(records[:30])
    totals = [
        {"task": "vt", "method": "dense", "cells": 2},
        {"task": "vt", "method": "topk_oracle", "cells": 6},
    ]
    plan = {"cells": [record["cell"] for record in records], "totals": totals}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    text = status(tmp_path)
    assert "30 of 44 cells done" in text
    assert "vt dense          2/2" in text and "vt topk_oracle    3/6" in text
    assert load(tmp_path).notes()[0] == "incomplete run: 14 of 44 planned cells missing"


def test_explain(run_dir, tmp_path):
    records = load(run_dir).records
    record = next(r for r in records if r["method"] == "snapkv")
    numbers = {"kl_to_dense": 0.12340000000000001, "prefill_s": 1234.5678}
    Store(tmp_path).extend([r | numbers if r is record else r for r in records])
    text = explain(tmp_path, record["cell"][:12])
    for part in (
        record["cell"],
        repr(record["output"]),
        "window=32",
        record["command"],
        "dense on the same sample",
    ):
        assert part in text
    assert re.search(r"kl_to_dense +0\.1234$", text, re.MULTILINE)
    assert re.search(r"prefill_s +1,235$", text, re.MULTILINE)
    with pytest.raises(
        UserError, match=r"^cell: no cell's id begins with 'zz'; give one such as [0-9a-f]{16}"
    ):
        explain(run_dir, "zz")
    with pytest.raises(UserError, match=r"^cell: \d+ cells match an empty condition; add method="):
        explain(run_dir, "")


def test_explain_hides_the_answers_of_a_task_that_hides_its_texts(run_dir, tmp_path):
    records = [
        r | {"meta": {"hidden": True}, "output": "SECRET", "output_ids": [77777]}
        for r in load(run_dir).records
    ]
    Store(tmp_path).extend(records)
    record = next(r for r in records if r["method"] == "snapkv")
    text = explain(tmp_path, record["cell"])
    assert "SECRET" not in text and "77777" not in text and text.count("(not shown)") == 3
    assert "tokens kept after prefill: the text is not shown" in _kept(record)


def test_notes_name_what_is_mixed(accuracy, tmp_path):
    records = accuracy(tasks=("niah_single",), samples=2)
    records[0] |= {"device": "cuda:0", "commit": "fff", "versions": {"torch": "2.14"}}
    records.append(records[1] | {"cell": "again"})
    records = [r for r in records if not (r["method"] == "dense" and r["sample"] == 1)]
    store = Store(tmp_path, worker="w")
    store.extend(records)
    with open(store.path, "a") as file:
        file.write('{"cell": "to')
    notes = load(tmp_path).notes()
    for text in (
        "mixed devices: cpu + cuda:0",
        "mixed versions of the code: abc1234 + fff",
        "mixed versions of torch: 2.13.0, 2.14",
        "21 scored cells without a dense cell",
        "1 repeated cell, of a row and sample",
        "cells-w.jsonl: torn last line 45 ignored",
    ):
        assert any(text in note for note in notes), (text, notes)


def test_compare_pairs_rows_and_samples(accuracy, tmp_path):
    records = accuracy(tasks=("niah_single",), samples=8)
    Store(tmp_path / "a").extend(records)
    better = [
        r | {"score": 1.0, "output_ids": [0]} if r["method"] == "random" else r
        for r in records
        if r["method"] != "quest" and r["sample"] != 0
    ]
    Store(tmp_path / "b").extend(better)
    frame = compare(tmp_path / "a", tmp_path / "b")
    assert len(frame) == 19 and (frame["n"] == 7).all() and "quest" not in set(frame["method"])
    same = frame[frame["method"] != "random"]
    assert (same["delta"] == 0).all() and (same["same_output"] == 1).all()
    row = frame[(frame["method"] == "random") & (frame["budget_requested"] == "64")].iloc[0]
    assert row["score_b"] == 1 and row["delta"] == 1 - row["score_a"] and row["same_output"] == 0
    assert row["ci_low"] <= row["delta"] <= row["ci_high"]
    text = comparison_text(frame, "a", "b")
    # only rows that differ
    changed = int((frame["n_different"] > 0).sum())
    assert set(frame[frame["n_different"] > 0]["method"]) == {"random"}
    assert "A = a, B = b" in text and text.count("\n| niah_single") == changed > 0
    equal = 19 * 7 - int(frame["n_different"].sum())
    assert text.startswith(
        f"A = a, B = b: scores equal {equal} of {19 * 7} (A has {22 * 8}, B {19 * 7}), KL within 0.0001\n"
    )

    Store(tmp_path / "c").extend(r | {"sample_hash": "other"} for r in records)
    with pytest.raises(UserError, match="share no row"):
        compare(tmp_path / "a", tmp_path / "c")


def test_compare_says_in_one_line_that_two_runs_agree(accuracy, tmp_path, capsys):
    records = accuracy(tasks=("niah_single",), samples=8)
    for name, shift in (("a", 0.0), ("b", 9e-5), ("c", 2e-4)):
        moved = [r | {"kl_to_dense": r["kl_to_dense"] and r["kl_to_dense"] + shift} for r in records]
        Store(tmp_path / name).extend(moved)
    pair = [str(tmp_path / name) for name in "ab"]
    assert main(["compare", *pair]) == 0
    assert capsys.readouterr().out == (
        f"A = {pair[0]}, B = {pair[1]}: scores equal 176 of 176, KL within 0.0001\n"
    )
    assert main(["compare", pair[0], str(tmp_path / "c")]) == 0
    text = capsys.readouterr().out
    assert "KL differs by more than 0.0001 in 21 of 22 rows, at most 0.0002" in text.splitlines()[0]
    # the interval and p of the paired difference of KL
    row = next(line for line in text.splitlines() if line.startswith("| niah_single | 2048   | snapkv"))
    assert "+0.0002 [" in row
    frame = compare(pair[0], tmp_path / "c")
    assert frame.loc[frame["method"] == "snapkv", "kl_delta"].tolist() == pytest.approx([2e-4] * 3)


def test_compare_of_bad_input_is_one_line(accuracy, tmp_path, capsys):
    Store(tmp_path / "a").extend(accuracy(tasks=("vt",), samples=2))
    Store(tmp_path / "b").extend(accuracy(tasks=("niah_single",), samples=2))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "cells-packed.jsonl.gz").write_bytes(b"no gzip")
    for other in ("b", "nowhere", "broken"):
        assert main(["compare", str(tmp_path / "a"), str(tmp_path / other)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_committed_run_is_found_from_any_folder_and_does_not_hide_the_users(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("kvbench.report.run._CHECKOUT", tmp_path / "checkout")
    committed = tmp_path / "checkout" / "results" / "quickstart"
    Store(run_dir).pack(committed)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert load("results/quickstart").path == committed
    with pytest.raises(UserError, match="quickstart is not a run folder"):
        load("quickstart")
    # in the folder that holds the committed run its name is the user's own run
    monkeypatch.chdir(tmp_path / "checkout" / "results")
    assert load("quickstart").path.resolve() == committed
    mine = Path("results/runs/quickstart")
    Store(mine).write_config("name: mine\n")
    assert load("quickstart").path == mine


def test_the_report_of_a_committed_run_is_its_page_alone(run_dir, tmp_path):
    Store(run_dir).pack(tmp_path / "r")
    (tmp_path / "r" / "table.md").write_text("Made with care\n")
    assert list(write_report(tmp_path / "r")) == ["report.html"]
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [
        "cells-packed.jsonl.gz",
        "report.html",
        "table.md",
    ]
    assert (tmp_path / "r" / "table.md").read_text() == "Made with care\n"


def conversations(accuracy, count, turns):
    """Records of the turns of some conversations; all methods but dense answer nothing right."""
    records = accuracy(tasks=("niah_single",), samples=count * turns, budgets=(64,))
    return [
        r
        | {"meta": {"conversation": r["sample"] // turns, "turn": r["sample"] % turns}}
        | {"score": float(r["method"] == "dense")}
        for r in records
    ]


def test_compare_counts_conversations_not_turns(accuracy, tmp_path):
    records = conversations(accuracy, count=4, turns=5)
    Store(tmp_path / "a").extend([r | {"score": 1.0} for r in records])
    # in two of the four conversations all ten turns are lost: exact p of 2 losses is 0.5, of 10 it would be 0.002
    Store(tmp_path / "b").extend([r | {"score": float(r["meta"]["conversation"] > 1)} for r in records])
    frame = compare(tmp_path / "a", tmp_path / "b")
    assert (frame["n"] == 4).all() and (frame["n_different"] == 2).all()
    assert (frame["p_value"] == 0.5).all() and (frame["delta"] == -0.5).all()


def test_the_family_of_compare_has_no_dense_floor_or_covered_rows(accuracy, tmp_path):
    records = accuracy(tasks=("niah_single", "vt"), samples=8, budgets=(64, 4096))
    Store(tmp_path / "a").extend(records)
    changed = [r | {"score": 1 - r["score"]} if r["method"] == "snapkv" else r for r in records]
    Store(tmp_path / "b").extend(changed)
    frame = compare(tmp_path / "a", tmp_path / "b")
    tested = frame[frame["p_holm"].notna()]
    assert set(tested["task"]) == {"niah_single"} and not tested["is_dense"].any()
    # seven methods at 64 tokens, and the covered budget that did change
    assert len(tested) == 8 and (tested.loc[tested["budget_covers_prompt"], "method"] == "snapkv").all()
    said = frame.set_index(["task", "method", "budget_requested"])["verdict"]
    assert said["niah_single", "dense", ""] == "reference: 0 of 8 samples changed"
    assert said["vt", "snapkv", "64"].startswith("floor: ")
    assert said["niah_single", "quest", "4096"] == "the budget covers the prompt"
    assert "over 8 comparisons" in comparison_text(frame, "a", "b")


def test_a_note_says_where_score_is_not_dense_plus_difference(accuracy, tmp_path):
    records = accuracy(tasks=("niah_single",), samples=6)
    Store(tmp_path / "whole").extend(records)
    assert not any("dense_score" in note for note in load(tmp_path / "whole").notes())
    Store(tmp_path / "part").extend(r for r in records if r["method"] != "dense" or r["sample"])
    run = load(tmp_path / "part")
    assert any("dense_score + delta_vs_dense" in note for note in run.notes())
    rows = run.summary().query("not is_dense")
    assert (rows["n"] == 6).all() and (rows["n_pairs"] == 5).all()
    assert "] (n = 5)" in run.table()
