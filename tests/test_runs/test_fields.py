"""The declarations of fields: what is stored is declared, and what is not declared is refused."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from kvbench.config.numbers import NotFiniteError
from kvbench.runs import fields
from kvbench.runs.fields import COLUMNS, DECLARED, KINDS, checked, declare, declared
from kvbench.runs.schema import Field, fits, kind_of, problems
from kvbench.runs.store import Store

ROOT = Path(__file__).parents[2]
BEFORE = Path(__file__).parent / "before"
STORED = [*sorted((ROOT / "results" / "vllm").glob("*/*.jsonl")), *sorted(BEFORE.glob("*/*.jsonl"))]
ACCURACY = ROOT / "results" / "vllm" / "compression" / "accuracy.jsonl"


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("path", STORED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_committed_rows_are_declared_and_can_be_read(path, tmp_path):
    for row in rows(path):
        assert not problems(row, DECLARED)
    stored = [row for row in rows(path) if "cell" in row]
    (tmp_path / "cells-committed.jsonl").write_bytes(path.read_bytes())
    found, _ = Store(tmp_path).scan()
    assert found == [row | {"schema": 1} for row in stored]


def test_a_field_is_declared_once_for_a_kind_and_has_a_meaning():
    names = Counter((kind, field.name) for field in DECLARED for kind in field.kinds)
    assert set(names.values()) == {1}
    assert {kind for kind, _ in names} == set(KINDS)
    assert len({column.name for column in COLUMNS}) == len(COLUMNS)
    for field in (*DECLARED, *COLUMNS):
        assert field.meaning and not field.meaning.endswith("."), field.name
    parents = {(kind, name.partition(".")[0]) for kind, name in names if "." in name}
    assert parents <= set(names)


def test_columns_that_are_averaged_are_fields_of_cells():
    added = {"decode_s", "bytes_resident_share", "bytes_read_share"}
    cells = {field.name for field in DECLARED if {"accuracy", "efficiency"} & set(field.kinds)}
    assert {column.name for column in COLUMNS if column.over} - added <= cells


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"scor": 1.0}, r"^accuracy row: scor is not declared, see kvbench/runs/fields\.py$"),
        ({"score": "1"}, r"^accuracy row: score: '1' is not float \| None$"),
        ({"kl_tokens": 1.5}, r"^accuracy row: kl_tokens: 1\.5 is not int$"),
        ({"budget_covers_prompt": 1}, r"^accuracy row: budget_covers_prompt: 1 is not bool$"),
        ({"output_ids": [1, None]}, r"output_ids: \[1, None\] is not list\[int\] \| None$"),
        ({"versions": {"torch": 2}}, r"versions: \{'torch': 2\} is not dict\[str, str\]$"),
        ({"meta": {"depth": "0"}}, r"^accuracy row: meta\.depth: '0' is not float$"),
        ({"a": 1, "b": 2}, "a is not declared.*; accuracy row: b is not declared"),
        ({"timing": "amortized"}, "^row: has neither `row` nor a known `timing`"),
    ],
)
def test_a_row_that_is_not_as_declared_is_refused(change, problem):
    row = rows(ACCURACY)[0]
    assert checked(row) is row
    with pytest.raises(TypeError, match=problem):
        checked(row | change)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["score", "kl_to_dense", "prefill_s", "meta", "params"])
def test_a_row_with_a_number_that_is_not_finite_is_refused(name, value):
    row = rows(ACCURACY)[0]
    planted = {"x": [value]} if name in ("meta", "params") else value
    with pytest.raises(NotFiniteError, match=rf"^accuracy row: {name}: .* is not finite$"):
        checked(row | {name: planted})


def test_keys_of_a_nested_field_are_open_or_all_declared():
    row = rows(ACCURACY)[0]
    checked(row | {"meta": {"a_task_of_mine": 1}, "params": {"selection": {"page": 16}}})
    setup = next(row for row in rows(ROOT / "results/vllm/load/cells.jsonl") if row["row"] == "setup")
    checked(setup | {"capacity": None})
    with pytest.raises(TypeError, match=r"^setup row: capacity\.swap is not declared"):
        checked(setup | {"capacity": setup["capacity"] | {"swap": 0}})


def test_a_plugin_declares_fields_and_kinds_of_its_own(monkeypatch):
    monkeypatch.setattr(fields, "_of_plugins", [])
    depth = Field("meta.hops", int, "", "documents between question and answer", ("accuracy",))
    declare(depth, Field("row", str, "", "kind of the row", ("mine",)))
    declare(depth)  # imported again
    assert declared().count(depth) == 1
    row = rows(ACCURACY)[0]
    checked(row | {"meta": {"hops": 2}})
    checked({"row": "mine"})
    with pytest.raises(TypeError, match=r"meta\.hops: 'two' is not int$"):
        checked(row | {"meta": {"hops": "two"}})
    with pytest.raises(ValueError, match=r"^score: declared already: "):
        declare(Field("score", str, "", "a grade", ("accuracy",)))


def test_kinds_of_rows():
    assert kind_of({"row": "load"}) == "load"
    assert kind_of({"timing": "amortised"}) == "accuracy"
    assert kind_of({"timing": "isolated"}) == "efficiency"


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1, float, True),
        (True, float, False),
        (True, int, False),
        (None, int, False),
        (None, int | None, True),
        ([], list[int], True),
        ([[1], None], list[list[int] | None], True),
        ({"a": 0.5}, dict[str, float], True),
        ({"a": "b"}, dict[str, float], False),
        ({"a": None}, dict[str, object], True),
        ([{"a": 1}], list[dict[str, object]], True),
    ],
)
def test_types(value, kind, expected):
    assert fits(value, kind) is expected
