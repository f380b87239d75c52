"""Prompt caching at the API against a model of one's own on a rented device, on the same recorded sessions."""

from kvbench.config.compose import Composed
from kvbench.experiments.common import configuration, result
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Write table, CSV and figure; returns the report and where it is."""
    from kvbench.experiments.two_layer import report
    from kvbench.experiments.two_layer.compare import compare
    from kvbench.experiments.two_layer.config import TwoLayerConfig

    cfg = configuration(composed, TwoLayerConfig)
    path = report.write(cfg, compare(cfg))
    return result(path)
