"""The index of all runs, pages of runs without cells, and the commands that open them."""

import dataclasses
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from kvbench_testing import browser

from kvbench.cli import main as cli
from kvbench.report import folder, load, overview
from kvbench.report.files import write_report
from kvbench.runs.store import Store

ROOT = Path(__file__).parents[2]
ATTACK = "<script>alert(1)</script>"
chromium = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium: apt-get install chromium")
TABLE = f"""\
# A model {ATTACK}

Text with {ATTACK}, [a link](javascript:alert(1)), [another](https://example.org/x) and ![a figure](figures/a.png).

| name | value |
| --- | ---: |
| one {ATTACK} | 2.5 |
| two | 10 |
"""


@pytest.fixture
def runs(accuracy, tmp_path, monkeypatch):
    """A working folder with a run of cells and one without."""
    monkeypatch.chdir(tmp_path)
    Store("results/runs/cells").extend(accuracy(tasks=("niah_single",), samples=3))
    write_report("cells")
    modelled = Path("results/runs/modelled")
    (modelled / "figures").mkdir(parents=True)
    (modelled / "table.md").write_text(TABLE)
    (modelled / "figures" / "a.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    pd.DataFrame({"name": ["one", ATTACK], "value": [2.5, float("nan")]}).to_csv(
        modelled / "rows.csv", index=False
    )
    return tmp_path


def opened(monkeypatch):
    seen = []
    monkeypatch.setattr("webbrowser.open", seen.append)
    return seen


def test_open_shows_the_page_of_a_run_and_writes_it_where_it_is_missing_or_old(runs, monkeypatch, capsys):
    seen = opened(monkeypatch)
    assert cli.main(["open", "modelled"]) == 0
    page = Path("results/runs/modelled/report.html")
    assert capsys.readouterr().out == f"{page}\n" and seen == [page.resolve().as_uri()]
    assert "2.5" in page.read_text()
    cells = Path("results/runs/cells/report.html")
    before = cells.stat().st_mtime_ns
    assert cli.main(["open", "cells"]) == 0
    assert cells.stat().st_mtime_ns == before
    cells.unlink()
    assert cli.main(["open", "cells"]) == 0 and cells.is_file()
    assert cli.main(["open", "nothing"]) == 2
    assert "run: nothing is not a run folder" in capsys.readouterr().err


def test_the_index_has_every_run_and_the_leaderboard_its_rows(runs, monkeypatch, capsys):
    seen = opened(monkeypatch)
    assert cli.main(["open"]) == 0
    index = Path("results/runs/index.html")
    assert seen == [index.resolve().as_uri()]
    text = index.read_text(encoding="utf-8")
    targets = re.findall(r'<a href="([^"#]+)">', text)
    assert targets == ["cells/report.html", "modelled/table.md"]
    Path("results/claims.html").write_text("claims")
    overview.write_index()
    assert '<a href="../claims.html">claims</a>' in index.read_text(encoding="utf-8")
    assert all((index.parent / target).is_file() for target in targets)
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])
    assert {row["run"] for row in data["rows"]} == {"cells"} and "snapkv" in {
        row["label"] for row in data["rows"]
    }
    assert ATTACK not in text


def test_without_runs_there_is_an_index(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert overview.index([], tmp_path).html().startswith("<!doctype html>")
    assert cli.main(["open"]) == 0


def test_a_page_of_markdown_shows_html_and_follows_no_script(runs):
    html = folder.page(Path("results/runs/modelled")).html()
    assert ATTACK not in html and "javascript:" not in re.sub(r"\[a link\]\(javascript[^)]*\)", "", html)
    assert '<a href="https://example.org/x">another</a>' in html
    assert html.count("<img") == 1 and "figures/a.png" not in html
    assert '<td class="number">2.5</td>' in html


def rows_at(label, bounds, **values):
    """Rows of one method by budget, each with the lower bound of its difference and the upper one of its KL."""
    shared = {
        "run": "a",
        "model": "m",
        "protocol": "query_aware",
        "task": "t",
        "length": 1024,
        "family": "eviction",
    }
    return [
        {**shared, "label": label, "reference": False, "verdict": "", "budget": budget, "read_share": int(budget) / 10,
         "resident_share": int(budget) / 5, "kept": int(budget), "difference_low": low, "kl_high": kl, **values}
        for budget, (low, kl) in bounds.items()
    ]  # fmt: skip


def test_matched_accuracy_is_the_smallest_budget_within_the_margin(monkeypatch):
    rows = [
        *rows_at(
            "good", {"64": (-0.2, 0.3), "128": (-0.05, 0.1), "256": (-0.04, 0.09), "512": (-0.01, 0.01)}
        ),
        *rows_at("never", {"64": (-0.9, 2.0), "512": (-0.051, 0.11)}),
        *rows_at("unknown", {"512": (float("nan"), float("nan"))}),
        *rows_at("low", {"64": (0.0, 5.0)}, verdict="floor"),
        *rows_at("dense", {"1": (0.0, 0.0)}, reference=True),
    ]
    template = overview.explorers(overview._summary(ROOT / "results" / "verdict"))[0]
    monkeypatch.setattr(overview, "explorers", lambda _: [dataclasses.replace(template, rows=rows)])
    (board,) = overview.matched(pd.DataFrame())
    assert [(row["label"], row["rule"], row["kept"]) for row in board.rows] == [
        ("good", "KL from dense below 0.1 nats", 256),
        ("good", "score within 0.05 of dense", 256),
    ]
    assert board.chosen == {"run": "a", "rule": "KL from dense below 0.1 nats"}
    monkeypatch.setattr(overview, "explorers", lambda _: [dataclasses.replace(template, rows=rows[-3:])])
    assert overview.matched(pd.DataFrame()) == []


def test_matched_accuracy_of_the_verdict_is_that_of_best():
    """By the score on the harder task, as `kvbench best` says of the same cells."""
    frame = overview._summary(ROOT / "results" / "verdict")
    (board,) = overview.matched(frame)
    found = {
        (row["label"], row["task"]): row["kept"] for row in board.rows if row["rule"].startswith("score")
    }
    judged = load(ROOT / "results" / "verdict").best().rows
    within = judged[judged["within"].astype(bool) & (judged["task_label"] != "all tasks")]
    assert set(found) == {(row.label, row.task_label) for row in within.itertuples()} and found


@chromium
def test_pages_without_cells_and_the_index_work_in_a_browser(runs, tmp_path_factory):
    page = folder.write_page(Path("results/runs/modelled"))
    index = overview.write_index()
    with browser.tab(tmp_path_factory.mktemp("profile")) as tab:
        for file, width in ((page, 1280), (page, 390), (index, 1280), (index, 390)):
            tab.open(file, width)
            assert tab.overflow() == [] and tab.errors == []
        tab.open(page)
        cells = "[...document.querySelectorAll('#results ~ .wide tbody tr')].map(r => r.cells[1].textContent)"
        sort = "document.querySelectorAll('#results ~ .wide th button')[1].click()"
        tab.evaluate(sort)
        assert tab.evaluate(cells)[:2] == ["2.5", "10"]
        tab.evaluate(sort)
        assert tab.evaluate(cells)[:2] == ["10", "2.5"]
        tab.open(index)
        board = tab.evaluate("[...document.querySelectorAll('tbody tr')].map(r => r.cells[0].textContent)")
        assert board[0] == "dense" and "snapkv" in board


def test_committed_runs_have_links_and_rows():
    page = overview.index(overview.runs_in(ROOT / "results"), ROOT / "results")
    targets = [link.target for link in page.links]
    assert targets[0] == "claims.html"
    assert {"quickstart/table.md", "roofline/table.md", "vllm/load/table.md"} <= set(targets)
    assert not any(target.startswith("runs/") for target in targets)
    assert {"quickstart", "reference"} <= {row["run"] for row in page.explorers[0].rows}
