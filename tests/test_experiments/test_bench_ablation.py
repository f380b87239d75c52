"""Ratios of the ablation benchmark, from made-up runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kvbench
from kvbench.config.compose import Composed, compose
from kvbench.config.errors import UserError
from kvbench.experiments import bench_ablation
from kvbench.experiments.accuracy import run as accuracy
from kvbench.runs.config import RunConfig, validate
from kvbench.runs.store import Store


def fake_run(cfg: RunConfig, progress: Any) -> None:
    """32 steps; dense alone takes 1 + 2 s, an ablation 1 + 0.5 + 3 s, with KL 4.5 s more."""
    methods = ["dense", *cfg.method] if "dense" not in cfg.method else list(cfg.method)
    decode = (2 if len(methods) == 1 else 3) + (4.5 if cfg.kl else 0)
    cells = len(methods)
    for name in methods:
        Store(cfg.run_dir).append(
            {
                "cell": name,
                "sample_hash": str(cfg.limit),
                "protocol": "query_aware",
                "prefill_s": 1.0,
                "compress_s": 0.0 if cells == 1 else 0.5 / cells,
                "decode_ms_per_token": 1000 * decode / 32 / cells,
                "output_ids": list(range(32)),
                "device": "a CPU",
            }
        )


def test_it_is_forty_cells() -> None:
    cfg = validate(compose(["experiment=bench_ablation"]))
    assert len(cfg.method) * len(cfg.budget.tokens) == 40
    assert cfg.decode.ignore_eos and not cfg.kl and cfg.decode.first_token == "compressed"


def composed(tmp_path: Path) -> Composed:
    return compose(["experiment=bench_ablation", f"run_dir={tmp_path}"])


def test_ratios_and_stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(accuracy, "run_accuracy", fake_run)
    lines = bench_ablation.main(composed(tmp_path), None).splitlines()
    assert lines[0].endswith("1 cell    3.00 s = prefill 1.00 + compress 0.00 + decode 2.00")
    assert lines[1].endswith("9 cells    4.50 s = prefill 1.00 + compress 0.50 + decode 3.00")
    assert lines[3:5] == ["ablation/dense ratio: 1.50", "ablation/dense ratio with KL: 3.00"]
    assert lines[5:] == [f"written to {tmp_path}"]


def test_from_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(accuracy, "run_accuracy", fake_run)
    run = kvbench.run("bench_ablation", {"run_dir": str(tmp_path)})
    assert run.frame("stages")["of_dense"].tolist() == [1.0, 1.5, 3.0]
    assert "smollm2_135m on a CPU" in run.table() and "1.50" in run.table().splitlines()[-2]
    assert not list(tmp_path.glob("cells-*"))


def test_more_than_one_prompt_is_a_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def two_prompts(cfg: RunConfig, progress: Any) -> None:
        for limit in (1, 2):
            fake_run(replace(cfg, limit=limit, method={f"a{limit}": {}}), progress)

    monkeypatch.setattr(accuracy, "run_accuracy", two_prompts)
    with pytest.raises(UserError, match="one prompt"):
        bench_ablation.main(composed(tmp_path), None)
