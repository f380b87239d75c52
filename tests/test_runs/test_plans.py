"""A folder is complete only when all that was asked of it is."""

import json

import pytest

from kvbench.config.errors import UserError
from kvbench.runs.config import load
from kvbench.runs.plan import stored_id
from kvbench.runs.store import Store


def rows(*names):
    return [("task", name[0], name) for name in names]


def request(*words):
    return load(["experiment=quickstart", *words]).request


def test_plans_of_different_commands_unite(tmp_path):
    Store(tmp_path).write_plan(rows("a1", "a2", "b1"), request("seeds=[0]"), "run seeds=[0]")
    Store(tmp_path).write_plan(rows("a1", "a3", "b1"), request("seeds=[1]"), "run seeds=[1]")
    planned = Store(tmp_path).planned()
    assert set(planned.cells) == {"a1", "a2", "a3", "b1"}
    assert planned.count({}) == {("task", "a"): 3, ("task", "b"): 1}
    assert sorted((plan.command, missing) for plan, missing in planned.unfinished({"a1", "a3", "b1"})) == [
        ("run seeds=[0]", 1)
    ]


def test_the_same_request_has_one_plan_however_it_is_run(tmp_path):
    for words in (
        [],
        ["workers=3"],
        ["shard=1/3"],
        ["retry_failed=true"],
        ["run_dir=/x"],
        ["stop_after=1h"],
        ["lease=5"],
    ):
        Store(tmp_path).write_plan(rows("a1"), request(*words))
    # code that gives other ids: what the same command asked for before is not asked for any more
    Store(tmp_path).write_plan(rows("a9"), request())
    assert len(list(tmp_path.glob("plan-*.json"))) == 1 and set(Store(tmp_path).planned().cells) == {"a9"}
    for other in (["limit=1"], ["kl=false"], ["decode.block_rows=8"], ["budget.tokens=[7]"]):
        assert Store.plan_name(request(*other)) != Store.plan_name(request())


def test_a_plan_of_earlier_code_counts_too(tmp_path):
    totals = [{"task": "task", "method": "a", "cells": 2}]
    (tmp_path / "plan.json").write_text(json.dumps({"cells": ["a1", "a2"], "totals": totals}))
    assert Store(tmp_path).planned().count({}) == {("task", "a"): 2}
    Store(tmp_path).write_plan(rows("a2", "b1"), request())
    planned = Store(tmp_path).planned()
    assert set(planned.cells) == {"a1", "a2", "b1"}
    assert planned.count({}) == {("task", "a"): 1, ("task", "b"): 1, ("", ""): 1}
    assert planned.count({"a1": ("task", "a")}) == {("task", "a"): 2, ("task", "b"): 1}


def test_a_cell_keeps_the_id_under_which_it_is_done_or_planned():
    ids = ["new", "old"]
    assert stored_id(ids, set()) == "new"
    assert stored_id(ids, {"old"}) == "old"
    assert stored_id(ids, set(), {"old"}) == "old"
    assert stored_id(ids, {"old"}, {"new", "old"}) == "old"
    assert stored_id(ids, {"new"}, {"old"}) == "new"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"plan": 1}',
        '{"plan": 1, "command": "x", "cells": [1]}',
        "[" * 100_000,
        '{"cells": 3}',
        "\x00",
    ],
)
def test_a_damaged_plan_is_named(tmp_path, text):
    (tmp_path / "plan-x.json").write_text(text)
    with pytest.raises(UserError, match=r"^run: cannot read [^\n]+plan-x\.json: [^\n]+$"):
        Store(tmp_path).planned()
