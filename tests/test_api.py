"""The public API: what a notebook does."""

import subprocess
import sys

import pytest

import kvbench
from kvbench.config.errors import UserError


def test_run_and_load(tiny_model_dir, tmp_path):
    overrides = {
        "task": ["ruler_niah_single_1"],
        "task.length": [1024],
        "task.max_new_tokens": 8,
        "task.wording": "own",
        "method": ["snapkv"],
        "budget.tokens": [64],
        "limit": 2,
        "kl": False,
        "model.path": str(tiny_model_dir("llama")),
        "model.system": "Be brief, please.",
        "decode.block_rows": 4,
        "run_dir": str(tmp_path / "a run"),
    }
    run = kvbench.run("quickstart", overrides)
    assert len(run.cells()) == 4
    summary = run.summary()
    assert set(summary["method"]) == {"dense", "snapkv"} and (summary["n"] == 2).all()
    assert kvbench.load(tmp_path / "a run").cells()["cell"].tolist() == run.cells()["cell"].tolist()
    assert run.plot("score_vs_read").axes


def test_mistakes_are_user_errors():
    with pytest.raises(UserError, match="quikstart"):
        kvbench.run("quikstart")
    with pytest.raises(UserError, match="no-such-run"):
        kvbench.load("no-such-run")


def test_importing_kvbench_imports_nothing_heavy():
    code = "import sys, kvbench; print(sorted({'torch', 'pandas', 'transformers'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
