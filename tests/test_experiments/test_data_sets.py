"""Published data sets end to end on made-up rows: loader, prompt, run, score, metrics, page."""

import json

import pytest

from kvbench import experiments, report
from kvbench.config.compose import compose
from kvbench.runs.progress import Progress
from kvbench.tasks import registry
from kvbench.tasks.dataset import DataSet

# option, more overrides, protocols
RUNS = {
    "longbench_qasper": ([], "query_aware,query_agnostic"),
    "longbench_trec": (["task.max_length=300"], "query_aware,query_agnostic"),
    "longbench_lcc": (["task.extended=true"], "query_aware"),
}


def write_rows(folder, option: str, more: list[str]) -> None:
    family = option.split("_")[0]
    cls = registry()[family]
    name = option.removeprefix(f"{family}_")
    config = cls(**({"name": name} if name != option else {}), data="-")
    assert isinstance(config, DataSet)
    stem = (config.data_name or option) + ("_e" if "task.extended=true" in more else "")
    lines = (json.dumps(row, ensure_ascii=False) for row in config.examples(3, 60))
    (folder / f"{stem}.jsonl").write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("option", RUNS)
def test_a_data_set_runs_from_rows_to_page(tmp_path, tiny_model_dir, option):
    more, protocols = RUNS[option]
    write_rows(tmp_path, option, more)
    run_dir = tmp_path / "run"
    overrides = [
        "experiment=jsonl", f"task=[{option}]", f"task.data={tmp_path}", "task.max_new_tokens=4", *more,
        f"protocol=[{protocols}]", "method=[dense,snapkv,chunkkv,rocketkv]", "budget.tokens=[64]",
        "decode.block_rows=7", f"model.path={tiny_model_dir()}", "model.name=tiny", "model.dtype=float32",
        f"run_dir={run_dir}", "limit=2",
    ]  # fmt: skip
    experiments.run(compose(overrides), Progress)
    run = report.load(run_dir)
    records = run.records
    assert len(records) == 2 * 4 * len(protocols.split(","))
    for record in records:
        assert record["scores"][record["metric"]] == record["score"]
        assert record["data"].endswith(".jsonl")
        cut = record["compressed_tokens"] < record["prompt_tokens"] - 1
        assert cut == (record["protocol"] == "query_agnostic")
    assert {record["kept_tokens"] for record in records if record["method"] == "snapkv"} == {64}
    metrics = run.metrics()
    assert {"dense", "snapkv", "chunkkv", "rocketkv"} == set(metrics["method"])
    assert (run_dir / "metrics.csv").is_file() and "Further metrics" in (run_dir / "report.html").read_text()
    # the same command finds everything done
    experiments.run(compose(overrides), Progress)
    assert len(report.load(run_dir).records) == len(records)
