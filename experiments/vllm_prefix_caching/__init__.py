"""Automatic prefix caching of a vLLM server."""

import dataclasses
from pathlib import Path

from kvbench.config.compose import Composed
from kvbench.experiments.common import configuration, result
from kvbench.experiments.vllm_prefix_caching import report as prefix_report
from kvbench.experiments.vllm_prefix_caching import run as prefix
from kvbench.experiments.vllm_prefix_caching.run import PrefixConfig
from kvbench.models.fingerprint import fingerprint
from kvbench.models.load import locate
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Run what is not yet in the run's folder, and write table and figures."""
    cfg = configuration(composed, PrefixConfig)
    model = ""
    if not cfg.serving.base_url:
        folder = Path(cfg.serving.model) if cfg.serving.model else locate(cfg.model)
        model = fingerprint(folder)
        name = cfg.serving.served_model or cfg.model.name
        serving = dataclasses.replace(cfg.serving, model=str(folder), served_model=name)
        cfg = dataclasses.replace(cfg, serving=serving)
    path = prefix_report.write(Path(cfg.run_dir), prefix.run(cfg, model, progress))
    return result(path)
