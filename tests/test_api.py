"""The public API: what a notebook does."""

import subprocess
import sys

import pytest

import kvbench
from kvbench import api
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


def test_settings_are_keywords_too(monkeypatch):
    composed = []
    monkeypatch.setattr(api, "run_experiment", lambda config, progress: composed.append(config))
    monkeypatch.setattr(api, "load", lambda folder: folder)
    kvbench.run(
        "quickstart",
        {"budget.tokens": [64]},
        method=["snapkv"],
        limit=2,
        kl=False,
        variants={"a": {"method": "h2o"}},
    )
    (config,) = composed
    assert list(config.data["method"]) == ["snapkv"] and config.data["limit"] == 2
    assert config.data["budget"]["tokens"] == [64] and config.data["kl"] is False
    assert config.data["variants"] == {"a": {"method": "h2o"}}


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (["quickstart", "limit=2"], {}, "overrides: 'limit=2' is one string; give a list of them, or a mapping"),
        (["quickstart"], {"method": {1, 2}}, "method: {1, 2} is not a number, text, list or set of keys"),
        (["quickstart"], {"methods": ["snapkv"]}, "methods: there is no key 'methods' (did you mean method?)"),
        ([["limit=2"]], {}, "experiment: ['limit=2'] is not a name, as 'quickstart'"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(arguments, settings, message):
    with pytest.raises(UserError) as error:
        kvbench.run(*arguments, **settings)
    assert str(error.value).startswith(message)


def test_mistakes_are_user_errors():
    with pytest.raises(UserError, match="quikstart"):
        kvbench.run("quikstart")
    with pytest.raises(UserError, match="no-such-run"):
        kvbench.load("no-such-run")


def test_importing_kvbench_imports_nothing_heavy():
    code = "import sys, kvbench; print(sorted({'torch', 'pandas', 'transformers'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
