"""What calls to Claude cost, from files that hold usage and no prompts."""

from kvbench.config.compose import Composed
from kvbench.experiments.claude_bill.config import BillConfig
from kvbench.experiments.common import configuration, result
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Add up the calls; write tables and figures.

    Returns:
        The table and where the other files are.
    """
    cfg = configuration(composed, BillConfig)
    # pandas and matplotlib load only once the configuration is valid
    from kvbench.experiments.claude_bill.report import write_report

    return result(write_report(cfg, progress))
