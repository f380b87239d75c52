import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from matplotlib.text import Text

from kvbench.config.groups import Groups
from kvbench.report import plots, style
from kvbench.report.summary import pooled, prepare, summarise

METHODS = ("chunkkv", "quest", "random")


def composed(accuracy, samples):
    """Records of three compositions, of which those with hsa answer right."""
    made = []
    for eviction, selection in [("snapkv", "quest"), ("snapkv", "hsa"), ("tova", "hsa")]:
        params = {"eviction": {"window": 8}, "selection": {"page": 4}, "keep": 512}
        roles = {"method": eviction, "eviction": eviction, "selection": selection, "params": params}
        made += [
            {**r, "cell": f"{r['cell']}{eviction}{selection}", **roles, "score": float(selection == "hsa")}
            for r in accuracy(tasks=("niah_single",), samples=samples, budgets=(64,), methods=("rocketkv",))
            if r["method"] == "rocketkv"
        ]
    return made


@pytest.fixture(scope="module")
def data(accuracy, efficiency):
    records = accuracy(tasks=("niah_single", "vt"), samples=5, budgets=(64, 4096), methods=METHODS)
    records += composed(accuracy, samples=5)
    records = [record | {"meta": {**record["meta"], "turn": record["sample"] % 2}} for record in records]
    records = [record | {"held_bytes_mean": record["bytes_resident"], "drops": 3} for record in records]
    cells = prepare(pd.DataFrame(records + efficiency((1, 4), (1024, 2048))))
    return pooled(summarise(cells, "r")), cells


def figure_of(kind, data):
    rows, cells = data
    return dict(plots.figures(kind, cells if plots.KINDS[kind].from_cells else rows))


@pytest.mark.parametrize("kind", plots.KINDS)
def test_every_kind_draws(kind, data, accuracy):
    if kind == "methods":
        data = many_methods(accuracy)
    elif kind == "oracle":
        data = with_oracle(accuracy)
    name, figure = next(iter(figure_of(kind, data).items()))
    assert name.startswith(f"{kind}.smollm2_135m.float32.query_aware")
    assert all(axes.get_xlabel() or axes.get_ylabel() or axes.get_title() for axes in figure.axes)
    assert "smollm2_135m, float32 on cpu, query_aware" in " ".join(
        text.get_text() for text in figure.findobj(Text)
    )
    assert figure.heading == plots.KINDS[kind].caption
    assert "smollm2_135m, float32 on cpu, query_aware" in figure.note


def test_figures_are_repeatable(data):
    first, second = (figure_of("kl_vs_read", data).popitem()[1] for _ in range(2))
    assert style.render(first, "svg") == style.render(second, "svg")


def test_an_svg_says_what_it_shows(data):
    figure = figure_of("answer", data).popitem()[1]
    figure.note += " <b> & more"
    root = ElementTree.fromstring(style.render(figure, "svg"))
    space = "{http://www.w3.org/2000/svg}"
    assert [child.tag for child in root[:2]] == [f"{space}title", f"{space}desc"]
    assert root.get("role") == "img" and root[0].text == plots.KINDS["answer"].caption
    assert root[1].text == figure.note


@pytest.mark.parametrize("missing", ["heading", "note"])
def test_a_figure_that_does_not_say_what_it_shows_is_refused(missing):
    figure, _ = style.panels(1)
    figure.heading, figure.note = "heading", "note"
    style.render(figure, "svg")
    setattr(figure, missing, "")
    style.render(figure, "png")
    with pytest.raises(AssertionError, match="a heading and a note"):
        style.render(figure, "svg")


def test_every_committed_figure_says_what_it_shows():
    found = sorted((Path(__file__).parents[2] / "results").rglob("*.svg"))
    assert len(found) > 20
    for path in found:
        assert re.search(r"<title>[^<]+</title>\s*<desc>[^<]+</desc>", path.read_text(encoding="utf-8")), path


def test_names_at_the_ends_of_lines_stay_apart_and_in_order():
    figure, (axes,) = style.panels(1)
    axes.plot([0, 1], [0, 1])
    ends = [style.End(str(index), 1, [0, 0, 0.01, 0.5, 1][index], "black") for index in range(5)]
    style.end_labels(axes, ends)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in sorted(axes.texts, key=lambda text: text.get_text())]
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))
    assert boxes[3].y0 + boxes[3].height / 2 == pytest.approx(axes.transData.transform((1, 0.5))[1], abs=1)


def test_score_figure_shows_dense_and_leaves_out_covered_budgets(data):
    axes = figure_of("score_vs_resident", data).popitem()[1].axes[0]
    assert axes.get_xscale() == "log" and axes.get_xlabel().endswith("(MB)")
    lines = {line.get_color(): line.get_xdata() for line in axes.lines if line.get_marker() == "o"}
    assert len(lines[style.styles(["snapkv"])["snapkv"].colour]) == 1
    assert any(line.get_marker() == "*" for line in axes.lines)
    assert len(axes.collections) >= 3


def test_turns_are_means_over_conversations(data):
    axes = figure_of("turns", data)["turns.smollm2_135m.float32.query_aware.niah_single"].axes[0]
    _, cells = data
    cells = cells[(cells["task_label"] == "niah_single") & (cells["budget_requested"] == "64")]
    look = style.styles(METHODS)["quest"]
    (line,) = (line for line in axes.lines if line.get_color() == look.colour)
    quest = cells[cells["label"] == "quest"]
    expected = [quest[quest["sample"] % 2 == turn]["score"].mean() for turn in (0, 1)]
    assert list(line.get_ydata()) == pytest.approx(expected)
    assert axes.get_title() == "2048 tokens, budget 64" and list(axes.get_xticks()) == [1, 2]


def test_intervals_by_turn_count_conversations_not_repeats(accuracy):
    once = accuracy(tasks=("niah_single",), samples=8, budgets=(64,), methods=("quest",))
    once = [r | {"meta": {"line": r["sample"] // 2, "turn": r["sample"] % 2}} for r in once]
    again = [r | {"cell": f"{r['cell']}{seed}", "seed": seed} for r in once for seed in range(1, 4)]

    def bars(records):
        axes = figure_of("turns", (None, prepare(pd.DataFrame(records)))).popitem()[1].axes[0]
        return [path.vertices[:, 1].tolist() for bar in axes.collections for path in bar.get_paths()]

    assert bars(once) and bars(once + again) == bars(once)


def test_protocols_and_timings_never_share_a_figure(accuracy, efficiency):
    records = accuracy(tasks=("niah_single",), samples=2, protocols=("query_aware", "query_agnostic"))
    cells = prepare(pd.DataFrame(records + efficiency()))
    rows = pooled(summarise(cells, "r"))
    assert len(figure_of("score_vs_read", (rows, cells))) == 2
    endings = [name.rsplit(".", 2)[1:] for name in figure_of("stages", (rows, cells))]
    assert endings == [
        ["query_agnostic", "amortised"],
        ["query_aware", "amortised"],
        ["query_aware", "isolated"],
    ]


def test_other_weights_under_the_same_name_get_their_own_file(accuracy):
    records = accuracy(tasks=("niah_single",), samples=2)
    records += [r | {"cell": r["cell"] + "2", "model_fingerprint": "beef"} for r in records]
    cells = prepare(pd.DataFrame(records))
    names = list(figure_of("score_vs_read", (summarise(cells, "r"), cells)))
    assert names[1] == names[0] + "-2"


def test_a_method_looks_the_same_in_every_figure():
    shipped = Groups().options("method")
    all_looks = style.styles([*shipped, "mine", "another (kernel=7)"])
    pairs = [(look.colour, look.marker) for look in all_looks.values()]
    assert len(set(pairs)) == len(pairs) == len(all_looks)
    # shipped methods have a look of their own, whatever else is drawn
    for name in shipped:
        assert style.styles([name])[name] == style.styles([name, "mine"])[name] == all_looks[name], name
    assert style.styles(["mine"])["mine"] == style.styles(["mine", "snapkv"])["mine"]


def test_variants_share_the_colour_of_their_method_and_differ_in_marker():
    labels = ["snapkv", *(f"snapkv (kernel={n})" for n in range(5))]
    looks = style.styles(labels)
    assert {looks[label].colour for label in labels} == {style.styles(["snapkv"])["snapkv"].colour}
    assert len({looks[label].marker for label in labels}) == len(labels)


def test_names_of_a_users_own_are_told_apart():
    labels = [f"method{i:02}" for i in range(40)]
    looks = style.styles(labels)
    pairs = [(look.colour, look.marker) for look in looks.values()]
    assert len(set(pairs)) == len(pairs)
    assert len({looks[label].colour for label in labels[:7]} & set(style.COLOURS)) >= 3
    few = style.styles(labels[:7])
    assert len({look.colour for look in few.values()}) == 8


def test_many_methods_get_a_panel_per_family_with_the_others_faint(accuracy):
    records = accuracy(tasks=("niah_single",), samples=3)
    records += [
        {**r, "cell": f"{r['cell']}{n}", "method": f"{r['method']}{n}"}
        for r in records
        for n in range(2)
        if r["method"] in ("snapkv", "quest", "random", "streaming_llm")
    ]
    cells = prepare(pd.DataFrame(records))
    rows = summarise(cells, "r")
    assert rows["label"].nunique() - 1 > 12
    figure = figure_of("score_vs_read", (rows, cells)).popitem()[1]
    titles = [axes.get_title().partition("\n")[0] for axes in figure.axes]
    assert titles == ["evictions", "selections"]
    families = {
        label: "selections" if selection != "all" else "evictions"
        for label, selection in zip(rows["label"], rows["selection"], strict=True)
        if label != "dense"
    }
    looks = style.styles(rows["label"])
    for title, axes in zip(titles, figure.axes, strict=True):
        lines = [(line.get_color(), line.get_marker()) for line in axes.lines]
        for label, family in families.items():
            assert ((looks[label].colour, looks[label].marker) in lines) == (family == title)
        assert sum(colour == style.FAINT for colour, _ in lines) == sum(
            family != title for family in families.values()
        )


def test_compositions_of_several_evictions_and_selections_are_a_map(accuracy):
    records = accuracy(tasks=("niah_single",), samples=2, budgets=(64,), methods=(*METHODS, "rocketkv"))
    assert not figure_of("compositions", (summarise(prepare(pd.DataFrame(records)), "r"), None))
    records += composed(accuracy, samples=2)
    rows = summarise(prepare(pd.DataFrame(records)), "r")
    score, kl = figure_of("compositions", (rows, None)).popitem()[1].axes
    assert [label.get_text() for label in score.get_yticklabels()] == ["tova", "snapkv"]
    assert [label.get_text() for label in score.get_xticklabels()] == ["hsa", "quest"]
    assert {text.get_position(): text.get_text() for text in score.texts} == {
        (0, 0): "1.00", (0, 1): "1.00", (1, 1): "0.00",
    }  # fmt: skip
    assert "keeps 512, budget 64" in score.get_title()
    image = score.images[0]
    assert image.get_array()[0, 0] == 1.0 and image.get_array()[1, 1] == 0.0
    row = rows[(rows["eviction"] == "tova") & (rows["selection"] == "hsa")].iloc[0]
    assert {text.get_position(): text.get_text() for text in kl.texts}[(0, 0)] == f"{row['kl_to_dense']:.2g}"


def test_each_alone_stands_at_the_margin_of_its_compositions(accuracy):
    records = composed(accuracy, samples=2)
    records += accuracy(tasks=("niah_single",), samples=2, budgets=(64,), methods=("rocketkv",))
    params = {"snapkv": {"window": 8}, "quest": {"page": 4}, "tova": {"window": 9}}
    for name, budget in (
        ("snapkv", "512"),
        ("snapkv", "64"),
        ("tova", "512"),
        ("quest", "64"),
        ("quest", "128"),
    ):
        eviction, selection = ("none", name) if name == "quest" else (name, "all")
        one = {"method": name, "eviction": eviction, "selection": selection, "params": params[name]}
        records += [
            {
                **r,
                **one,
                "cell": f"{r['cell']}{name}{budget}",
                "budget_requested": budget,
                "score": float(budget == "64"),
            }
            for r in accuracy(tasks=("niah_single",), samples=2, budgets=(64,), methods=("snapkv",))
            if r["method"] == "snapkv"
        ]
    rows = summarise(prepare(pd.DataFrame(records)), "r")
    axes = figure_of("compositions", (rows, None)).popitem()[1].axes[0]
    columns = [label.get_text() for label in axes.get_xticklabels()]
    lines = [label.get_text() for label in axes.get_yticklabels()]
    assert columns[-1] == lines[-1] == "alone"
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    alone = {
        (lines[y], columns[x]): text for (x, y), text in texts.items() if "alone" in (lines[y], columns[x])
    }
    # tova alone has another window; hsa alone was not run
    assert alone == {("snapkv", "alone"): "0.00", ("alone", "quest"): "1.00"}


@pytest.mark.parametrize("keep", ["dense only", "no dense", "one sample"])
def test_odd_runs_draw(accuracy, keep):
    samples = 1 if keep == "one sample" else 2
    records = accuracy(tasks=("niah_multivalue",), samples=samples, budgets=(64,), methods=METHODS)
    if keep != "one sample":
        records = [record for record in records if (record["method"] == "dense") == (keep == "dense only")]
    cells = prepare(pd.DataFrame(records))
    rows = summarise(cells, "r")
    cells = cells.assign(meta=[{**meta, "turn": 0} for meta in cells["meta"]])
    for kind in ("score_vs_resident", "kl_vs_read", "needle", "turns", "stages"):
        figure_of(kind, (rows, cells)).popitem()[1].draw_without_rendering()


def test_labels_are_not_parsed_as_math(accuracy):
    records = [r | {"task": "$x_{$"} for r in accuracy(tasks=("niah_single",), samples=2, methods=METHODS)]
    cells = prepare(pd.DataFrame(records))
    figure_of("score_vs_read", (summarise(cells, "r"), cells)).popitem()[1].draw_without_rendering()


def many_methods(accuracy):
    """Summary rows and cells of 14 methods; at budget 64 all are alike, at 256 only quest finds anything."""
    records = accuracy(tasks=("niah_single", "niah_multivalue"), samples=4, budgets=(64, 256))
    records += [
        {**r, "cell": f"{r['cell']}{n}", "method": f"mine{n}"}
        for r in records
        if r["method"] == "snapkv"
        for n in range(6)
    ]
    found = {"64": ("dense",), "": ("dense",), "256": ("dense", "quest")}
    records = [r | {"score": float(r["method"] in found[r["budget_requested"]])} for r in records]
    cells = prepare(pd.DataFrame(records))
    return pooled(summarise(cells, "r")), cells


def test_many_methods_are_mapped_at_the_budget_that_tells_them_apart(accuracy):
    figure = figure_of("methods", many_methods(accuracy)).popitem()[1]
    left = figure.axes[0]
    assert left.get_title() == "score at budget 256"
    labels = [text.get_text() for text in left.get_yticklabels()]
    assert labels[:2] == ["dense", "quest"] and len(labels) == 14
    values = left.images[0].get_array()
    assert values is not None and values[1].tolist() == [1, 1] and values[2].tolist() == [0, 0]
    front = {text.get_text() for axes in figure.axes[1:] for text in axes.texts}
    assert {"dense", "quest"} <= front and "snapkv" not in front


def test_the_answer_shows_every_method_at_the_budget_that_tells_them_apart(accuracy):
    records = accuracy(tasks=("niah_single", "vt"), samples=4, budgets=(64, 256), methods=METHODS)
    found = {"64": (), "": ("dense",), "256": ("quest",)}
    records = [r | {"score": float(r["method"] in found[r["budget_requested"]])} for r in records]
    rows = pooled(summarise(prepare(pd.DataFrame(records)), "r"))
    figure = figure_of("answer", (rows, None)).popitem()[1]
    assert [axes.get_title() for axes in figure.axes] == ["niah_single, 2,048 tokens", "vt, 2,048 tokens"]
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["dense", "quest", "chunkkv", "random"]
    assert "Budget 256" in figure.note
    scores = [text.get_text() for text in left.texts]
    assert sorted(scores) == ["0.00", "0.00", "1.00", "1.00"]
    row = rows[(rows["label"] == "random") & (rows["budget_requested"] == "256")].iloc[0]
    bars = [path.vertices[:, 0].tolist() for bar in left.collections for path in bar.get_paths()]
    assert [row["ci_low"], row["ci_high"]] in bars
    sizes = [text.get_text() for text in right.texts if text.get_text().endswith("%")]
    assert len(sizes) == 8 and sizes[0] == sizes[4] == "100%"
    assert f"{row['bytes_resident_share']:.0%}" == sizes[3]


def test_many_methods_are_not_an_answer(accuracy):
    assert not figure_of("answer", many_methods(accuracy))


def with_oracle(accuracy):
    """Rows where the oracle's KL is a tenth of that of snapkv, the best eviction."""
    kls = {"snapkv": 1.0, "random": 3.0, "quest": 0.5, "rocketkv": 0.3}
    records = accuracy(
        tasks=("niah_single", "vt"), samples=3, budgets=(64, 256), methods=(*kls, "streaming_llm")
    )
    records += [
        {**r, "cell": f"{r['cell']}o", "method": "static_oracle", "eviction": "static_oracle"}
        for r in records
        if r["method"] == "snapkv"
    ]
    kls |= {"static_oracle": 0.1, "streaming_llm": 2.0, "dense": 0.0}
    records = [r | {"kl_to_dense": kls[r["method"]]} for r in records]
    return pooled(summarise(prepare(pd.DataFrame(records)), "r")), None


def test_the_oracle_is_drawn_with_the_best_of_each_family_on_shared_axes(accuracy):
    figure = figure_of("oracle", with_oracle(accuracy)).popitem()[1]
    names = [sorted(text.get_text() for text in axes.texts) for axes in figure.axes]
    assert names == [["quest", "rocketkv", "snapkv", "static_oracle"]] * 2
    assert "snapkv is the best eviction, quest is the best selection" in figure.note
    first, second = figure.axes
    assert first.get_ylim() == second.get_ylim() and first.get_xlim() == second.get_xlim()
    look = style.styles(["static_oracle"])["static_oracle"]
    (line,) = (line for line in first.lines if line.get_color() == look.colour)
    assert line.get_ydata().tolist() == pytest.approx([0.1, 0.1])


def test_without_the_oracle_there_is_no_such_figure(data):
    assert not figure_of("oracle", data)


def test_score_and_kl_by_budget_have_dense_at_the_edge(accuracy):
    records = accuracy(tasks=("niah_single",), samples=3, budgets=(64, 256), methods=METHODS)
    rows = summarise(prepare(pd.DataFrame(records)), "r")
    score, kl = figure_of("by_budget", (rows, None)).popitem()[1].axes
    assert [text.get_text() for text in score.get_xticklabels()] == ["64", "256"]
    assert sorted(text.get_text() for text in score.texts) == sorted(["dense", *METHODS])
    assert sorted(text.get_text() for text in kl.texts) == sorted(METHODS)
    look = style.styles(METHODS)["quest"]
    (line,) = (line for line in kl.lines if line.get_color() == look.colour)
    quest = rows[rows["label"] == "quest"].set_index("budget_requested")["kl_to_dense"]
    assert list(line.get_ydata()) == pytest.approx([quest["64"], quest["256"]])
    bars = [path.vertices[:, 1].tolist() for bar in kl.collections for path in bar.get_paths()]
    expected = rows.loc[rows["label"] == "quest", ["kl_ci_low", "kl_ci_high"]].to_numpy().tolist()
    assert any(bar == pytest.approx(pair, nan_ok=True) for bar in bars for pair in expected)


def test_dense_far_away_is_a_note_and_does_not_press_the_methods_together(accuracy):
    records = accuracy(tasks=("niah_single",), samples=3, budgets=(64,), methods=METHODS)
    rows = summarise(prepare(pd.DataFrame(records)), "r")
    for factor, notes, lines in ((100, 1, 0), (1, 0, 1)):
        largest = rows.loc[~rows["is_dense"], "bytes_read_per_step"].max()
        moved = rows.assign(
            bytes_read_per_step=rows["bytes_read_per_step"].mask(rows["is_dense"], factor * largest)
        )
        axes = figure_of("kl_vs_read", (moved, None)).popitem()[1].axes[0]
        assert sum(text.get_text().startswith("dense: ") for text in axes.texts) == notes
        assert (
            sum(len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2 for line in axes.lines)
            == lines
        )
        assert axes.get_xlim()[1] < 3 * largest / 1e6


def test_few_methods_need_no_map(data):
    assert not figure_of("methods", data)
