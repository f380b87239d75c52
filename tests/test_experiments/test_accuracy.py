"""Whole runs on a tiny model: resume, extension, kill -9, and what a record holds."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from kvbench import report
from kvbench.config.errors import UserError
from kvbench.engine.attention import register_attention
from kvbench.experiments.accuracy.run import run_accuracy
from kvbench.experiments.efficiency import run as efficiency
from kvbench.models.load import load_model
from kvbench.runs.config import load
from kvbench.runs.context import make_renderer
from kvbench.runs.progress import Progress
from kvbench.runs.store import Store
from kvbench.tasks import patterns

OVERRIDES = [
    "experiment=quickstart",
    "task=[ruler_niah_single_1]",
    "task.length=[1024]",
    "task.samples=6",
    "task.max_new_tokens=12",
    "task.wording=own",
    "method=[dense,random,snapkv,quest,rocketkv]",
    "budget.tokens=[64,100000]",
    "decode.block_rows=8",
]
EXACT = ["task", "sample", "protocol", "method", "budget_requested", "score", "output", "stop", "kept_tokens"]
CLOSE = ["kl_to_dense", "agree_top1", "bytes_resident", "bytes_read_per_step"]


@pytest.fixture(scope="module")
def config(tiny_model_dir):
    folder = tiny_model_dir("llama", group=3, layers=3)

    def make(run_dir, *more):
        return load([*OVERRIDES, f"model.path={folder}", "model.name=tiny", f"run_dir={run_dir}", *more])

    return make


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run_accuracy(config(folder), Progress)
    return cells(folder)


def cells(folder):
    frame = report.load(folder).cells()
    return frame.sort_values("cell", ignore_index=True)


def assert_same(found, expected):
    assert list(found["cell"]) == list(expected["cell"])
    for column in EXACT:
        assert list(found[column]) == list(expected[column]), column
    assert list(found["output_ids"]) == list(expected["output_ids"])
    for column in CLOSE:
        pd.testing.assert_series_equal(found[column], expected[column], rtol=1e-4, atol=1e-6)


def test_every_cell_has_one_record_with_its_measurements(undisturbed):
    assert len(undisturbed) == 6 * (1 + 4 * 2)
    assert undisturbed["cell"].is_unique
    dense = undisturbed[undisturbed["method"] == "dense"].set_index("sample")
    assert (dense["budget_requested"] == "").all() and not dense["budget_covers_prompt"].any()
    small = undisturbed[undisturbed["budget_requested"] == "64"]
    assert (small[small["method"] == "snapkv"]["kept_tokens"] == 64).all()
    assert (small["bytes_read_per_step"] < dense["bytes_read_per_step"].min()).all()
    assert (small["kl_to_dense"] > 0).all()
    for _, row in undisturbed[undisturbed["budget_requested"] == "100000"].iterrows():
        assert row["budget_covers_prompt"]
        assert row["output_ids"] == dense.loc[row["sample"], "output_ids"]
        assert row["kl_to_dense"] == 0 and row["agree_top1"] == 1
    assert (undisturbed["prompt_tokens"] + 12).between(0.9 * 1024, 1024).all()
    assert set(undisturbed["timing"]) == {"amortised"}


def test_a_finished_run_repeats_no_cell_and_no_prefill_and_says_so(config, tmp_path, monkeypatch, capsys):
    run_accuracy(config(tmp_path, "limit=1"), Progress)
    before = sorted((p.name, p.stat().st_size) for p in tmp_path.glob("cells-*"))
    monkeypatch.setattr(
        "kvbench.experiments.accuracy.run.prefill_for", lambda *_: pytest.fail("nothing was left to do")
    )
    assert "nothing to do" not in capsys.readouterr().out
    run_accuracy(config(tmp_path, "limit=1"), Progress)
    assert sorted((p.name, p.stat().st_size) for p in tmp_path.glob("cells-*")) == before
    assert capsys.readouterr().out == "nothing to do: all 9 cells are done already\n"


def test_a_run_is_extended_by_samples_methods_and_budgets(config, undisturbed, tmp_path):
    run_accuracy(config(tmp_path, "limit=1", "method=[snapkv]", "budget.tokens=[64]"), Progress)
    first = cells(tmp_path)
    assert set(first["method"]) == {"dense", "snapkv"} and len(first) == 2
    run_accuracy(config(tmp_path), Progress)
    assert_same(cells(tmp_path), undisturbed)


def test_what_can_change_a_number_changes_the_cell(config, tmp_path):
    run_accuracy(config(tmp_path, "limit=1", "method=[snapkv]", "budget.tokens=[64]"), Progress)
    for change in (
        "kl=false",
        "decode.block_rows=9",
        "decode.first_token=dense",
        "seeds=[1]",
        "task.max_new_tokens=13",
        "model.system=Be brief.",
        "model.prefill_chunk=512",
        "protocol=[query_agnostic]",
        "method.snapkv.kernel=5",
    ):
        run_accuracy(config(tmp_path, "limit=1", "method=[snapkv]", "budget.tokens=[64]", change), Progress)
    frame = cells(tmp_path)
    assert (frame["method"] == "snapkv").sum() == 10
    # the parameter of snapkv does not change dense
    assert (frame["method"] == "dense").sum() == 9


def test_a_torn_last_line_is_survived(config, undisturbed, tmp_path):
    run_accuracy(config(tmp_path, "limit=2"), Progress)
    (file,) = tmp_path.glob("cells-*.jsonl")
    text = file.read_bytes()
    file.write_bytes(text[: len(text) - 200])
    with pytest.warns(UserWarning, match="torn last line"):
        run_accuracy(config(tmp_path), Progress)
    assert_same(cells(tmp_path), undisturbed)


@pytest.mark.slow  # the kills of test_workers are quicker, and hit any worker
def test_kill_9_at_random_moments_loses_and_repeats_nothing(config, undisturbed, tmp_path):
    cfg = config(tmp_path)
    command = [sys.executable, "-m", "kvbench.cli.main", "run", *cfg.overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    moments = random.Random(5)
    killed = 0
    for _ in range(40):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # start-up takes seconds; kill within the prompt after the first one stored
        stored = _lines(tmp_path)
        while process.poll() is None and _lines(tmp_path) == stored:
            time.sleep(0.02)
        if process.poll() is not None:
            break
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
    assert process.returncode == 0 and killed >= 2
    assert_same(cells(tmp_path), undisturbed)
    lines = [json.loads(line)["cell"] for file in tmp_path.glob("cells-*") for line in file.open()]
    assert sorted(lines) == sorted(undisturbed["cell"])


def _lines(folder):
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("cells-*.jsonl"))


def test_both_protocols_of_a_prompt_run_and_stay_apart(config, tmp_path):
    run_accuracy(config(tmp_path, "limit=1", "protocol=[query_aware,query_agnostic]"), Progress)
    frame = cells(tmp_path)
    dense = frame[frame["method"] == "dense"]
    assert len(dense) == 2 and dense["output"].nunique() == 1
    assert dense.set_index("protocol")["compressed_tokens"].diff().abs().max() > 20


def test_the_command_of_a_record_runs_its_cell_again(undisturbed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    row = undisturbed[(undisturbed["method"] == "snapkv") & (undisturbed["budget_requested"] == "64")].iloc[1]
    program, verb, *words = shlex.split(row["command"])
    assert (program, verb) == ("kvbench", "run")
    cfg = load(words)
    run_accuracy(cfg, Progress)
    again = cells(cfg.run_dir).set_index("cell")
    assert again.loc[row["cell"], "output_ids"] == row["output_ids"]


def test_prompt_and_answer_stay_within_the_sliding_window(config, tmp_path):
    cfg = config(tmp_path)
    loaded = load_model(cfg.model, register_attention())
    assert make_renderer(cfg, loaded).limit == 4096
    loaded.model.config.sliding_window = 1000
    assert make_renderer(cfg, loaded).limit == 1000
    loaded.model.config.use_sliding_window = False
    assert make_renderer(cfg, loaded).limit == 4096


def test_a_gpu_without_memory_for_a_prompt_is_one_line(config, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("kvbench.engine.apart.decode_cells", full)
    with pytest.raises(
        UserError, match=r"model\.prefill_chunk: .* does not fit in memory with \d+; give less"
    ):
        run_accuracy(config(tmp_path, "limit=1"), Progress)


def test_a_batch_that_does_not_fit_is_a_failure_and_the_others_are_timed(config, tmp_path, monkeypatch):
    original = efficiency._measure

    def full_at_four(run, snapshot, last, cell, batch):
        if batch == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(run, snapshot, last, cell, batch)

    monkeypatch.setattr(efficiency, "_measure", full_at_four)
    more = [
        "kind=efficiency",
        "efficiency.batch=[4,1]",
        "efficiency.steps=2",
        "budget.tokens=[64]",
        "limit=1",
    ]
    with pytest.warns(UserWarning, match="failed: .*, dense batch 4: out of memory: CUDA out of memory"):
        failed = efficiency.run_efficiency(config(tmp_path, *more), Progress)
    assert {(row["batch"], row["failure"]) for row in failed} == {(4, "out_of_memory")} and len(failed) == 5
    rows = cells(tmp_path)
    assert set(rows["batch"]) == {1} and len(rows) == 5 and set(rows["step"]) == {"eager"}
    assert (rows["bytes_read_per_step"] > 0).all()


QUESTION = {"context": "The old wall is near the gate.", "question": "What is near?", "answers": ["wall"]}
OTHER = {**QUESTION, "question": "What else is near?"}


def questions(config, folder, lines, *more):
    """Runs a file of these lines in a folder; returns its cells."""
    file = folder / "q.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    own = ["experiment=jsonl", "method=[dense,snapkv]", "budget.tokens=[8]", "task.max_new_tokens=4"]
    cfg = config(folder / "run", *own, "task=[jsonl]", f"task.path={file}", *more)
    run_accuracy(cfg, Progress)
    return cells(folder / "run")


@pytest.fixture
def own_config(tiny_model_dir):
    folder = tiny_model_dir("llama", group=3, layers=3)
    return lambda run_dir, *more: load(
        [f"model.path={folder}", "model.name=tiny", f"run_dir={run_dir}", *more]
    )


def test_a_line_that_a_file_has_three_times_is_three_samples(own_config, tmp_path):
    """In the store, in the statistics, and when a run is taken up again."""
    found = questions(own_config, tmp_path, [QUESTION, OTHER, QUESTION, QUESTION])
    for method in ("dense", "snapkv"):
        assert sorted(found[found["method"] == method]["sample"]) == [0, 1, 2, 3]
    assert (found.groupby("method")["sample_hash"].nunique() == 4).all()
    summary = report.load(tmp_path / "run").summary()
    assert list(summary["n"]) == [4, 4] and summary["n_pairs"].max() == 4
    # equal prompts have equal outputs
    thrice = found[found["sample"] != 1]
    assert (thrice.groupby("method")["output"].nunique() == 1).all()
    # nothing is left to do, and a fourth of its kind is one more
    assert_same(questions(own_config, tmp_path, [QUESTION, OTHER, QUESTION, QUESTION]), found)
    more = questions(own_config, tmp_path, [QUESTION, OTHER, QUESTION, QUESTION, QUESTION])
    assert set(more["cell"]) > set(found["cell"]) and len(more) == 10
    # the first of its kind has the id that it has in a file without repeats
    alone = tmp_path / "alone"
    alone.mkdir()
    assert set(questions(own_config, alone, [QUESTION, OTHER])["cell"]) == set(
        found[found["sample"] < 2]["cell"]
    )


def test_all_lines_are_scored_and_a_limit_takes_the_first(own_config, tmp_path):
    lines = [{**QUESTION, "question": f"What is at {i}?"} for i in range(23)]
    with pytest.warns(UserWarning, match=r"^task\.jsonl\.samples: the first 3 of 23 in the file$"):
        assert len(questions(own_config, tmp_path, lines, "limit=3")) == 2 * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(questions(own_config, tmp_path, lines)) == 2 * 23


@pytest.mark.parametrize("silent", [(), ("config",), ("config", "generation")])
def test_an_answer_ends_with_the_first_token_that_any_file_names(
    silent, own_config, tiny_model_dir, tmp_path
):
    """Config, generation config and tokenizer each name another token, or none."""
    lines, new = [{**QUESTION, "question": f"What is at {i}?"} for i in range(4)], "task.max_new_tokens=24"
    (tmp_path / "free").mkdir()
    free = questions(own_config, tmp_path / "free", lines, new, "decode.ignore_eos=true")
    assert (free["stop"] == "length").all()
    answers = free.set_index(["method", "sample"])["output_ids"]
    said = [token for token, _ in Counter(token for ids in answers for token in ids).most_common()]
    names = {"config": said[3], "generation": said[5], "tokenizer": said[7]}
    names = {file: token for file, token in names.items() if file not in silent}
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir("llama", group=3, layers=3), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for file, key, value in (
        ("config.json", "eos_token_id", names.get("config")),
        ("generation_config.json", "eos_token_id", [names["generation"]] if "generation" in names else None),
        ("tokenizer_config.json", "eos_token", tokenizer.convert_ids_to_tokens(names.get("tokenizer", 256))),
    ):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | {key: value}))
    found = questions(own_config, tmp_path, lines, new, f"model.path={folder}")
    for row in found.itertuples():
        whole = answers[row.method, row.sample]
        ends = [n for n, token in enumerate(whole) if token in names.values()]
        assert row.output_ids == (whole[: ends[0] + 1] if ends else whole)
        assert row.stop == ("eos" if ends else "length")
    assert {"eos"} <= set(found["stop"])


def test_prompts_that_would_share_a_row_are_refused(tiny_model_dir, config, tmp_path):
    for name in ("q", "copy"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(QUESTION))
    (tmp_path / "task").mkdir()
    twin = f"# @package task.twin\nfamily: jsonl\npath: {tmp_path}/copy.jsonl\n"
    (tmp_path / "task" / "twin.yaml").write_text(twin)
    folder = tiny_model_dir("llama", group=3, layers=3)
    words = [f"model.path={folder}", f"run_dir={tmp_path}/run", f"task.jsonl.path={tmp_path}/q.jsonl"]
    words = ["experiment=jsonl", "method=[dense]", "task=[jsonl,twin]", *words]
    with pytest.raises(
        UserError, match=r"task\.twin: twin #0 query_aware is the same prompt as jsonl #0 query_aware"
    ):
        run_accuracy(load(words, [str(tmp_path)]), Progress)
    # the same file under two names is seen before a model is loaded
    with pytest.raises(UserError, match=r"task\.twin: the same as jsonl, leave one of them out"):
        load([*words, f"task.twin.path={tmp_path}/q.jsonl"], [str(tmp_path)])
    # two lengths that are met by the same number of lines
    with pytest.raises(
        UserError, match=r"single_1 10\d\d #0 query_aware is the same prompt as ruler_niah_single_1 10"
    ):
        run_accuracy(config(tmp_path / "run", "task.length=[1024,1025,1026]", "limit=1"), Progress)


def test_short_prompts_count_under_every_maximum_length(own_config, tmp_path):
    found = questions(own_config, tmp_path, [QUESTION, OTHER], "task.length=[0,1000,2000]")
    assert found.groupby(["length", "method"]).size().to_dict() == {
        (length, method): 2 for length in (0, 1000, 2000) for method in ("dense", "snapkv")
    }


def test_a_cut_prompt_is_told(own_config, tmp_path):
    filler = "The lamp is bright. " * 20
    lost = {**QUESTION, "context": f"{filler}The wall is near.{filler}"}
    questions(own_config, tmp_path, [lost, QUESTION], "task.truncate=middle", "task.length=[400]")
    notes = report.load(tmp_path / "run").notes()
    assert (
        "1 of 2 prompts cut in the middle, as task and model demand; the answer is known to be cut out of 1"
        in notes
    )


def test_an_answer_that_cannot_be_scored_in_time_is_a_failure(own_config, tmp_path, monkeypatch):
    """Its pattern is named, and the other prompts have their rows."""

    def search(patterns_of_child, text):
        if "slow" in patterns_of_child[0]:
            raise patterns.ScoreError(f"answers: the pattern {patterns_of_child[0]!r} takes more than 10 s")
        return True

    monkeypatch.setattr(patterns, "_in_child", search)
    lines = [{**QUESTION, "answers": ["(?=x)x"]}, {**OTHER, "answers": ["(?=slow)x"]}]
    with pytest.warns(
        UserWarning, match=r"failed: jsonl #1, dense: .*line 2: answers: the pattern '\(\?=slow\)x'"
    ):
        found = questions(own_config, tmp_path, lines, "task.scorer=regex")
    assert list(found["sample"]) == [0, 0]
    failed = Store(tmp_path / "run").failures()[0]
    assert {(record["sample"], record["stage"]) for record in failed} == {(1, "score")}


def test_kvzip_has_cells_only_where_no_question_is_seen(config, tmp_path):
    words = ["method=[dense,kvzip]", "task.samples=2", "budget.tokens=[64]", "method.kvzip.chunk=300"]
    with pytest.raises(
        UserError, match=r"^method\.kvzip: sees no question; allowed: protocol=query_agnostic$"
    ):
        run_accuracy(config(tmp_path / "aware", *words), Progress)
    with pytest.warns(
        UserWarning, match=r"^method\.kvzip: sees no question, so that it has no cells in query_aware$"
    ):
        run_accuracy(config(tmp_path / "both", *words, "protocol=[query_aware,query_agnostic]"), Progress)
    found = cells(tmp_path / "both")
    counts = found.groupby(["method", "protocol"]).size().to_dict()
    assert counts == {
        ("dense", "query_aware"): 2,
        ("dense", "query_agnostic"): 2,
        ("kvzip", "query_agnostic"): 2,
    }
    kvzip = found[found["method"] == "kvzip"]
    assert (kvzip["kept_tokens"] == 64).all() and (kvzip["kl_to_dense"] > 0).all()
    other = found[(found["method"] == "dense") & (found["protocol"] == "query_agnostic")]
    assert kvzip["compress_s"].min() > other["compress_s"].max()
