"""The experiment `vllm_vs_compression`: both sides on the same prompts, in one table."""

import pytest

from kvbench.config.errors import UserError
from kvbench.experiments.vllm_vs_compression import report as versus_report
from kvbench.runs.store import Store
from kvbench.vllm.servers import CPU_FP8

SMALL = (
    "task=[ruler_niah_single_1]",
    "task.wording=own",
    "task.length=[700]",
    "task.max_new_tokens=4",
    "limit=2",
    "budget.tokens=[64]",
    "efficiency.warmup=1",
    "efficiency.steps=2",
    "serving.kv_cache_mib=512",
)


@pytest.fixture(scope="module")
def ran(experiment, run_dir):
    text, _ = experiment("vllm_vs_compression", *SMALL, f"run_dir={run_dir}")
    return text, run_dir


def lines(text):
    found = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0].removeprefix("| ").strip(): [cell.strip(" |") for cell in cells] for cells in found}


def test_all_rows_are_there(ran):
    assert list(lines(ran[0])) == [
        "method", "dense", "snapkv 64", "chunkkv 64", "rocketkv 64", "rocketkv_fp8 64",
        "vLLM auto", "vLLM prefix caching", "vLLM fp8_e4m3",
    ]  # fmt: skip


def test_capacity_is_marked_as_measured_or_modelled(ran):
    table = lines(ran[0])
    tokens, how = table["method"].index("tokens in 512 MiB"), table["method"].index("tokens in 512 MiB") + 1
    assert [table[name][how] for name in ("dense", "vLLM auto")] == ["modelled", "measured"]
    assert table["vLLM auto"][tokens] == "11,648" and table["vLLM fp8_e4m3"][tokens] == "46,592"
    # K and V of 3 layers and 2 KV heads of 16 channels, float32
    assert table["dense"][tokens - 1] == f"{2 * 3 * 2 * 16 * 4:,}"
    assert table["dense"][tokens] == f"{(512 << 20) // 768:,}"


def test_the_turns_of_a_conversation_are_one_sample(ran):
    rows = [row for row in Store(ran[1]).scan()[0] if row["row"] == "answer" and row["setup"] == "auto"]
    rows = [row | {"score": 1.0} for row in rows]
    setups = [row for row in Store(ran[1]).scan()[0] if row["row"] == "setup"]
    turns = [row | {"meta": {"conversation": 0, "turn": row["sample"]}} for row in rows]
    for answers, samples in ((rows, 2), (turns, 1)):
        (line, _) = versus_report.vllm([*setups, *answers], ["auto"], [])
        assert [len(scores) for scores in line.scores.values()] == [samples]
        assert line.cut == "2/2"


def test_warm_answers_are_those_of_the_first_server(ran):
    text, folder = ran
    rows = [row for row in Store(folder).scan()[0] if row["row"] == "answer"]
    assert all(row["cached_tokens"] == 0 and row["warm_same"] for row in rows)
    # all whole blocks of 32 except one that ends the prompt
    assert all(row["warm_cached_tokens"] == (row["prompt_tokens"] - 1) // 32 * 32 for row in rows)
    assert "of tokens found, answers as cold" in lines(text)["vLLM prefix caching"][-1]


def test_the_first_server_is_compared_with_dense_text_for_text(ran):
    text, folder = ran
    dense = {
        row["sample_hash"]: row["output"]
        for row in Store(folder / "accuracy").scan()[0]
        if row["method"] == "dense"
    }
    served = [row for row in Store(folder).scan()[0] if row["row"] == "answer" and row["setup"] == "auto"]
    same = sum(row["output"] == dense[row["sample_hash"]] for row in served)
    # the fake server has no real model
    assert same < 2 and lines(text)["vLLM auto"][-1] == f"{same} of 2 answers are dense's of kvbench"
    accuracy = [{**row, "method": "dense"} for row in served]
    (line, _) = versus_report.vllm(Store(folder).scan()[0], ["auto"], accuracy)
    assert line.note == "2 of 2 answers are dense's of kvbench"


def test_fp8_on_a_cpu_is_marked(ran):
    text, _ = ran
    assert lines(text)["vLLM fp8_e4m3"][-1] == CPU_FP8
    assert lines(text)["rocketkv_fp8 64"][-1] == ""
    assert text.index(CPU_FP8) < text.index("###")


def test_each_engine_is_compared_with_its_own_dense(ran):
    table = lines(ran[0])
    for place in (number for number, name in enumerate(table["method"]) if name == "of dense"):
        assert table["dense"][place] == table["vLLM auto"][place] == "1.00x"


def test_different_prompts_are_an_error(ran, tmp_path):
    _, folder = ran
    accuracy = Store(folder / "accuracy").scan()[0]
    served = [
        row | {"sample_hash": "other"} if row["row"] == "answer" else row for row in Store(folder).scan()[0]
    ]
    with pytest.raises(UserError, match="kvbench answered 2 prompts and vLLM 1, 0 in common"):
        versus_report.write_report(tmp_path, accuracy, [], served, ["auto"], 1 << 20)


def test_a_gpu_server_and_a_cpu_run_do_not_share_a_table(ran, tmp_path):
    _, folder = ran
    accuracy = Store(folder / "accuracy").scan()[0]
    served = [row | {"device": "cuda", "note": ""} for row in Store(folder).scan()[0]]
    text = versus_report.write_report(
        tmp_path, accuracy, [], served, ["auto", "fp8_e4m3"], 1 << 20
    ).read_text()
    cpu, cuda = text.split("### ")[1:]
    assert "| dense" in cpu and "| vLLM" not in cpu
    assert "| dense" not in cuda and "| vLLM auto" in cuda


def test_only_query_aware_prompts_are_allowed(experiment, tmp_path):
    with pytest.raises(UserError, match=r"protocol: .* allowed: \[query_aware\]"):
        experiment("vllm_vs_compression", *SMALL, "protocol=[query_agnostic]", f"run_dir={tmp_path}")
