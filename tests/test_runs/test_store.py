import json
import math
import warnings

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.config.errors import UserError
from kvbench.config.numbers import read_json
from kvbench.runs.schema import SCHEMA
from kvbench.runs.store import Store, _parse


def test_round_trip(tmp_path):
    store = Store(tmp_path / "run")
    assert store.done() == set()
    store.append({"cell": "a", "score": 0.5, "params": {"chunk": 10}, "output": "é\n\u2028"})
    store.extend([{"cell": "b", "score": None}, {"cell": "c"}])
    frame = Store(tmp_path / "run").read()
    assert frame["cell"].tolist() == ["a", "b", "c"]
    assert frame.loc[0, "params"] == {"chunk": 10} and frame.loc[0, "output"] == "é\n\u2028"
    assert store.done() == {"a", "b", "c"}


def test_workers_have_their_own_files(tmp_path):
    stores = [Store(tmp_path), Store(tmp_path), Store(tmp_path, worker="w2")]
    for number, store in enumerate(stores):
        store.append({"cell": str(number)})
    assert len({store.path for store in stores}) == 3
    assert stores[2].path.name == "cells-w2.jsonl"
    assert Store(tmp_path).done() == {"0", "1", "2"}


def test_first_duplicate_is_kept(tmp_path):
    Store(tmp_path, worker="a").extend([{"cell": "x", "score": 1}, {"cell": "x", "score": 2}])
    Store(tmp_path, worker="b").append({"cell": "x", "score": 3})
    assert Store(tmp_path).read()["score"].tolist() == [1]


@pytest.mark.parametrize("cut", range(1, 22))
def test_kill_at_any_byte_of_a_line(tmp_path, cut):
    """A line cut anywhere is no cell, unless only its newline is missing; nothing else is lost."""
    whole = json.dumps({"cell": "b", "score": 1}).encode() + b"\n"
    killed = Store(tmp_path, worker="killed")
    killed.append({"cell": "a"})
    with open(killed.path, "ab") as file:
        file.write(whole[: min(cut, len(whole) - 1)])
    survived = {"b"} if cut >= len(whole) - 1 else set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert Store(tmp_path).done() == {"a"} | survived
    messages = [str(warning.message) for warning in caught]
    assert messages == (
        [] if survived else ["cells-killed.jsonl: torn last line 2 ignored, its cell will run again"]
    )

    # another worker, and a successor of the same name, append whole lines
    Store(tmp_path, worker="other").append({"cell": "c"})
    Store(tmp_path, worker="killed").append({"cell": "d"})
    records, problems = Store(tmp_path).scan()
    assert {record["cell"] for record in records} == {"a", "c", "d"} | survived
    assert problems == (
        [] if survived else ["cells-killed.jsonl: corrupted line 2 ignored, its cell will run again"]
    )


@pytest.mark.parametrize(
    "line",
    [
        "not json", "[1]", '{"score": 1}', '{"cell": "x"', '{"cell": ["x"]}', '{"cell": "x", "score": NaN}',
        '{"cell": "x", "kl_to_dense": Infinity}', '{"cell": "x", "meta": {"a": [-Infinity]}}',
        '{"cell": "x", "score": 1e999}', '{"cell": "x", "a": ' + "[" * 100_000, "[" * 100_000,
    ],
    ids=lambda line: line[:40],
)  # fmt: skip
def test_corrupted_line_in_the_middle(tmp_path, line):
    (tmp_path / "cells-w.jsonl").write_text(f'{{"cell": "a"}}\n{line}\n{{"cell": "b"}}\n')
    with pytest.warns(UserWarning, match=r"cells-w\.jsonl: corrupted line 2 "):
        assert Store(tmp_path).read()["cell"].tolist() == ["a", "b"]


def test_undecodable_bytes(tmp_path):
    (tmp_path / "cells-w.jsonl").write_bytes(b'{"cell": "a\xff"}\n{"cell": "b"}\n')
    with pytest.warns(UserWarning, match="corrupted line 1"):
        assert Store(tmp_path).done() == {"b"}


def test_unreadable_file_is_a_user_error(tmp_path):
    (tmp_path / "cells-w.jsonl").mkdir()
    with pytest.raises(UserError, match=r"^run: cannot read [^\n]+$"):
        Store(tmp_path).read()


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "run")
    for write in (
        lambda: store.append({"cell": "a"}),
        lambda: store.write_config("a: 1"),
        lambda: store.write_plan([], {}),
    ):
        with pytest.raises(UserError, match=r"^run_dir: cannot write in [^\n]+/run: Not a directory$"):
            write()


def test_a_tensor_is_refused_before_anything_is_written(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(TypeError):
        store.extend([{"cell": "a"}, {"cell": "b", "score": object()}])
    assert not store.path.exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_before_anything_is_written(tmp_path, value):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="JSON compliant"):
        store.extend([{"cell": "a"}, {"cell": "b", "meta": {"x": [value]}}])
    assert not store.path.exists()


def test_failures_are_kept_apart_and_the_last_one_of_an_unfinished_cell_counts(tmp_path):
    first, second = Store(tmp_path, worker="a"), Store(tmp_path, worker="b")
    assert first.failures() == ([], [])
    second.extend_failures([{"cell": "x", "reason": "later", "time": "2"}, {"cell": "y", "time": "2"}])
    first.extend_failures([{"cell": "x", "reason": "earlier", "time": "1"}, {"cell": "z", "time": "1"}])
    first.append({"cell": "z"})
    failed = {row["cell"]: row.get("reason") for row in first.failures()[0]}
    assert failed == {"x": "later", "y": None}
    assert first.done() == {"z"} and [row["cell"] for row in first.scan()[0]] == ["z"]
    with open(second.failures_path, "a") as file:
        file.write('{"cell": "w", "reas')
    assert first.failures()[1] == ["failures-b.jsonl: torn last line 3 ignored, its cell will run again"]


def test_config(tmp_path):
    store = Store(tmp_path / "run")
    assert store.config() == {}
    store.write_config("seeds: [0, 1]\n")
    store.write_config("seeds: [2]\n")
    assert Store(tmp_path / "run").config() == {"seeds": [2]}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    store.config_path.write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml"):
        store.config()


def test_every_line_has_the_version_of_its_form_and_earlier_lines_are_version_1(tmp_path):
    store = Store(tmp_path, worker="now")
    store.append({"cell": "a"})
    assert json.loads(store.path.read_text()) == {"schema": SCHEMA, "cell": "a"}
    (tmp_path / "cells-before.jsonl").write_text('{"cell": "b"}\n')
    assert {row["cell"]: row["schema"] for row in store.scan()[0]} == {"a": SCHEMA, "b": 1}
    # copied, a row keeps its version
    Store(tmp_path / "copy").extend(store.scan()[0])
    assert {row["cell"]: row["schema"] for row in Store(tmp_path / "copy").scan()[0]} == {"a": SCHEMA, "b": 1}


def test_lines_of_a_newer_or_no_known_form_are_named_and_left_out(tmp_path):
    lines = [
        {"cell": "a"},
        *({"cell": "b", "schema": other} for other in (SCHEMA + 1, True, "2", 0, -1, None)),
    ]
    (tmp_path / "cells-w.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    records, problems = Store(tmp_path).scan()
    assert [record["cell"] for record in records] == ["a"]
    assert len(problems) == 6 and all(problem.startswith("cells-w.jsonl: ") for problem in problems)
    assert (
        f"1 line of a newer kvbench left out; this one reads schema 1 to {SCHEMA}, update it" in problems[-1]
    )
    with pytest.warns(UserWarning, match="newer kvbench"):
        assert Store(tmp_path).done() == {"a"}


def test_packed_cells_are_the_same_and_the_same_file_each_time(tmp_path):
    store = Store(tmp_path / "run", worker="w")
    store.extend([{"cell": "b", "output": "é\n"}, {"cell": "a", "score": 0.5}])
    first, second = (store.pack(tmp_path / name).read_bytes() for name in ("x", "y"))
    assert first == second
    rows, problems = Store(tmp_path / "x").scan()
    assert rows == sorted(store.scan()[0], key=lambda row: row["cell"]) and not problems
    (tmp_path / "x" / "cells-packed.jsonl.gz").write_bytes(first[:-9])
    with pytest.raises(UserError, match=r"^run: cannot read [^\n]+$"):
        Store(tmp_path / "x").scan()


def test_columns_are_the_scan_by_field(tmp_path):
    """Also where rows have other fields, and equal values are one object."""
    rows = [
        {
            "cell": "a",
            "method": "m",
            "n": 1,
            "x": 0.5,
            "flag": True,
            "ids": [300, 301],
            "meta": {"k": [1, None]},
        },
        {"cell": "b", "method": "m", "n": 2, "x": None, "meta": {"k": [1, None]}, "text": "é\n"},
        {"cell": "c", "row": "setup", "n": 3},
        {"cell": "d", "method": "m", "n": 1, "x": 0.5, "flag": 1, "ids": [300, 301]},
    ]
    Store(tmp_path, "1").extend(rows)
    Store(tmp_path, "2").extend([rows[0] | {"n": 99}])
    columns, problems = Store(tmp_path).columns("method", without=("text",))
    expected = [row for row in Store(tmp_path).scan()[0] if "method" in row]
    frame = pd.DataFrame(expected).drop(columns="text")
    pd.testing.assert_frame_equal(columns.frame()[list(frame)], frame)
    assert len(columns) == 3 and not problems and columns["n"] == [1, 2, 1]
    assert columns["ids"][0] is columns["ids"][2] and columns["meta"][0] is columns["meta"][1]
    # True is not 1
    assert columns["flag"][0] is True and columns["flag"][2] == 1 and columns["flag"][2] is not True


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(json_values, st.booleans())
@settings(max_examples=60, deadline=None)
def test_lines_are_read_as_json_is(value, escaped):
    """By the fast reader as by the exact one: equal values of equal types, and the same refusals."""
    line = json.dumps({"cell": "a", "value": value}, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    try:
        expected = read_json(line) | {"schema": 1}
    except ValueError:
        expected = None
    assert repr(_parse(line)) == repr(expected)
