"""`kvbench doctor --vllm`: the installed vLLM, and whether the article's or your own command line works with it."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator, Mapping, Sequence

from kvbench.config.cpuinfo import features
from kvbench.config.errors import UserError
from kvbench.config.secrets import masked
from kvbench.vllm import environment
from kvbench.vllm.config import KV_DTYPES, ServerConfig
from kvbench.vllm.environment import FP8_CPU, Environment
from kvbench.vllm.errors import ServingError
from kvbench.vllm.launcher import BLOCK, THIRD_PARTY

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


def report(python: str = ServerConfig.python, command: str | None = None) -> str:
    """The text of `kvbench doctor --vllm`.

    Args:
        python: the Python of vLLM's environment.
        command: a command line that starts a server; the article's if none.

    Raises:
        UserError: the command starts no vLLM server.
    """
    words = None if command is None else server_words(masked(command))
    try:
        env = environment.find(python)
        flags = env.engine_flags
    except ServingError as error:
        env, flags = None, None
        facts = [("vllm", f"none: {error}")]
    else:
        facts = [("vllm", _installed(env)), ("device", _device(env)), ("entry", _entry(env))]
    lines = [f"{name:<9} {text}" for name, text in facts]
    checked = _article(env, flags) if words is None else _own(words, env if flags is not None else None)
    return "\n".join([*lines, "", *checked])


def server_words(command: str) -> list[str]:
    """The words of a command line behind what starts the server.

    Raises:
        UserError: open quotes, or nothing that starts a vLLM server.
    """
    try:
        words = shlex.split(command.replace("\\\n", " "))
    except ValueError as error:
        raise UserError(f"--command: {error}") from None
    for place, word in enumerate(words):
        before = words[place - 1].rsplit("/", 1)[-1] if place else ""
        if word == "serve" and before == "vllm":
            # the model stands first
            rest = words[place + 1 :]
            return ["--model", *rest] if rest and not rest[0].startswith("-") else rest
        if word.endswith("api_server") or word.endswith("api_server.py") or "vllm-openai" in word:
            return words[place + 1 :]
    raise UserError("--command: give what starts a server, as 'vllm serve MODEL --max-model-len 8192'")


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


def _own(words: Sequence[str], env: Environment | None) -> Iterator[str]:
    """Every flag of a command line with what there is to say about it, and the command without unknown ones."""
    flags = flags_in(shlex.join(words))
    known = None if env is None else env.server_flags
    yield f"blocks    {_blocks(flags, env)}"
    if not flags:
        yield "command   it has no flags"
    unknown: set[str] = set()
    for name, value in flags.items():
        flag = f"{name} {value}" if value else name
        said = list(_about(name, value, env))
        if env is None or known is None:
            state = "not checked, there is no vLLM here"
        elif known_name(name, known):
            state = f"known to {env.package} {env.version}"
        else:
            unknown.add(name)
            state = f"ERROR: not known to {env.package} {env.version}"
            near = difflib.get_close_matches(name, known, n=1)
            said += [f"did you mean {near[0]}?"] if near and name != SCALES else []
        yield f"  {flag}: {'; '.join([state, *said])}"
    if unknown:
        yield f"instead   {shlex.join(_without(words, unknown))}"


def _blocks(flags: Mapping[str, str | None], env: Environment | None) -> str:
    """What can be found of a prefix that requests share."""
    plain = {name.replace("_", "-"): value for name, value in flags.items()}
    if "--no-enable-prefix-caching" in plain:
        return "prefix caching is off: nothing that requests share is found again"
    given = plain.get("--block-size")
    block = int(given) if given is not None and given.isdigit() else BLOCK[env.device if env else "cuda"]
    how = (
        ""
        if given is not None and given.isdigit()
        else ", the default here"
        if env
        else ", the default on a GPU"
    )
    return (
        f"prefixes are found in whole blocks of {block} tokens{how}: where requests share fewer, nothing is found,"
        " and no error says so"
    )


def known_name(name: str, known: frozenset[str]) -> bool:
    """Whether vLLM takes a flag, also with underscores, as `--no-FLAG`, or as `--FLAG.KEY` of a setting with keys."""
    plain = name.replace("_", "-").split(".")[0]
    return plain in known or (plain.startswith("--no-") and f"--{plain[5:]}" in known)


def _about(name: str, value: str | None, env: Environment | None) -> Iterator[str]:
    if name == SCALES and (env is None or SCALES not in env.server_flags):
        yield REMOVED
    if name == "--max-model-len":
        return
    if note := NOTES.get(name):
        yield note
    if env is None or value is None:
        return
    if name == "--kv-cache-dtype" and value not in KV_DTYPES[env.device]:
        yield f"ERROR: {value} is not for {env.device}, give {', '.join(KV_DTYPES[env.device])}"
    if name == "--block-size" and env.device == "cpu" and value.isdigit() and int(value) % 32:
        yield "ERROR: on a CPU it is a multiple of 32"


def _without(words: Sequence[str], names: set[str]) -> list[str]:
    """A command line without some flags and their values."""
    kept: list[str] = []
    dropped = False
    for word in words:
        if word.startswith("--"):
            dropped = word.split("=")[0] in names
            if not dropped:
                kept.append(word)
        elif not dropped:
            kept.append(word)
    return ["vllm", "serve", *(kept[1:] if kept[:1] == ["--model"] else kept)]


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
