"""Modelled time, memory and dollars of methods on devices; nothing is run."""

from pathlib import Path

from kvbench.config.compose import Composed
from kvbench.experiments.common import configuration, result
from kvbench.experiments.roofline.config import RooflineConfig
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Model every method; write CSV, table and figures.

    Returns:
        The table and the folder of the other files.
    """
    cfg = configuration(composed, RooflineConfig)
    # pandas, torch and matplotlib load only once the configuration is valid
    from kvbench.experiments.roofline.report import write_report
    from kvbench.experiments.roofline.run import scan

    return result(write_report(scan(cfg, progress), Path(cfg.run_dir)))
