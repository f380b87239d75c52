"""Experiment: vLLM's FP8 KV cache compared with its unquantised one."""

from pathlib import Path

from kvbench.config.compose import Composed
from kvbench.experiments.common import configuration, result
from kvbench.experiments.vllm_common import ServerRun
from kvbench.experiments.vllm_fp8 import report, run
from kvbench.experiments.vllm_fp8.calibration import with_checkpoints
from kvbench.experiments.vllm_fp8.config import Fp8Config
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Measures the missing rows, and writes table and figures."""
    cfg = configuration(composed, Fp8Config)
    server_run = ServerRun(cfg, run.VERSION, progress)
    prompts = server_run.prompts(cfg)
    rows = run.run(cfg, with_checkpoints(cfg, server_run), prompts, server_run.campaign)
    return result(report.write_report(Path(cfg.run_dir), rows, server_run.labels))
