"""Turns of a conversation: methods that keep the first turn's cache, and methods that filter again."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from kvbench import report, tasks
from kvbench.config.errors import UserError
from kvbench.engine.attention import register_attention
from kvbench.engine.decode import DecodeOptions, decode_cells
from kvbench.engine.prefill import prefill
from kvbench.experiments.accuracy.run import run_accuracy
from kvbench.experiments.efficiency.run import run_efficiency
from kvbench.methods import Budget, Shape, build, registry
from kvbench.models.load import load_model
from kvbench.runs.config import load
from kvbench.runs.context import make_renderer
from kvbench.runs.plan import _Entry
from kvbench.runs.progress import Progress

OVERRIDES = [
    "experiment=quickstart",
    "task=[niah_turns]",
    "task.length=[2048]",
    "task.samples=4",
    "task.max_new_tokens=8",
    "task.wording=own",
    "method=[dense,snapkv,h2o,rocketkv,rocketkv_mt,topk_oracle,static_oracle]",
    # longer than a later turn
    "method.rocketkv.window=190",
    "method.rocketkv_mt.window=190",
    "budget.tokens=[200]",
    "decode.block_rows=16",
    "decode.ignore_eos=true",
]


@pytest.fixture(scope="module")
def config(tiny_model_dir):
    folder = tiny_model_dir("llama", group=3, layers=3)

    def make(run_dir, *more):
        return load([*OVERRIDES, f"model.path={folder}", "model.name=tiny", f"run_dir={run_dir}", *more])

    return make


@pytest.fixture(scope="module")
def frame(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversation")
    run_accuracy(config(folder), Progress)
    return report.load(folder).cells()


def test_every_turn_has_a_row_per_method(frame):
    assert len(frame) == 4 * 7 and frame["cell"].is_unique
    assert sorted({meta["turn"] for meta in frame["meta"]}) == [0, 1, 2, 3]
    assert set(frame["kl_tokens"]) == {8}


def turns(frame, method):
    return frame[frame["method"] == method].sort_values("sample").to_dict("records")


def test_later_turns_keep_the_cache_of_the_first(frame):
    for method in ("snapkv", "h2o", "static_oracle", "rocketkv"):
        rows = turns(frame, method)
        assert len({row["kept_tokens"] for row in rows}) == 1
        assert len({row["compressed_tokens"] for row in rows}) == 1
    assert {row["kept_tokens"] for row in turns(frame, "snapkv")} == {200}
    # a rolling cache does not grow
    assert len({row["bytes_resident_end"] for row in turns(frame, "h2o")}) == 1
    ends = [row["bytes_resident_end"] for row in turns(frame, "snapkv")]
    assert ends == sorted(set(ends))


def test_rocketkv_mt_stores_everything_and_filters_the_same_number_at_every_turn(frame):
    rows, plain = turns(frame, "rocketkv_mt"), turns(frame, "rocketkv")
    lengths = [row["prompt_tokens"] - 1 for row in rows]
    assert [row["kept_tokens"] for row in rows] == lengths == [row["compressed_tokens"] for row in rows]
    assert lengths == sorted(set(lengths))
    # in addition to the stored conversation, the filtered tokens take as many bytes as in the first turn
    slot = 2 * 2 * 16 * 4 * 3
    filtered = {row["bytes_resident"] - slot * (row["prompt_tokens"] - 1) for row in rows}
    assert filtered == {plain[0]["bytes_resident"]}
    # only the first turn equals RocketKV's
    assert rows[0]["output_ids"] == plain[0]["output_ids"]
    assert rows[0]["kl_to_dense"] == pytest.approx(plain[0]["kl_to_dense"], abs=1e-4)


@pytest.fixture(scope="module")
def model_and_prompts(config, tmp_path_factory):
    """The model, and the prompts of the four turns."""
    cfg = config(tmp_path_factory.mktemp("unused"))
    loaded = load_model(cfg.model, register_attention())
    renderer = make_renderer(cfg, loaded)
    samples = tasks.build("niah_turns", cfg.task["niah_turns"]).samples(4, 0, 2048, renderer)
    return loaded.model, [renderer.render(sample).ids for sample in samples]


def test_dense_continues_the_conversation_as_an_eager_model(frame, model_and_prompts):
    model, prompts = model_and_prompts
    twin = AutoModelForCausalLM.from_pretrained(model.name_or_path, attn_implementation="eager").eval()
    for ids, row in zip(prompts, turns(frame, "dense"), strict=True):
        with torch.inference_mode():
            cache, fed, out = DynamicCache(), torch.tensor([ids]), []
            for _ in range(8):
                token = int(twin(input_ids=fed, past_key_values=cache).logits[0, -1].argmax())
                out.append(token)
                fed = torch.tensor([[token]])
        assert row["output_ids"] == out


def test_rocketkv_mt_of_a_turn_is_rocketkv_of_the_whole_conversation_at_the_first_turns_sizes(
    frame, model_and_prompts
):
    model, prompts = model_and_prompts
    shape = Shape(len(prompts[0]) - 1, 8, 3, 16, fed=1)
    cell = build({"method": "rocketkv", "window": 190}).resolve(shape, Budget(tokens=200))
    before = [0, *(len(ids) for ids in prompts)]
    for start, ids, row in zip(before, prompts, turns(frame, "rocketkv_mt"), strict=False):
        # only the queries of the turn observe, and only they are always kept
        turn = len(ids) - 1 - start
        assert not start or turn < 190
        snapshot = prefill(model, ids[:-1], min(190, turn))
        cell = replace(cell, eviction=replace(cell.eviction, window=min(190, turn)))
        result = decode_cells(model, snapshot, [], ids[-1], [cell], DecodeOptions(8, batch_rows=16))
        assert result.cells[0].ids == row["output_ids"]
        assert result.cells[0].kl == pytest.approx(row["kl_to_dense"], rel=1e-3, abs=1e-5)
        assert result.cells[0].read == pytest.approx(row["bytes_read_per_step"])


def test_covered_budgets_are_dense_in_every_turn(config, tmp_path):
    run_accuracy(config(tmp_path, "budget.tokens=[100000]", "kl=false", "limit=2"), Progress)
    rows = report.load(tmp_path).cells()
    for _, turn in rows.groupby("sample"):
        assert turn["output"].nunique() == 1 and len(turn) == 7


def test_a_budget_that_covers_the_first_turn_only_is_kept_in_later_ones(frame, config, tmp_path):
    first = turns(frame, "snapkv")[0]["compressed_tokens"]
    more = [f"budget.tokens=[{first + 8}]", "method=[h2o,quest,rocketkv,rocketkv_mt,snapkv]", "kl=false"]
    run_accuracy(config(tmp_path, *more), Progress)
    rows = report.load(tmp_path).cells()
    slot = 2 * 2 * 16 * 4 * 3
    for method in ("h2o", "quest", "rocketkv_mt"):
        assert [row["budget_covers_prompt"] for row in turns(rows, method)] == [True, False, False, False]
    later = {method: turns(rows, method)[1:] for method in ("h2o", "quest", "rocketkv_mt", "snapkv")}
    sums = (first + 8) * 2 * 4 * 3
    assert {row["bytes_resident_end"] for row in later["h2o"]} == {(first + 8) * slot + sums}
    for row, kept in zip(later["quest"], later["snapkv"], strict=True):
        assert row["bytes_read_per_step"] < kept["bytes_read_per_step"]
    # there is nothing to evict after the first turn: the result is dense
    assert all(row["budget_covers_prompt"] for row in later["snapkv"])


def test_first_token_from_prefill_in_the_first_turn(config, tmp_path):
    more = ["decode.first_token=dense", "limit=2", "method=[dense,snapkv,rocketkv,rocketkv_mt]", "kl=false"]
    run_accuracy(config(tmp_path, *more), Progress)
    rows = report.load(tmp_path).cells()
    firsts = [turn["output_ids"].str[0].nunique() for _, turn in rows.groupby("sample")]
    assert firsts[0] == 1
    lengths = {
        row["method"]: row["compressed_tokens"] for row in rows[rows["sample"] == 1].to_dict("records")
    }
    assert lengths["snapkv"] == lengths["dense"] < lengths["rocketkv_mt"]


def test_efficiency_runs_refuse_methods_that_need_the_answer(config, tmp_path):
    with pytest.raises(UserError, match="method: static_oracle needs the answer in advance"):
        run_efficiency(config(tmp_path, "limit=1"), Progress)


def test_a_conversation_is_query_aware(config, tmp_path):
    with pytest.raises(UserError, match="protocol: query_agnostic is not for task niah_turns"):
        run_accuracy(config(tmp_path, "protocol=query_agnostic"), Progress)


def test_only_rocketkv_mt_filters_in_every_turn():
    filtering = {name for name, cls in registry().items() if getattr(cls(), "on_turn", "keep") == "filter"}
    assert filtering == {"rocketkv_mt"}


@pytest.mark.parametrize(("name", "ids"), [("rocketkv_mt", 3), ("rocketkv", 1), ("snapkv", 1)])
def test_the_id_of_a_cell_that_filters_depends_on_where_the_turn_begins(name, ids):
    entry = _Entry(name, build({"method": name}), Budget(tokens=200), {}, None)
    assert len({entry.cell({"prompt": "p"}, start).id for start in (None, 10, 12)}) == ids
