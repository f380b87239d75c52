"""Prompt caching at the API compared with a self-hosted model on a rented device, on the same recorded sessions."""

from kvbench.config.compose import Composed
from kvbench.experiments.common import configuration, result
from kvbench.experiments.two_layer.config import TwoLayerConfig
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Price the sessions on both layers; write table, CSV and figure.

    Returns:
        The table and the folder of the other files.
    """
    cfg = configuration(composed, TwoLayerConfig)
    # pandas and matplotlib load only once the configuration is valid
    from kvbench.experiments.two_layer.compare import compare
    from kvbench.experiments.two_layer.report import write_report

    return result(write_report(cfg, compare(cfg, progress)))
