"""Two methods, prompt by prompt."""

import pandas as pd
import pytest

from kvbench.config.errors import UserError
from kvbench.report import Clusters, load, stats
from kvbench.report.paired import pairs
from kvbench.runs.store import Store


@pytest.fixture
def run(accuracy, tmp_path):
    Store(tmp_path).extend(accuracy(tasks=("vt",), samples=6))
    return load(tmp_path)


def test_differences_are_of_the_same_prompt_and_budget(run):
    found = pairs(run.prepared, "snapkv", "quest")
    cells = run.cells().set_index(["method", "budget_requested", "sample"])
    for _, row in found.iterrows():
        one, other = (cells.loc[name, row["budget_requested"], row["sample"]] for name in ("snapkv", "quest"))
        assert row["score"] == one["score"] - other["score"]
        assert row["kl_to_dense"] == one["kl_to_dense"] - other["kl_to_dense"]
    wanted = cells.loc["snapkv"].index.intersection(cells.loc["quest"].index)
    assert len(found) == len(wanted) >= 6
    turned = pairs(run.prepared, "quest", "snapkv")
    assert sorted(turned["score"]) == sorted(-found["score"])


def test_dense_is_paired_with_every_budget(run):
    found = pairs(run.prepared, "snapkv", "dense")
    cells = run.cells().query("method == 'snapkv'")
    assert sorted(found["budget_requested"]) == sorted(cells["budget_requested"])
    assert sorted(found["kl_to_dense"]) == sorted(cells["kl_to_dense"])


def test_the_figure_has_a_dot_per_prompt_and_the_interval_of_the_tables(run):
    figure = run.plot("paired", "snapkv", "quest")
    found = pairs(run.prepared, "snapkv", "quest")
    score, kl = figure.axes
    budgets = [label.get_text() for label in kl.get_yticklabels()]
    assert sorted(budgets) == sorted(set(found["budget_requested"]))
    dots, bar, mean = kl.lines[:3]
    first = found[found["budget_requested"] == budgets[0]]
    assert sorted(dots.get_xdata()) == pytest.approx(sorted(first["kl_to_dense"]))
    of_first = Clusters(first["kl_to_dense"], first["sample"])
    assert tuple(bar.get_xdata()) == pytest.approx(stats.kl_difference_interval(of_first))
    assert mean.get_xdata()[0] == pytest.approx(first["kl_to_dense"].mean())
    assert score.get_xlabel() == "score:\nsnapkv minus quest"


@pytest.mark.parametrize(
    ("words", "where", "message"),
    [
        (("snapkv",), {}, "methods: 'paired' takes two of the run"),
        (("snapkv", "snapkv"), {}, "b: snapkv is a too"),
        (("snapk", "quest"), {}, r"a: there is no method in this run 'snapk' \(did you mean snapkv\?\)"),
        (("snapkv", "nothing"), {}, "b: there is no method in this run 'nothing'"),
        (("snapkv", "quest"), {"taks": "vt"}, "taks: not a column"),
    ],
)
def test_mistakes_are_one_line(run, words, where, message):
    with pytest.raises(UserError, match=f"^{message}"):
        run.plot("paired", *words, **where)


def test_another_kind_takes_no_methods(run):
    with pytest.raises(UserError, match=r"^kind: 'kl_vs_read' takes no methods"):
        run.plot("kl_vs_read", "snapkv")


def test_parquet_without_pyarrow_is_one_line(run, tmp_path, monkeypatch):
    def missing(*_, **__):
        raise ImportError("Missing optional dependency 'pyarrow'.")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", missing)
    with pytest.raises(UserError, match=r"^to_parquet: needs pyarrow, as pip install 'kvbench\[export\]'"):
        run.to_parquet(tmp_path / "cells.parquet")
    assert not (tmp_path / "cells.parquet").exists()


def test_parquet_holds_every_row(run, tmp_path):
    pytest.importorskip("pyarrow")
    run.to_parquet(tmp_path / "cells.parquet")
    found, cells = pd.read_parquet(tmp_path / "cells.parquet"), run.cells()
    assert list(found.columns) == list(cells.columns)
    assert found["kl_to_dense"].equals(cells["kl_to_dense"]) and found["output"].equals(cells["output"])
    with pytest.raises(UserError, match=r"^path: cannot write "):
        run.to_parquet(tmp_path / "cells.parquet" / "below_a_file")
