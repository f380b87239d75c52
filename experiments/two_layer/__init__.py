"""Prompt caching at the API against a model of one's own on a rented device, on the same recorded sessions."""

from typing import Any

from kvbench.config.compose import Composed, own
from kvbench.config.typed import build
from kvbench.runs.config import expanded


def main(composed: Composed, progress: Any) -> str:
    """Write table, CSV and figure; returns the report and where it is."""
    from kvbench.experiments.two_layer import report
    from kvbench.experiments.two_layer.compare import compare
    from kvbench.experiments.two_layer.config import TwoLayerConfig

    methods, budget = expanded(composed.data, composed.config_dirs)
    found = {**own(composed, TwoLayerConfig), "method": methods, "budget": budget}
    cfg = build(TwoLayerConfig, {**found, "config_dirs": list(composed.config_dirs)})
    path = report.write(cfg, compare(cfg))
    return f"{path.read_text(encoding='utf-8')}\nwritten to {path.parent}"
