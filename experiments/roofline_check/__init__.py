"""The cost model's decode attention beside the measured one, on the device there is."""

from pathlib import Path

from kvbench.config.compose import Composed
from kvbench.experiments.common import configuration, result
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Measure what is missing; write table, CSV and figure; returns the table and where the rest is."""
    from kvbench.experiments.roofline import figures
    from kvbench.experiments.roofline_check.run import CheckConfig, check, markdown
    from kvbench.report.plots import save

    cfg = configuration(composed, CheckConfig)
    frame, folder = check(cfg), Path(cfg.run_dir)
    path = folder / "table.md"
    path.write_text(markdown(frame), encoding="utf-8")
    for model, rows in frame.groupby("model"):
        device = ", ".join(sorted(set(rows["device"])))
        note = (
            f"{model}, one sequence, bf16, on {device}. Medians, bands from the 20th to the 80th percentile."
        )
        save(figures.check(rows, note), folder / "figures", f"check.{model}")
    return result(path)
