"""Experiment: an Agentic RAG on vLLM servers, by prompt layout."""

from pathlib import Path

from kvbench.config.compose import Composed
from kvbench.config.errors import UserError
from kvbench.experiments.common import configuration, result
from kvbench.experiments.vllm_common import ServerRun
from kvbench.experiments.vllm_rag import report
from kvbench.experiments.vllm_rag.config import RagRunConfig
from kvbench.runs.progress import ProgressFactory

EXTRA = "the Agentic-RAG workload needs the extra: pip install 'kvbench[serving]'"


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Measures the missing rows, and writes table and figures."""
    try:
        from kvbench.experiments.vllm_rag import run
    except ModuleNotFoundError as error:
        raise UserError(f"{EXTRA} ({error.name} is missing)") from None
    cfg = configuration(composed, RagRunConfig)
    server_run = ServerRun(cfg, run.VERSION, progress)
    rows = run.run(cfg, server_run.servers, server_run.campaign)
    return result(report.write_report(Path(cfg.run_dir), rows, server_run.labels))
