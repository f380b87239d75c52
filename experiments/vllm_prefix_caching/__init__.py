"""Experiment: automatic prefix caching of a vLLM server."""

from pathlib import Path

from kvbench.config.compose import Composed
from kvbench.experiments.common import configuration, result
from kvbench.experiments.vllm_prefix_caching import report, run
from kvbench.experiments.vllm_prefix_caching.config import PrefixConfig
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Measures the missing rows, and writes table and figures."""
    cfg = configuration(composed, PrefixConfig)
    return result(report.write_report(Path(cfg.run_dir), run.run(cfg, progress)))
