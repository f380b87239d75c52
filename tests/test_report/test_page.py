"""The page of a run in a real browser: charts, tables, and nothing that complains."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from kvbench_testing import browser

from kvbench.report import charts, folder, load
from kvbench.report.format import Table
from kvbench.report.html import page
from kvbench.report.page import Column, Explorer, Page, Picture
from kvbench.report.style import styles
from kvbench.runs.store import Store

ATTACK = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
chromium = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def file(accuracy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    records = [r | {"output": ATTACK} for r in accuracy(samples=6)]
    Store(folder).extend(records)
    run = load(folder)
    (folder / "report.html").write_text(page(run, [Picture("a figure", "one", b"<svg/>")]), encoding="utf-8")
    return folder / "report.html"


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser.tab(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def rows(tab):
    return tab.evaluate(
        "[...document.querySelectorAll('.explorer tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )


def choose(tab, label, value):
    """Choose an entry of a list."""
    tab.evaluate(
        f"(() => {{ const s = document.querySelector(`select[aria-label='{label}']`); s.value = '{value}'; "
        "s.dispatchEvent(new Event('change')) })()"
    )


def press(tab, text):
    """Press the button with a text."""
    tab.evaluate(f"[...document.querySelectorAll('button')].find(b => b.textContent === '{text}').click()")


@chromium
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_complains_and_nothing_overflows(tab, file, width, dark):
    tab.errors.clear()
    tab.open(file, width, dark)
    assert tab.overflow() == [] and tab.errors == []
    assert tab.evaluate("document.title") != "owned"
    assert tab.evaluate("document.querySelectorAll('.panels svg').length") == 2
    # the first column stays where it is while the table scrolls
    place = "document.querySelector('.explorer tbody td').getBoundingClientRect().left"
    before = tab.evaluate(place)
    tab.evaluate("document.querySelector('.explorer .wide').scrollLeft = 200")
    assert tab.evaluate(place) == before


@chromium
def test_a_point_shows_value_interval_and_cell(tab, file):
    tab.open(file)
    assert tab.evaluate("document.getElementById('tip').hidden")
    tab.hover(".panels .hit")
    shown = tab.evaluate("document.getElementById('tip').textContent")
    assert re.search(r"method: \w+", shown) and re.search(r"score: [\d.]+ \[[\d.]+, [\d.]+\]", shown)
    cell = re.search(r"first cell: ([0-9a-f]{16})", shown)
    assert cell and cell[1] in {record["cell"] for record in load(file.parent).records}


@chromium
def test_filters_legend_and_axes_change_charts_and_table(tab, file):
    tab.open(file)
    everything = rows(tab)
    choose(tab, "budget", "256")
    some = rows(tab)
    assert 0 < len(some) < len(everything) and {row[1] for row in some} == {"256", "-"}
    assert "dense" in {row[0] for row in some}
    tab.evaluate(
        "[...document.querySelectorAll('.legend button')].find(b => b.textContent === 'snapkv').click()"
    )
    assert "snapkv" not in {row[0] for row in rows(tab)}
    tab.evaluate(
        "[...document.querySelectorAll('.legend button')].find(b => b.textContent === 'snapkv').click()"
    )
    assert "snapkv" in {row[0] for row in rows(tab)}
    choose(tab, "up", "kl")
    assert "KL from dense" in tab.evaluate("document.querySelector('.panels svg').textContent")


@chromium
def test_tables_sort_by_number_and_columns_unfold(tab, file):
    tab.open(file)
    heads = tab.evaluate("[...document.querySelectorAll('.explorer th')].map(h => h.textContent)")
    column = heads.index("KV resident, % of dense")
    click = f"document.querySelectorAll('.explorer th button')[{column}].click()"
    for reverse in (False, True):
        tab.evaluate(click)
        values = [float(row[column]) for row in rows(tab)]
        assert values == sorted(values, reverse=reverse) and len(set(values)) > 3
    hidden = "document.querySelectorAll('.explorer th.fold')[0].offsetParent === null"
    assert tab.evaluate(hidden)
    tab.evaluate(
        "[...document.querySelectorAll('.tools button')].find(b => b.textContent === 'more columns').click()"
    )
    assert not tab.evaluate(hidden)


@chromium
def test_a_script_that_is_not_the_pages_own_does_not_run(tab, tmp_path):
    attacked = Page(title="x", text=f"<p>{ATTACK}</p>").html()
    (tmp_path / "x.html").write_text(attacked)
    tab.errors.clear()
    tab.open(tmp_path / "x.html")
    assert tab.evaluate("document.title") == "kvbench: x"
    assert any("Content Security Policy" in error for error in tab.errors)


RESULTS = Path(__file__).parents[2] / "results"


@chromium
@pytest.mark.parametrize(
    ("name", "across", "hovered", "filtered", "hidden"),
    [
        (
            "roofline",
            "prompt, tokens",
            r"method and budget: \w.*\$ per million",
            ("device", "h100_sxm"),
            "dense",
        ),
        (
            "two_layer/append_only",
            "sessions per day",
            r"how: .*\$ per session: [\d.]+",
            ("layer", "api"),
            "none",
        ),
    ],
)
def test_modelled_runs_have_charts_with_values_filters_and_a_legend(
    tab, tmp_path, name, across, hovered, filtered, hidden
):
    for file in (RESULTS / name).glob("*.*"):
        shutil.copy(file, tmp_path)
    made = folder.write_page(tmp_path)
    tab.errors.clear()
    for width in (390, 1280):
        tab.open(made, width)
        assert tab.overflow() == [] and tab.errors == []
    assert across in tab.evaluate("document.querySelector('.panels svg').textContent")
    points = "document.querySelectorAll('.panels .hit').length"
    everything = tab.evaluate(points)
    tab.hover(".panels .hit")
    assert re.search(hovered, tab.evaluate("document.getElementById('tip').textContent"), re.DOTALL)
    choose(tab, *filtered)
    some = tab.evaluate(points)
    assert 0 < some < everything and len(rows(tab)) >= some
    tab.evaluate(
        f"[...document.querySelectorAll('.legend button')].find(b => b.textContent === '{hidden}').click()"
    )
    assert 0 < tab.evaluate(points) < some and hidden not in {row[0] for row in rows(tab)}


def test_the_chart_of_two_layer_has_the_costs_of_its_table():
    frame = pd.read_csv(RESULTS / "two_layer" / "append_only" / "rows.csv")
    points = pd.DataFrame(charts.two_layer(frame).rows)
    served = frame[(frame["layer"] == "model") & frame["sessions_per_day"].gt(0)].iloc[0]
    own = points[points["how"] == served["how"]]
    rent = served["usd_per_session"] * served["sessions_per_day"]
    # one device costs its rent, whatever it serves; two cost twice that
    one = own[own["sessions"] <= served["sessions_per_day"]]
    two = own[
        (own["sessions"] > served["sessions_per_day"]) & (own["sessions"] <= 2 * served["sessions_per_day"])
    ]
    assert (one["usd"] * one["sessions"]).to_numpy() == pytest.approx(rent)
    assert (two["usd"] * two["sessions"]).to_numpy() == pytest.approx(2 * rent)
    plain = points[points["how"] == "none"]["usd"].unique()
    assert plain == pytest.approx(frame.loc[frame["how"] == "none", "usd_per_session"])


def test_a_csv_of_a_known_name_with_other_columns_is_a_table():
    assert charts.chart("roofline", pd.DataFrame({"method": ["dense"]})) is None
    assert charts.chart("costs", pd.read_csv(RESULTS / "roofline" / "roofline.csv")) is None


def explorer(rows):
    columns = {"name": Column("name"), "x": Column("x"), "y": Column("y")}
    return Explorer("caption", rows, columns, "name", styles(["a"]), ["name", "x", "y"], ["x"], ["y"])


def test_the_data_of_a_page_is_json_without_nan_that_ends_no_element():
    made = explorer(
        [{"name": ATTACK, "x": float("nan"), "y": 1 / 3}, {"name": "a", "x": float("inf"), "y": 2}]
    )
    data = json.loads(made.json())
    assert "<" not in made.json() and data["rows"][0] == {"name": ATTACK, "x": None, "y": 0.333333}
    assert data["rows"][1]["x"] is None and data["styles"]["a"]["marker"]


def test_parts_without_content_are_left_out():
    html = Page(title="t", answer=["Take snapkv.", Table("", "how", ["a", "b"], [["1", "2"]])]).html()
    assert "Take snapkv." in html and "<td>1</td>" in html
    assert not any(
        f'id="{part}"' in html for part in ("explore", "answers", "figures", "tables", "provenance")
    )
