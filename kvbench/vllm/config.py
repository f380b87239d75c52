"""Configuration of a vLLM server: one that already runs, or one that kvbench starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvbench.config.errors import UserError

# with a dtype that a CPU does not support the server still starts, reports a larger cache and writes garbage
KV_DTYPES = {
    "cpu": ("auto", "fp8", "fp8_e4m3", "fp8_e5m2"),
    "cuda": ("auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"),
}
# flags that a typed setting covers; given as `flags` too, they would bypass the checks
TYPED_FLAGS = (
    "--model",
    "--served-model-name",
    "--host",
    "--port",
    "--dtype",
    "--kv-cache-dtype",
    "--calculate-kv-scales",
    "--block-size",
    "--kv-cache-memory-bytes",
    "--max-model-len",
    "--enable-prefix-caching",
    "--no-enable-prefix-caching",
)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """A vLLM server.

    Attributes:
        base_url: address of a running server, as http://127.0.0.1:8000; null starts one. The settings after
            `timeout` apply to a started server only.
        api_key_env: environment variable that holds the API key; null sends none.
        served_model: name of the model at the server. null: the only one a running server lists, or the folder's
            name for a started one.
        timeout: seconds for one whole answer.
        model: folder of a Hugging Face model; null is the embedded model.
        python: Python of vLLM's own environment.
        dtype: of the model; null is float32 on a CPU (bfloat16 loses small FP8 values there), else auto.
        kv_cache_dtype: of the KV cache.
        calculate_kv_scales: calibrate FP8 scales on the first batch; only for versions of vLLM that still have it.
        block_size: tokens per block of the KV cache; null is 32 on a CPU (its minimum), else 16.
        kv_cache_mib: memory of the KV cache.
        max_model_len: longest context.
        prefix_caching: automatic prefix caching.
        threads: threads of the model on a CPU; null is one.
        flags: further flags of the server.
        start_timeout: seconds within which a started server must be ready.
    """

    base_url: str | None = None
    api_key_env: str | None = None
    served_model: str | None = None
    timeout: float = 300.0
    model: str | None = None
    python: str = ".venv-vllm/bin/python"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    kv_cache_dtype: str = "auto"
    calculate_kv_scales: bool = False
    block_size: int | None = None
    kv_cache_mib: int = 512
    max_model_len: int = 4096
    prefix_caching: bool = True
    threads: int | None = None
    flags: tuple[str, ...] = ()
    start_timeout: float = 600.0

    def __post_init__(self) -> None:
        """Checks everything that does not depend on the machine.

        Raises:
            UserError: a value that is not allowed.
        """
        for name in ("kv_cache_mib", "max_model_len", "block_size", "threads", "timeout", "start_timeout"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name}: {value} is not allowed, give more than 0")
        for flag in self.flags:
            if flag.split("=")[0].replace("_", "-") in TYPED_FLAGS:
                raise UserError(f"flags: {flag} is set by a key, use one of {', '.join(_keys())}")


def _keys() -> list[str]:
    return [name for name in ServerConfig.__dataclass_fields__ if name not in ("flags", "base_url")]
