"""The ratios of the ablation benchmark, from runs that are made up."""

from dataclasses import replace
from typing import Any

import pytest

from kvbench import accuracy
from kvbench.compose import compose
from kvbench.config import RunConfig, validate
from kvbench.errors import UserError
from kvbench.experiments import bench_ablation
from kvbench.store import Store


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
            }
        )


def test_it_is_forty_cells() -> None:
    cfg = validate(compose(["experiment=bench_ablation"]))
    assert len(cfg.method) * len(cfg.budget.tokens) == 40
    assert cfg.decode.ignore_eos and not cfg.kl and cfg.decode.first_token == "compressed"


def test_ratios_and_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "run_accuracy", fake_run)
    lines = bench_ablation.main(compose(["experiment=bench_ablation"]), None).splitlines()
    assert lines[0].endswith("1 cells    3.00 s = prefill 1.00 + compress 0.00 + decode 2.00")
    assert lines[1].endswith("9 cells    4.50 s = prefill 1.00 + compress 0.50 + decode 3.00")
    assert lines[3:] == ["ablation/dense ratio: 1.50", "ablation/dense ratio with KL: 3.00"]


def test_dense_has_no_rows_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RunConfig] = []

    def watched(cfg: RunConfig, progress: Any) -> None:
        seen.append(cfg)
        fake_run(cfg, progress)

    monkeypatch.setattr(accuracy, "run_accuracy", watched)
    bench_ablation.main(compose(["experiment=bench_ablation"]), None)
    assert {cfg.decode.block_rows for cfg in seen if list(cfg.method) == ["dense"]} == {1}


def test_more_than_one_prompt_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def two_prompts(cfg: RunConfig, progress: Any) -> None:
        for limit in (1, 2):
            fake_run(replace(cfg, limit=limit, method={f"a{limit}": {}}), progress)

    monkeypatch.setattr(accuracy, "run_accuracy", two_prompts)
    with pytest.raises(UserError, match="one prompt"):
        bench_ablation.main(compose(["experiment=bench_ablation"]), None)
