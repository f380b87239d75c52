"""Modelled time, memory and dollars of methods on devices; nothing is run."""

from pathlib import Path

from kvbench.config.compose import Composed
from kvbench.experiments.common import configuration, result
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Write table, CSV and figures; returns the table and where the rest is."""
    from kvbench.experiments.roofline import figures
    from kvbench.experiments.roofline.run import RooflineConfig, markdown, scan
    from kvbench.report.plots import save

    cfg = configuration(composed, RooflineConfig)
    frame, folder = scan(cfg), Path(cfg.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "roofline.csv", index=False, float_format="%.6g")
    path = folder / "table.md"
    path.write_text(markdown(frame), encoding="utf-8")
    for model, rows in frame.groupby("model"):
        save(figures.step(rows), folder / "figures", f"step.{model}")
        if rows["usd_per_million_tokens_max"].notna().any():
            save(figures.dollars(rows), folder / "figures", f"dollars.{model}")
    return result(path)
