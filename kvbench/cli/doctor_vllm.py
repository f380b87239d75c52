"""`kvbench doctor --vllm`: the installed vLLM, and whether the article's command line works with it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from kvbench.config.cpuinfo import features
from kvbench.vllm import environment
from kvbench.vllm.config import KV_DTYPES, ServerConfig
from kvbench.vllm.environment import FP8_CPU, Environment
from kvbench.vllm.errors import ServingError
from kvbench.vllm.launcher import THIRD_PARTY

# command line of the article that the project started from: vLLM with an FP8 KV cache and prefix caching
ARTICLE = (
    "vllm serve meta-llama/Llama-3.1-8B-Instruct --kv-cache-dtype fp8 --calculate-kv-scales"
    " --enable-prefix-caching --max-model-len 131072 --gpu-memory-utilization 0.9"
)
# 32 layers, 8 KV heads of 128 channels, K and V, one byte each
LLAMA_FP8_BYTES = 2 * 32 * 8 * 128
NOTES = {
    "--kv-cache-dtype": "fp8 means e4m3, with scale 1.0 unless the checkpoint holds calibrated scales. On GPUs below"
    " SM 8.9 (A100) only FlashInfer supports it: it saves memory, but computes nothing in FP8",
    "--enable-prefix-caching": "on by default",
    "--max-model-len": f"one request of this length takes {131072 * LLAMA_FP8_BYTES / 2**30:.0f} GiB of FP8 KV cache,"
    f" twice that in bf16 ({LLAMA_FP8_BYTES // 1024} KiB per token, computed)",
}
SCALES = "--calculate-kv-scales"
REMOVED = (
    f"the server ends at once with 'unrecognized arguments: {SCALES}', the Python class with 'EngineArgs.__init__()"
    " got an unexpected keyword argument'. vLLM deprecated the flag (pull request 37201) and removed it (49389): the"
    " wheel of 0.26.0 has it, that of 0.28.0 does not. Leave it out: the scales are then 1.0; calibrated ones go into"
    " the checkpoint (experiment=vllm_fp8 writes them)"
)


def report(python: str = ServerConfig.python) -> str:
    """The text of `kvbench doctor --vllm`.

    Args:
        python: the Python of vLLM's environment.
    """
    try:
        env = environment.find(python)
        flags = env.engine_flags
    except ServingError as error:
        env, flags = None, None
        facts = [("vllm", f"none: {error}")]
    else:
        facts = [("vllm", _installed(env)), ("device", _device(env)), ("entry", _entry(env))]
    lines = [f"{name:<9} {text}" for name, text in facts]
    return "\n".join([*lines, "", *_article(env, flags)])


def flags_in(command: str) -> dict[str, str | None]:
    """The flags of a command line with their values; None for flags without a value."""
    words = shlex.split(command)
    found: dict[str, str | None] = {}
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            name, _, value = word.partition("=")
            found[name] = value or (None if after.startswith("--") else after)
    return found


def corrected(flags: frozenset[str] | None) -> str:
    """The article's command line without the flag that this vLLM does not have.

    Args:
        flags: flags of the installed vLLM; None if there is none, then as for a recent version.
    """
    words = [word for word in shlex.split(ARTICLE) if word != SCALES or (flags and SCALES in flags)]
    return shlex.join(words)


def _installed(env: Environment) -> str:
    origin = "the vLLM project's own" if env.package == "vllm" else THIRD_PARTY
    versions = ", ".join(f"{name} {version}" for name, version in env.versions.items())
    return f"{versions} ({origin}) in {env.python.parent.parent}"


def _device(env: Environment) -> str:
    text = f"{env.device}: kv_cache_dtype may be {', '.join(KV_DTYPES[env.device])}"
    if env.device == "cpu" and not features() & set(FP8_CPU):
        return f"{text}; this CPU has neither AVX-512 nor AMX: auto only"
    return text


def _entry(env: Environment) -> str:
    if env.package == "vllm":
        return "vllm serve MODEL"
    return (
        "python -m vllm.entrypoints.openai.api_server --model MODEL; its command `vllm` ends with"
        " PackageNotFoundError, because it looks for a package of that name"
    )


def _article(env: Environment | None, flags: frozenset[str] | None) -> Iterator[str]:
    yield f"article   {ARTICLE}"
    for name, value in flags_in(ARTICLE).items():
        flag = f"{name} {value}" if value else name
        if flags is None:
            known = "not checked, there is no vLLM here"
        else:
            assert env is not None
            known = f"{'known to' if name in flags else 'ERROR: not known to'} {env.package} {env.version}"
        note = REMOVED if name == SCALES and (flags is None or name not in flags) else NOTES.get(name)
        yield f"  {flag}: {known}{f'; {note}' if note else ''}"
    yield f"instead   {corrected(flags)}"
