"""Decode attention, measured and modelled, on this machine."""

from pathlib import Path

from kvbench.config.compose import Composed
from kvbench.experiments.common import configuration, result
from kvbench.experiments.roofline_check.config import RooflineCheckConfig
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Measure the missing points; write CSV, table and figures.

    Returns:
        The table and the folder of the other files.
    """
    cfg = configuration(composed, RooflineCheckConfig)
    # pandas, torch and matplotlib load only once the configuration is valid
    from kvbench.experiments.roofline_check.report import write_report
    from kvbench.experiments.roofline_check.run import check

    return result(write_report(check(cfg, progress), Path(cfg.run_dir)))
