import pandas as pd

from kvbench.report.format import Table
from kvbench.report.summary import prepare, summarise
from kvbench.report.tables import all_tables, markdown


def tables_of(records):
    return all_tables(summarise(prepare(pd.DataFrame(records)), "r"))


def test_protocols_and_lengths_never_share_a_table(accuracy):
    tables = tables_of(
        accuracy(
            tasks=("niah_single",),
            samples=2,
            lengths=(1024, 2048),
            protocols=("query_aware", "query_agnostic"),
        )
    )
    scores = [table for table in tables if table.title.startswith("Scores")]
    assert len(scores) == 4
    assert all(len(table.rows) == 22 and table.rows[0][0] == "dense" for table in scores)


def test_kinds_of_timing_never_share_a_column(accuracy, efficiency):
    tables = tables_of(accuracy(tasks=("niah_single",), samples=2) + efficiency())
    titles = [table.title.split(":")[0] for table in tables]
    assert titles == [
        "Scores",
        "Differences from dense",
        "Where the time went",
        "Times of one method at a time",
    ]
    assert "timing = amortised" in tables[2].caption
    assert tables[2].rows[0][:4] == ["2048", "niah_single", "2", "22"]
    assert "timing = isolated" in tables[3].caption and len(tables[3].rows) == 48


def test_recorded_steps_are_marked(efficiency):
    records = [r | {"step": "eager" if r["method"] == "dense" else "graph"} for r in efficiency()]
    (table,) = tables_of(records)
    assert {"dense", "snapkv"} <= {name for row in table.rows for name in row}
    for row in table.rows:
        assert any(text.endswith(" graph") for text in row) is ("dense" not in row), row


def test_caption_says_what_the_numbers_are(accuracy):
    records = accuracy(samples=20)
    records[0] = records[0] | {"device": "cuda:0 H100"}
    caption = tables_of(records)[0].caption
    for text in (
        "smollm2_135m",
        "float32",
        "cpu + cuda:0 H100",
        "sdpa",
        "query_aware",
        "wording ruler",
        "n = 20",
    ):
        assert text in caption
    assert "Agresti-Coull" in caption and "42 comparisons" in caption


def test_marks_and_floor(accuracy):
    table = tables_of(accuracy(tasks=("niah_single", "vt")))[0]
    cells = {(row[0], row[1]): dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert cells["random", "64"]["niah_single"] == "0.00 [0.00, 0.19] ▼"
    assert cells["rocketkv", "1024"]["niah_single"] == "0.85 [0.63, 0.95]"
    assert cells["rocketkv", "1024"]["vt"].endswith("floor")
    assert cells["dense", ""]["resident % of dense"] == "100"


def test_the_caption_gives_the_range_of_unequal_n(accuracy):
    records = [
        r for r in accuracy(tasks=("niah_single",), samples=4) if r["method"] != "quest" or r["sample"]
    ]
    assert "n = 3 to 4" in tables_of(records)[0].caption


def test_two_wordings_of_a_task_are_two_columns(accuracy):
    records = accuracy(tasks=("niah_single",), samples=2)
    records += [r | {"cell": r["cell"] + "o", "wording": "own"} for r in records]
    header = tables_of(records)[0].header
    assert "niah_single (wording=own)" in header and "niah_single (wording=ruler)" in header


def test_markdown_is_escaped_and_aligned():
    text = Table("t", "c", ["a|b", "c"], [["<i>", "1\n2"]]).markdown()
    assert text.splitlines()[4:] == [r"| a\|b      | c   |", "|-----------|-----|", "| &lt;i&gt; | 1 2 |"]


def test_notes_come_first(accuracy):
    summary = summarise(prepare(pd.DataFrame(accuracy(samples=1))), "r")
    text = markdown(summary, "Run r", ["mixed devices: cpu + cuda"])
    assert text.startswith("# Run r\n\n- **mixed devices: cpu + cuda**\n")


def test_amortised_times_are_those_of_a_prompt(accuracy):
    records = [
        r | {"prefill_s": 3.0, "compress_s": 0.01, "decode_ms_per_token": 5.0} for r in accuracy(samples=2)
    ]
    # the batch of a prompt steps as long as its longest cell
    records = [r | {"output_ids": [1] * (20 if r["method"] == "random" else 4)} for r in records]
    table = next(table for table in tables_of(records) if table.title.startswith("Where the time went"))
    assert table.rows[0] == ["2048", "niah_multivalue", "2", "22", "3", "0.22", "2.2"]


def test_dense_alone_is_one_row_per_task_without_empty_columns(accuracy):
    records = [record for record in accuracy(samples=3) if record["method"] == "dense"]
    table = tables_of(records)[0]
    assert table.header == ["task", "score", "n", "cut"]
    assert [row[0] for row in table.rows] == ["niah_multivalue", "niah_single"]
    assert {tuple(row[2:]) for row in table.rows} == {("3", "0/3")}


def test_without_kl_there_is_no_kl_column(accuracy):
    table = tables_of([{**record, "kl_to_dense": None} for record in accuracy(samples=3)])[0]
    assert not any("KL" in name for name in table.header)
    assert all(len(row) == len(table.header) for row in table.rows)


def test_a_users_task_has_no_wording(accuracy):
    table = tables_of([{**record, "wording": None} for record in accuracy(samples=3)])[0]
    assert "wording -" in table.caption
    assert all(cell for row in table.rows for cell in row[3:])


def test_a_users_prompts_have_no_length_in_the_title(accuracy):
    table = tables_of([{**record, "length": 0} for record in accuracy(samples=3)])[0]
    assert table.title == "Scores: smollm2_135m, query_aware"


def test_a_table_says_that_none_of_its_marks_is_possible(accuracy):
    caption = tables_of(accuracy(samples=8))[0].caption
    assert "over 42 comparisons" in caption and "11 of 8 samples" in caption and "none is possible" in caption
    caption = tables_of(accuracy(samples=20))[0].caption
    assert "at least 11 of 20 samples must change" in caption and "possible" not in caption


def test_a_table_of_former_intervals_says_so(accuracy):
    summary = summarise(prepare(pd.DataFrame(accuracy(samples=3))), "r")
    assert "former" not in markdown(summary, "Run r", [])
    text = markdown(summary.assign(stats_version=1), "Run r", [])
    assert text.count("interval by the former method") == 2 and "Wilson for 0/1 scores" in text
