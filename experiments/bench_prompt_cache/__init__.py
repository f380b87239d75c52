"""Speed of the prompt-cache simulator, loading included; generates sessions if no trace is given."""

from kvbench.config.compose import Composed
from kvbench.experiments.bench_prompt_cache.config import BenchConfig
from kvbench.experiments.common import configuration
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Measure with one block per content type and with 64-token blocks; write table.md and bench.csv.

    Returns:
        One line per measurement, and the folder of the files.
    """
    cfg = configuration(composed, BenchConfig)
    # pandas and matplotlib load only once the configuration is valid
    from kvbench.experiments.bench_prompt_cache.report import write_report
    from kvbench.experiments.bench_prompt_cache.run import measure_all

    speeds = measure_all(cfg, progress)
    return "\n".join([*map(str, speeds), f"written to {write_report(cfg, speeds)}"])
