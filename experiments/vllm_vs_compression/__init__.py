"""Experiment: vLLM and compression methods in one table, on the same prompts."""

from kvbench.config.compose import Composed
from kvbench.experiments.common import result, with_failures
from kvbench.experiments.vllm_common import ServerRun
from kvbench.experiments.vllm_vs_compression import report, run
from kvbench.experiments.vllm_vs_compression.config import versus_config
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Measures the missing rows, and writes table and figures."""
    cfg = versus_config(composed)
    server_run = ServerRun(cfg.servers, run.VERSION, progress)
    prompts, servers = server_run.prompts(cfg.servers), server_run.servers
    accuracy, isolated, failures = run.run_methods(cfg, prompts, progress)
    served = run.run(servers, prompts, server_run.campaign)
    pool = servers[0].config.kv_cache_mib << 20
    text = result(report.write_report(cfg.folder, accuracy, isolated, served, server_run.labels, pool))
    return with_failures(text, failures, cfg.folder)
