"""The committed vLLM rows keep their ids: with them in the run's folder, the same command measures nothing."""

import json
from pathlib import Path

import pytest

from kvbench.config.compose import compose
from kvbench.experiments import run
from kvbench.vllm import environment
from kvbench.vllm.environment import Environment

RESULTS = Path(__file__).parents[2] / "results" / "vllm"
# setups with calibrated scales are left out: they need a checkpoint made from the model's weights
UNSCALED = "setups={auto: {kv_cache_dtype: auto}, fp8_e4m3: {kv_cache_dtype: fp8_e4m3}}"


class NothingToMeasure:
    """Progress of a run that has nothing left to measure."""

    def __init__(self, cells: int, prompts: int) -> None:
        assert (cells, prompts) == (0, 0)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass


@pytest.mark.parametrize("folder", ["fp8", "load", "rag", "prefix_caching"])
def test_committed_rows_are_not_measured_again(folder, tmp_path, monkeypatch):
    if folder == "rag":
        pytest.importorskip("langgraph")
    lines = (RESULTS / folder / "cells.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "cell" in row]
    versions = next(row["versions"] for row in rows if "versions" in row)
    found = Environment(tmp_path / "python", versions, tmp_path)
    monkeypatch.setattr(environment, "find", lambda _: found)
    monkeypatch.setattr(environment, "features", lambda: {"avx512f"})
    (tmp_path / "cells-committed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [f"experiment=vllm_{folder}", f"serving.python={tmp_path}", f"run_dir={tmp_path}"]
    text = run(compose([*overrides, *([UNSCALED] if folder == "fp8" else [])]), NothingToMeasure)
    committed = table_lines((RESULTS / folder / "table.md").read_text())
    assert table_lines(text) and table_lines(text) <= committed


def table_lines(text: str) -> set[str]:
    """The body lines of all tables, without the padding of columns."""
    return {" ".join(line.split()) for line in text.splitlines() if line.startswith("| ")}
