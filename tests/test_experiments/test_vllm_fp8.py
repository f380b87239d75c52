"""The experiment `vllm_fp8` from its configuration to its table, on fake servers."""

import json
import math
import os

import pytest

from kvbench.config.errors import UserError
from kvbench.experiments.vllm_fp8 import logprob_kl
from kvbench.experiments.vllm_fp8 import report as fp8_report
from kvbench.runs.store import Store
from kvbench.vllm.servers import CPU_FP8

SMALL = (
    "task=[ruler_niah_single_1]",
    "task.wording=own",
    "task.length=[1024]",
    "task.max_new_tokens=6",
    "limit=2",
    "load.rate=50",
    "~setups.fp8_e5m2_scales",
    "~setups.fp8_e5m2",
)
SETUPS = ["auto", "fp8_e4m3", "fp8_e4m3_scales"]


@pytest.fixture(scope="module")
def ran(experiment, run_dir, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        text, started = experiment("vllm_fp8", *SMALL, f"run_dir={run_dir}")
        again, restarted = experiment("vllm_fp8", *SMALL, f"run_dir={run_dir}")
    assert started == SETUPS and restarted == []
    assert again == text
    return text, Store(run_dir).scan()[0]


def answers(rows, setup):
    return [row for row in rows if row["row"] == "answer" and row["setup"] == setup]


def test_every_setup_answers_the_same_prompts_cold(ran):
    _, rows = ran
    hashes = {frozenset(row["sample_hash"] for row in answers(rows, setup)) for setup in SETUPS}
    assert len(hashes) == 1 and len(hashes.pop()) == 2
    assert all(row["cached_tokens"] == 0 for row in rows if row["row"] == "answer")
    assert all(row["output_tokens"] == 6 and row["ttft_s"] > 0 for row in rows if row["row"] == "answer")


def test_distances_are_those_of_the_fake_distributions(ran):
    """The fake server's distributions are geometric, with spread 1 unquantised and 1.2 in FP8."""

    def top(spread):
        total = math.log(sum(math.exp(-n / spread) for n in range(1000)))
        return {n: -n / spread - total for n in range(20)}

    kl, covered = logprob_kl.kl_bound(top(1.0), top(1.2))
    _, rows = ran
    for row in answers(rows, "fp8_e4m3"):
        assert row["prompt_kl"] == pytest.approx(kl) and row["answer_kl"] == pytest.approx(kl)
        assert row["answer_covered"] == pytest.approx(covered)
        assert row["answer_positions"] == row["reference_tokens"] == row["same_tokens"] == 6
        assert row["prompt_positions"] == row["prompt_tokens"] - 1
        assert row["answer_top1"] == 1
    assert all(row["prompt_kl"] == 0 for row in answers(rows, "auto"))


def test_capacity_and_note(ran):
    text, rows = ran
    facts = {row["setup"]: row for row in rows if row["row"] == "setup"}
    assert [facts[setup]["capacity"]["tokens"] for setup in SETUPS] == [11_648, 46_592, 46_592]
    assert [facts[setup]["note"] for setup in SETUPS] == ["", CPU_FP8, CPU_FP8]
    (line,) = [line for line in text.splitlines() if line.startswith("| fp8_e4m3 ") and "46,592" in line]
    assert "| 4.00x" in line and CPU_FP8 in line
    assert f"- **{CPU_FP8}**" in text.split("###")[0]
    assert CPU_FP8 not in next(line for line in text.splitlines() if line.startswith("| auto "))


def test_the_turns_of_a_conversation_are_one_sample(ran):
    rows = [
        row | {"score": float(row["setup"] == "auto"), "meta": {"conversation": 0, "turn": row["sample"]}}
        for row in ran[1]
        if row["row"] == "answer"
    ]
    apart = [row | {"meta": {}} for row in rows]
    found = []
    for answers_of in (rows, apart):
        table = fp8_report.quality(answers_of, SETUPS, "auto", "cpu")
        cells = [dict(zip(table.header, line, strict=True)) for line in table.rows]
        found.append([line["ruler_niah_single_1 1024"] for line in cells])
        assert {line["cut"] for line in cells} == {"2/2"}
    # one sample: centre 3/5, variance 0.24; its loss: centre -1/3, variance 8/9
    assert found[0][:2] == ["1.00 [0.17, 1.00]", "0.00 [0.00, 0.83] (-1.00 [-1.00, +0.73])"]
    # two samples
    assert found[1][0] == "1.00 [0.29, 1.00]"


def test_client_and_server_count_the_same_load(ran):
    _, rows = ran
    loads = [row for row in rows if row["row"] == "load"]
    assert len(loads) == 3
    for row in loads:
        assert (row["requests"], row["failed"], row["output_tokens"], row["errors"]) == (2, 0, 12, [])
        assert row["server_prompt_tokens"] == row["prompt_tokens"]
        assert row["server_prefix_hits"] == row["cached_tokens"]
        assert row["server_restarted"] is False


def test_the_served_checkpoint_has_scales(ran, run_dir):
    log = (run_dir / "logs" / "fp8_e4m3_scales.log").read_text()
    assert "Traceback" not in log
    setup = next(row for row in ran[1] if row["setup"] == "fp8_e4m3_scales" and row["row"] == "setup")
    assert setup["scales"] is True


def test_more_samples_extend_a_run(experiment, run_dir, ran):
    before = {row["cell"] for row in ran[1]}
    _, started = experiment("vllm_fp8", *SMALL, "limit=3", "setups={auto: {}}", f"run_dir={run_dir}")
    assert started == ["auto"]
    added = [row for row in Store(run_dir).scan()[0] if row["cell"] not in before]
    assert sorted(row["row"] for row in added) == ["answer", "load"]


def test_a_dtype_that_a_cpu_does_not_support_is_rejected_before_the_start(experiment, tmp_path):
    with pytest.raises(UserError, match=r"serving\.kv_cache_dtype: nvfp4 is not allowed on cpu"):
        experiment("vllm_fp8", *SMALL, "setups={auto: {}, b: {kv_cache_dtype: nvfp4}}", f"run_dir={tmp_path}")
    assert not os.listdir(tmp_path)


def test_a_server_that_does_not_start_is_a_row_and_the_others_are_measured(experiment, tmp_path):
    setups = "setups={auto: {}, odd: {flags: [--fail]}, fp8: {kv_cache_dtype: fp8}}"
    text, started = experiment("vllm_fp8", *SMALL, "limit=1", setups, f"run_dir={tmp_path}")
    assert started == ["auto", "odd", "fp8"]
    assert "### Refused by vLLM\n\n- odd: vLLM did not start: ValueError: no room" in text
    # the next run tries it again
    assert experiment("vllm_fp8", *SMALL, "limit=1", setups, f"run_dir={tmp_path}")[1] == ["odd"]


def test_the_reference_must_start(experiment, tmp_path):
    with pytest.raises(UserError, match="vLLM did not start: ValueError: no room"):
        experiment("vllm_fp8", *SMALL, "setups={auto: {flags: [--fail]}}", f"run_dir={tmp_path}")


def test_cpu_and_gpu_rows_are_in_separate_tables(ran, tmp_path):
    _, rows = ran
    twin = json.loads(json.dumps(rows))
    for row in twin:
        row |= {"device": "cuda", "note": "", "setup": f"gpu_{row['setup']}"}
    order = [*SETUPS, *(f"gpu_{setup}" for setup in SETUPS)]
    text = fp8_report.write_report(tmp_path, [*rows, *twin], order).read_text()
    tables = text.split("### ")[1:]
    assert [part.partition("\n")[0] for part in tables] == [
        "Capacity and quality: cpu", "Latency: cpu", "Capacity and quality: cuda", "Latency: cuda",
    ]  # fmt: skip
    for part in tables:
        assert ("gpu_" in part) != (CPU_FP8 in part)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("top=0", "top: 0 is not allowed"),
        ("calibration.seed=0", "calibration.seed: 0 is among the seeds that are scored"),
        ("load.rate=0", "load.rate: 0"),
        ("task=[]", "task: empty"),
        (
            "serving.base_url=http://127.0.0.1:9",
            "serving.base_url: one running server cannot be several setups",
        ),
    ],
)
def test_mistakes_name_their_key(experiment, override, message):
    with pytest.raises(UserError, match=message):
        experiment("vllm_fp8", override)
