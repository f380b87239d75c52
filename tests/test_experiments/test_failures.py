"""Cells that fail are results: recorded, listed, counted, retried, and never in the way of other cells."""

import json
import math
import re

import pytest
import torch

from kvbench import report
from kvbench.cli import main as cli
from kvbench.config.errors import CellsFailed, UserError
from kvbench.engine import apart, decode
from kvbench.experiments import accuracy
from kvbench.experiments.accuracy import run as accuracy_run
from kvbench.experiments.efficiency import run as efficiency
from kvbench.methods.knorm import KNorm
from kvbench.methods.quest import Quest
from kvbench.methods.snapkv import SnapKV
from kvbench.methods.storage import Split
from kvbench.runs.config import load
from kvbench.runs.progress import Progress
from kvbench.runs.store import Store
from kvbench.tasks import Task

OVERRIDES = [
    "experiment=quickstart",
    "task=[ruler_niah_single_1]",
    "task.length=[512]",
    "task.samples=2",
    "task.max_new_tokens=6",
    "task.wording=own",
    "method=[dense,knorm,snapkv,quest]",
    "budget.tokens=[64,96]",
    "decode.block_rows=8",
]
EXACT = ["cell", "score", "output_ids", "kept_tokens", "kl_to_dense", "bytes_read_per_step"]

pytestmark = pytest.mark.filterwarnings(
    "ignore:failed:UserWarning", "ignore:.*left out; retry_failed:UserWarning"
)


@pytest.fixture(scope="module")
def config(tiny_model_dir):
    folder = tiny_model_dir("llama", group=3, layers=3)

    def make(run_dir, *more):
        return load([*OVERRIDES, f"model.path={folder}", "model.name=tiny", f"run_dir={run_dir}", *more])

    return make


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert accuracy_run.run_accuracy(config(folder), Progress) == []
    return {row["cell"]: row for row in Store(folder).scan()[0]}


def names(records):
    return sorted((row["method"], row["budget_requested"], row["sample"]) for row in records)


def everything_else_is_the_same(folder, undisturbed, failed):
    """All cells that did not fail have the numbers that they have without a failure."""
    rows = {row["cell"]: row for row in Store(folder).scan()[0]}
    gone = {row["cell"] for row in failed}
    assert set(rows) == set(undisturbed) - gone and gone <= set(undisturbed)
    for cell, row in rows.items():
        for name in EXACT:
            assert row[name] == undisturbed[cell][name], name


@torch.inference_mode()
def plant(x, at, value):
    x[at] = value


PROBE = 512  # tokens of the plan's probe, which ids depend on; prompts are shorter
SCORES = KNorm.scores


def broken_scores(self, snapshot):
    if snapshot.length == PROBE:
        return SCORES(self, snapshot)
    raise RuntimeError("no scores\ntoday")


def flat(text):
    return " ".join(text.split())


def test_a_method_that_raises_fails_alone_with_its_traceback(config, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(KNorm, "scores", broken_scores)
    failed = accuracy_run.run_accuracy(config(tmp_path), Progress)
    assert names(failed) == [("knorm", budget, n) for budget in ("64", "96") for n in (0, 1)]
    everything_else_is_the_same(tmp_path, undisturbed, failed)
    for row in failed:
        assert (row["failure"], row["stage"], row["error"]) == ("raised", "compress", "RuntimeError")
        assert row["reason"] == "RuntimeError: no scores today"
        assert "broken_scores" in row["traceback"] and row["traceback"].endswith("no scores\ntoday\n")
    (file,) = tmp_path.glob("failures-*.jsonl")
    assert [json.loads(line)["cell"] for line in file.open()] == [row["cell"] for row in failed]


def test_a_method_that_raises_whatever_it_gets_fails_alone_too(config, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(KNorm, "scores", lambda *_: 1 / 0)
    failed = accuracy_run.run_accuracy(config(tmp_path, "limit=1"), Progress)
    assert names(failed) == [("knorm", "64", 0), ("knorm", "96", 0)]
    assert {row["reason"] for row in failed} == {"ZeroDivisionError: division by zero"}
    assert {row["method"] for row in Store(tmp_path).scan()[0]} == {"dense", "snapkv", "quest"}


def test_a_step_that_raises_is_found_by_decoding_in_passes(config, undisturbed, tmp_path, monkeypatch):
    def select(self, *args, **kwargs):
        raise IndexError("page 7")

    monkeypatch.setattr(Quest, "select", select)
    passes = []
    original = decode.decode_cells
    monkeypatch.setattr(apart, "decode_cells", lambda *args: passes.append(len(args[4])) or original(*args))
    failed = accuracy_run.run_accuracy(config(tmp_path, "limit=1"), Progress)
    assert names(failed) == [("quest", "64", 0), ("quest", "96", 0)]
    assert {(row["failure"], row["stage"], row["reason"]) for row in failed} == {
        ("raised", "decode", "IndexError: page 7")
    }
    # all six, dense alone, and ever smaller parts of those that still raise
    assert passes == [6, 0, 3, 3, 1, 2, 1, 1]
    rows = {row["cell"]: row for row in Store(tmp_path).scan()[0]}
    assert len(rows) == 5
    for cell, row in rows.items():
        for name in EXACT:
            assert row[name] == undisturbed[cell][name], name


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"
        ),
    ],
    ids=["gpu", "cpu"],
)
def test_what_does_not_fit_is_decoded_a_cell_at_a_time(config, undisturbed, tmp_path, monkeypatch, error):
    """Blocks of one cell give the same rows under the same ids; what fits in none is a failure with its size."""
    original, limits, too_large = decode.blocks, [], []

    def blocks(snapshot, cells, room, limit=None):
        limits.append((len(cells), limit))
        for part in original(snapshot, cells, room, limit):
            if len(part) > 1 or (too_large and cells[part[0]].selection.name == too_large[0]):
                raise error
            yield part

    monkeypatch.setattr(decode, "blocks", blocks)
    assert not accuracy_run.run_accuracy(config(tmp_path / "fits"), Progress)
    assert limits == [(6, None), (6, 1)] * 2
    everything_else_is_the_same(tmp_path / "fits", undisturbed, [])
    limits.clear()
    too_large.append("quest")
    failed = accuracy_run.run_accuracy(config(tmp_path / "not", "limit=1"), Progress)
    assert {(row["method"], row["failure"]) for row in failed} == {("quest", "out_of_memory")} and len(
        failed
    ) == 2
    told = r".*tried to allocate .*; alone it takes about [\d,]+ bytes beside the prompt's [\d,]+"
    assert all(re.fullmatch(told, row["reason"], re.I) for row in failed), failed
    # never more than a cell at a time once memory ran out
    assert limits[0] == (6, None) and {limit for _, limit in limits[1:]} == {1}
    assert len(Store(tmp_path / "not").done()) == 5


def test_scores_that_are_not_finite_fail_and_rank_nothing(config, undisturbed, tmp_path, monkeypatch):
    def scores(self, snapshot):
        found = SCORES(self, snapshot).clone()
        if snapshot.length != PROBE:
            found[0, 5] = math.nan
        return found

    monkeypatch.setattr(KNorm, "scores", scores)
    failed = accuracy_run.run_accuracy(config(tmp_path), Progress)
    assert {(row["method"], row["failure"], row["reason"]) for row in failed} == {
        ("knorm", "not_finite", "scores of knorm in layer 0 are not finite")
    }
    everything_else_is_the_same(tmp_path, undisturbed, failed)


def test_an_audit_that_fails_and_a_refused_setting_are_failures(config, undisturbed, tmp_path, monkeypatch):
    original_keep, original_tokens = SnapKV.keep, KNorm.layer_tokens

    def keep(self, snapshot, scores, quota):
        kept = original_keep(self, snapshot, scores, quota)
        if quota.tokens == 96 and snapshot.layer == 1:
            kept.positions[0] = kept.positions[0].flip(0)
        return kept

    def layer_tokens(self, quota, shape):
        if quota.tokens == 64:
            raise UserError("budget: 64 is too small for knorm")
        return original_tokens(self, quota, shape)

    monkeypatch.setattr(SnapKV, "keep", keep)
    monkeypatch.setattr(KNorm, "layer_tokens", layer_tokens)
    failed = accuracy_run.run_accuracy(config(tmp_path, "limit=1"), Progress)
    assert {(row["method"], row["budget_requested"], row["failure"]) for row in failed} == {
        ("snapkv", "96", "audit"),
        ("knorm", "64", "refused"),
    }


@pytest.mark.parametrize(
    "scores",
    [
        (math.nan, {}),
        (math.inf, {}),
        (1.0, {"f1": 1.0, "recall": math.nan}),
        (1.0, {"parts": [1.0, math.inf]}),
    ],
    ids=str,
)
def test_a_score_that_is_not_finite_is_a_failure(config, tmp_path, monkeypatch, scores):
    original = Task.scores
    monkeypatch.setattr(
        Task, "scores", lambda self, text, sample: original(self, text, sample) if FIRST.pop(0) else scores
    )
    FIRST[:] = [True] + [False] * 20
    failed = accuracy_run.run_accuracy(config(tmp_path, "limit=1", "method=[knorm]"), Progress)
    assert [(row["failure"], row["stage"]) for row in failed] == [("not_finite", "score")] * 2
    assert "score" in failed[0]["reason"] and len(Store(tmp_path).scan()[0]) == 1


FIRST: list[bool] = []


def test_dense_that_fails_on_a_later_prompt_fails_its_group(config, tmp_path, monkeypatch):
    original = accuracy_run.prefill_for
    calls = []

    def prefill_for(*args):
        snapshot = original(*args)
        calls.append(snapshot)
        if len(calls) == 2:
            plant(snapshot.layers[1].v_HTD, (0, 3, 2), math.nan)
        return snapshot

    monkeypatch.setattr(accuracy_run, "prefill_for", prefill_for)
    failed = accuracy_run.run_accuracy(config(tmp_path), Progress)
    assert {row["sample"] for row in failed} == {1} and len(failed) == 7
    kinds = {row["method"]: (row["failure"], row["reason"]) for row in failed}
    assert kinds["dense"] == ("not_finite", "values of layer 1 are not finite")
    assert kinds["quest"] == ("dense", "dense failed: values of layer 1 are not finite")
    assert {row["sample"] for row in Store(tmp_path).scan()[0]} == {0}


def test_dense_that_fails_on_the_first_prompt_stops_the_run_with_one_line(
    config, tiny_model_dir, tmp_path, monkeypatch, capsys
):
    original = accuracy_run.prefill_for

    def overflowing(*args):
        snapshot = original(*args)
        plant(snapshot.layers[2].k_HTD, (1, 0, 0), math.inf)
        return snapshot

    monkeypatch.setattr(accuracy_run, "prefill_for", overflowing)
    folder = tiny_model_dir("llama", group=3, layers=3)
    words = [*OVERRIDES, f"model.path={folder}", "model.name=tiny", f"run_dir={tmp_path}"]
    assert cli.main(["run", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "kvbench: error: model.dtype: dense tiny in float32 fails on the first prompt (ruler_niah_single_1 512 #0): "
        "keys of layer 2 are not finite; give model.dtype=bfloat16, or check the weights"
    )
    assert not list(tmp_path.glob("cells-*")) and len(Store(tmp_path).failures()[0]) == 7


def test_failed_cells_are_left_out_until_they_are_retried(config, undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(KNorm, "scores", broken_scores)
        failed = accuracy_run.run_accuracy(config(tmp_path), Progress)
    with pytest.warns(
        UserWarning, match="4 cells failed before and left out; retry_failed=true runs them again"
    ):
        again = accuracy_run.run_accuracy(config(tmp_path), Progress)
    assert names(again) == names(failed) and len(Store(tmp_path).scan()[0]) == 10
    # a retry that fails too leaves one failure per cell, a retry that does not leaves none
    with monkeypatch.context() as patch:
        patch.setattr(KNorm, "scores", lambda self, x: SCORES(self, x) if x.length == PROBE else 1 / 0)
        twice = accuracy_run.run_accuracy(config(tmp_path, "retry_failed=true"), Progress)
    assert names(twice) == names(failed)
    assert {row["reason"] for row in twice} == {"ZeroDivisionError: division by zero"}
    assert accuracy_run.run_accuracy(config(tmp_path, "retry_failed=true"), Progress) == []
    everything_else_is_the_same(tmp_path, undisturbed, [])


def test_memory_that_does_not_suffice_for_all_cells_suffices_for_fewer(
    config, undisturbed, tmp_path, monkeypatch
):
    original = decode.Rows

    def rows(model, snapshot, cells, *args, **kwargs):
        if len(cells) > 2:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"
            )
        return original(model, snapshot, cells, *args, **kwargs)

    monkeypatch.setattr(decode, "Rows", rows)
    assert accuracy_run.run_accuracy(config(tmp_path), Progress) == []
    everything_else_is_the_same(tmp_path, undisturbed, [])


def test_a_lost_gpu_ends_the_run_behind_its_cells(config, tmp_path, monkeypatch):
    def lost(*_):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    original, calls = apart.decode_cells, []
    monkeypatch.setattr(
        apart,
        "decode_cells",
        lambda *args: calls.append(1) or (lost() if len(calls) == 2 else original(*args)),
    )
    failed = accuracy_run.run_accuracy(config(tmp_path, "task.samples=3"), Progress)
    assert {row["sample"] for row in failed} == {1} and len(failed) == 7 and len(calls) == 2


def test_the_command_line_exits_with_1_and_lists_what_failed(tiny_model_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(KNorm, "scores", broken_scores)
    folder = tiny_model_dir("llama", group=3, layers=3)
    words = [*OVERRIDES, f"model.path={folder}", "model.name=tiny", f"run_dir={tmp_path}", "limit=1"]
    assert cli.main(["run", *words]) == 1
    out, err = capsys.readouterr()
    line = "ruler_niah_single_1 512 #0, knorm 64: raised: RuntimeError: no scores today"
    assert f"kvbench: failed: {line}\n" in err and out.endswith(f"report: {tmp_path}/report.html\n")

    assert cli.main(["status", str(tmp_path)]) == 0
    status = capsys.readouterr().out
    assert "5 of 7 cells done, 2 failed\n" in status and f"failed: {line}\n" in status
    assert "ruler_niah_single_1 knorm   0/2, 2 failed\n" in status

    page, table = ((tmp_path / name).read_text() for name in ("report.html", "table.md"))
    assert f"<li>{line}</li>" in page and "2 of 2" not in page.split("<h2")[0]
    assert "2 cells failed (knorm 2)" in table and "incomplete run" not in table
    row = "| tiny | query_aware | ruler_niah_single_1 | 512 | | knorm | 64 | 1 of 1 failed | raised 1 |"
    assert row in flat(table)


def test_a_mean_over_fewer_samples_is_marked(config, tmp_path, monkeypatch):
    original, calls = SnapKV.keep, []

    def keep(self, snapshot, scores, quota):
        if quota.tokens == 64 and snapshot.layer == 0:
            calls.append(1)
            if len(calls) == 2:
                raise RuntimeError("once")
        return original(self, snapshot, scores, quota)

    monkeypatch.setattr("kvbench.runs.plan.operations_called", lambda *_: {})  # calls `keep` too
    monkeypatch.setattr(SnapKV, "keep", keep)
    cfg = config(tmp_path, "method=[snapkv]")
    assert names(accuracy_run.run_accuracy(cfg, Progress)) == [("snapkv", "64", 1)]
    run = report.load(tmp_path)
    rows = run.summary().set_index(["method", "budget_requested"])
    assert rows.loc[("snapkv", "64"), "n_failed"] == 1 and rows.loc[("snapkv", "96"), "n_failed"] == 0
    assert rows.loc[("snapkv", "64"), "verdict"].endswith("1 of 2 failed")
    assert "(1 of 2 failed)" in run.table()
    with pytest.raises(CellsFailed) as failed:
        accuracy.reported(str(tmp_path), run.failures)
    assert "note: 1 cell failed (snapkv 1)" in failed.value.text


def test_a_failed_point_of_an_efficiency_run(config, tmp_path, monkeypatch):
    def append(self, k_RHND, v_RHND):
        raise RuntimeError("a store that refuses")

    monkeypatch.setattr(Split, "append", append)
    more = [
        "kind=efficiency",
        "efficiency.batch=[1,2]",
        "efficiency.steps=2",
        "budget.tokens=[64]",
        "limit=1",
    ]
    words = ["method=[dense]", "variants={eight: {method: knorm, format: fp8_e4m3}}"]
    failed = efficiency.run_efficiency(config(tmp_path, *more, *words), Progress)
    assert [(row["method"], row["batch"], row["failure"], row["stage"]) for row in failed] == [
        ("eight", 1, "raised", "measure"),
        ("eight", 2, "raised", "measure"),
    ]
    assert len(Store(tmp_path).scan()[0]) == 2
    assert "2 of 4 cells done, 2 failed" in report.status(tmp_path)
    with pytest.raises(CellsFailed):
        accuracy.reported(str(tmp_path), failed)
    assert "| 512 | 2 | eight | 64 | 1 of 1 failed | raised 1 |" in flat((tmp_path / "table.md").read_text())


def test_an_efficiency_run_whose_dense_is_not_finite_stops_at_once(config, tmp_path, monkeypatch):
    original = efficiency.prefill_for

    def overflowing(*args):
        snapshot = original(*args)
        plant(snapshot.logits, (3,), math.nan)
        return snapshot

    monkeypatch.setattr(efficiency, "prefill_for", overflowing)
    more = ["kind=efficiency", "efficiency.batch=[1]", "efficiency.steps=2", "budget.tokens=[64]", "limit=1"]
    with pytest.raises(
        UserError, match=r"model\.dtype: dense tiny in float32 .* logits after the last token"
    ):
        efficiency.run_efficiency(config(tmp_path, *more), Progress)
    assert {row["failure"] for row in Store(tmp_path).failures()[0]} == {"not_finite", "dense"}
