"""What to talk to: a server that runs already, or one that kvbench starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvbench.config.errors import UserError

# a dtype that a CPU does not know starts all the same, reports a larger cache and writes garbage
KV_DTYPES = {
    "cpu": ("auto", "fp8", "fp8_e4m3", "fp8_e5m2"),
    "cuda": ("auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"),
}
# what the typed settings stand for; given as flags as well, they would slip past the checks
OWN_FLAGS = (
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
class ServingConfig:
    """A vLLM server.

    Attributes:
        base_url: of a running server, as http://127.0.0.1:8000; null starts one. All that follows `timeout`
            is for one that is started.
        api_key_env: environment variable that holds the key for it; null sends none.
        served_model: name of the model at that server, null takes the only one it lists; of a started one, null
            is the folder's name.
        timeout: seconds for one whole answer.
        model: folder of a Hugging Face model; null is the embedded model.
        python: Python of vLLM's own environment.
        dtype: of the model; null is float32 on a CPU (bfloat16 loses small FP8 values there), else auto.
        kv_cache_dtype: of the KV cache.
        calculate_kv_scales: calibrate FP8 scales on the first batch; vLLM has removed it, only where it is left.
        block_size: tokens per block of the KV cache; null is 32 on a CPU (its smallest), else 16.
        kv_cache_mib: memory of the KV cache.
        max_model_len: longest context.
        prefix_caching: automatic prefix caching.
        threads: threads of the model on a CPU; null is one.
        flags: further flags of the server.
        start_timeout: seconds until a started server must be ready.
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
        """Checks what needs no knowledge of the machine.

        Raises:
            UserError: a value that makes no sense.
        """
        for name in ("kv_cache_mib", "max_model_len", "block_size", "threads", "timeout", "start_timeout"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name}: {value} is not allowed, give more than 0")
        for flag in self.flags:
            if flag.split("=")[0].replace("_", "-") in OWN_FLAGS:
                raise UserError(f"flags: {flag} has a key of its own, see {', '.join(_keys())}")


def _keys() -> list[str]:
    return [name for name in ServingConfig.__dataclass_fields__ if name not in ("flags", "base_url")]
