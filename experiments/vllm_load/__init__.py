"""Experiment: latency and goodput of vLLM servers against the rate at which sessions arrive."""

from pathlib import Path

from kvbench.config.compose import Composed
from kvbench.experiments.common import configuration, result
from kvbench.experiments.vllm_common import ServerRun
from kvbench.experiments.vllm_load import report, run
from kvbench.experiments.vllm_load.config import LoadRunConfig
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Measures the missing rows, and writes table and figures."""
    cfg = configuration(composed, LoadRunConfig)
    server_run = ServerRun(cfg, run.VERSION, progress)
    rows = run.run(cfg, server_run.servers, run.make_load(cfg, server_run), server_run.campaign)
    return result(report.write_report(Path(cfg.run_dir), rows, server_run.labels))
